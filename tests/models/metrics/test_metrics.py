"""How far to trust a map: each check against cases whose answer is known."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from models.attribution.cells import average_cells
from models.attribution.forward import run_forward
from models.attribution.masking import covered_input
from models.attribution.registry import METHODS, Method, attribute_each
from models.attribution.result import make_attribution
from models.attribution.targets import Target, make_target
from models.backends.eager import EagerBackend
from models.backends.registry import create_backend
from models.cancellation import Deadline, check_deadline, current_deadline, deadline_scope, time_share
from models.errors import BundleError, Cancelled, DeadlineExceeded, ExplanationError, UnknownChoice
from models.images.decode import image_from_array, read_image
from models.images.frame import Frame
from models.introspection.cover_test import limit_size, mask_from_box, mask_from_map, run_cover_test
from models.method_checks import RandomizationCheck
from models.metrics.agreement import measure_agreement, rank_correlation, resample_map
from models.metrics.audit import AUDIT_CHECKS, run_audit
from models.metrics.control_maps import (
    centre_spot,
    edge_map,
    make_control_maps,
    random_surrogates,
    select_bank,
)
from models.metrics.faithfulness import (
    Rank,
    _pixel_order,
    measure_faithfulness,
    patch_losses,
    rank_patches,
)
from models.metrics.layer_sweep import SweepStage, stage_ends, sweep_layers
from models.metrics.localization import localize, mean_localization
from models.metrics.randomization import _similarities, _verdict, check_randomization, shuffle_weights
from models.metrics.stability import run_shift_test
from models.metrics.warnings import audit_border, image_warnings, map_warnings
from models.networks.scoring import Scoring
from models.networks.transfer_model import HEAD

BRIGHT = Target(1, "bright")


def made(values, method="grad_cam", block="b"):
    return make_attribution(BRIGHT, np.array(values, np.float32), method=method, block=block)


def picture_with_spot(box, side=32):
    pixels = np.full((side, side, 3), 90, np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = 255
    return image_from_array(pixels)


@pytest.fixture(scope="module")
def spot(watcher):
    """(engine, tensor, true map) of a model that watches one corner, which is bright."""
    box = (4, 20, 12, 28)
    backend = EagerBackend(watcher(box))
    x, _ = backend.model.geometry.prepare(picture_with_spot(box))
    return backend, x, attribute_each(run_forward(backend.model, x[None]), [1])[0]


# ---------------------------------------------------------------- faithfulness


def test_a_true_map_beats_its_controls_and_a_false_one_does_not(spot):
    backend, x, true = spot
    found = measure_faithfulness(backend, x, true, cover="mean")
    assert found.percentile == 100.0
    assert found.score > found.centre
    assert found.verdict.startswith("The model reacts to what the map marks, more than to 100 %")
    false = replace(true, values=np.ascontiguousarray(true.values[::-1, ::-1]))
    wrong = measure_faithfulness(backend, x, false, cover="mean")
    assert wrong.percentile < 75
    assert "to other places" in wrong.verdict
    assert "middle of the picture does as well" in wrong.verdict


def test_a_map_of_all_but_what_counts_is_told_to_do_worse_than_its_controls(spot):
    backend, x, true = spot
    found = measure_faithfulness(backend, x, replace(true, values=1 - true.values), cover="mean")
    assert found.percentile == 0.0
    assert found.verdict.startswith("The model reacts less to what the map marks than to other places")


def test_few_controls_never_give_the_surest_words(spot):
    backend, x, true = spot
    found = measure_faithfulness(backend, x, true, control_maps=9, cover="mean")
    assert found.percentile == 100.0
    assert found.verdict.startswith("The model reacts somewhat more")
    assert Rank(1.0, (0.0,) * 19).level == 2
    assert Rank(1.0, (0.0,) * 18).level == 1
    assert Rank(0.5, tuple(np.linspace(0, 1, 19))).level == 0
    assert Rank(-1.0, (0.0,) * 19).level == -1


def test_two_tests_that_come_to_different_ends_are_said_to_disagree(spot):
    backend, x, true = spot
    found = measure_faithfulness(backend, x, true, cover="mean")
    assert not found.disagree
    contrary = replace(found, single=Rank(-0.5, found.single.controls))
    assert contrary.disagree
    assert "The two tests disagree" in contrary.verdict


def test_single_deletion_is_the_logit_lost_under_each_patch(spot):
    backend, x, true = spot
    lost = patch_losses(backend, x, true.target, "mean")
    assert lost.shape == (7, 7)
    mean = covered_input(x[None], "mean")[0]
    covered = x.clone()
    # 32 pixels in seven patches of five, evenly from edge to edge: they begin at 0, 4, 9, 14, 18, 22, 27.
    covered[:, 22:27, 4:9] = mean[:, 22:27, 4:9]
    with torch.no_grad():
        logits = backend.model(torch.stack([x, covered]))[:, 1]
    assert float(logits[0] - logits[1]) > 0
    assert lost[5, 1] == pytest.approx(float(logits[0] - logits[1]), abs=1e-5)
    assert rank_patches(true.values, lost) > 0.3
    assert rank_patches(np.ones((7, 7), np.float32), lost) == 0.0


def test_equal_values_are_covered_in_a_random_order():
    orders = [_pixel_order(np.zeros((7, 7), np.float32), (32, 32), seed) for seed in (1, 1, 2)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    first = (orders[0] < 0.25).float()
    quarters = [first[row : row + 16, col : col + 16].mean() for row in (0, 16) for col in (0, 16)]
    assert max(quarters) < 0.4, "no corner is covered first"


def test_controls_are_the_pictures_own_and_not_its_map():
    rng = np.random.default_rng(0)
    bank = rng.random((20, 7, 7)).astype(np.float32)
    grid = bank[3]
    controls = make_control_maps(grid, bank, 18, seed=5)
    assert len(controls) == 18
    assert not any(np.allclose(item, grid) for item in controls), "its own map is none of them"
    others = [item for item in controls if any(np.array_equal(item, other) for other in bank)]
    mirrored = [item for item in controls if any(np.array_equal(item[:, ::-1], other) for other in bank)]
    assert len(others) >= 6
    assert len(mirrored) >= 5
    assert any(np.array_equal(item, grid[:, ::-1]) for item in controls)
    again = make_control_maps(grid, bank, 18, seed=5)
    assert all(np.array_equal(one, other) for one, other in zip(controls, again, strict=True))
    moved = make_control_maps(grid, bank, 18, seed=6)
    assert not all(np.array_equal(one, other) for one, other in zip(controls, moved, strict=True))
    assert make_control_maps(np.ones((28, 28), np.float32), bank, 3, seed=0)[0].shape == (28, 28)


def test_the_pictures_edges_by_sobels_operator_are_a_control():
    rng = np.random.default_rng(1)
    x = rng.random((3, 28, 28)).astype(np.float32)
    grey = x.mean(0)
    strength = np.hypot(*(scipy.ndimage.sobel(grey, axis=axis, mode="nearest") for axis in (0, 1)))
    edges = edge_map(torch.from_numpy(x), (7, 7))
    np.testing.assert_allclose(edges, strength.reshape(7, 4, 7, 4).mean((1, 3)), rtol=1e-4)
    grid = rng.random((7, 7)).astype(np.float32)
    controls = make_control_maps(grid, None, 40, seed=0, edges=edges)
    assert sum(np.array_equal(item, edges) for item in controls) == 1
    assert sum(np.array_equal(item, grid[:, ::-1]) for item in controls) == 1


def test_a_bank_is_small_and_of_many_maps():
    maps = [np.full((64, 7), n, np.float32) for n in range(1, 101)]
    bank = select_bank(maps)
    assert bank.shape == (32, 32, 7)
    assert bank.max() == pytest.approx(1.0)
    assert select_bank([]) is None


def test_the_curves_begin_and_end_with_the_picture_and_its_cover(spot):
    backend, x, true = spot
    found = measure_faithfulness(backend, x, true, steps=4, control_maps=2)
    with torch.no_grad():
        whole = float(backend.model.scoring.scores(backend.model(x[None]))[0, 1])
        covered = float(backend.model.scoring.scores(backend.model(covered_input(x[None], "blur")))[0, 1])
    assert found.deletion.shares == pytest.approx((0, 0.25, 0.5, 0.75, 1))
    assert found.deletion.scores[0] == pytest.approx(whole)
    assert found.insertion.scores[-1] == pytest.approx(whole)
    assert found.deletion.scores[-1] == pytest.approx(covered)
    assert found.insertion.scores[0] == pytest.approx(covered)
    by_hand = sum(
        (a + b) / 2 * 0.25 for a, b in zip(found.deletion.scores, found.deletion.scores[1:], strict=False)
    )
    assert found.deletion.area == pytest.approx(by_hand)


def test_deletion_covers_the_strongest_first_by_hand(spot):
    backend, x, true = spot
    found = measure_faithfulness(backend, x, true, steps=8, control_maps=1, cover="mean")
    order = np.argsort(-true.values.ravel(), kind="stable")
    mean = covered_input(x[None], "mean")[0]
    covered = x.clone().flatten(1)
    first = order[: 32 * 32 // 8]
    covered[:, first] = mean.flatten(1)[:, first]
    with torch.no_grad():
        score = backend.model.scoring.scores(backend.model(covered.view(1, 3, 32, 32)))[0, 1]
    assert found.deletion.scores[1] == pytest.approx(float(score), abs=1e-6)


def test_random_surrogates_are_as_smooth_as_the_map_and_not_the_map():
    grid = np.add.outer(np.arange(7.0), np.arange(9.0) ** 2).astype(np.float32)
    for other in random_surrogates(grid, 5, seed=1):
        assert other.shape == grid.shape
        np.testing.assert_allclose(
            np.abs(np.fft.fft2(other)), np.abs(np.fft.fft2(grid)), rtol=1e-3, atol=1e-2
        )
        assert other.mean() == pytest.approx(grid.mean(), rel=1e-4)
        assert abs(np.corrcoef(grid.ravel(), other.ravel())[0, 1]) < 0.95
    again = random_surrogates(grid, 5, seed=1)
    np.testing.assert_array_equal(again[4], random_surrogates(grid, 5, seed=1)[4])
    assert not np.array_equal(again[0], random_surrogates(grid, 1, seed=2)[0])


@pytest.mark.soak
def test_maps_that_know_nothing_of_a_picture_land_in_the_middle_of_their_controls(imagenet, photos):
    """A mirrored map, that of another picture and a spot, beside the true one, over 8 photographs."""
    files = sorted((photos / "caltech_animals").rglob("*.jpg"))
    paths = [files[place] for place in np.random.default_rng(0).permutation(len(files))[:28]]
    backend = create_backend("auto", imagenet, probe=torch.zeros(1, 3, 224, 224), threads=2)
    inputs = [imagenet.geometry.prepare(read_image(path))[0] for path in paths]
    maps = []
    for x in inputs:
        forward = run_forward(imagenet, x[None], backend=backend)
        maps += attribute_each(forward, [int(forward.logits.argmax())])
    bank = select_bank([item.values for item in maps[8:]])
    percentiles: dict[str, list[float]] = {"true": [], "mirrored": [], "foreign": [], "centred": []}
    for n in range(8):
        own = maps[n].values
        candidates = (own, own[:, ::-1], maps[(n + 4) % 8].values, centre_spot(own.shape) ** 2)
        for kind, values in zip(percentiles, candidates, strict=True):
            judged = replace(maps[n], values=np.ascontiguousarray(values, np.float32))
            result = measure_faithfulness(backend, inputs[n], judged, bank=bank, steps=5, batch=32)
            percentiles[kind].append(result.percentile)
    means = {kind: np.mean(values) for kind, values in percentiles.items()}
    assert means["true"] > 70, means
    for kind in ("mirrored", "foreign", "centred"):
        assert 25 < means[kind] < min(75, means["true"]), means


def test_an_empty_map_is_not_judged_and_counts_have_limits(spot):
    backend, x, true = spot
    with pytest.raises(ExplanationError, match="no map to judge"):
        measure_faithfulness(backend, x, made([[-1.0, -1.0], [-1.0, -2.0]]))
    with pytest.raises(UnknownChoice, match="blur, mean"):
        measure_faithfulness(backend, x, true, cover="black")
    with pytest.raises(ValueError, match="steps"):
        measure_faithfulness(backend, x, true, steps=1)


# ---------------------------------------------------------------- agreement


def test_rank_correlation_is_spearmans_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = rng.integers(0, 6, (2, 5, 7)).astype(np.float32)
        expected = scipy.stats.spearmanr(one.ravel(), other.ravel()).statistic
        assert rank_correlation(one, other) == pytest.approx(expected, abs=1e-9)
    assert rank_correlation(np.ones((3, 3)), np.eye(3)) == 0.0


def test_agreement_of_equal_opposite_and_finer_maps():
    values = np.arange(16.0).reshape(4, 4)
    finer = np.kron(values, np.ones((2, 2)))
    found = measure_agreement([made(values), made(finer, "occlusion"), made(-values, "rise")])
    assert found.correlations[0][1] == pytest.approx(1.0)
    assert found.correlations[0][2] == pytest.approx(-1.0)
    assert found.mean == pytest.approx(-1 / 3)
    assert "disagree" in found.verdict
    assert "much the same" in measure_agreement([made(values), made(finer)]).verdict
    np.testing.assert_allclose(resample_map(finer.astype(np.float32), (4, 4)), values)
    with pytest.raises(ValueError, match="two or more"):
        measure_agreement([made(values)])


# ---------------------------------------------------------------- sanity


def test_shuffling_changes_only_what_it_should_and_keeps_every_value(resnet18):
    before = {key: value.clone() for key, value in resnet18.state_dict().items()}
    part = shuffle_weights(resnet18, "layer4.0", seed=1)
    for key, value in resnet18.state_dict().items():
        assert torch.equal(before[key], value), "the model itself stays"
        other = part.state_dict()[key]
        if (
            key.startswith(("blocks.layer4", "classifier"))
            and value.is_floating_point()
            and "running" not in key
        ):
            assert torch.equal(value.flatten().sort().values, other.flatten().sort().values), key
        else:
            assert torch.equal(value, other), key
    assert not torch.equal(part.classifier.weight, resnet18.classifier.weight)
    head = shuffle_weights(resnet18, HEAD, seed=1)
    assert torch.equal(
        head.state_dict()["blocks.layer4_1.conv2.weight"], before["blocks.layer4_1.conv2.weight"]
    )


def test_grad_cam_depends_on_the_weights_and_an_edge_detector_does_not(imagenet, photos, monkeypatch):
    paths = sorted((photos / "caltech_animals/val/elephant").glob("*.jpg"))[:3]
    x = torch.stack([imagenet.geometry.prepare(read_image(path))[0] for path in paths])

    def edges(forward, rows, _):
        return [average_cells(forward.x.diff(dim=2)[:, :, :, :-1].abs().sum(1), 8) for _ in rows]

    method = Method(
        name="edges", title="Edges", run=edges, grid="input", reads_block=False, good_for="-", misleads="-",
        count_forwards=lambda parameters, targets, height, width: 1,
    )  # fmt: skip
    table = {**METHODS, "edges": method}
    monkeypatch.setattr("models.metrics.randomization.METHODS", table)
    found = check_randomization(imagenet, x, methods=["grad_cam", "edges"])
    assert not found.methods["grad_cam"].disabled
    assert abs(found.methods["grad_cam"].similarity["stem"]) < 0.5
    assert next(iter(found.methods["grad_cam"].similarity)) == HEAD
    assert found.disabled().keys() == {"edges"}
    assert "rank correlation 1.00" in found.disabled()["edges"]
    assert "shows the picture, not the model" in found.disabled()["edges"]
    assert RandomizationCheck.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_what_is_blind_to_the_class_is_told_and_not_barred(imagenet, photos):
    paths = sorted((photos / "caltech_animals/val/elephant").glob("*.jpg"))[:2]
    x = torch.stack([imagenet.geometry.prepare(read_image(path))[0] for path in paths])
    found = check_randomization(imagenet, x, methods=["grad_cam", "guided_grad_cam", "layer_cam"]).methods
    assert list(found["guided_grad_cam"].similarity) == [HEAD, "stem"]
    assert len(found["layer_cam"].similarity) == 5
    assert found["layer_cam"].class_blind
    assert not found["layer_cam"].disabled
    assert re.search(r"nor when another class is asked for \(0\.9\d\)", found["layer_cam"].reason)
    assert not found["grad_cam"].class_blind
    assert found["grad_cam"].other_class < 0.5


def test_it_takes_both_the_head_and_another_class_to_be_blind():
    blind = _verdict({HEAD: [0.97, 0.95], "stem": [0.1]}, [0.94])
    assert blind.class_blind
    assert (
        "hardly when only the head's are (0.96), nor when another class is asked for (0.94)" in blind.reason
    )
    assert not _verdict({HEAD: [0.97], "stem": [0.1]}, [0.3]).class_blind
    assert not _verdict({HEAD: [0.2], "stem": [0.1]}, [0.95]).class_blind
    assert _verdict({HEAD: [0.97], "stem": [0.1]}, []).class_blind, "with one class only the head can say"
    before = {"methods": {"a": {"similarity": {HEAD: 0.95}, "barred": False, "reason": "-"}}, "pictures": 1,
              "seed": 0}  # fmt: skip
    assert RandomizationCheck.from_dict(before).methods["a"].class_blind, "of a bundle from before"


def test_empty_maps_and_turned_ones_are_judged_as_what_they_are():
    one, empty = np.eye(4, dtype=np.float32), np.zeros((4, 4), np.float32)
    assert _similarities([one, one, one], [one, -one, empty]) == [pytest.approx(1.0), 0.0]
    assert "could not be checked" in _verdict({}, []).reason


def test_methods_that_do_not_apply_are_left_out_and_damage_is_named(model_of, random_batch):
    found = check_randomization(
        model_of("mobilenet_v3_small"), random_batch(), methods=["grad_cam", "guided_grad_cam"]
    )
    assert set(found.methods) == {"grad_cam"}
    for damaged in ({}, {"methods": 3}, {"methods": {"a": {}}, "pictures": 1, "seed": 0}, []):
        with pytest.raises(BundleError, match="sanity check"):
            RandomizationCheck.from_dict(damaged)


# ---------------------------------------------------------------- shifts, sweep


def test_a_map_that_follows_the_picture_is_steady(imagenet, photos):
    backend = EagerBackend(imagenet)
    path = sorted((photos / "caltech_animals/val/flamingo").glob("*.jpg"))[1]
    image = read_image(path)
    x, _ = imagenet.geometry.prepare(image)
    top = int(run_forward(imagenet, x[None]).logits.argmax())
    found = run_shift_test(backend, image, make_target(imagenet.classes, top), pixels=(2, 8))
    assert len(found.moves) == 8
    assert found.correlation > 0.7
    plain = imagenet.geometry.see(image)[0]
    unmoved, frame = imagenet.geometry.see_moved(image, 0, 0)
    assert list(plain.getdata()) == list(unmoved.getdata())
    assert frame == imagenet.geometry.frame(image.width, image.height)


def test_the_moved_crop_shows_what_its_frame_says(watcher):
    """A planted pixel is found by its frame wherever the crop is moved to, also beyond the edge."""
    model = watcher((0, 0, 8, 8))
    geometry = replace(model.geometry, resize=48)
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[30, 40] = 255
    for right, down in ((0, 0), (5, -7), (-6, 3), (20, 0)):
        seen, frame = geometry.see_moved(image_from_array(pixels), right, down)
        found = np.argwhere(np.asarray(seen)[..., 0] > 200)
        assert found.tolist() == [[30 - frame.top, 40 - frame.left]]


def test_a_very_long_picture_is_moved_without_being_made_huge(watcher):
    model = watcher((0, 0, 8, 8))
    geometry = replace(model.geometry, resize=40)
    pixels = np.zeros((5, 5000, 3), np.uint8)
    pixels[:, 2500:] = 255
    for right, down in ((0, 0), (7, 0), (-5, 4)):
        seen, frame = geometry.see_moved(image_from_array(pixels), right, down)
        assert seen.size == (32, 32)
        assert 0 <= frame.top <= 8
        edge = (np.asarray(seen)[16, :, 0] > 127).argmax()
        assert edge == pytest.approx(2500 * 8 - frame.left, abs=1)


def test_a_model_bound_to_a_place_changes_its_answer_when_the_picture_moves(watcher):
    box = (14, 14, 18, 18)
    model = watcher(box)
    found = run_shift_test(EagerBackend(model), picture_with_spot((14, 14, 17, 18)), BRIGHT, pixels=(8,))
    assert not all(move.same_answer for move in found.moves)
    assert "answer itself changes" in found.verdict


def test_the_sweep_explains_the_end_of_each_stage(resnet18, random_batch):
    x = random_batch()
    assert stage_ends(resnet18, x) == ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    stages = list(
        sweep_layers(EagerBackend(resnet18), x[0], make_target(resnet18.classes, 3), steps=3, control_maps=2)
    )
    assert [stage.attribution.block for stage in stages] == ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    assert [stage.attribution.rows for stage in stages] == [56, 28, 14, 7]
    for stage in stages:
        assert (stage.faithfulness is None) == (stage.attribution.status != "ok")


def test_transformers_of_one_size_are_swept_too(model_of, random_batch):
    assert stage_ends(model_of("vit_b_16"), random_batch())[-1] == "layers.10"
    assert len(stage_ends(model_of("vit_b_16"), random_batch())) >= 3
    assert stage_ends(model_of("swin_t"), random_batch()) == ["stage1.1", "stage2.1", "stage3.5", "stage4.1"]


def test_labels_that_cross_their_threshold_are_another_answer(watcher):
    """Of a model with several labels the accepted set is the answer, not the highest of them."""
    model = watcher((14, 14, 18, 18))
    model.scoring = Scoring("multilabel")
    found = run_shift_test(EagerBackend(model), picture_with_spot((14, 14, 17, 18)), BRIGHT, pixels=(8,))
    assert not all(move.same_answer for move in found.moves)


def test_an_audit_never_asks_a_barred_method(imagenet, random_batch):
    forward = run_forward(imagenet, random_batch(side=96))
    (found,) = attribute_each(forward, [int(forward.logits.argmax())], method="hires_cam")
    image = image_from_array(np.random.default_rng(1).integers(0, 255, (240, 260, 3), np.uint8))
    result = run_audit(image, forward, found, disabled={"grad_cam": "no"}, checks=["sweep", "agreement"])
    assert {stage.attribution.method for stage in result.sweep} == {"hires_cam"}
    assert "grad_cam" not in result.agreement.methods
    blocks = {name: "no" for name, row in METHODS.items() if row.grid == "block"}
    assert run_audit(image, forward, found, disabled=blocks, checks=["sweep", "shifts"]).sweep is None


# ---------------------------------------------------------------- border and cautions


def test_the_border_audit_by_hand():
    inner, rim = np.zeros((4, 4)), np.ones((4, 4))
    inner[1:3, 1:3] = 1
    rim[1:3, 1:3] = 0
    assert audit_border(made(inner)).mass == 0
    assert audit_border(made(rim)).mass == 1
    assert audit_border(made(rim)).area == pytest.approx(12 / 16)
    assert audit_border(made(np.ones((4, 4)))).mass == pytest.approx(12 / 16)
    assert not audit_border(made(np.ones((4, 4)))).suspicious
    assert audit_border(made(rim)).suspicious
    cells = replace(made(np.ones((28, 28))), grid="input")
    assert audit_border(cells).area == pytest.approx(1 - (20 / 28) ** 2)
    assert audit_border(made(np.ones((56, 56)))).area == pytest.approx(1 - (54 / 56) ** 2)


def test_what_is_odd_is_said():
    rim = np.ones((7, 7), np.float32)
    rim[1:6, 1:6] = 0
    assert any("outermost cells" in said for said in map_warnings(made(rim), 0.5))
    assert map_warnings(made(np.eye(7)), 0.5) == []
    assert "speaks for this class" in map_warnings(made(-np.eye(3) - 1), 0.5)[0]
    assert "as high as it can be" in map_warnings(made(np.eye(7)), 0.9999)[0]
    assert "faint, at most 2%" in map_warnings(made(np.eye(7) * 0.02), 0.5, full_scale=1.0)[0]
    cropped = Frame(400, 40, 2560, 256, 1168, 16, 224, 224)
    (said, *_) = image_warnings(image_from_array(np.zeros((40, 400, 3), np.uint8)), cropped)
    assert "only the middle" in said


# ---------------------------------------------------------------- what if, localisation


def test_covering_what_the_score_hangs_on_changes_it_and_the_rest_does_not(watcher):
    box = (4, 20, 12, 28)
    backend = EagerBackend(watcher(box))
    image = picture_with_spot(box)
    frame = backend.model.geometry.frame(32, 32)
    hit = run_cover_test(backend, image, mask_from_box(frame, (4, 20, 12, 28)), cover="mean")
    assert {item.label for item in hit.changes} == {"bright", "dark"}
    bright = next(item for item in hit.changes if item.label == "bright")
    assert bright.change < -0.1
    assert bright.change == pytest.approx(bright.after - bright.before)
    assert hit.share == pytest.approx(64 / 1024)
    missed = run_cover_test(backend, image, mask_from_box(frame, (16, 0, 32, 16)), cover="mean")
    assert all(item.change == 0 for item in missed.changes)
    assert np.asarray(hit.covered.pil)[24, 8].tolist() != [255, 255, 255]
    assert np.asarray(image.pil)[24, 8].tolist() == [255, 255, 255], "the picture itself stays"


def test_experiments_on_huge_pictures_are_done_on_a_smaller_one(imagenet):
    image = image_from_array(np.random.default_rng(0).integers(0, 255, (1500, 4096, 3), np.uint8))
    smaller, scale = limit_size(image)
    assert (smaller.width, smaller.height, scale) == (2048, 750, 0.5)
    assert smaller.sha256 == image.sha256
    assert limit_size(smaller) == (smaller, 1.0)
    one, other = (imagenet.geometry.frame(each.width, each.height).seen_box for each in (image, smaller))
    assert [edge * scale for edge in one] == pytest.approx(list(other), abs=1)


def test_the_hottest_region_is_the_maps_own(spot):
    backend, _, true = spot
    frame = backend.model.geometry.frame(32, 32)
    mask = mask_from_map(frame, true, share=0.05)
    assert mask[20:28, 4:12].sum() == mask.sum() > 0
    with pytest.raises(ExplanationError, match="between 0 and 1"):
        mask_from_map(frame, true, share=1.5)
    with pytest.raises(ExplanationError, match="no hottest region"):
        mask_from_map(frame, made(-np.ones((4, 4))))


def test_boxes_that_make_no_sense_are_refused_with_the_reason(imagenet):
    frame = imagenet.geometry.frame(1000, 200)
    for box in ((-20, -20, -10, -10), (1100, 10, 1200, 20), (450, -50, 500, -10)):
        with pytest.raises(ExplanationError, match="outside of what the model saw"):
            mask_from_box(frame, box)
    for box in ((10, 10, 10, 20), (5, 5, 1, 1), (0, 0, float("nan"), 4)):
        with pytest.raises(ExplanationError, match="has no area"):
            mask_from_box(frame, box)
    with pytest.raises(ExplanationError, match=r"outside of what the model saw: 412"):
        mask_from_box(frame, (0, 0, 50, 200))
    with pytest.raises(UnknownChoice, match="blur, mean"):
        run_cover_test(EagerBackend(imagenet), image_from_array(np.zeros((200, 1000, 3), np.uint8)),
                mask_from_box(frame, (450, 0, 500, 200)), cover="black")  # fmt: skip


def test_localisation_by_hand():
    frame = Frame(4, 4, 4, 4, 0, 0, 4, 4)
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    values = np.zeros((4, 4))
    values[0, 1], values[3, 3], values[2, 2] = 3.0, 1.0, -9.0
    found = localize(values, frame, mask)
    assert (found.energy, found.area, found.pointing, found.centre) == (0.75, 0.5, 1.0, 0.0)
    assert localize(values, frame, ~mask).energy == 0.25
    assert localize(values, frame, np.zeros((4, 4), bool)) is None
    assert mean_localization([found, found]).energy == 0.75
    with pytest.raises(ValueError, match="mask"):
        localize(values, frame, np.zeros((3, 4), bool))


def test_figures_of_order_do_not_change_when_a_map_is_squared_and_energy_does(imagenet):
    frame = imagenet.geometry.frame(300, 200)
    rng = np.random.default_rng(1)
    mask = np.zeros((200, 300), bool)
    mask[40:130, 70:190] = True
    values = rng.random((7, 7)).astype(np.float32)
    plain, squared = (localize(item, frame, mask) for item in (values, values**2))
    for name in ("auroc", "average_precision", "pointing"):
        assert getattr(plain, name) == getattr(squared, name), name
    assert plain.squared_energy == pytest.approx(squared.energy)
    assert plain.energy != pytest.approx(squared.energy, abs=1e-3)


def test_auroc_and_average_precision_equal_sklearns_over_pixels(imagenet):
    frame = imagenet.geometry.frame(280, 280)
    rng = np.random.default_rng(2)
    mask = rng.random((280, 280)) < np.linspace(0.1, 0.9, 280)
    values = np.round(rng.random((7, 7)), 1).astype(np.float32)
    found = localize(values, frame, mask)
    x0, y0, x1, y1 = frame.seen_box
    rows, cols = (
        np.clip(((np.arange(280) + 0.5 - low) / (high - low) * 7).astype(int), 0, 6)
        for low, high in ((y0, y1), (x0, x1))
    )
    seen = frame.seen()
    laid = values[rows][:, cols][seen]
    assert found.auroc == pytest.approx(roc_auc_score(mask[seen], laid), abs=1e-9)
    assert found.average_precision == pytest.approx(average_precision_score(mask[seen], laid), abs=1e-9)


def test_an_even_map_is_at_chance_by_every_figure(imagenet):
    frame = imagenet.geometry.frame(300, 200)
    rng = np.random.default_rng(0)
    mask = np.kron(rng.random((10, 15)) > 0.6, np.ones((20, 20))).astype(bool)
    found = localize(np.ones((7, 7)), frame, mask)
    assert found.energy == pytest.approx(found.area, abs=1e-6)
    assert found.auroc == 0.5
    assert found.average_precision == pytest.approx(found.area, abs=1e-6)


# ---------------------------------------------------------------- all at once


def test_an_audit_asks_what_was_asked_for(spot):
    backend, x, true = spot
    image = picture_with_spot((4, 20, 12, 28))
    forward = run_forward(backend.model, x[None])
    found = run_audit(image, forward, true, disabled={"rise": "for the test"}, checks=["agreement", "shifts"])
    assert found.faithfulness is None
    assert found.sweep is None
    assert "rise" not in found.agreement.methods
    assert found.left_out["rise"] == "for the test"
    assert len(found.shifts.moves) == 12
    with pytest.raises(UnknownChoice, match=", ".join(AUDIT_CHECKS)):
        run_audit(image, forward, true, disabled={}, checks=["truth"])


def test_each_check_has_a_share_of_the_time_and_a_costly_one_takes_none_of_the_others(spot, monkeypatch):
    """Of four checks the second never ends by itself; the others are answered, and it is named."""
    backend, x, true = spot
    image = picture_with_spot((4, 20, 12, 28))
    forward = run_forward(backend.model, x[None])

    def endless(*_: object) -> None:
        while True:
            time.sleep(0.005)
            check_deadline()

    monkeypatch.setattr("models.metrics.audit.attribute_by_all_methods", endless)
    with deadline_scope(Deadline(8.0)) as deadline:
        audit = run_audit(image, forward, true, disabled={}, quick=True)
        assert deadline.remaining > 0.5, "time is left to put an answer together"
    assert audit.skipped == ("agreement",)
    assert audit.agreement is None
    assert audit.faithfulness is not None
    assert audit.shifts is not None
    assert audit.sweep


def test_a_sweep_that_is_cut_keeps_the_stages_that_were_judged(spot, monkeypatch):
    backend, x, true = spot
    forward = run_forward(backend.model, x[None])
    stages = list(sweep_layers(backend, x, true.target, steps=2, control_maps=1))

    def cut(*_: object, **__: object) -> Iterator[SweepStage]:
        yield stages[0]
        raise DeadlineExceeded("no time")

    monkeypatch.setattr("models.metrics.audit.sweep_layers", cut)
    image = picture_with_spot((4, 20, 12, 28))
    audit = run_audit(image, forward, true, disabled={}, checks=["sweep"])
    assert audit.sweep == (stages[0],)
    assert audit.skipped == ("sweep",)


def test_a_share_of_the_time_ends_before_the_whole_and_hears_of_its_end():
    with deadline_scope(Deadline(10.0)) as whole, time_share(0.5):
        inner = current_deadline()
        assert 4.5 < inner.remaining <= 5.0
        whole.cancel()
        with pytest.raises(Cancelled):
            check_deadline()
    with time_share(0.5):
        assert current_deadline() is None
