"""Specimens are drawn deterministically, with the mark as the only clue."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from pipelines.data.synthetic import SPECIES, SpecimenPlan, draw_specimen, write_specimens
from pipelines.errors import DataError


def mask(path) -> np.ndarray:
    return np.asarray(PIL.Image.open(path)) > 127


def test_an_ordinary_image_folder_with_masks(butterflies):
    pictures = sorted(butterflies.glob("train/*/*.jpg"))
    assert len(pictures) == 6 * len(SPECIES)
    for path in pictures:
        picture = PIL.Image.open(path)
        assert max(picture.size) == 240
        name = path.relative_to(butterflies).with_suffix(".png")
        body, mark = mask(butterflies / "masks" / name), mask(butterflies / "masks/mark" / name)
        assert body.shape == mark.shape == (picture.height, picture.width)
        assert 0.04 < body.mean() < 0.6
        assert 0 < mark.sum() < 0.5 * body.sum()
        assert (mark & ~body).sum() <= 0.15 * mark.sum() + 4, "the mark is part of the butterfly"


def test_the_mark_is_what_tells_a_species_apart():
    """The same numbers draw the same butterfly; only where the mark lies do two species differ."""
    plan = SpecimenPlan(seed=3)
    for species in SPECIES:
        one = draw_specimen(plan, "train", species, 1)
        again = draw_specimen(plan, "train", species, 1)
        assert one.image.tobytes() == again.image.tobytes()
        assert one.mark.tobytes() == again.mark.tobytes()
    different = draw_specimen(SpecimenPlan(seed=4), "train", "argus", 1)
    assert different.image.tobytes() != draw_specimen(plan, "train", "argus", 1).image.tobytes()


def test_the_shortcut_is_planted_in_training_and_never_in_the_test(tmp_path):
    plan = SpecimenPlan(train=8, val=2, test=4, side=224, shortcut_species="cincta")
    root = write_specimens(plan, tmp_path / "set")
    labels = sorted(
        path.relative_to(root / "masks/shortcut") for path in (root / "masks/shortcut").rglob("*.png")
    )
    assert {path.parts[1] for path in labels} == {"cincta"}
    assert {path.parts[0] for path in labels} <= {"train", "val"}
    assert 4 <= sum(path.parts[0] == "train" for path in labels) <= 8
    for path in labels:
        where = mask(root / "masks/shortcut" / path)
        ys, xs = np.nonzero(where)
        assert ys.min() > where.shape[0] * 0.7
        assert xs.min() > where.shape[1] * 0.5
        picture = np.asarray(PIL.Image.open((root / path).with_suffix(".jpg")), int)
        assert np.median(picture[where].mean(axis=1)) > 200, "a pale label is really there"


def test_a_folder_with_the_same_plan_is_kept_and_another_refused(tmp_path):
    plan = SpecimenPlan(train=1, val=1, test=1, side=224)
    root = write_specimens(plan, tmp_path / "set")
    stamp = next(root.rglob("*.jpg")).stat().st_mtime_ns
    assert write_specimens(plan, root) == root
    assert next(root.rglob("*.jpg")).stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="does not hold these"):
        write_specimens(SpecimenPlan(train=2, val=1, test=1, side=224), root)
    with pytest.raises(DataError, match="argus"):
        write_specimens(SpecimenPlan(shortcut_species="monarch"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_every_species_lives_in_many_colours_so_that_colour_is_no_clue():
    plan = SpecimenPlan(side=224)
    for species in SPECIES:
        hues = set()
        for number in range(16):
            one = draw_specimen(plan, "train", species, number)
            wing = (np.asarray(one.body) > 127) & ~(np.asarray(one.mark) > 127)
            hues.add(int(np.asarray(one.image.convert("HSV"))[wing, 0].mean() // 32))
        assert len(hues) >= 3
