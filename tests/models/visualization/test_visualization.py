"""Overlays, colour maps and sheets show what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import PIL.Image
import pytest

from models.attribution.result import Attribution
from models.attribution.targets import Target
from models.errors import ExplanationError, UnknownChoice
from models.images.decode import image_from_array
from models.images.geometry import Geometry
from models.networks.predictions import class_index, rank_classes
from models.networks.scoring import Scoring
from models.visualization.colormaps import apply_evidence_colormap, evidence_table
from models.visualization.contact_sheet import Tile, draw_contact_sheet
from models.visualization.overlay import draw_contrast_overlay, draw_overlay

GEOMETRY = Geometry(64, 56, 56, (0.5,) * 3, (0.5,) * 3, "bilinear")


def oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB bytes to OKLab, by Ottosson's published forward matrices: the inverse way of the product's."""
    srgb = rgb.astype(float) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_lms = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.cbrt(linear @ np.array(to_lms).T) @ np.array(to_lab).T


def test_the_colour_map_is_even_and_its_order_survives_without_hue():
    lab = oklab(evidence_table())
    lightness = np.diff(lab[:, 0])
    assert (lightness > -0.002).all(), "lightness rises, up to the rounding of a byte"
    assert lab[-1, 0] - lab[0, 0] > 0.65
    steps = np.linalg.norm(np.diff(lab[::8], axis=0), axis=1)
    assert steps.max() / steps.min() < 2.0


@pytest.mark.parametrize("matrix", [
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
], ids=["protanopia", "deuteranopia"])  # fmt: skip
def test_colour_blind_readers_can_order_the_values(matrix):
    """Machado et al. 2009's full-severity matrices, on linear light."""
    srgb = evidence_table()[::16].astype(float) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(matrix).T, 0, 1) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(np.cbrt(seen)) > 0).all()


def attribution(values: np.ndarray) -> Attribution:
    return Attribution(Target(0, "a"), "grad_cam", "b", "ok", values.astype(np.float32))


def test_the_overlay_has_the_pictures_size_and_colours_only_where_evidence_is():
    image = image_from_array(np.full((90, 120, 3), 128, np.uint8))
    values = np.zeros((7, 7))
    values[3, 3] = 2.0
    drawn = np.asarray(draw_overlay(image, GEOMETRY.frame(120, 90), attribution(values)), int)
    assert drawn.shape == (90, 120, 3)
    spread = drawn.max(axis=2) - drawn.min(axis=2)
    assert spread[45, 60] > 60, "the middle is coloured"
    assert spread[20, 35] <= 2, "a seen place without evidence stays grey"
    assert drawn[2, 2].mean() < 128, "the unseen border is dimmed"


def test_a_faint_map_looks_faint_on_a_shared_scale():
    image = image_from_array(np.full((64, 64, 3), 128, np.uint8))
    frame, faint = GEOMETRY.frame(64, 64), attribution(np.full((7, 7), 0.1))
    alone = np.asarray(draw_overlay(image, frame, faint), int)[32, 32]
    shared = np.asarray(draw_overlay(image, frame, faint, full_scale=1.0), int)[32, 32]
    assert np.abs(alone - 128).max() > 3 * np.abs(shared - 128).max()


@pytest.mark.parametrize("against", [None, "b"])
def test_weak_evidence_fades_and_full_colour_stays(against):
    image = image_from_array(np.full((96, 96, 3), 128, np.uint8))
    values = np.zeros((3, 3))
    values[0], values[2] = 0.25, 1.0 if against is None else -1.0
    shown = Attribution(
        Target(0, "a", 1 if against else None, against), "grad_cam", "b", "ok", values.astype(np.float32)
    )
    frame = replace(GEOMETRY, view="whole").frame(96, 96)
    plain, faded = (np.asarray(draw_overlay(image, frame, shown, fade=fade), int) for fade in (0.0, 0.3))
    none = np.asarray(draw_overlay(image, frame, replace(shown, values=0 * shown.values), fade=0.3), int)
    assert np.abs(plain[5, 48] - none[5, 48]).max() > 15
    assert np.abs(faded[5, 48] - none[5, 48]).max() <= 2, "a quarter of full colour is below 0.3"
    assert np.abs(faded[92, 48] - plain[92, 48]).max() <= 2
    assert np.array_equal(shown.values, values.astype(np.float32))


def test_negative_evidence_draws_nothing():
    image = image_from_array(np.full((64, 64, 3), 128, np.uint8))
    drawn = np.asarray(draw_overlay(image, GEOMETRY.frame(64, 64), attribution(np.full((7, 7), -3.0))), int)
    assert np.abs(drawn[20:40, 20:40] - 128).max() <= 1


def test_a_contrast_is_drawn_with_both_sides():
    image, frame = image_from_array(np.full((64, 64, 3), 128, np.uint8)), GEOMETRY.frame(64, 64)
    values = np.zeros((7, 7), np.float32)
    values[3, 1], values[3, 5] = 2.0, -2.0
    contrast = Attribution(Target(0, "a", 1, "b"), "grad_cam", "b", "ok", values)
    drawn = np.asarray(draw_overlay(image, frame, contrast), int)
    one, nothing, other = drawn[32, 16], drawn[32, 32], drawn[32, 48]
    assert one[0] - one[2] > 60, "orange for the one"
    assert other[2] - other[0] > 60, "blue for the other"
    assert np.ptp(nothing) <= 2
    zero = Attribution(Target(0, "a"), "grad_cam", "b", "ok", np.zeros((7, 7), np.float32))
    both = draw_contrast_overlay(image, frame, contrast, zero)
    assert (np.asarray(both) == drawn).all()
    shared = np.asarray(draw_overlay(image, frame, contrast, full_scale=20.0), int)
    for column in (16, 48):
        assert np.ptp(shared[32, column]) * 2 < np.ptp(drawn[32, column]), "faint beside a stronger one"


def test_large_pictures_are_shown_smaller_in_proportion():
    image = image_from_array(np.zeros((500, 4000, 3), np.uint8))
    assert draw_overlay(
        image, GEOMETRY.frame(4000, 500), attribution(np.ones((7, 7))), max_side=800
    ).size == (
        800,
        100,
    )


def test_a_contact_sheet_holds_every_tile_unstretched():
    tiles = [
        Tile(PIL.Image.new("RGB", size, "red"), "a very long caption " * 5, "x")
        for size in [(10, 40), (40, 10), (5, 5)]
    ]
    sheet = draw_contact_sheet(tiles, columns=2, side=100, title="t")
    red = (np.asarray(sheet) == (255, 0, 0)).all(axis=2).sum()
    assert red == 100 * 25 + 25 * 100 + 100 * 100
    assert draw_contact_sheet([], columns=3).width > 0


def test_colourise_clips_and_keeps_shape():
    assert apply_evidence_colormap(np.array([[-1.0, 0.5, 7.0]])).shape == (1, 3, 3)
    assert (apply_evidence_colormap(np.array([7.0])) == evidence_table()[255]).all()


def test_ranking_is_a_softmax_highest_first():
    import torch

    ranking = rank_classes(torch.tensor([1.0, 3.0, 2.0, 3.0]), ["a", "b", "c", "d"], Scoring())
    assert [item.label for item in ranking] == ["b", "d", "c", "a"]
    assert sum(item.score for item in ranking) == pytest.approx(1)
    assert ranking[0].score / ranking[2].score == pytest.approx(np.e)
    with pytest.raises(ExplanationError):
        rank_classes(torch.tensor([float("nan"), 1.0]), ["a", "b"], Scoring())


def test_a_class_is_found_by_name_before_number():
    assert class_index("1", ["0", "2", "1"]) == 2
    assert class_index("1", ["a", "b"]) == 1
    assert (
        class_index("cafe\u0301", ["tea", "caf\u00e9"])
        == class_index("caf\u00e9", ["tea", "cafe\u0301"])
        == 1
    )
    for wrong in ("7", "c", "-1", "1.0", ""):
        with pytest.raises(UnknownChoice, match="a, b"):
            class_index(wrong, ["a", "b"])
