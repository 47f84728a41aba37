"""A bundle is checked before it is served; a new version takes over without a lost or a mixed answer."""

from __future__ import annotations

import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save_file

from models.errors import BundleError
from service.inference.model_manager import ModelManager
from service.inference.predictor import Predictor
from service.metrics import get_metrics
from service.operations.trial import try_answers
from service.settings import Settings


@pytest.mark.soak
def test_a_new_champion_takes_over_without_a_lost_or_a_mixed_answer(
    start, bundle_folder, second, turned, bee, tmp_path
):
    link = tmp_path / "current"
    link.symlink_to(bundle_folder, target_is_directory=True)
    own = start(link, watch_seconds="0.3")
    answers: list[tuple[str, str, int]] = []
    done = threading.Event()

    def ask() -> None:
        with httpx.Client(trust_env=False, timeout=30) as client:
            while not done.is_set():
                reply = client.post(f"{own.url}/explain", files={"image": bee})
                found = reply.json()
                shown = json.dumps([found["predictions"], found["evidence"][0]["grid"]])
                answers.append((found["provenance"]["model"], shown, reply.status_code))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    turned(link, second)
    deadline = time.monotonic() + 30
    while [name for name, _, _ in answers[-20:]] != ["second"] * 20 and time.monotonic() < deadline:
        time.sleep(0.1)
    done.set()
    for thread in threads:
        thread.join()
    assert {status for _, _, status in answers} == {200}
    assert {name for name, _, _ in answers} == {"three", "second"}
    for name in ("three", "second"):
        assert len({shown for model, shown, _ in answers if model == name}) == 1, "one model, one answer"
    assert answers[-1][0] == "second"
    figures = own.get("/metrics").text
    assert 'model="second"' in figures


def test_a_successor_that_fails_its_probe_is_left_where_it_is(start, bundle_folder, turned, bee, tmp_path):
    lying = tmp_path / "lying"
    shutil.copytree(bundle_folder, lying)
    (lying / "weights.safetensors").write_bytes(b"cut")
    link = tmp_path / "current"
    link.symlink_to(bundle_folder, target_is_directory=True)
    own = start(link, watch_seconds="0.3")
    turned(link, lying)
    deadline = time.monotonic() + 20
    while (said := own.get("/model").json()["refused_successor"]) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "weights.safetensors does not have the digest" in said
    assert own.ask("/predict", bee).json()["provenance"]["model"] == "three"
    assert "lucida_refused_models_total 1.0" in own.get("/metrics").text


def test_a_refused_successor_is_tried_again_when_its_turn_comes_again(
    bundle_folder, second, turned, tmp_path
):
    """It was still being copied when the link was turned to it."""
    link, half = tmp_path / "current", Path(shutil.copytree(second, tmp_path / "half"))
    link.symlink_to(bundle_folder, target_is_directory=True)
    (half / "weights.safetensors").unlink()
    manager = ModelManager(lambda: link, Settings(), get_metrics(), try_answers)
    try:
        turned(link, half)
        assert not manager.refresh()
        assert "half was refused" in (manager.refused or "")
        shutil.copy(second / "weights.safetensors", half)
        assert not manager.refresh(), "one that was refused is not tried again and again"
        turned(link, bundle_folder)
        assert not manager.refresh()
        assert manager.refused is None, "nothing is refused when what answers is what is asked for"
        turned(link, half)
        assert manager.refresh()
        assert manager.folder == half
    finally:
        manager.close()


@pytest.mark.parametrize("field", ["model", "run_id"])
def test_a_model_whose_answers_cannot_be_sent_is_refused_before_it_answers(second, field):
    """Whatever a check of the bundle may miss: a lone surrogate, put into a loaded one."""
    predictor = Predictor(second, Settings())
    try:
        try_answers(predictor)
        provenance = replace(predictor.bundle.provenance, **{field: "\ud800"})
        predictor.bundle = replace(predictor.bundle, provenance=provenance)
        with pytest.raises(BundleError, match="cannot be sent"):
            try_answers(predictor)
    finally:
        predictor.close()


def pickled(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.")


def flipped(folder: Path) -> None:
    data = bytearray((folder / "weights.safetensors").read_bytes())
    data[len(data) // 2] ^= 0x40
    (folder / "weights.safetensors").write_bytes(bytes(data))


def without_a_manifest(folder: Path) -> None:
    (folder / "bundle.json").unlink()


def of_other_shape(folder: Path) -> None:
    path = folder / "weights.safetensors"
    state = load_file(path)
    name = next(key for key in state if state[key].dim() == 4)
    state[name] = state[name][:1]
    save_file(state, path)


@pytest.mark.parametrize("damage", [pickled, flipped, without_a_manifest, of_other_shape])
def test_a_broken_bundle_ends_the_service_with_one_sentence(start, bundle_folder, tmp_path, damage):
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "broken"))
    damage(folder)
    own = start(folder, wait=False)
    own.process.wait(60)
    log = own.log.read_text()
    (sentence, *_) = [line for line in log.splitlines() if line.startswith("camera-lucida cannot start")]
    print("\n" + sentence)
    assert sentence.endswith(".")
    assert "Traceback" not in log
    assert not Path("/tmp/owned").exists()


def test_it_is_ready_only_when_it_has_explained(start, bundle_folder, bee):
    own = start(bundle_folder, wait=False)
    seen = []
    while 200 not in seen:
        try:
            seen.append(own.get("/readyz").status_code)
        except httpx.TransportError:
            seen.append(0)
        assert own.process.poll() is None
        time.sleep(0.05)
    assert own.ask("/explain", bee).json()["timing_ms"]["total"] < 1000, "the first one is warm"
