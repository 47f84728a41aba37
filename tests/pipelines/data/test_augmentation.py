"""Random views are repeatable, within their ranges, and start with the served one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch

from models.images.decode import read_image
from models.networks.registry import get_backbone
from pipelines.config.schema import Augmentation, TrainConfig
from pipelines.data.augmentation import Augmenter, draw_view, draw_views_figure, read_batches
from pipelines.data.dataset import Sample, scan_folder

STILL = Augmentation(min_crop_area=1, flip=False, rotate_degrees=0, colour=0)
GEOMETRY = get_backbone("efficientnet_lite0").geometry()


@pytest.fixture(scope="module")
def found(butterflies):
    return scan_folder(butterflies)


def test_views_are_varied_repeatable_and_start_with_the_served_one(found):
    augmenter = Augmenter(GEOMETRY, Augmentation(), seed=0)
    sample = found.train[0]
    assert torch.equal(augmenter.tensor(sample, 0), GEOMETRY.prepare(read_image(sample.path))[0])
    views = [augmenter.tensor(sample, view) for view in (1, 2, 3)]
    assert not torch.equal(views[0], views[1])
    assert torch.equal(views[1], augmenter.tensor(sample, 2))
    assert not torch.equal(views[1], Augmenter(GEOMETRY, Augmentation(), seed=1).tensor(sample, 2))


def test_views_neither_use_nor_disturb_anybodys_random_numbers(found):
    augmenter = Augmenter(GEOMETRY, Augmentation(erase=0.3, shift=0.1), seed=0)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    jobs = [(sample, view) for sample in found.train[:4] for view in (1, 2)]
    alone = [augmenter.tensor(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: augmenter.tensor(*job), jobs))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ({"rotate_degrees": 20.0}, lambda view: view.rotate_degrees),
        ({"shift": 0.2}, lambda view: view.shift),
        ({"shear_degrees": 10.0}, lambda view: view.shear_degrees),
        ({"flip": True}, lambda view: view.mirror),
        ({"flip_vertical": True}, lambda view: view.upside_down),
        ({"min_crop_area": 0.3}, lambda view: view.crop),
        ({"colour": 0.4}, lambda view: (view.brightness, view.contrast, view.saturation)),
        ({"erase": 0.3}, lambda view: view.erased),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_field_varies_its_own_part_within_its_width(setting, read):
    policy = replace(STILL, **setting)
    drawn = [draw_view(policy, np.random.default_rng(seed), 1.5) for seed in range(200)]
    still = [draw_view(STILL, np.random.default_rng(seed), 1.5) for seed in range(200)]
    assert len({read(view) for view in drawn}) > 1
    (name,) = setting
    for view, quiet in zip(drawn, still, strict=True):
        assert abs(view.rotate_degrees) <= policy.rotate_degrees
        assert max(map(abs, view.shift)) <= policy.shift
        assert max(map(abs, view.shear_degrees)) <= policy.shear_degrees
        x, y, width, height = view.crop
        assert 0 <= x <= x + width <= 1 + 1e-9
        assert 0 <= y <= y + height <= 1 + 1e-9
        if view.erased is not None:
            assert view.erased[2] * view.erased[3] <= 0.3 + 1e-9
        if name != "min_crop_area":
            assert view.crop == quiet.crop, "turning one change on leaves the others"


@pytest.mark.parametrize("aspect", [0.3, 1.0, 2.0, 5.0])
def test_a_crop_keeps_at_least_its_share_of_any_picture(aspect):
    def areas(share):
        policy = replace(STILL, min_crop_area=share)
        boxes = [draw_view(policy, np.random.default_rng(seed), aspect).crop for seed in range(300)]
        return [box[2] * box[3] for box in boxes]

    assert areas(1.0) == pytest.approx([1.0] * 300)
    some = areas(0.4)
    assert 0.4 - 1e-9 <= min(some) < 0.45
    assert np.mean(some) == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize("view", ["whole", "pad"])
def test_a_varied_picture_is_stretched_or_padded_as_the_served_one(view, tmp_path, encode):
    """With nothing to vary every view is the served one, and a random crop has about the picture's shape."""
    picture = np.zeros((120, 360, 3), np.uint8)
    picture[40:80, 120:240] = 255
    path = tmp_path / "wide.png"
    path.write_bytes(encode(PIL.Image.fromarray(picture)))
    sample = Sample(path, "wide.png", (0,), "cd" * 32, 360, 120)
    geometry = replace(GEOMETRY, view=view)
    still = Augmenter(geometry, STILL, seed=0)
    assert torch.equal(still.tensor(sample, 0), geometry.prepare(read_image(path))[0])
    crops = Augmenter(geometry, replace(STILL, min_crop_area=0.5), seed=0)
    for number in range(1, 30):
        _, _, width, height = crops.view(sample, number, 3.0).crop
        assert 0.7 <= width / height <= 1.4
        assert crops.image(sample, number).size == (224, 224)


@pytest.fixture
def arrow(tmp_path, encode):
    """A picture with one red corner, top left, as a sample."""
    pixels = np.full((256, 256, 3), 90, np.uint8)
    pixels[:64, :64] = (255, 0, 0)
    path = tmp_path / "arrow.png"
    path.write_bytes(encode(PIL.Image.fromarray(pixels)))
    return Sample(path, "arrow.png", (0,), "ab" * 32, 8, 8)


def red_at(picture: PIL.Image.Image) -> tuple[float, float]:
    """Centre of the red part, as shares of width and height."""
    pixels = np.asarray(picture).astype(int)
    rows, cols = np.nonzero(pixels[..., 0] - pixels[..., 2] > 60)
    return cols.mean() / picture.width, rows.mean() / picture.height


def test_flips_shifts_and_holes_land_where_they_are_drawn(arrow):
    def place(**setting):
        augmenter = Augmenter(GEOMETRY, replace(STILL, **setting), seed=0)
        numbers = range(1, 40)
        return augmenter, [(augmenter.view(arrow, n, 1.0), augmenter.image(arrow, n)) for n in numbers]

    for view, picture in place(flip=True)[1]:
        assert (red_at(picture)[0] > 0.5) == view.mirror
    for view, picture in place(flip_vertical=True)[1]:
        assert (red_at(picture)[1] > 0.5) == view.upside_down
    for view, picture in place(erase=0.2)[1]:
        grey = tuple(round(channel * 255) for channel in GEOMETRY.mean)
        covered = (np.asarray(picture) == grey).all(axis=2)
        if view.erased is None:
            assert not covered.any()
        else:
            x, y, width, height = view.erased
            inside = covered[int((y + height / 2) * 224), int((x + width / 2) * 224)]
            assert inside
            assert covered.mean() == pytest.approx(width * height, abs=0.02)
    _, shifted = place(shift=0.2)
    for view, picture in shifted:
        if min(view.shift) > 0:
            x, y, width, height = view.crop
            assert red_at(picture)[0] == pytest.approx((0.125 + view.shift[0] - x) / width, abs=0.03)


def test_batches_come_in_order_whatever_their_size(found):
    augmenter = Augmenter(GEOMETRY, STILL, seed=0)
    samples = found.train[:7]
    whole = torch.stack([augmenter.tensor(sample, 1) for sample in samples])
    for size in (1, 2, 3, 7, 100):
        got = list(read_batches(augmenter, samples, [1] * 7, size))
        assert [len(part) for part in got[:-1]] == [size] * (len(got) - 1)
        assert torch.equal(torch.cat(got), whole)
    assert list(read_batches(augmenter, [], [], 4)) == []


def test_a_reader_that_is_left_early_stops(found):
    augmenter = Augmenter(GEOMETRY, STILL, seed=0)
    reading = read_batches(augmenter, found.train * 20, [1] * len(found.train) * 20, 4)
    next(reading)
    reading.close()


def test_the_sheet_shows_each_class(found):
    sheet = draw_views_figure(GEOMETRY, found, TrainConfig())
    assert sheet.width > 1000
