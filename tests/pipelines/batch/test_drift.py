from __future__ import annotations

import PIL.Image
import PIL.ImageEnhance
import pytest

from models.bundle import load_bundle, save_bundle
from models.explainer import Explainer
from pipelines.batch.drift import compare_batch, read_classes, reference_of_batch
from pipelines.batch.job import plan_job
from pipelines.batch.local import run_local
from pipelines.data.dataset import scan_folder
from pipelines.errors import DataError
from pipelines.evaluation.reference import measure_reference


@pytest.fixture(scope="module")
def watched(bundle_folder, photos, tmp_path_factory):
    """A bundle with a reference, and its batches of like and of dark photographs."""
    root, bundle = tmp_path_factory.mktemp("watched"), load_bundle(bundle_folder)
    reference = measure_reference(Explainer(bundle), scan_folder(photos / "hymenoptera").train[::5])
    save_bundle(bundle.model, root / "bundle", name="three", reference=reference)
    bundle = load_bundle(root / "bundle")
    for name, brightness in (("like", 1.0), ("dark", 0.25)):
        (root / f"{name}_photos").mkdir()
        for n, path in enumerate(sorted((photos / "hymenoptera/val").glob("*/*.jpg"))[::4][:36]):
            image = PIL.ImageEnhance.Brightness(PIL.Image.open(path).convert("RGB")).enhance(brightness)
            image.save(root / f"{name}_photos/{n:02d}.jpg", quality=92)
        explainer = Explainer(bundle)
        job = plan_job(root / f"{name}_photos", explainer, features=name == "dark")
        run_local(job, bundle, root / name, explainer=explainer)
    return root


def test_a_batch_is_held_against_its_models_reference(watched):
    bundle = load_bundle(watched / "bundle")
    classes = bundle.model.classes
    like = compare_batch(watched / "like", classes, bundle.reference, against="the validation pictures")
    assert like.images == 36
    assert like.drifted == ()
    dark = compare_batch(watched / "dark", classes, bundle.reference, against="the validation pictures")
    assert "brightness" in dark.drifted
    # Its rows keep the features, those of the other batch do not.
    assert "features" in dark.drifted
    assert "features" not in {result.figure for result in like.results}


def test_two_batches_are_held_against_each_other(watched):
    classes = read_classes(watched / "like")
    same = compare_batch(
        watched / "like", classes, reference_of_batch(watched / "like", classes), against="itself"
    )
    assert same.drifted == ()
    assert {result.p_value for result in same.results} == {1.0}


def test_the_command_writes_a_page_and_says_by_its_exit_code_what_drifted(watched, at_once, tmp_path):
    page = tmp_path / "drift.html"
    done = at_once("drift", str(watched / "dark"), str(watched / "like"), "--out", str(page))
    assert done.returncode == 3
    assert "brightness" in done.stdout
    assert "brightness" in page.read_text()
    done = at_once("drift", str(watched / "like"), "--bundle", str(watched / "bundle"), "--out", str(page))
    assert done.returncode == 0


def test_a_folder_that_is_no_finished_batch_is_refused(tmp_path):
    with pytest.raises(DataError, match="no finished batch"):
        read_classes(tmp_path)
