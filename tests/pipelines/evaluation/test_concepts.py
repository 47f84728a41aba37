"""Concepts over a data set: planted directions and marks are found, names stay with the bundle."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from models.bundle import load_bundle
from models.errors import BundleError, UnknownChoice
from models.explainer import Explainer
from models.introspection.concept_set import CONCEPT_METHODS, read_concepts
from models.networks.transfer_model import TransferModel
from pipelines.config.schema import TrainConfig
from pipelines.data.dataset import scan_folder
from pipelines.data.synthetic import SpecimenPlan, write_specimens
from pipelines.errors import DataError
from pipelines.evaluation.concept_fitting import fit_directions, whitening
from pipelines.evaluation.concepts import spread_by_class, study_concepts
from pipelines.release.package import _check_findings, _copy_findings
from tests.support.training import fine_tune

CHANNELS, PLANTED = 24, 3


def planted_maps(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maps whose variance is along axes that carry no evidence; three rare directions carry it."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator)).Q
    directions = axes[:PLANTED]
    loud = torch.randn(150, 8, 8, CHANNELS - PLANTED, generator=generator)
    maps = loud @ axes[PLANTED:] + 0.05 * torch.randn(150, 8, 8, CHANNELS, generator=generator)
    evidence = torch.zeros(150, 8, 8)
    for n in range(150):
        row, col = divmod(int(torch.randint(64, (1,), generator=generator)), 8)
        maps[n, row, col] += 2 * directions[n % PLANTED]
        evidence[n, row, col] = 1.0
    return maps.permute(0, 3, 1, 2), evidence, directions


def likeness(directions: torch.Tensor, planted: torch.Tensor) -> torch.Tensor:
    """The cosine of each planted direction with the nearest that was found."""
    unit = directions / directions.norm(dim=1, keepdim=True)
    return (unit @ planted.double().T).amax(0)


@pytest.mark.parametrize("method", CONCEPT_METHODS)
def test_rare_directions_that_carry_the_evidence_are_found_and_would_not_be_by_variance(method):
    maps, evidence, planted = planted_maps()
    fitted = fit_directions(maps, evidence, PLANTED, method=method)
    assert (likeness(fitted.directions, planted) > 0.85).all()
    again = fit_directions(maps, evidence, PLANTED, method=method)
    assert torch.equal(fitted.directions, again.directions)
    blind = fit_directions(maps, torch.ones_like(evidence), PLANTED, method=method)
    assert (likeness(blind.directions, planted) < 0.5).all()


def test_whitened_cells_have_a_covariance_near_unity_and_lead_back():
    generator = torch.Generator().manual_seed(0)
    cells = torch.randn(5_000, 6, generator=generator, dtype=torch.float64) * torch.tensor([9, 7, 5, 5, 4, 3])
    cells -= cells.mean(0)
    there, back = whitening(cells)
    assert torch.allclose(cells @ there @ back, cells)
    variances = (cells @ there).var(dim=0)
    assert 0.6 < float(variances.min()) < float(variances.max()) < 1.0


def test_what_cannot_be_found_is_refused(bundle_folder, butterflies):
    maps, evidence, _ = planted_maps()
    with pytest.raises(UnknownChoice, match="factorization, sparse_autoencoder"):
        fit_directions(maps, evidence, PLANTED, method="pca")
    with pytest.raises(DataError, match="150 cells have evidence; that is too few for 151"):
        fit_directions(maps, evidence, 151)
    with pytest.raises(DataError, match="0 cells have evidence"):
        fit_directions(maps, torch.zeros_like(evidence), PLANTED)
    copies = maps[:3].repeat(8, 1, 1, 1), evidence[:3].repeat(8, 1, 1)
    with pytest.raises(DataError, match="3 cells have evidence"):
        fit_directions(*copies, 4)
    alike = fit_directions(*copies, PLANTED)
    assert bool(torch.isfinite(alike.directions).all())
    data, explainer = scan_folder(butterflies), Explainer(load_bundle(bundle_folder))
    with pytest.raises(UnknownChoice, match="stage9"):
        study_concepts(explainer, data, block="stage9")
    with pytest.raises(UnknownChoice, match="wasp"):
        study_concepts(explainer, data, label="wasp")
    data.val.clear()
    with pytest.raises(DataError, match="no validation pictures"):
        study_concepts(explainer, data)
    data.train.clear()
    with pytest.raises(DataError, match="no training pictures"):
        study_concepts(explainer, data)


def test_samples_are_spread_over_the_classes(butterflies):
    data = scan_folder(butterflies)
    chosen = spread_by_class(data.train, 10)
    assert sorted(sample.label for sample in chosen) == sorted([0, 1, 2, 3, 4] * 2)
    assert chosen == spread_by_class(data.train[::-1], 10)


def test_the_command_finds_names_and_keeps_them_for_this_bundle_alone(
    bundle_folder, butterflies, at_once, in_tmp, tmp_path
):
    common = ("concepts", "--bundle", str(bundle_folder), "--data", str(butterflies))
    done = at_once(*common, "--count", "3", "--most", "10")
    assert done.returncode == 0, done.stderr
    assert "concept 0: in " in done.stdout
    assert "mark of argus: concept " in done.stdout
    page = (in_tmp / "concepts/index.html").read_text()
    assert page.count('<section class="concept">') == 3
    assert "data:image/jpeg" in page
    named = at_once("name-concept", "concepts", "1", "hind wing")
    assert named.stdout.strip() == "Concept 1 is 'hind wing' now."
    assert "<h3>hind wing</h3>" in (in_tmp / "concepts/index.html").read_text()
    again = at_once(*common, "--count", "3", "--most", "10")
    assert again.returncode != 0
    assert "have names (hind wing), which would be lost" in again.stderr
    wrong = at_once("name-concept", "concepts", "7", "leg")
    assert wrong.returncode != 0
    assert "0 to 2" in wrong.stderr
    assert at_once("name-concept", "nowhere", "1", "leg").returncode != 0

    kept = json.loads((in_tmp / "concepts/concepts.json").read_text())
    assert kept["names"] == ["", "hind wing", ""]
    digest = load_bundle(bundle_folder).provenance.digest
    _check_findings(None, in_tmp / "concepts", digest)
    _copy_findings(None, in_tmp / "concepts", tmp_path)
    copied = read_concepts(tmp_path, digest)
    assert copied is not None
    assert copied.title(1) == "hind wing"
    with pytest.raises(BundleError, match="not of"):
        _check_findings(None, in_tmp / "concepts", "0" * 64)
    shutil.rmtree(in_tmp / "concepts")
    with pytest.raises(DataError, match=r"no concepts\.json"):
        _check_findings(None, in_tmp / "concepts", digest)
    _copy_findings(None, in_tmp / "concepts", tmp_path)


@pytest.mark.soak
def test_the_marks_of_trained_specimens_are_concepts_in_four_of_five_pictures(tmp_path):
    data = scan_folder(write_specimens(SpecimenPlan(), tmp_path / "specimens"))
    model = TransferModel.create("efficientnet_lite0", data.classes, view="whole")
    fine_tune(model, data, TrainConfig())
    study = study_concepts(Explainer(model.eval()), data)
    assert {part.label for part in study.parts} == set(data.classes)
    assert sum(part.matched for part in study.parts) >= 0.8 * sum(part.images for part in study.parts)
    marks = {part.number for part in study.parts}
    without = {measure.number: measure.flips for measure in study.measures}
    others = [flips for number, flips in without.items() if number not in marks]
    assert sum(without[number] for number in marks) / len(marks) > sum(others) / len(others)
