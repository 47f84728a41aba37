"""Templates, traces and the parts of blocks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from models.attribution.forward import run_forward
from models.attribution.registry import attribute_each
from models.attribution.result import make_attribution
from models.attribution.targets import make_target
from models.backends.eager import EagerBackend
from models.errors import ExplanationError, UnknownChoice
from models.images.decode import image_from_array
from models.introspection.decomposition import decompose, has_parts, last_block_with_parts
from models.introspection.feature_visualization import (
    _PreActivationRecorder,
    count_channels,
    synthesize_templates,
)
from models.introspection.gradcam_trace import trace_grad_cam
from models.metrics.layer_sweep import SweepStage
from models.networks.summary import summarize_network
from models.visualization.architecture import draw_architecture
from models.visualization.figures import (
    draw_decomposition_figure,
    draw_methods_figure,
    draw_receptive_field,
    draw_sweep_figure,
    draw_trace_figure,
)

# ---------------------------------------------------------------- templates


def test_a_template_drives_its_channel_far_above_noise_and_is_no_noise(imagenet):
    found = synthesize_templates(imagenet, "stage3.1", [5, 11], steps=40, side=96)
    for each in found:
        assert each.response > each.start + 5
        assert each.image.shape == (96, 96, 3)
        grey = each.image.mean(axis=2)
        assert grey.std() > 8, "not grey"
        near = np.corrcoef(grey[:, 1:].ravel(), grey[:, :-1].ravel())[0, 1]
        assert near > 0.5, "neighbouring pixels go together, as in no noise"
    assert not np.array_equal(found[0].image, found[1].image)


def test_templates_are_deterministic(imagenet):
    one, two = (synthesize_templates(imagenet, "stage3.1", [5], steps=4, side=64)[0] for _ in range(2))
    np.testing.assert_array_equal(one.image, two.image)
    assert not np.array_equal(
        one.image, synthesize_templates(imagenet, "stage3.1", [5], steps=4, side=64, seed=1)[0].image
    )


def test_the_weights_are_not_optimised(imagenet):
    before = {key: value.clone() for key, value in imagenet.state_dict().items()}
    synthesize_templates(imagenet, "stage2.0", [0], steps=3, side=64)
    assert all(torch.equal(value, before[key]) for key, value in imagenet.state_dict().items())
    assert all(parameter.grad is None for parameter in imagenet.parameters())


@pytest.mark.parametrize(
    ("name", "block"),
    [("resnet18", "layer3.0"), ("efficientnet_lite0", "top"), ("mobilenet_v3_small", "features.12")],
)
def test_the_objective_is_before_the_activation(name, block, model_of, random_batch):
    """A silent channel has a gradient there; through the function it gives the block its value."""
    model = model_of(name)
    x = random_batch(side=96)
    with torch.no_grad(), _PreActivationRecorder() as watched:
        value = model.run_blocks(x, 0, model.index_of(block) + 1)
        before = watched.before(value)
    function = {"resnet18": torch.relu, "efficientnet_lite0": torch.nn.functional.relu6,
                "mobilenet_v3_small": torch.nn.functional.hardswish}[name]  # fmt: skip
    assert float(before.min()) < 0
    torch.testing.assert_close(function(before), value)


@pytest.mark.parametrize(
    ("name", "block"),
    [("googlenet", "inception4a"), ("inception_v3", "Mixed_5b"), ("squeezenet1_1", "features.6"),
     ("shufflenet_v2_x1_0", "stage2.0"), ("resnet18", "stem"), ("densenet121", "stem")],
)  # fmt: skip
def test_the_objective_is_before_the_activation_also_of_branches_put_together(
    name, block, model_of, random_batch
):
    model = model_of(name)
    x = random_batch(side=128)
    with torch.no_grad(), _PreActivationRecorder() as watched:
        value = model.run_blocks(x, 0, model.index_of(block) + 1)
        before = watched.before(value)
    assert float(before.min()) < 0 <= float(value.min())
    torch.testing.assert_close(torch.relu(before), value)


def test_a_block_without_an_activation_at_its_end_is_its_own_objective(imagenet, random_batch):
    with torch.no_grad(), _PreActivationRecorder() as watched:
        value = imagenet.run_blocks(random_batch(side=96), 0, imagenet.index_of("stage3.1") + 1)
        assert watched.before(value) is value


def test_templates_refuse_what_they_cannot_make(imagenet, model_of):
    with pytest.raises(UnknownChoice, match="0 to 39"):
        synthesize_templates(imagenet, "stage3.1", [40], steps=1)
    with pytest.raises(UnknownChoice, match="stem"):
        synthesize_templates(imagenet, "conv9", [0], steps=1)
    with pytest.raises(ExplanationError, match="side is 8"):
        synthesize_templates(imagenet, "stem", [0], side=8)
    with pytest.raises(ExplanationError, match="64 x 64 is too small for inception_v3"):
        synthesize_templates(model_of("inception_v3"), "Mixed_7a", [0], side=64, steps=1)
    assert count_channels(model_of("vit_b_16"), "layers.2") == 768
    assert synthesize_templates(model_of("vit_b_16"), "layers.0", [3], steps=1)[0].image.shape == (
        224,
        224,
        3,
    )


# ---------------------------------------------------------------- the parts of blocks


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet18", ["layer2.0", "layer4.1"]),
        ("resnet50", ["layer4.2"]),
        ("efficientnet_lite0", ["stage6.3"]),
        ("googlenet", ["inception4a", "inception5b"]),
        ("inception_v3", ["Mixed_5b", "Mixed_6a", "Mixed_6b", "Mixed_7a", "Mixed_7c"]),
        ("squeezenet1_1", ["features.12"]),
        ("mobilenet_v2", ["features.16"]),
        ("mobilenet_v3_small", ["features.11"]),
        ("regnet_y_400mf", ["stage4.5"]),
        ("convnext_tiny", ["stage4.1"]),
        ("swin_t", ["stage3.4"]),
        ("vit_b_16", ["layers.10"]),
    ],
)
def test_the_parts_add_up_to_the_blocks_map(name, blocks, model_of, random_batch):
    model = model_of(name)
    x = random_batch(seed=2)
    goal = make_target(model.classes, int(run_forward(model, x).logits.argmax()))
    for block in blocks:
        found = decompose(model, x[0], goal, block)
        whole = attribute_each(run_forward(model, x, block=block), [goal])[0]
        scale = float(np.abs(whole.values).max())
        total = sum(part.values for part in found.parts)
        parts_scale = max(scale, *(float(np.abs(part.values).max()) for part in found.parts))
        np.testing.assert_allclose(total, whole.values, atol=2e-5 * parts_scale)
        assert len(found.parts) == (
            2 if found.kind == "residual" else {"features.12": 2}.get(block, len(found.parts))
        )
        assert found.logit == pytest.approx(
            float(run_forward(model, x).logits[0, goal.index]), rel=1e-3, abs=1e-3
        )


def test_cutting_off_a_residual_branch_is_running_the_network_without_it(resnet18, random_batch):
    """Second derivation: the last BatchNorm of the branch set to zero."""
    x = random_batch(seed=3)
    goal = make_target(resnet18.classes, 7)
    found = decompose(resnet18, x[0], goal, "layer3.1")
    branch = next(part for part in found.parts if part.name == "branch")
    without = copy.deepcopy(resnet18)
    last = without.block("layer3.1").bn2
    last.weight.data.zero_()
    last.bias.data.zero_()
    with torch.no_grad():
        assert branch.without == pytest.approx(float(without(x)[0, 7]), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "block"), [("resnet18", "layer3.0"), ("resnet50", "layer2.0"), ("regnet_y_400mf", "stage3.0")]
)
def test_cutting_off_a_projection_leaves_the_branch_alone_through_the_relu(
    name, block, model_of, random_batch
):
    """Second derivation: the projection's last BatchNorm set to zero."""
    model, x = model_of(name), random_batch(seed=3)
    goal = make_target(model.classes, 7)
    skip = next(part for part in decompose(model, x[0], goal, block).parts if part.name == "skip")
    without = copy.deepcopy(model)
    made = without.block(block)
    last = (made.downsample if hasattr(made, "downsample") else made.proj)[1]
    last.weight.data.zero_()
    last.bias.data.zero_()
    with torch.no_grad():
        assert skip.without == pytest.approx(float(without(x)[0, 7]), abs=1e-3)


def test_cutting_off_an_inception_branch_is_zeroing_its_channels(model_of, random_batch):
    model, x = model_of("googlenet"), random_batch(seed=3)
    goal = make_target(model.classes, 7)
    found = decompose(model, x[0], goal, "inception5b")
    assert found.parts[0].name == "1x1"
    assert len(found.parts) == 4
    with torch.no_grad():
        value = model.until("inception5b", x)
        value[:, :384] = 0
        assert found.parts[0].without == pytest.approx(
            float(model.after("inception5b", value)[0, 7]), abs=1e-4
        )


def test_a_block_without_parts_names_those_that_have_them(imagenet, random_batch):
    with pytest.raises(
        ExplanationError, match=r"'stem' has neither branches nor a skip; choose one of: stage2\.1"
    ):
        decompose(imagenet, random_batch()[0], make_target(imagenet.classes, 1), "stem")
    with pytest.raises(UnknownChoice):
        decompose(imagenet, random_batch()[0], make_target(imagenet.classes, 1), "layer4")
    assert last_block_with_parts(imagenet) == "stage6.3"
    assert not has_parts(imagenet, "stage6.0")


# ---------------------------------------------------------------- the five steps


def test_the_steps_of_a_trace_lead_to_the_map(imagenet, random_batch):
    forward = run_forward(imagenet, random_batch(2, seed=4))
    goal = make_target(imagenet.classes, 9)
    found = trace_grad_cam(forward, 1, goal, channels=3)
    activation = forward.map.detach()[1].numpy()
    assert found.channels == 1280
    np.testing.assert_allclose(
        np.einsum("c,chw->hw", found.weights, activation), found.attribution.values, atol=1e-5
    )
    for each in (*found.speaking_for, *found.speaking_against):
        np.testing.assert_array_equal(each.activation, activation[each.index])
        assert each.weight == pytest.approx(each.gradient.mean(), abs=1e-8)
        assert each.share == pytest.approx(
            each.weight * each.activation.sum() / abs(found.attribution.values.sum()), rel=1e-3
        )
    shares = [each.share for each in found.speaking_for]
    assert shares == sorted(shares, reverse=True)
    assert all(each.share < 0 for each in found.speaking_against)
    assert found.logit == pytest.approx(float(forward.logits[1, 9]))


# ---------------------------------------------------------------- pictures of it all


def test_sheets_are_drawn_for_any_picture(imagenet, photos):
    for size in ((300, 200), (31, 400)):
        image = image_from_array(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8))
        x, frame = imagenet.geometry.prepare(image)
        forward = run_forward(imagenet, x[None])
        goal = make_target(imagenet.classes, int(forward.logits.argmax()))
        found = attribute_each(forward, [goal])[0]
        parts = decompose(imagenet, x, goal, "stage6.3", backend=EagerBackend(imagenet))
        maps = [
            make_attribution(goal, part.values, method="grad_cam", block=parts.block) for part in parts.parts
        ]
        seen = summarize_network(imagenet).block("stage4.2").field
        for sheet in (
            draw_trace_figure(image, frame, trace_grad_cam(forward, 0, goal)),
            draw_sweep_figure(image, frame, [SweepStage(found, None)]),
            draw_methods_figure(image, frame, [found], titles=["Grad-CAM"]),
            draw_decomposition_figure(image, frame, parts, maps),
            draw_receptive_field(image, frame, seen, 0, 13),
            draw_receptive_field(image, frame, seen, 13, 0),
        ):
            assert np.asarray(sheet).std() > 5


@pytest.mark.parametrize("name", ["efficientnet_lite0", "vit_b_16", "googlenet"])
def test_the_flow_is_drawn_for_any_network(name, model_of):
    drawn = np.asarray(draw_architecture(summarize_network(model_of(name))))
    assert drawn.shape[1] > 600
    assert drawn.std() > 10
