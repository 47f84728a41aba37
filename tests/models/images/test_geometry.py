"""The way from an image to the model's input and back, held against torchvision and planted dots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision
from hypothesis import given, settings, strategies as st
from torchvision import transforms

from models.errors import BundleError
from models.images.decode import decode_image, image_from_array
from models.images.geometry import VIEWS, Geometry
from models.networks.registry import BACKBONES, get_backbone

LITE0 = get_backbone("efficientnet_lite0").geometry()
SIZES = [
    (500, 375),
    (375, 500),
    (333, 500),
    (224, 224),
    (1600, 400),
    (150, 1500),
    (17, 23),
    (3, 2),
    (1, 1),
    (2500, 1900),
]


def noise(width: int, height: int) -> PIL.Image.Image:
    rng = np.random.default_rng(width * 7919 + height)
    return PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "efficientnet_lite0"])
def test_equal_to_torchvision_bit_for_bit(name, size):
    picture = noise(*size)
    expected = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].transforms()(picture)
    tensor, _ = get_backbone(name).geometry().prepare(image_from_array(np.asarray(picture)))
    assert torch.equal(tensor, expected)


def test_bicubic_is_torchvisions_too():
    picture = noise(480, 361)
    steps = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC, antialias=True),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    expected = steps(picture)
    tensor, _ = LITE0.prepare(image_from_array(np.asarray(picture)))
    assert torch.equal(tensor, expected)


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (40_000, 30)], ids=str)
def test_an_extreme_picture_costs_no_memory_and_is_still_right(size):
    ramp = np.linspace(0, 255, max(size)).astype(np.uint8)
    pixels = (
        np.broadcast_to(ramp[:, None, None], (size[1], size[0], 3))
        if size[1] > size[0]
        else np.broadcast_to(ramp[None, :, None], (size[1], size[0], 3))
    )
    tensor, frame = LITE0.prepare(image_from_array(np.ascontiguousarray(pixels)))
    assert tensor.shape == (3, 224, 224)
    x0, y0, x1, y1 = frame.seen_box
    middle = (y0 + y1) / 2 / size[1] if size[1] > size[0] else (x0 + x1) / 2 / size[0]
    assert float(tensor.mean()) == pytest.approx(2 * middle - 1, abs=0.02)


def dot_picture(width: int, height: int, x: float, y: float) -> np.ndarray:
    """Black, with one soft white dot at a known place, wide enough to survive the resize."""
    ys, xs = np.mgrid[0:height, 0:width] + 0.5
    radius = max(min(width, height) / 24, 0.6)
    return (
        np.rint(255 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * radius**2)))
        .astype(np.uint8)[..., None]
        .repeat(3, 2)
    )


def seen_by(tensor: torch.Tensor, cells: int) -> np.ndarray:
    """A stand-in for a network: brightness averaged on a grid of cells."""
    grey = tensor.mean(0, keepdim=True)[None]
    pooled = torch.nn.functional.adaptive_avg_pool2d(grey, cells)[0, 0]
    return (pooled - pooled.min()).numpy()


@pytest.mark.parametrize(
    ("size", "view"),
    [((640, 480), "whole"), ((240, 720), "whole"), ((640, 480), "pad"), ((240, 720), "pad")]
    + [(size, "crop") for size in [(640, 480), (480, 640), (900, 300), (240, 720), (60, 45), (2400, 1800)]],
    ids=str,
)
@pytest.mark.parametrize("place", [(0.5, 0.5), (0.42, 0.6), (0.56, 0.4)], ids=str)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_planted_dot_comes_back_to_its_place(size, view, place, orientation, encode):
    width, height = size
    x, y = place[0] * width, place[1] * height
    upright = dot_picture(width, height, x, y)
    stored = PIL.Image.fromarray(upright)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the PIL.Image.Transpose that the camera applied
    if orientation != 1:
        stored = stored.transpose(PIL.Image.Transpose(undo[orientation]))
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encode(stored, "PNG", exif=exif))
    assert (image.width, image.height) == size
    tensor, frame = replace(LITE0, view=view).prepare(image)
    laid = frame.unwarp(seen_by(tensor, 28))
    assert laid.shape == (height, width)
    found_y, found_x = np.unravel_index(np.nanargmax(laid), laid.shape)
    cell_width, cell_height = frame.cell_size(28, 28)
    assert abs(found_x + 0.5 - x) <= cell_width
    assert abs(found_y + 0.5 - y) <= cell_height


@pytest.mark.parametrize("view", ["whole", "pad"])
@pytest.mark.parametrize("size", [(640, 480), (300, 900), (2400, 1800)], ids=str)
def test_all_of_the_picture_is_seen_also_its_corners(view, size):
    """A dot in a corner, which the crop hides, comes back to it."""
    width, height = size
    geometry = replace(LITE0, view=view)
    for x, y in ((0.06, 0.06), (0.94, 0.06), (0.06, 0.94), (0.94, 0.94)):
        pixels = dot_picture(width, height, x * width, y * height)
        tensor, frame = geometry.prepare(image_from_array(pixels))
        laid = frame.unwarp(seen_by(tensor, 28))
        assert np.isfinite(laid).all()
        assert frame.seen_share == 1.0
        found_y, found_x = np.unravel_index(np.argmax(laid), laid.shape)
        cell_width, cell_height = frame.cell_size(28, 28)
        assert abs(found_x + 0.5 - x * width) <= cell_width
        assert abs(found_y + 0.5 - y * height) <= cell_height


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_whole_picture_is_resized_as_torchvision_does(size):
    picture = noise(*size)
    expected = transforms.functional.resize(picture, [224, 224], transforms.InterpolationMode.BICUBIC)
    seen, _ = replace(LITE0, view="whole").see(image_from_array(np.asarray(picture)))
    assert np.array_equal(np.asarray(seen), np.asarray(expected))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_margins_have_the_mean_colour_and_the_picture_keeps_its_shape(size):
    pixels = np.full((size[1], size[0], 3), 255, np.uint8)
    seen, frame = replace(LITE0, view="pad").see(image_from_array(pixels))
    white = (np.asarray(seen) == 255).all(axis=2)
    assert (np.asarray(seen)[~white] == LITE0.mean_colour).all()
    rows, cols = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
    assert max(len(rows), len(cols)) == 224
    assert len(cols) / len(rows) == pytest.approx(size[0] / size[1], rel=0.02, abs=1 / len(rows))
    assert (frame.resized_width, frame.resized_height) == (len(cols), len(rows))


@pytest.mark.parametrize("view", VIEWS)
def test_a_moved_input_shows_the_picture_moved_and_leads_back_to_the_same_place(view):
    geometry = replace(LITE0, view=view)
    image = image_from_array(dot_picture(400, 300, 220, 130))
    _, still = geometry.see(image)
    seen, moved = geometry.see_moved(image, 8, -4)
    brightest = np.unravel_index(np.asarray(seen.convert("L")).argmax(), (224, 224))
    x0, y0, *_ = moved.to_image((brightest[1], brightest[0], 0, 0))
    assert (moved.left - still.left, moved.top - still.top) == (8, -4)
    assert (x0, y0) == (pytest.approx(220, abs=2), pytest.approx(130, abs=2))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (1600, 400), (30, 20)], ids=str)
def test_the_unseen_border_is_marked_and_truly_unseen(size):
    width, height = size
    frame = LITE0.frame(width, height)
    laid = frame.unwarp(np.ones((7, 7), np.float32))
    assert np.array_equal(np.isnan(laid), ~frame.seen())
    base = np.full((height, width, 3), 90, np.uint8)
    scribbled = base.copy()
    # The antialiased resize reads a little beyond the crop: a margin of two of its pixels.
    x0, y0, x1, y1 = frame.seen_box
    margin = 2 * max(width / frame.resized_width, height / frame.resized_height, 1) + 2
    ys, xs = np.mgrid[0:height, 0:width] + 0.5
    far = (xs < x0 - margin) | (xs > x1 + margin) | (ys < y0 - margin) | (ys > y1 + margin)
    scribbled[far] = 255
    assert torch.equal(
        LITE0.prepare(image_from_array(base))[0], LITE0.prepare(image_from_array(scribbled))[0]
    )


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 400), height=st.integers(1, 400), rows=st.integers(1, 14), cols=st.integers(1, 14)
)
def test_unwarp_keeps_range_and_constants(width, height, rows, cols):
    frame = LITE0.frame(width, height)
    grid = np.random.default_rng(rows * 100 + cols).normal(size=(rows, cols)).astype(np.float32)
    laid = frame.unwarp(grid)
    seen = laid[~np.isnan(laid)]
    assert seen.size > 0
    assert seen.min() >= grid.min() - 1e-5
    assert seen.max() <= grid.max() + 1e-5
    np.testing.assert_allclose(frame.unwarp(np.full((rows, cols), 3.5))[frame.seen()], 3.5, rtol=1e-6)


def test_unwarp_agrees_with_torch_where_nothing_is_cropped():
    geometry = Geometry(224, 224, 224, (0.5,) * 3, (0.5,) * 3, "bilinear")
    frame = geometry.frame(300, 300)
    grid = np.random.default_rng(3).normal(size=(7, 7)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(grid)[None, None], size=(300, 300), mode="bilinear", align_corners=False
    )[0, 0]
    np.testing.assert_allclose(frame.unwarp(grid), expected.numpy(), atol=1e-5)


def test_non_square_geometry_reaches_the_overlay():
    geometry = Geometry(160, 128, 160, (0.5,) * 3, (0.5,) * 3, "bilinear")
    image = image_from_array(dot_picture(400, 300, 250, 120))
    tensor, frame = geometry.prepare(image)
    assert tensor.shape == (3, 128, 160)
    grey = torch.nn.functional.adaptive_avg_pool2d(tensor.mean(0)[None, None], (16, 20))[0, 0].numpy()
    found_y, found_x = np.unravel_index(np.nanargmax(frame.unwarp(grey)), (300, 400))
    assert abs(found_x - 250) <= frame.cell_size(16, 20)[0]
    assert abs(found_y - 120) <= frame.cell_size(16, 20)[1]


def test_geometry_survives_json_and_refuses_nonsense():
    assert Geometry.from_dict(LITE0.to_dict()) == LITE0
    older = {key: value for key, value in LITE0.to_dict().items() if key != "view"}
    assert Geometry.from_dict(older).view == "crop"
    for change in (
        {"resize": 100},
        {"interpolation": "nearest"},
        {"view": "middle"},
        {"std": (0, 1, 1)},
        {"mean": (1, 2)},
        {"zoom": 2},
    ):
        with pytest.raises(BundleError):
            Geometry.from_dict({**LITE0.to_dict(), **change})
