"""Receptive fields, counts and shapes of every network against a second derivation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from models.attribution.forward import run_forward
from models.networks.receptive_field import FieldAxis, effective_kernel, output_size
from models.networks.registry import get_backbone, imagenet_classes
from models.networks.summary import summarize_network
from models.networks.transfer_model import TransferModel
from tests.support.networks import NETWORKS


def picture() -> torch.Tensor:
    """The worked input: 4x4, R all 1, G all 2, B rows 1, 2, 3, 4."""
    blue = torch.arange(1.0, 5.0)[:, None].expand(4, 4)
    return torch.stack([torch.full((4, 4), 1.0), torch.full((4, 4), 2.0), blue])[None]


def convolve(kernel, **options):
    weight = torch.tensor(kernel, dtype=torch.float32).expand(1, 3, len(kernel), len(kernel[0]))
    return F.conv2d(picture(), weight, **options)[0, 0].tolist()


ONES = [[1, 1, 1]] * 3


def test_topics_1_to_3_convolution_padding_dilation():
    assert convolve(ONES) == [[45, 45], [54, 54]]
    assert convolve([[1, 1, 1]] * 2) == [[27, 27], [33, 33], [39, 39]]
    assert convolve(ONES, padding=1) == [
        [18, 27, 27, 18],
        [30, 45, 45, 30],
        [36, 54, 54, 36],
        [26, 39, 39, 26],
    ]
    assert convolve([[1, 1, 1], [-1, 1, 1], [1, 1, 1]], dilation=2, padding=1) == [[24, 14], [20, 8]]
    assert convolve(ONES, dilation=2, padding=1) == [[24, 24], [20, 20]]
    assert effective_kernel(3, 2) == 5


def test_topics_5_7_8_9_11_sizes():
    assert [output_size(size, 2, stride=2) for size in (8, 4)] == [4, 2]
    assert output_size(128, 3) == 126
    assert output_size(128, 3, stride=2) == 63
    assert output_size(4, 3, dilation=2, padding=1) == 2
    pooled = F.max_pool2d(picture(), 2)[0].tolist()
    assert pooled == [[[1, 1], [1, 1]], [[2, 2], [2, 2]], [[2, 2], [4, 4]]]
    assert nn.Conv2d(64, 16, 1)(torch.zeros(1, 64, 9, 7)).shape == (1, 16, 9, 7)


@pytest.mark.parametrize("size", [7, 31, 128, 225])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 1, 0, 1), (3, 2, 1, 1), (5, 3, 2, 1), (3, 2, 2, 2), (2, 2, 0, 1)],
)
def test_the_formula_of_sizes_is_torchs(size, kernel, stride, padding, dilation):
    made = nn.Conv2d(1, 1, kernel, stride, padding, dilation)(torch.zeros(1, 1, size, size)).shape[-1]
    assert output_size(size, kernel, stride=stride, padding=padding, dilation=dilation) == made


def whole(name: str) -> TransferModel:
    row = get_backbone(name)
    return TransferModel(row, row.outline(), classes=imagenet_classes(), keep_classifier=True).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_equal_torchs_own_and_shapes_the_real_forwards(name, model_of):
    model = whole(name)
    found = summarize_network(model)
    height, width, _ = found.input
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, height, width, device="meta"))
    assert found.multiply_adds * 2 == counter.get_total_flops()
    assert found.parameters == sum(weights.numel() for weights in model.parameters())
    real = model_of(name)
    with torch.no_grad():
        for value_name, value in real.walk(torch.zeros(1, 3, height, width)):
            if value_name != "head":
                rows, cols, channels = found.block(value_name).shape
                assert real.as_map(value_name, value).shape == (1, channels, rows, cols)
    assert found.head.shape == (1000,)


def test_layers_of_a_bottleneck_by_hand():
    block = summarize_network(whole("resnet50")).block("layer1.0")
    assert block.tags == ("residual", "bottleneck")
    convs = [layer for layer in block.layers if "conv" in layer.kind]
    assert [(layer.name, layer.kind, layer.kernel, layer.stride, layer.padding) for layer in convs] == [
        ("conv1", "1x1 conv", (1, 1), (1, 1), (0, 0)),
        ("conv2", "conv", (3, 3), (1, 1), (1, 1)),
        ("conv3", "1x1 conv", (1, 1), (1, 1), (0, 0)),
        ("downsample.0", "1x1 conv", (1, 1), (1, 1), (0, 0)),
    ]
    assert [layer.shape for layer in convs] == [(56, 56, 64), (56, 56, 64), (56, 56, 256), (56, 56, 256)]
    assert [layer.parameters for layer in convs] == [64 * 64, 64 * 64 * 9, 64 * 256, 64 * 256]
    assert convs[1].multiply_adds == 56 * 56 * 64 * 64 * 9


@pytest.mark.parametrize(
    ("name", "block", "tags"),
    [
        ("resnet18", "layer2.0", {"residual"}),
        ("resnext50_32x4d", "layer2.0", {"residual", "bottleneck"}),
        ("googlenet", "inception4a", {"inception"}),
        ("inception_v3", "Mixed_6b", {"inception"}),
        ("densenet121", "denseblock2", {"dense"}),
        ("mobilenet_v2", "features.3", {"residual", "inverted bottleneck", "depthwise"}),
        ("mobilenet_v2", "features.2", {"inverted bottleneck", "depthwise"}),
        ("efficientnet_b0", "stage2.0", {"inverted bottleneck", "squeeze-and-excitation", "depthwise"}),
        ("efficientnet_lite0", "stage2.1", {"residual", "inverted bottleneck", "depthwise"}),
        ("shufflenet_v2_x1_0", "stage2.1", {"depthwise"}),
        ("swin_t", "stage1.0", {"residual", "attention"}),
        ("vgg16_bn", "conv3_1", set()),
    ],
)  # fmt: skip
def test_blocks_are_tagged_by_kind(name, block, tags):
    assert set(summarize_network(whole(name)).block(block).tags) == tags


def test_receptive_fields_of_known_networks():
    """ResNet-50 strides in its 3x3 convolutions here: 427; VGG-16's conv5_3 sees 196 (Araujo et al. 2019)."""
    found = summarize_network(whole("resnet50"))
    assert [found.block(name).field.rows.size for name in ("stem", "layer4.2")] == [11, 427]
    assert summarize_network(whole("vgg16_bn")).block("conv5_3").field.rows == FieldAxis(
        size=196, jump=16, start=-90
    )
    deep, shallow = summarize_network(whole("resnet18")), summarize_network(whole("resnet34"))
    assert deep.block("layer4.1").field.rows.size == 435
    assert shallow.block("layer4.2").field.rows.size == 899


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("efficientnet_lite0", "stage3.0"),
        ("efficientnet_lite0", "stage4.1"),
        ("resnet18", "stem"),
        ("resnet18", "layer2.1"),
        ("vgg16_bn", "conv4_2"),
        ("googlenet", "inception3b"),
        ("inception_v3", "Mixed_5b"),
        ("densenet121", "denseblock1"),
        ("mobilenet_v2", "features.4"),
        ("convnext_tiny", "stage1.1"),
        ("shufflenet_v2_x1_0", "stage2.1"),
        ("squeezenet1_1", "features.6"),
    ],
)
def test_the_field_is_where_the_gradient_is(name, block, model_of):
    """The gradient of one position by the input is 0 outside of its field, and reaches each of its edges."""
    model = model_of(name)
    part = summarize_network(whole(name)).block(block)
    height, width, _ = summarize_network(model).input
    row, col = part.shape[0] // 2, part.shape[1] // 2
    reached = np.zeros((height, width), bool)
    for seed in range(4):
        x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        x.requires_grad_()
        with torch.enable_grad():
            value = model.as_map(block, model.run_blocks(x, 0, model.index_of(block) + 1))
        (gradient,) = torch.autograd.grad(value[0, :, row, col].sum(), x)
        reached |= gradient[0].abs().sum(0).numpy() > 0
    rows, cols = np.nonzero(reached)
    x0, y0, x1, y1 = part.field.box(row, col)
    assert (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1) == (
        max(0, x0), max(0, y0), min(width, x1), min(height, y1)
    )  # fmt: skip


def test_what_sees_everything_says_so(random_batch):
    found = summarize_network(whole("efficientnet_b0"))
    assert not found.block("stem").field.sees_all
    assert found.block("stage2.0").field.sees_all, "squeeze-and-excitation pools the whole map"
    assert summarize_network(whole("swin_t")).block("stage1.0").field.sees_all
    assert summarize_network(whole("resnet18")).head.field.sees_all


def test_the_cell_on_the_picture_is_where_the_frame_says(imagenet):
    """The boxes of all cells of a map, on the picture, are centred on the cells that unwarp draws."""
    part = summarize_network(imagenet).block("stage4.2")
    frame = imagenet.geometry.frame(640, 480)
    x0, y0, x1, y1 = frame.to_image(part.field.box(3, 5))
    cell_width, cell_height = frame.cell_size(14, 14)
    left, top, _, _ = frame.seen_box
    assert (x0 + x1) / 2 == pytest.approx(left + 5.5 * cell_width, abs=cell_width / 2)
    assert (y0 + y1) / 2 == pytest.approx(top + 3.5 * cell_height, abs=cell_height / 2)


def test_an_input_too_small_is_refused_by_the_arithmetic_and_the_network(resnet18):
    assert output_size(5, 7) < 1
    assert run_forward(resnet18, torch.zeros(1, 3, 64, 64)).map.shape[2:] == (2, 2)
