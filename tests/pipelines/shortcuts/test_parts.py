"""The parts of the search, each against a second derivation."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
from sklearn.metrics import mutual_info_score

from models.errors import ConfigError
from models.images.decode import image_from_array
from models.images.geometry import Geometry
from pipelines.data.mitigation import load_mitigation
from pipelines.shortcuts.edits import LightEditor, PartEditor, border_colour
from pipelines.shortcuts.evidence import SeenImage, mask_in_input
from pipelines.shortcuts.image_facts import ImageFacts, read_facts
from pipelines.shortcuts.metadata import find_leaks, mutual_information
from pipelines.shortcuts.mitigation import box_in_image
from pipelines.shortcuts.repeated_windows import find_shared_windows
from pipelines.shortcuts.repetition import StructureIndex
from pipelines.shortcuts.statistics import holm, paired_p_value, unpaired_p_value

SIDE = 224
GEOMETRY = Geometry(256, SIDE, SIDE, (0.5,) * 3, (0.5,) * 3, "bicubic", "crop")


def seen(name, pixels, label=0, *, objects=None, numbers=None):
    facts = ImageFacts(numbers or {}, {})
    return SeenImage(
        name, pixels, label, label, np.zeros(2), (), objects, GEOMETRY.frame(*pixels.shape[1::-1]), facts,
        name, lambda: (None, b""),
    )  # fmt: skip


def noise(rng):
    """A picture with structure of some pixels' size."""
    small = rng.integers(0, 255, (56, 56, 3), dtype=np.uint8)
    return np.asarray(PIL.Image.fromarray(small).resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)).copy()


def test_holms_correction_is_that_of_its_definition():
    p_values = [0.01, 0.04, 0.03, 0.005]
    # Sorted .005 .01 .03 .04 times 4 3 2 1, never below the one before.
    assert holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_mutual_information_is_scikit_learns_in_bits():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 4, 200), rng.integers(0, 3, 200)
    assert mutual_information(one, other) == pytest.approx(mutual_info_score(one, other) / np.log(2))
    assert mutual_information(one, one) == pytest.approx(mutual_info_score(one, one) / np.log(2))


def test_p_values_are_even_where_nothing_differs():
    rng = np.random.default_rng(1)
    paired = [paired_p_value(rng.normal(0, 1, 20)) < 0.05 for _ in range(400)]
    unpaired = [unpaired_p_value(rng.normal(0, 1, 20), rng.normal(0, 1, 20)) < 0.05 for _ in range(400)]
    assert 0.02 < np.mean(paired) < 0.09
    assert 0.02 < np.mean(unpaired) < 0.09
    assert paired_p_value(np.zeros(9)) == 1.0


@pytest.mark.parametrize("size", [(320, 240), (240, 320), (300, 300)])
def test_a_mask_lies_in_the_input_where_the_picture_itself_does_and_finds_back(size):
    width, height = size
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 2 : height // 2 + 60, width // 2 - 20 : width // 2 + 40] = True
    picture = image_from_array(np.repeat((mask * 255).astype(np.uint8)[..., None], 3, axis=2))
    view, frame = GEOMETRY.see(picture)
    placed = mask_in_input(frame, mask, (SIDE, SIDE))
    assert (placed != (np.asarray(view)[..., 0] > 127)).mean() < 0.01
    x0, y0, x1, y1 = box_in_image(frame, placed)
    expected = ((width // 2 - 20) / width, (height // 2) / height, (width // 2 + 40) / width,
                (height // 2 + 60) / height)  # fmt: skip
    assert (x0, y0, x1, y1) == pytest.approx(expected, abs=0.01)


def stamped_set(rng, *, share=0.5, count=24):
    stamp = rng.integers(0, 2, (10, 18, 1)).repeat(4, axis=0).repeat(4, axis=1).repeat(3, axis=2) * 255
    images = []
    for number in range(2 * count):
        pixels, label = noise(rng), number % 2
        if label and number < 2 * count * share:
            down, across = rng.integers(-4, 5, 2)
            pixels[150 + down : 190 + down, 130 + across : 202 + across] = stamp
        images.append(seen(f"{number:02d}", pixels, label))
    return images, {image.name for image in images if image.label and int(image.name) < 2 * count * share}


def test_a_stamp_is_found_in_all_pictures_that_have_it_wherever_the_map_lies():
    images, stamped = stamped_set(np.random.default_rng(2))
    index = StructureIndex(images)
    windows = index.shared_windows(1)
    assert windows
    names, mask = windows[0]
    assert set(names) <= stamped
    repeated = index.find(names, mask, 1)
    assert set(repeated.masks) == stamped
    assert repeated.correlation > 0.6 > repeated.by_chance
    rows, cols = np.nonzero(repeated.masks[names[0]])
    assert 140 < rows.mean() < 190
    assert 120 < cols.mean() < 200
    assert index.shared_windows(0) == []


def test_pictures_that_share_nothing_share_no_window():
    rng = np.random.default_rng(3)
    own, others = rng.normal(0, 30, (20, 112, 112)), rng.normal(0, 30, (20, 112, 112))
    assert find_shared_windows(own, others) == []
    assert find_shared_windows(own[:3], others) == []
    assert find_shared_windows(own, others[:0]) == []


def test_edits_change_the_part_alone_and_keep_away_from_it_elsewhere():
    rng = np.random.default_rng(4)
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[20:60, 30:90] = True
    objects = np.zeros_like(mask)
    objects[100:200, 50:220] = True
    image, donor = seen("a", noise(rng), objects=objects), seen("b", noise(rng), 1)
    editor = PartEditor({"a": mask})
    removed = editor.remove(image, donor)
    assert len(removed) == 3
    for edited in removed:
        assert np.array_equal(edited[~mask], image.pixels[~mask])
        assert not np.array_equal(edited[mask], image.pixels[mask])
    assert np.array_equal(removed[2][mask], donor.pixels[mask])
    added = editor.add(donor, image, image)
    assert np.array_equal(added[mask], image.pixels[mask])
    assert np.array_equal(added[~mask], donor.pixels[~mask])
    for edited in editor.change_elsewhere(image, donor, rng):
        changed = (edited != image.pixels).any(axis=2)
        assert (changed & (mask | objects)).sum() < 0.05 * mask.sum()
        assert changed.sum() > 0.8 * mask.sum()


def test_light_is_changed_round_the_objects_alone():
    rng = np.random.default_rng(5)
    objects = np.zeros((SIDE, SIDE), dtype=bool)
    objects[80:140, 80:140] = True
    image = seen("a", np.full((SIDE, SIDE, 3), 120, np.uint8), objects=objects)
    warm = np.array([150.0, 120.0, 84.0])
    editor = LightEditor(np.stack([warm]))
    (lit,) = editor.remove(image, seen("b", noise(rng), 1))
    assert np.array_equal(lit[objects], image.pixels[objects])
    ratio = border_colour(seen("c", lit)) / border_colour(image)
    assert ratio[0] / ratio[1] == pytest.approx(151 / 121, abs=0.02)
    assert ratio[2] / ratio[1] == pytest.approx(85 / 121, abs=0.02)


def test_a_fact_that_follows_the_class_is_told_and_chance_is_not():
    rng = np.random.default_rng(6)
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    images = [
        seen(f"{n}", pixels, n % 2, numbers={"size": (n % 2 + rng.normal(0, 0.4),), "noise": (rng.normal(),)})
        for n in range(120)
    ]
    leaks = {leak.fact: leak for leak in find_leaks(images)}
    assert leaks["size"].tells_class
    assert leaks["size"].accuracy > 0.8
    assert not leaks["noise"].tells_class
    assert find_leaks(images[:8]) == []


def test_facts_are_those_of_the_file(tmp_path):
    image = PIL.Image.new("RGB", (120, 80), (200, 100, 50))
    exif = PIL.Image.Exif()
    exif[271], exif[272] = "Lucida", "Obscura 2"
    image.save(tmp_path / "a.jpg", exif=exif)
    data = (tmp_path / "a.jpg").read_bytes()
    facts = read_facts(image_from_array(np.asarray(image)), data, "session 2/cats/a.jpg")
    assert facts.words == {"format": "JPEG", "camera": "Lucida Obscura 2", "folder": "session 2"}
    assert facts.numbers["width to height"][0] == pytest.approx(np.log(1.5))
    assert facts.numbers["colour of the border"] == pytest.approx((200 / 255, 100 / 255, 50 / 255), abs=0.02)


@pytest.mark.parametrize(
    "content",
    [None, "no JSON", "[]", '{"format": 2}', '{"format": 1, "places": {"a": [[0, 0, 2, 1]]}, "patches": []}',
     '{"format": 1, "places": {}, "patches": [[0, 0, 1, 1]]}'],
)  # fmt: skip
def test_a_folder_that_is_no_mitigation_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "mitigation.json").write_text(content)
    with pytest.raises(ConfigError):
        load_mitigation(tmp_path)
