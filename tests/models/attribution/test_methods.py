"""Every method of the table against a second derivation, and what all of them have in common."""

from __future__ import annotations

import copy
import pickle
import threading
from dataclasses import asdict, fields
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, GuidedBackprop, GuidedGradCam, IntegratedGradients, Occlusion
from torch import nn

from models.attribution.cells import average_cells, sum_cells
from models.attribution.forward import run_forward
from models.attribution.gradients import guided_gradient
from models.attribution.masking import covered_input
from models.attribution.parameters import PatchOcclusionParameters, RiseParameters
from models.attribution.perturbation import rise_masks, window_starts
from models.attribution.registry import METHODS, attribute, attribute_each, default_method
from models.attribution.scaling import attribute_scaled
from models.attribution.smoothing import Smoothing, attribute_smoothed
from models.attribution.targets import choose_targets, make_target
from models.backends.registry import create_backend
from models.errors import ConfigError, ExplanationError, UnknownChoice
from models.explainer import Explainer, ExplainOptions
from models.images.decode import read_image
from models.networks.predictions import Prediction
from tests.support.methods import FOR_MAPS, parameters_of


def out_of_place(network):
    """A copy that Captum can hook: its hooks fail on functions that work in place."""
    made = copy.deepcopy(network)
    for module in made.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return made


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn"])
def test_guided_gradients_equal_captums_where_captum_works(name, model_of, random_batch):
    model, x = model_of(name), random_batch(side=96)
    expected = GuidedBackprop(out_of_place(model)).attribute(x.clone().requires_grad_(), target=7)
    found = guided_gradient(model, x, [make_target(model.classes, 7)])
    torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=1e-4)


def test_guided_grad_cam_equals_captums(resnet18, random_batch):
    twin, x = out_of_place(resnet18), random_batch()
    expected = GuidedGradCam(twin, twin.block("layer4.1")).attribute(
        x.clone().requires_grad_(), target=7, interpolate_mode="bilinear"
    )
    found = attribute_each(
        run_forward(resnet18, x),
        [7],
        method="guided_grad_cam",
        parameters=parameters_of("guided_grad_cam", cell=1),
    )[0]
    np.testing.assert_allclose(
        found.values, expected.detach()[0].norm(dim=0).numpy(), atol=1e-5 * float(expected.abs().max())
    )


def test_relu6_follows_the_guided_rule_too(imagenet, random_batch):
    """Second derivation: each ReLU6 replaced by min(ReLU, 6), whose ReLU Captum can hook; Captum alone passes
    over ReLU6 and gives the plain gradient.
    """

    class Capped(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x):
            return self.relu(x).clamp(max=6.0)

    x = random_batch(side=96)
    twin = copy.deepcopy(imagenet)
    for parent in list(twin.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(parent, name, Capped())
    expected = GuidedBackprop(twin).attribute(x.clone().requires_grad_(), target=7).detach()
    found = guided_gradient(imagenet, x, [make_target(imagenet.classes, 7)])
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, atol=1e-5 * scale, rtol=1e-3)
    pixels_ = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(imagenet(pixels_)[0, 7], pixels_)
    assert not torch.allclose(found, plain, atol=1e-2 * scale)


def test_the_guided_rule_stays_in_its_thread(resnet18, random_batch):
    x = random_batch(side=96)

    def plain() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        with torch.enable_grad():
            (found,) = torch.autograd.grad(resnet18(leaf)[0, 7], leaf)
        return found

    expected, stop, wrong = plain(), threading.Event(), []

    def guided_all_the_time():
        while not stop.is_set():
            guided_gradient(resnet18, x, [make_target(resnet18.classes, 7)])

    other = threading.Thread(target=guided_all_the_time)
    other.start()
    for _ in range(20):
        wrong.append(not torch.equal(plain(), expected))
    stop.set()
    other.join()
    assert not any(wrong)


def test_integrated_gradients_add_up_to_the_rise_of_the_logit(imagenet, photos):
    path = sorted((photos / "hymenoptera/val/bees").glob("*.jpg"))[0]
    x = imagenet.geometry.prepare(read_image(path))[0][None]
    forward = run_forward(imagenet, x)
    top = int(forward.logits.argmax())
    found = attribute_each(
        forward,
        [top],
        method="integrated_gradients",
        parameters=parameters_of("integrated_gradients", steps=32, most_steps=512),
    )[0]
    with torch.no_grad():
        rise = float(forward.logits[0, top] - imagenet(torch.zeros_like(x))[0, top])
    assert found.values.shape == (28, 28)
    assert float(found.values.sum()) == pytest.approx(rise, abs=0.051 * abs(rise))
    assert found.block == "input"
    assert 32 <= found.settings["steps"] <= 512
    assert found.settings["rise"] == pytest.approx(rise, rel=1e-3)
    assert found.settings["residual"] <= 0.05


def test_integrated_gradients_that_miss_the_rise_say_so(imagenet, photos):
    path = sorted((photos / "hymenoptera/val/bees").glob("*.jpg"))[0]
    image = read_image(path)
    explainer = Explainer(imagenet)
    few = ExplainOptions(method="integrated_gradients", parameters={"steps": 1, "most_steps": 1})
    found = explainer.explain(image, few)
    residual = found.attributions[0].settings["residual"]
    assert residual > 0.1
    assert any(f"by {residual:.0%} of it after 2 steps" in text for text in found.warnings), found.warnings


def test_integrated_gradients_come_to_captums(resnet18, random_batch):
    """Another way of placing the steps, the same integral."""
    x = random_batch(seed=4, side=96)
    found = attribute_each(
        run_forward(resnet18, x), [7], method="integrated_gradients",
        parameters=parameters_of("integrated_gradients", steps=256, most_steps=512, cell=8),
    )[0]  # fmt: skip
    theirs = IntegratedGradients(resnet18).attribute(x, target=7, n_steps=256, internal_batch_size=16)
    expected = sum_cells(theirs.sum(1), 8)[0].detach().numpy()
    assert np.corrcoef(found.values.ravel(), expected.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(("length", "side", "stride"), [(224, 48, 24), (32, 8, 8), (33, 10, 7), (9, 9, 4)])
def test_windows_are_whole_and_reach_from_edge_to_edge(length, side, stride):
    starts = window_starts(length, side, stride)
    assert starts[0] == 0
    assert starts[-1] + side == length
    assert all(0 < after - before <= min(stride, side) for before, after in pairwise(starts))


def test_patch_occlusion_equals_captums_feature_ablation_with_the_same_cover(resnet18, random_batch):
    x = random_batch(seed=3)
    parameters = PatchOcclusionParameters(patches=7, cell=32)
    found = attribute_each(run_forward(resnet18, x), [7], method="patch_occlusion", parameters=parameters)[0]
    row = torch.arange(224) // 32
    parts = row[:, None] * 7 + row
    cover = (covered_input(x, "blur") + covered_input(x, "mean")) / 2
    theirs = FeatureAblation(resnet18).attribute(x, baselines=cover, target=7, feature_mask=parts[None, None])
    expected = theirs[0, 0, ::32, ::32].numpy()
    np.testing.assert_allclose(found.values, expected, atol=1e-4 * np.abs(expected).max())
    assert METHODS["patch_occlusion"].count_forwards(PatchOcclusionParameters(), 3, 224, 224) == 37


def test_occlusion_equals_captums_where_its_windows_fit(resnet18, random_batch):
    x = random_batch(seed=3)
    found = attribute_each(
        run_forward(resnet18, x), [7], method="occlusion",
        parameters=parameters_of("occlusion", window=56, stride=28, cell=28),
    )[0]  # fmt: skip
    theirs = Occlusion(resnet18).attribute(
        x, target=7, sliding_window_shapes=(3, 56, 56), strides=(3, 28, 28), perturbations_per_eval=8
    )
    expected = average_cells(theirs.mean(1), 28)[0].numpy()
    np.testing.assert_allclose(found.values, expected, atol=1e-4)


def test_a_class_that_lost_is_drawn_faint_by_every_method(imagenet, photos):
    """Each method's map of a class that has no chance, beside the winner's."""
    path = sorted((photos / "hymenoptera/val/bees").glob("*.jpg"))[0]
    x = imagenet.geometry.prepare(read_image(path))[0][None]
    forward = run_forward(imagenet, x)
    lowest = make_target(imagenet.classes, int(forward.logits[0].argmin()))
    for name in ("grad_cam", "guided_grad_cam", "integrated_gradients", "occlusion", "rise"):
        quick = METHODS[name].parameters.from_names({}, quick=True)
        ((maps, scale),) = attribute_scaled(forward, [[lowest]], method=name, parameters=quick)
        top = make_target(imagenet.classes, int(forward.logits[0].argmax()))
        ((winners, _),) = attribute_scaled(forward, [[top]], method=name, parameters=quick)
        assert len(maps) == 1
        assert scale == pytest.approx(max(maps[0].full_scale, winners[0].full_scale)), name


def test_integrated_gradients_of_a_linear_model_are_gradient_times_input(watcher, random_batch):
    model = watcher((8, 8, 16, 16))
    x = random_batch(side=32)
    found = attribute_each(
        run_forward(model, x),
        [1],
        method="integrated_gradients",
        parameters=parameters_of("integrated_gradients", steps=4, most_steps=8, cell=1),
    )[0]
    weight = model.blocks["see"].mask[0, 0] * 40.0 / (32 * 32 * 3)
    np.testing.assert_allclose(found.values, (x[0].sum(0) * weight).numpy(), atol=1e-5)


def test_occlusion_is_the_logit_lost_under_each_window(watcher):
    model = watcher((8, 8, 16, 16))
    x = torch.full((1, 3, 32, 32), 0.5)
    found = attribute_each(
        run_forward(model, x),
        [1],
        method="occlusion",
        parameters=parameters_of("occlusion", window=8, stride=8, cell=8),
    )[0]
    with torch.no_grad():
        whole = model(x)[0, 1]
        for row in range(4):
            for col in range(4):
                covered = x.clone()
                covered[:, :, row * 8 : row * 8 + 8, col * 8 : col * 8 + 8] = 0
                assert found.values[row, col] == pytest.approx(float(whole - model(covered)[0, 1]), abs=1e-5)
    assert np.argwhere(found.values > 1e-6).tolist() == [[1, 1]]


def test_rise_finds_what_the_score_hangs_on(watcher):
    model = watcher((4, 20, 12, 28))
    x = torch.full((1, 3, 32, 32), 0.5)
    found = attribute_each(
        run_forward(model, x),
        [1],
        method="rise",
        parameters=parameters_of("rise", masks=1500, cells=8, cell=1),
    )[0]
    hottest = np.unravel_index(found.values.argmax(), found.values.shape)
    assert 20 <= hottest[0] < 28
    assert 4 <= hottest[1] < 12
    inside = found.values[20:28, 4:12].mean()
    assert inside > 5 * np.abs(found.values[:16, 16:]).mean()
    assert found.unit == "score"


def test_rise_is_the_slope_of_score_against_visibility(watcher):
    """Second derivation, pixel by pixel: the least-squares slope of the score on the mask."""
    model = watcher((4, 4, 12, 12))
    parameters = RiseParameters(masks=64, cells=4, cell=1, seed=3)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    found = attribute_each(run_forward(model, x), [1], method="rise", parameters=parameters)[0].values
    masks = rise_masks(32, 32, parameters)
    with torch.no_grad():
        scores = torch.softmax(model(x * masks[:, None]).double(), dim=1)[:, 1].numpy()
    for place in ((0, 0), (7, 9), (30, 17)):
        seen = masks[:, place[0], place[1]].double().numpy()
        assert found[place] == pytest.approx(np.polyfit(seen, scores, 1)[0], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (224, 160)])
def test_rise_masks_fit_any_picture(size):
    masks = rise_masks(*size, RiseParameters(masks=200))
    assert masks.shape == (200, *size)
    assert float(masks.min()) >= 0
    assert float(masks.max()) <= 1
    assert float(masks.mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("shape", "side"), [((224, 224), 8), ((299, 211), 8), ((5, 7), 3)])
def test_cells_keep_sums_and_means(shape, side):
    maps = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    sums = sum_cells(maps, side)
    torch.testing.assert_close(sums.sum(dim=(1, 2)), maps.sum(dim=(1, 2)), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(average_cells(torch.ones(1, *shape), side), torch.ones(1, *sums.shape[1:]))
    if shape == (224, 224):
        by_hand = maps.reshape(2, 28, 8, 28, 8).sum(dim=(2, 4))
        torch.testing.assert_close(sums, by_hand, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", FOR_MAPS)
def test_every_method_is_deterministic_and_says_what_it_did(method, imagenet, random_batch):
    quick = {"steps": 4, "most_steps": 8, "window": 112, "stride": 56, "masks": 8}
    forward = run_forward(imagenet, random_batch(2, seed=3))
    one, two = (
        attribute(forward, [[5, 9], [5, 9]], method=method, parameters=parameters_of(method, **quick))
        for _ in range(2)
    )
    for first, second in zip(chain(*one), chain(*two), strict=True):
        np.testing.assert_array_equal(first.values, second.values)
        assert (first.method, first.target) == (method, second.target)
        assert {item.name for item in fields(METHODS[method].parameters)} <= set(first.settings)
        assert first.settings["engine"] == "eager"
        assert np.isfinite(first.values).all()
    assert METHODS[method].good_for
    assert METHODS[method].misleads


@pytest.mark.parametrize("method", FOR_MAPS)
def test_every_method_takes_pictures_that_are_not_square(method, imagenet):
    quick = {"steps": 2, "most_steps": 4, "window": 96, "stride": 64, "masks": 4}
    x = torch.randn(1, 3, 160, 256, generator=torch.Generator().manual_seed(4))
    found = attribute_each(
        run_forward(imagenet, x), [5], method=method, parameters=parameters_of(method, **quick)
    )[0]
    assert found.values.shape == ((5, 8) if METHODS[method].grid == "block" else (20, 32))


def test_flips_average_the_map_with_the_mirror_images_map_turned_back(watcher):
    model = watcher((4, 4, 12, 12))
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    found = attribute_smoothed(run_forward(model, x), [[1]], Smoothing(flip=True))[0][0]
    plain = attribute_each(run_forward(model, x), [1])[0].values
    mirrored = attribute_each(run_forward(model, x.flip(3)), [1])[0].values[:, ::-1]
    np.testing.assert_allclose(found.values, (plain + mirrored) / 2, atol=1e-6)
    assert found.settings["averaged"] == 2


def test_noise_is_seeded_and_a_steady_map_survives_it(imagenet, photos):
    path = sorted((photos / "caltech_animals/val/flamingo").glob("*.jpg"))[1]
    forward = run_forward(imagenet, imagenet.geometry.prepare(read_image(path))[0][None])
    top = int(forward.logits.argmax())
    how = Smoothing(noise=0.05, samples=4, seed=2)
    one, two = (attribute_smoothed(forward, [[top]], how)[0][0] for _ in range(2))
    np.testing.assert_array_equal(one.values, two.values)
    plain = attribute_each(forward, [top])[0]
    assert not np.array_equal(one.values, plain.values)
    assert np.corrcoef(one.values.ravel(), plain.values.ravel())[0, 1] > 0.8
    for wrong in ({"noise": -0.1}, {"noise": 3.0}, {"samples": 0}):
        with pytest.raises(ConfigError, match="must be from"):
            Smoothing(**wrong)


def test_noise_does_not_hang_on_a_pictures_neighbours(imagenet, random_batch):
    xs = random_batch(3, seed=9, side=96)
    how = Smoothing(noise=0.1, samples=2)
    together = attribute_smoothed(run_forward(imagenet, xs), [[5]] * 3, how)
    alone = attribute_smoothed(run_forward(imagenet, xs[2:]), [[5]], how)
    np.testing.assert_allclose(together[2][0].values, alone[0][0].values, atol=1e-5)


def test_an_attribution_is_a_value(imagenet, random_batch):
    one, two = (attribute_each(run_forward(imagenet, random_batch(side=96)), [5])[0] for _ in range(2))
    other = attribute_each(run_forward(imagenet, random_batch(side=96)), [6])[0]
    assert one == two
    assert hash(one) == hash(two)
    assert one != other
    assert pickle.loads(pickle.dumps(one)) == one
    assert copy.deepcopy(one) == one
    assert asdict(one)["settings"]["engine"] == "eager"


def test_scores_can_be_derived_also_where_autograd_is_off(imagenet, random_batch):
    with torch.no_grad():
        forward = run_forward(imagenet, random_batch(side=96))
        for method in ("grad_cam", "hires_cam", "layer_cam", "grad_cam_plus_plus", "guided_grad_cam"):
            assert attribute_each(forward, [5], method=method)[0].values.any(), method


def test_a_map_says_what_really_computed_it(imagenet, random_batch):
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'camera-lucida[fast]'")
    x = random_batch()
    backend = create_backend("openvino", imagenet, probe=x)
    quick = {"steps": 2, "window": 112, "stride": 112, "masks": 4}
    ran = {}
    for method in ("grad_cam", "rise", "integrated_gradients"):
        (found,) = attribute_each(
            run_forward(imagenet, x, backend=backend),
            [5],
            method=method,
            parameters=parameters_of(method, **quick),
        )
        ran[method] = found.settings["engine"]
    (deep,) = attribute_each(run_forward(imagenet, x, block="stage5.2", backend=backend), [5])
    assert ran == {"grad_cam": "openvino", "rise": "openvino", "integrated_gradients": "eager"}
    assert deep.settings["engine"] == "eager"


def test_the_scale_is_the_predicted_classs_where_that_is_cheap(imagenet, photos):
    path = sorted((photos / "hymenoptera/val/bees").glob("*.jpg"))[0]
    forward = run_forward(imagenet, imagenet.geometry.prepare(read_image(path))[0][None])
    top, loser = forward.logits[0].topk(40).indices[[0, 39]].tolist()
    ((maps, scale),) = attribute_scaled(forward, [[make_target(imagenet.classes, loser)]])
    (own,) = attribute_each(forward, [top])
    assert [each.index for each in maps] == [loser]
    assert scale == pytest.approx(max(own.maximum, maps[0].maximum))
    assert default_method({"grad_cam": "no"}) == "hires_cam"
    assert default_method(list(METHODS)) is None


def test_targets_by_name_by_rank_and_by_contrast():
    classes = ["ant", "bee", "wasp"]
    ranking = [Prediction(name, classes.index(name), score, False) for name, score in
               (("bee", 0.6), ("ant", 0.3), ("wasp", 0.1))]  # fmt: skip
    assert [each.name for each in choose_targets(classes, ranking)] == ["bee"]
    assert [each.name for each in choose_targets(classes, ranking, top_k=2)] == ["bee", "ant"]
    assert [each.name for each in choose_targets(classes, ranking, name="wasp")] == ["wasp"]
    assert [each.name for each in choose_targets(classes, ranking, against="ant")] == ["bee, not ant"]
    assert [each.name for each in choose_targets(classes, ranking, against="bee")] == ["ant, not bee"]
    assert [each.name for each in choose_targets(classes, ranking, name="wasp", against="bee")] == [
        "wasp, not bee"
    ]
    with pytest.raises(ExplanationError, match="two classes"):
        choose_targets(classes, ranking, name="bee", against="bee")
    with pytest.raises(UnknownChoice, match="ant, bee, wasp"):
        choose_targets(classes, ranking, against="fly")
