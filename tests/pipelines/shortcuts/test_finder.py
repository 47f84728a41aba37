"""The search for shortcuts: a planted one is found, placed, shown and taken away; clean sets have none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from models.explainer import Explainer
from models.networks.transfer_model import TransferModel
from pipelines.config.loader import load_config
from pipelines.data.dataset import Dataset, scan_folder
from pipelines.data.mitigation import load_mitigation
from pipelines.data.synthetic import SpecimenPlan, write_specimens
from pipelines.reports.shortcuts import render_search, search_to_json
from pipelines.shortcuts.evidence import look_at, mask_in_input
from pipelines.shortcuts.finder import ShortcutSearch, find_shortcuts
from pipelines.shortcuts.interventions import intervene
from pipelines.shortcuts.mitigation import write_mitigation
from pipelines.shortcuts.samples import dataset_images
from tests.support.training import fine_tune

PLAN = SpecimenPlan(train=24, val=12, test=16, shortcut_species="cincta", shortcut_share=0.6)


def trained(folder: Path, **augmentation) -> tuple[Explainer, Dataset]:
    data = scan_folder(folder)
    config = load_config(None, preset="quick")
    config = replace(config, augmentation=replace(config.augmentation, **augmentation))
    model = TransferModel.create("efficientnet_lite0", data.classes)
    fine_tune(model, data, config)
    return Explainer(model.eval()), data


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> tuple[Explainer, Dataset]:
    """A model that was trained where a collector's label lies on six in ten of one species."""
    return trained(write_specimens(PLAN, tmp_path_factory.mktemp("labelled") / "set"))


@pytest.fixture(scope="module")
def search(labelled) -> ShortcutSearch:
    explainer, data = labelled
    return find_shortcuts(explainer, dataset_images(data, 400))


def planted(data: Dataset, name: str) -> np.ndarray | None:
    path = (data.root / "masks" / "shortcut" / name).with_suffix(".png")
    return np.asarray(PIL.Image.open(path).convert("L")) > 127 if path.is_file() else None


def test_the_label_is_found_in_the_pictures_that_have_it_and_at_its_place(labelled, search):
    _, data = labelled
    (finding,) = search.findings
    suspicion = finding.suspicion
    assert (data.classes[suspicion.label], suspicion.kind) == ("cincta", "repeats")
    have = {image.name for image in search.images if planted(data, image.name) is not None}
    named = {image.name for image in suspicion.carriers}
    # The view cuts some in half.
    assert len(named & have) >= 0.7 * len(have)
    assert len(named & have) >= 0.8 * len(named)
    covered = []
    for image in suspicion.carriers:
        if image.name in have:
            mask = mask_in_input(image.frame, planted(data, image.name), image.pixels.shape[:2])
            covered.append((mask & suspicion.masks[image.name]).sum() / mask.sum())
    assert np.mean(np.array(covered) > 0.5) >= 0.8
    assert finding.p_value < 0.05
    assert finding.removed.low > 0
    assert finding.added.low > 0


@pytest.mark.soak
def test_a_clean_set_has_none(tmp_path):
    explainer, data = trained(write_specimens(replace(PLAN, shortcut_species=""), tmp_path / "set"))
    found = find_shortcuts(explainer, dataset_images(data, 400))
    assert found.findings == ()
    assert not [leak for leak in found.leaks if leak.tells_class]


def test_the_page_and_the_figures_say_what_was_found(labelled, search):
    explainer, data = labelled
    page = render_search(search, explainer, title="Shortcuts of wings", about="A set")
    assert "1 shortcut." in page
    assert "cincta: the same pixels at the same place, lower right" in page
    assert page.count("data:image/") == 16
    figures = json.loads(json.dumps(search_to_json(search, data.classes)))
    (found,) = [item for item in figures["tested"] if item["found"]]
    assert found["class"] == "cincta"
    assert 0.4 < found["share_of_class"] < 0.8
    assert found["share_of_others"] < 0.15


def test_a_training_that_erases_and_pastes_it_relies_on_it_less(labelled, search, tmp_path):
    explainer, data = labelled
    count = write_mitigation(search, tmp_path / "mitigation")
    assert count == len(search.findings[0].suspicion.carriers)
    mended, _ = trained(data.root, mitigation=str(tmp_path / "mitigation"))

    def effect(of: Explainer) -> float:
        finding = search.findings[0].suspicion
        seen, _ = look_at(of, dataset_images(data, 400))
        carriers = [image for image in seen if image.name in finding.masks]
        others = [image for image in seen if image.label != finding.label]
        result = intervene(of, finding.editor, carriers, others, finding.label)
        return float(np.mean(result.added - result.added_control))

    assert effect(mended) < 0.5 * effect(explainer)


@pytest.mark.soak
def test_the_same_search_twice_gives_the_same_answer(labelled):
    explainer, data = labelled
    first, again = (find_shortcuts(explainer, dataset_images(data, 100)) for _ in range(2))
    assert first.tested
    assert search_to_json(again, data.classes) == search_to_json(first, data.classes)


def test_a_mitigation_erases_where_it_is_and_pastes_where_it_is_not(search, tmp_path):
    write_mitigation(search, tmp_path / "mitigation")
    mitigation = load_mitigation(tmp_path / "mitigation")
    carrier = search.findings[0].suspicion.carriers[0]
    plain = PIL.Image.new("RGB", (200, 160), (10, 120, 10))
    kept = mitigation.apply(plain, carrier.sha256, (0.9, 0.0))
    assert kept is plain
    other = np.asarray(mitigation.apply(plain, "f" * 64, (0.1, 0.0)))
    changed = (other != np.asarray(plain)).any(axis=2)
    x0, y0, *_ = mitigation.patches[0].box
    assert changed.any()
    assert not changed[: int(y0 * 160)].any()
    assert not changed[:, : int(x0 * 200)].any()
    stamped = plain.copy()
    box = mitigation.places[carrier.sha256][0]
    stamped.paste((255, 255, 255), tuple(
        round(share * side) for share, side in zip(box, (200, 160, 200, 160), strict=True)
    ))  # fmt: skip
    erased = np.asarray(mitigation.apply(stamped, carrier.sha256, (0.1, 0.0)))
    left, top, right, bottom = (int(share * side) for share, side in zip(box, (200, 160) * 2, strict=True))
    inner = erased[top + 2 : bottom - 2, left + 2 : right - 2]
    assert inner.mean() < 200
