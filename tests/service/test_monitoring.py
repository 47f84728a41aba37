from __future__ import annotations

import io
import time

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest

from models.bundle import load_bundle, save_bundle
from models.explainer import Explainer
from pipelines.data.dataset import scan_folder
from pipelines.evaluation.reference import measure_reference
from service.monitoring import DriftMonitor, KeptSamples


@pytest.fixture(scope="module")
def watched_bundle(bundle_folder, photos, tmp_path_factory):
    """The bundle of three classes with the reference of sixty photographs."""
    bundle = load_bundle(bundle_folder)
    samples = scan_folder(photos / "hymenoptera").train[::4]
    reference = measure_reference(Explainer(bundle), samples)
    folder = tmp_path_factory.mktemp("watched") / "three"
    save_bundle(bundle.model, folder, name="three", run_id="0" * 32, reference=reference)
    return folder


@pytest.fixture(scope="module")
def photographs(photos):
    return [path.read_bytes() for path in sorted((photos / "hymenoptera/val").glob("*/*.jpg"))[::4][:36]]


def darker(data):
    image = PIL.ImageEnhance.Brightness(PIL.Image.open(io.BytesIO(data)).convert("RGB")).enhance(0.25)
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=92)
    return buffer.getvalue()


def test_what_all_workers_were_asked_is_held_against_the_reference(
    start, watched_bundle, photographs, tmp_path
):
    kept = tmp_path / "kept"
    own = start(watched_bundle, workers="2", jobs=str(tmp_path / "jobs"), keep_samples=str(kept))
    answer = own.ask("/explain", photographs[0]).json()
    assert 0 <= answer["novelty"]["percentile"] < 100
    for data in photographs[1:]:
        assert own.ask("/predict", data).json()["novelty"]["distance"] > 0
    time.sleep(3)
    before = own.get("/drift").json()
    assert before["windows"]["hour"]["images"] == before["windows"]["day"]["images"] == len(photographs)
    assert not before["windows"]["hour"]["alarm"]
    for data in photographs * 2:
        own.ask("/explain", darker(data))
    time.sleep(3)
    after = own.get("/drift").json()["windows"]["hour"]
    rows = {row["figure"]: row for row in after["figures"]}
    assert after["images"] == 3 * len(photographs)
    assert rows["brightness"]["alarm"]
    text = own.get("/metrics").text
    assert 'lucida_drift_alarm{figure="brightness",window="hour"} 1.0' in text
    assert f'lucida_drift_images{{window="day"}} {3 * len(photographs)}.0' in text
    own.stop()
    again = start(watched_bundle, jobs=str(tmp_path / "jobs"), novelty="false")
    assert again.get("/drift").json()["windows"]["day"]["images"] == 3 * len(photographs)
    assert again.ask("/predict", photographs[0]).json()["novelty"] is None


def test_a_bundle_without_a_reference_says_so(service):
    reply = service.get("/drift")
    assert reply.status_code == 404
    assert reply.json()["kind"] == "no_reference"


def test_old_counts_are_forgotten_and_a_damaged_file_is_left_out(watched_bundle, tmp_path):
    from models.reference import Observation

    reference = load_bundle(watched_bundle).reference
    now = [1_000_000_000.0]
    monitor = DriftMonitor(tmp_path, "a" * 64, reference, clock=lambda: now[0])
    monitor.observe(Observation({"score": 0.5}, 1))
    assert monitor.count_window(3600).images == 1
    now[0] += 7200
    monitor.observe(Observation({"score": 0.5}, 1))
    assert monitor.count_window(3600).images == 1
    assert monitor.count_window(86_400).images == 2
    (tmp_path / "drift" / ("a" * 16) / f"{int(now[0] // 600)}-other.json").write_text(
        '{"figures": {"score": {"9999": 1}}}'
    )
    assert monitor.count_window(86_400).images == 2
    monitor.close()


def test_unusual_pictures_are_kept_up_to_a_bound(tmp_path):
    kept = KeptSamples(tmp_path / "kept", 25_000)
    for n in range(5):
        kept.add(np.random.default_rng(n).bytes(10_000))
    files = list((tmp_path / "kept").iterdir())
    assert len(files) == 2
    kept.add(bytes(30_000))
    assert len(list((tmp_path / "kept").iterdir())) == 2
