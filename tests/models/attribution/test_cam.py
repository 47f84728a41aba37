"""The CAM family against Captum and pytorch-grad-cam on the whole uncut networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from models.attribution.forward import run_forward
from models.attribution.registry import attribute, attribute_each
from models.attribution.result import classify_map
from models.attribution.targets import make_target
from models.backends.registry import create_backend
from models.errors import ExplanationError, UnknownChoice
from models.images.decode import read_image
from models.introspection.activations import collect_activations
from models.metrics.warnings import map_warnings
from models.networks.layouts import MAPS
from models.networks.registry import BACKBONES
from models.networks.transfer_model import TransferModel
from tests.support.networks import NETWORKS

CONVOLUTIONAL = [name for name, row in BACKBONES.items() if row.layout is MAPS]
TRANSFORMERS = [name for name in BACKBONES if name not in CONVOLUTIONAL]


@pytest.fixture(scope="module", params=NETWORKS)
def model(request, model_of):
    return model_of(request.param)


@pytest.fixture
def convolutional(model):
    if model.backbone.layout is not MAPS:
        pytest.skip("a transformer: Captum alone gives it no map; held by tests of its own")
    return model


def whole_model_map(model, x, block, index):
    """Captum on the whole uncut model, (rows, cols)."""
    whole = LayerGradCam(model, model.block(block)).attribute(x.clone().requires_grad_(), target=index)
    return whole[0, 0].detach().numpy()


def close(found, expected, relative):
    scale = float(np.abs(expected).max())
    assert scale > 0
    np.testing.assert_allclose(found, expected, atol=relative * scale)


def test_equal_to_captum_on_the_whole_uncut_model(convolutional, random_batch):
    model, x = convolutional, random_batch()
    for block in (model.cam_block, model.block_names[len(model.block_names) * 2 // 3]):
        for index in (3, 700):
            ours = attribute_each(run_forward(model, x, block=block), [index])[0]
            close(ours.values, whole_model_map(model, x, block, index), 1e-5)


def test_the_default_backend_is_equal_too(convolutional, random_batch):
    """Folding BatchNorm forms the sums in another order. With trained weights that stays within 1e-5; random
    ones amplify rounding from block to block, in a hundred layers to a few 1e-4.
    """
    model, x = convolutional, random_batch()
    backend = create_backend("eager", model, probe=x)
    ours = attribute_each(run_forward(backend.model, x, backend=backend), [3])[0]
    trained = model.backbone.name == "efficientnet_lite0"
    close(ours.values, whole_model_map(model, x, model.cam_block, 3), 1e-5 if trained else 1e-3)


def test_equal_to_pytorch_grad_cam_after_its_normalisation(convolutional, random_batch):
    model, x = convolutional, random_batch(seed=3)
    # Of a class with evidence: without any the peer gives a blank map, which correlates with nothing.
    for index in run_forward(model, x).logits[0].topk(2).indices.tolist():
        with GradCAM(model=model, target_layers=[model.block(model.cam_block)]) as peer:
            theirs = peer(input_tensor=x.clone().requires_grad_(), targets=[ClassifierOutputTarget(index)])[0]
        ours = attribute_each(run_forward(model, x), [index])[0]
        shown = scale_cam_image(scale_cam_image(np.maximum(ours.values, 0)[None], (224, 224)))[0]
        assert np.corrcoef(shown.ravel(), theirs.ravel())[0, 1] >= 0.9999


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_equal_the_formula_on_the_whole_model(name, model_of, random_batch):
    """Derived by a hook on the whole model and a reshape written for each by hand."""
    model, x = model_of(name), random_batch()
    kept = {}

    def keep(_module, _args, value):
        kept["value"] = value
        value.retain_grad()

    handle = model.block(model.cam_block).register_forward_hook(keep)
    model(x.clone().requires_grad_())[0, 11].backward()
    handle.remove()
    value, gradient = kept["value"].detach()[0], kept["value"].grad[0]
    if name == "vit_b_16":
        value, gradient = (each[1:].reshape(14, 14, 768) for each in (value, gradient))
    alpha = gradient.mean(dim=(0, 1))
    expected = (value * alpha).sum(-1).numpy()
    found = attribute_each(run_forward(model, x), [11])[0]
    assert found.values.shape == expected.shape
    close(found.values, expected, 1e-5)


def test_transformers_last_block_says_that_patches_have_no_gradient(model_of, random_batch):
    model = model_of("vit_b_16")
    found = attribute_each(run_forward(model, random_batch(), block="layers.11"), [3])[0]
    assert found.status == "no_gradient"


@pytest.mark.parametrize(
    ("method", "peer", "block"),
    [
        ("hires_cam", HiResCAM, "layer4.1"),
        ("hires_cam", HiResCAM, "layer3.0"),
        ("layer_cam", LayerCAM, "layer3.0"),
        ("layer_cam", LayerCAM, "layer4.1"),
        ("grad_cam_plus_plus", GradCAMPlusPlus, "layer4.1"),
    ],
)
def test_the_kin_equal_their_peers(method, peer, block, resnet18, random_batch):
    x = random_batch(seed=7)
    # The peer's Grad-CAM++ adds 1e-6 to its denominator, which is as large as squared gradients after a
    # pooling: it is asked at a head whose gradients are not small.
    model = TransferModel.create("resnet18", ["a", "b"], pretraining="none").eval()
    model.load_state_dict(
        {k: v for k, v in resnet18.state_dict().items() if "classifier" not in k}, strict=False
    )
    torch.nn.init.normal_(model.classifier.weight, std=20.0)
    with peer(model=model, target_layers=[model.block(block)]) as cam:
        theirs = cam(input_tensor=x.clone().requires_grad_(), targets=[ClassifierOutputTarget(1)])[0]
    ours = attribute_each(run_forward(model, x, block=block), [1], method=method)[0].values
    shown = scale_cam_image(scale_cam_image(np.maximum(ours, 0)[None], (224, 224)))[0]
    assert np.corrcoef(shown.ravel(), theirs.ravel())[0, 1] >= 0.9999


def test_grad_cam_plus_plus_by_higher_derivatives_of_the_exponential():
    """Its weights as the paper defines them, from second and third derivatives of exp(score), which for a
    linear tail are powers of the gradient.
    """
    torch.manual_seed(1)
    activation = torch.rand(3, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 2, dtype=torch.float64)
    score = torch.exp((activation * weight).sum())
    (first,) = torch.autograd.grad(score, activation, create_graph=True)
    second, third = torch.zeros(3, 2, 2), torch.zeros(3, 2, 2)
    for place in np.ndindex(3, 2, 2):
        (row,) = torch.autograd.grad(first[place], activation, create_graph=True)
        second[place] = row[place].detach()
        (next_row,) = torch.autograd.grad(row[place], activation, retain_graph=True)
        third[place] = next_row[place]
    total = activation.detach().sum(dim=(1, 2), keepdim=True)
    alpha = second / (2 * second + total * third)
    # The score's own factor exp(S) leaves alpha and the map's shape as they are.
    weights = (alpha * first.detach().clamp(min=0)).sum(dim=(1, 2), keepdim=True) / score.detach()
    expected = (weights * activation.detach()).sum(0)
    from models.attribution.cam import grad_cam_plus_plus

    class Linear:
        map = activation[None].float()

        def gradient(self, _targets):
            return weight[None].float()

    found = grad_cam_plus_plus(Linear(), []).maps
    torch.testing.assert_close(found[0], expected.float(), atol=1e-5, rtol=1e-4)


def test_grad_cam_plus_plus_stays_within_its_bounds_where_activations_are_signed(imagenet, random_batch):
    forward = run_forward(imagenet, random_batch(seed=7), block="stage5.2")
    found = attribute_each(forward, [3], method="grad_cam_plus_plus")[0]
    gradient = forward.gradient([make_target(imagenet.classes, 3)]).clamp(min=0)
    # No weight of a position exceeds half its gradient, so no map exceeds this.
    bound = (gradient.sum(dim=(2, 3), keepdim=True) / 2 * forward.map.detach().abs()).sum(1)
    assert (np.abs(found.values) <= bound[0].numpy() + 1e-6).all()
    assert 0.01 < found.settings["negative_activation"] < 1
    (caution,) = (text for text in map_warnings(found, 0.5) if "Grad-CAM++" in text)
    assert "stage5.2 is negative" in caution
    last = attribute_each(run_forward(imagenet, random_batch(seed=7)), [3], method="grad_cam_plus_plus")[0]
    assert last.settings["negative_activation"] == 0.0
    assert not [text for text in map_warnings(last, 0.5) if "Grad-CAM++" in text]


def test_equal_to_the_formula_by_plain_autograd(imagenet, random_batch):
    forward = run_forward(imagenet, random_batch(seed=4))
    activation = forward.map.detach().clone().requires_grad_()
    imagenet.after(imagenet.cam_block, activation)[0, 207].backward()
    alpha = activation.grad.mean(dim=(2, 3), keepdim=True)
    expected = (alpha * activation.detach()).sum(1)[0].numpy()
    np.testing.assert_allclose(attribute_each(forward, [207])[0].values, expected, atol=1e-6)


def test_on_a_pooled_last_block_all_is_class_activation_mapping(resnet18, random_batch):
    """Zhou et al. 2016: with average pooling and one linear layer the map is the weighted sum over h * w."""
    forward = run_forward(resnet18, random_batch(seed=5))
    weights = resnet18.classifier.weight[123]
    expected = torch.einsum("c,chw->hw", weights, forward.map[0].detach()) / 49
    for method in ("grad_cam", "hires_cam"):
        np.testing.assert_allclose(
            attribute_each(forward, [123], method=method)[0].values, expected.numpy(), atol=1e-6
        )


def test_a_contrast_is_the_difference_of_the_two_maps(imagenet, random_batch):
    forward = run_forward(imagenet, random_batch(seed=5))
    why_b_not_a = make_target(imagenet.classes, 9, 5)
    one, other, contrast = attribute(forward, [[9, 5, why_b_not_a]])[0]
    np.testing.assert_allclose(contrast.values, one.values - other.values, atol=1e-6)
    assert contrast.target.name == f"{imagenet.classes[9]}, not {imagenet.classes[5]}"


def test_many_targets_and_batches_equal_one_at_a_time(imagenet, random_batch):
    x = random_batch(3, seed=6)
    forward = run_forward(imagenet, x)
    together = attribute(forward, [[5, 9, 800]] * 3)
    for n in range(3):
        for place, index in enumerate((5, 9, 800)):
            alone = attribute_each(run_forward(imagenet, x[n : n + 1]), [index])[0]
            np.testing.assert_allclose(together[n][place].values, alone.values, atol=1e-5)
            assert (together[n][place].index, together[n][place].label) == (index, imagenet.classes[index])


def test_several_classes_run_the_tail_once(resnet18, random_batch, monkeypatch):
    """One forward for a prediction and five maps at a deep cut: every block runs once."""
    ran = []
    run_blocks = TransferModel.run_blocks

    def counted(self, x, start, stop):
        ran.append((start, stop))
        return run_blocks(self, x, start, stop)

    monkeypatch.setattr(TransferModel, "run_blocks", counted)
    attribute(run_forward(resnet18, random_batch(), block="layer2.1"), [[1, 2, 3, 4, 5]])
    once = [number for start, stop in ran for number in range(start, stop)]
    assert once == list(range(len(resnet18.block_names)))


def test_the_map_lies_on_the_animal(imagenet, photos):
    """Energy in the object's mask against the mask's area, on real photographs with the true class."""
    energies, areas = [], []
    for path in sorted((photos / "caltech_animals/val/flamingo").glob("*.jpg")):
        image = read_image(path)
        mask = read_image(photos / "caltech_animals/masks/val/flamingo" / f"{path.stem}.png").pil
        x, frame = imagenet.geometry.prepare(image)
        found = attribute_each(run_forward(imagenet, x[None]), [imagenet.classes.index("flamingo")])[0]
        laid = np.nan_to_num(frame.unwarp(found.positive()))
        inside = np.asarray(mask)[..., 0] > 127
        energies.append(laid[inside].sum() / max(laid.sum(), 1e-9))
        areas.append(inside[frame.seen()].mean())
    assert np.mean(energies) > np.mean(areas) + 0.15


def test_statuses_never_leave_a_blank_map_without_a_word():
    assert classify_map(np.array([[-1.0, -2.0]]))[0] == "no_positive_evidence"
    assert classify_map(np.zeros((2, 2)))[0] == "no_gradient"
    status, shown = classify_map(np.array([[np.nan, 1.0]]))
    assert status == "not_finite"
    assert np.isfinite(shown).all()
    assert classify_map(np.array([[-1.0, 0.5]]))[0] == "ok"


def test_a_dead_head_is_called_no_gradient(random_batch):
    model = TransferModel.create("resnet18", ["a", "b"], pretraining="none")
    torch.nn.init.zeros_(model.classifier.weight)
    found = attribute_each(run_forward(model, random_batch()), [0])[0]
    assert found.status == "no_gradient"
    assert not found.values.any()


def test_bad_requests_name_the_value_and_the_choices(imagenet, resnet18, random_batch):
    with pytest.raises(UnknownChoice, match="stage6"):
        run_forward(imagenet, random_batch(), block="layer4")
    with pytest.raises(ExplanationError, match="no map"):
        run_forward(imagenet, torch.zeros(1, 3, 32, 32))
    with pytest.raises(
        ExplanationError, match=r"inception_v3 was made for 299 x 299 pixels and cannot take 8 x 8"
    ):
        run_forward(
            TransferModel.create("inception_v3", ["a", "b"], pretraining="none"), torch.zeros(1, 3, 8, 8)
        )
    forward = run_forward(imagenet, random_batch())
    with pytest.raises(UnknownChoice, match="100000"):
        attribute_each(forward, [100_000])
    with pytest.raises(UnknownChoice, match="grad_cam, hires_cam"):
        attribute_each(forward, [1], method="lime")
    with pytest.raises(ExplanationError, match="needs two classes"):
        make_target(imagenet.classes, 4, 4)
    mobile = run_forward(
        TransferModel.create("mobilenet_v3_small", ["a", "b"], pretraining="none"), random_batch()
    )
    with pytest.raises(ExplanationError, match="Hardswish"):
        attribute_each(mobile, [1], method="guided_grad_cam")


def test_a_map_cannot_be_written_to(imagenet, random_batch):
    found = attribute_each(run_forward(imagenet, random_batch()), [1])[0]
    with pytest.raises(ValueError, match="read-only"):
        found.values[0, 0] = 1.0
    with pytest.raises(TypeError):
        found.settings["engine"] = "mine"


def test_activations_of_transformers_are_read_as_maps(model_of, random_batch):
    for name, block, shape in (
        ("vit_b_16", "layers.3", (768, 14, 14)),
        ("swin_t", "stage2.1", (192, 28, 28)),
    ):
        (found,) = collect_activations(model_of(name), random_batch(), blocks=[block], channels=2)
        assert found.shape == shape


def test_activations_are_what_the_blocks_give(imagenet, random_batch):
    x = random_batch(seed=8)
    found = collect_activations(imagenet, x, blocks=["top", "stem"], channels=3)
    assert [each.block for each in found] == ["stem", "top"]
    with torch.no_grad():
        value = imagenet.until("top", x)[0]
    top = found[1]
    assert top.shape == (1280, 7, 7)
    assert top.mean == pytest.approx(float(value.mean()), rel=1e-5)
    assert top.zero_share == pytest.approx(float((value == 0).float().mean()))
    strongest = value.mean(dim=(1, 2)).topk(3).indices.tolist()
    assert [channel.index for channel in top.strongest] == strongest
    np.testing.assert_array_equal(top.strongest[0].values, value[strongest[0]].numpy())
