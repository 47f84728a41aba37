"""The blocks of networks that nobody described, held against the same networks uncut."""

from __future__ import annotations

import threading

import pytest
import timm
import torch
import torchvision
from captum.attr import LayerGradCam
from torch import nn

from models.attribution.cam import grad_cam
from models.attribution.forward import run_forward
from models.attribution.targets import make_target
from models.errors import ExplanationError, NetworkNotTraceable
from models.images.geometry import Geometry
from models.metrics.layer_sweep import stage_ends
from models.networks.adoption import adopt
from models.networks.block_discovery import discover_blocks
from models.networks.cutting import WHOLE, cut_network
from models.networks.layouts import Layout
from models.networks.summary import summarize_network
from models.networks.tracing import cut_points, trace_network

HALF = (0.5, 0.5, 0.5)
SMALL = {
    # name: (size, how the Grad-CAM block is read, the block)
    "resnet10t": (128, Layout("maps"), "layer4"),
    "convnext_atto": (128, Layout("maps"), "stages.3.blocks.1"),
    "test_vit": (160, Layout("tokens", prefix=1, rows=10, cols=10), "blocks.4"),
    "deit_tiny_distilled_patch16_224": (224, Layout("tokens", prefix=2, rows=14, cols=14), "blocks.10"),
    "swin_tiny_patch4_window7_224": (224, Layout("channels last"), "layers.3.blocks.1"),
    "hrnet_w18_small": (224, Layout("maps"), "final_layer"),
    "twins_svt_small": (224, Layout("tokens", rows=7, cols=7), "blocks.3.3"),
    "vgg11": (128, Layout("maps"), "features.18"),
    "densenet121": (128, Layout("maps"), "features.denseblock4"),
}

QUICK = ("resnet10t", "convnext_atto", "test_vit")


def soaking(names):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.soak) for name in names]


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=7).eval().requires_grad_(False)


def pictures(size: int, count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def adopted(name: str, size: int):
    network = built(name)
    geometry = Geometry(size, size, size, HALF, HALF, "bicubic")
    return network, adopt(network, classes=list("abcdefg"), geometry=geometry)


@pytest.mark.parametrize("name", soaking(SMALL))
def test_blocks_give_the_logits_of_the_network_to_the_bit_and_their_maps_are_read_as_they_lie(name):
    size, layout, cam_block = SMALL[name]
    network, model = adopted(name, size)
    for count in (1, 3):
        x = pictures(size, count)
        assert torch.equal(model(x), network(x))
    assert model.cam_block == cam_block
    assert model.layout(cam_block) == layout
    assert all(name in dict(network.named_modules()) for name in model.block_names)
    for block in model.block_names:
        value = model.until(block, pictures(size))
        assert torch.equal(model.after(block, value), network(pictures(size)))


@pytest.mark.parametrize("name", soaking(n for n, (_, layout, _) in SMALL.items() if layout.name == "maps"))
def test_grad_cam_equals_captums_on_the_uncut_network(name):
    size = SMALL[name][0]
    network, model = adopted(name, size)
    block = model.block(model.cam_block)
    ends = [part for part in (block, *list(block.children())[-1:]) if part in set(network.modules())]
    assert ends, "a block that ends in a function cannot be hooked; take another network"
    ours = grad_cam(run_forward(model, pictures(size)), [make_target(model.classes, 3)])
    peers = LayerGradCam(network.requires_grad_(True), ends[0]).attribute(pictures(size), target=3)
    torch.testing.assert_close(ours, peers[:, 0].detach(), atol=1e-5 * float(peers.abs().max()), rtol=0)


def test_grad_cam_of_tokens_is_that_of_their_places_without_the_class_token():
    network, model = adopted("test_vit", 160)
    ours = grad_cam(run_forward(model, pictures(160)), [make_target(model.classes, 2)])
    values = {}
    network.blocks[4].register_forward_hook(lambda module, args, output: values.update(tokens=output))
    logits = network.requires_grad_(True)(pictures(160))
    (gradient,) = torch.autograd.grad(logits[0, 2], values["tokens"])
    weights = gradient[:, 1:].mean(1)
    expected = torch.einsum("nc,ntc->nt", weights, values["tokens"][:, 1:]).reshape(1, 10, 10)
    torch.testing.assert_close(ours, expected.detach(), atol=1e-6, rtol=1e-4)


def test_the_last_layer_of_a_class_token_network_is_not_read_for_its_patches_do_not_reach_the_head():
    _, model = adopted("test_vit", 160)
    assert model.block_names[-1] == "blocks.5"
    value = model.until("blocks.5", pictures(160)).requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(model.after("blocks.5", value).sum(), value)
    assert not gradient[:, 1:].any()


def test_an_input_that_is_not_square_is_read_in_its_shape():
    network = timm.create_model("vit_tiny_patch16_224", img_size=(96, 160), num_classes=3).eval()
    x = torch.randn(1, 3, 96, 160)
    blocks = discover_blocks(network.requires_grad_(False), x)
    assert blocks.layouts["blocks.10"] == Layout("tokens", prefix=1, rows=6, cols=10)
    convolutional = discover_blocks(built("resnet10t"), x)
    assert convolutional.layouts["layer4"] == Layout("maps")


def test_patches_that_are_not_square_are_read_by_the_networks_own_grid():
    """36 tokens of a square input: 4 by 9 patches, not 6 by 6."""
    network = timm.create_model("vit_tiny_patch16_224", img_size=216, patch_size=(54, 24), num_classes=3)
    x = torch.randn(1, 3, 216, 216)
    blocks = discover_blocks(network.eval().requires_grad_(False), x)
    assert blocks.layouts["blocks.10"] == Layout("tokens", prefix=1, rows=4, cols=9)


def test_a_number_of_tokens_that_is_no_grid_of_the_network_is_refused():
    layout = Layout("tokens", prefix=1, rows=4, cols=9)
    assert layout.to_map(torch.zeros(1, 1 + 144, 5)).shape == (1, 5, 8, 18)
    with pytest.raises(
        ExplanationError, match="37 tokens are no grid in the shape of the network's own, 4 x 9"
    ):
        layout.to_map(torch.zeros(1, 1 + 37, 5))


def test_a_vision_transformer_refuses_pictures_of_another_size_with_a_sentence(model_of):
    model = model_of("vit_b_16")
    with pytest.raises(ExplanationError, match="made for 224 x 224 pixels and cannot take 256 x 256"):
        run_forward(model, torch.zeros(1, 3, 256, 256))


class Shuffled(nn.Module):
    """A network whose second map has the shape of one, but its places in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 8, stride=8)
        self.second = nn.Conv2d(8, 8, 1)
        self.mix = Reorder()
        self.third = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.third(self.mix(self.second(self.first(x)))).mean((2, 3)))


class Reorder(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(8, 8, 1)

    def forward(self, x):
        order = torch.randperm(x.shape[-1], generator=torch.Generator().manual_seed(3))
        return super().forward(x)[:, :, order][:, :, :, order]


def test_a_map_whose_places_are_in_another_order_is_no_map():
    blocks = discover_blocks(Shuffled().eval().requires_grad_(False), torch.randn(1, 3, 96, 96))
    assert blocks.layouts["second"] == Layout("maps")
    assert blocks.layouts["mix"].name == "none"
    assert blocks.cam_block == "second"


def test_blocks_without_a_map_are_left_out_where_maps_are_asked_for():
    network = Shuffled().eval().requires_grad_(False)
    model = adopt(network, classes=["a", "b"], geometry=Geometry(96, 96, 96, HALF, HALF, "bicubic"))
    x = pictures(96)
    assert model.blocks_with_map == ("first", "second")
    with pytest.raises(ExplanationError, match="'mix'"):
        model.as_map("mix", model.until("mix", x))
    assert set(stage_ends(model, x)) <= {"first", "second"}
    assert [len(block.shape) for block in summarize_network(model).blocks] == [3, 3, 3, 3]
    with pytest.raises(ExplanationError, match="passes no map on"):
        grad_cam(run_forward(model, x, block="mix"), [make_target(model.classes, 0)])


@pytest.mark.soak
def test_a_network_that_can_be_cut_nowhere_is_one_block_and_says_what_remains():
    network = built("crossvit_tiny_240")
    model = adopt(network, classes=list("abcdefg"), geometry=Geometry(240, 240, 240, HALF, HALF, "bicubic"))
    assert model.block_names == (WHOLE,)
    x = pictures(240, 2)
    assert torch.equal(model(x), network(x))
    with pytest.raises(ExplanationError, match="passes no map on"):
        grad_cam(run_forward(model, x), [make_target(model.classes, 0)] * 2)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


def test_what_cannot_be_traced_is_named():
    with pytest.raises(NetworkNotTraceable, match=r"Branching cannot be traced: .*control flow"):
        trace_network(Branching().eval(), (), torch.randn(1, 3, 8, 8))
    with pytest.raises(NetworkNotTraceable, match=r"cannot be cut behind 'layer1\.0\.conv1'"):
        cut_network(built("resnet18"), {"layer1.0.conv1": "x"}, pictures(64))


class InPlace(nn.Module):
    """A network that overwrites a value which could be a block's."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = self.one(x)
        x = torch.relu_(x)
        return self.head(self.two(x).mean((2, 3)))


def test_no_block_ends_where_its_value_is_overwritten():
    network = InPlace().eval().requires_grad_(False)
    x = pictures(32)
    model = adopt(network, classes=["a", "b"], geometry=Geometry(32, 32, 32, HALF, HALF, "bicubic"))
    for block in model.block_names:
        value = model.until(block, x)
        before = value.clone()
        model.after(block, value)
        assert torch.equal(value, before)


def test_other_threads_go_on_answering_while_a_network_is_traced():
    busy, expected, wrong = built("resnet10t"), None, []
    x = pictures(64)
    expected = busy(x)
    stop = threading.Event()

    def answer() -> None:
        while not stop.is_set():
            try:
                if not torch.equal(busy(x), expected):
                    wrong.append("another answer")
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=answer) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for name in ("convnext_atto", "test_vit"):
            size = SMALL[name][0]
            for _ in range(3):
                assert len(cut_points(trace_network(built(name), (), pictures(size)).graph)) > 3
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong


def test_training_a_cut_network_trains_the_network_with_its_dropout_and_its_statistics():
    network = torchvision.models.efficientnet_b0(num_classes=3).eval()
    model = adopt(network, classes=["a", "b", "c"], geometry=Geometry(64, 64, 64, HALF, HALF, "bicubic"))
    model.train()
    x = pictures(64, 4)
    first, second = model(x), model(x)
    assert not torch.equal(first, second)
    norm = network.features[0][1]
    assert int(norm.num_batches_tracked) == 2
