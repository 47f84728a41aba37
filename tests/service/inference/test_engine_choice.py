"""A service times its engines once: all of its processes, and the next start, take the same one."""

from __future__ import annotations

import json

import pytest

from models.backends import registry
from models.bundle import PROBE_FILE, load_bundle
from service.inference import engine_choice
from service.inference.engine_choice import choose_engine
from service.inference.predictor import Predictor
from service.settings import Settings, count_gpus, count_workers, device_of_worker
from tests.support.asking import ask

pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'camera-lucida[fast]'")


@pytest.fixture
def settings(tmp_path):
    return Settings(engine="auto", precision="fp32", jobs=tmp_path / "jobs")


def note_of(settings):
    (note,) = settings.jobs.glob("engine-*.json")
    return note


def test_the_answer_has_what_was_chosen_and_the_timings(bundle_folder, settings):
    predictor = Predictor(bundle_folder, settings)
    provenance = ask(predictor, "predict", (bundle_folder / PROBE_FILE).read_bytes()).provenance
    times = provenance.engine_trials
    assert {"eager fp32", "openvino fp32"} <= set(times)
    allowed = {name: ms for name, ms in times.items() if name.endswith("fp32")}
    assert f"{provenance.engine} {provenance.precision}" == min(allowed, key=lambda name: allowed[name])
    assert provenance.device == "cpu"


def test_a_second_process_takes_what_the_first_chose(bundle_folder, settings, monkeypatch):
    bundle = load_bundle(bundle_folder)
    first = choose_engine(bundle, settings)
    other = {"eager": "openvino", "openvino": "eager"}[first.backend.name]
    note = note_of(settings)
    note.write_text(json.dumps({"engine": other, "precision": "fp32", "trials": {"eager fp32": 1.0}}))
    monkeypatch.setattr(engine_choice, "choose_backend", None)
    second = choose_engine(bundle, settings)
    assert second.backend.name == other
    assert second.trials == {"eager fp32": 1.0}


GONE = json.dumps({"engine": "gone", "precision": "fp32", "trials": {}})


@pytest.mark.soak
@pytest.mark.parametrize("content", ["[1]", GONE])
def test_a_note_that_cannot_be_used_is_made_anew(bundle_folder, settings, content):
    bundle = load_bundle(bundle_folder)
    chosen = choose_engine(bundle, settings)
    note_of(settings).write_text(content)
    assert choose_engine(bundle, settings).backend.name in ("eager", "openvino")
    assert json.loads(note_of(settings).read_text())["trials"].keys() == chosen.trials.keys()


def test_another_processor_or_precision_chooses_for_itself(bundle_folder, settings, monkeypatch):
    bundle = load_bundle(bundle_folder)
    choose_engine(bundle, settings)
    monkeypatch.setattr(engine_choice, "_processor", lambda: "another")
    choose_engine(bundle, settings)
    assert len(list(settings.jobs.glob("engine-*.json"))) == 2
    others = ({"torch_threads": 2}, {"precision": "auto"})
    marks = {engine_choice._mark(bundle, settings.model_copy(update=change)) for change in ({}, *others)}
    assert len(marks) == 3


def test_an_engine_that_was_set_is_not_timed(bundle_folder, settings, monkeypatch):
    monkeypatch.setattr(registry, "time_backend", None)
    chosen = choose_engine(load_bundle(bundle_folder), settings.model_copy(update={"engine": "eager"}))
    assert (chosen.backend.name, chosen.trials) == ("eager", {})
    assert not settings.jobs.exists()


@pytest.mark.soak
def test_a_folder_that_cannot_be_written_costs_only_the_note(bundle_folder, settings, tmp_path):
    (tmp_path / "file").write_text("")
    chosen = choose_engine(
        load_bundle(bundle_folder), settings.model_copy(update={"jobs": tmp_path / "file/jobs"})
    )
    assert chosen.trials


def test_workers_go_by_the_device(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        (tmp_path / name).mkdir()
    assert count_gpus(tmp_path) == 3
    assert count_gpus(tmp_path / "none") == 0
    for visible, expected in (("", 0), ("-1", 0), ("0,2", 2), ("0,1,2,3", 3)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert count_gpus(tmp_path) == expected
    monkeypatch.setattr("service.settings.count_gpus", lambda: 3)
    assert [count_workers(name) for name in ("auto", "cuda", "cuda:1", "mps")] == [3, 3, 1, 1]
    assert [device_of_worker("auto", worker) for worker in (1, 2, 3, 4)] == [
        "cuda:0", "cuda:1", "cuda:2", "cuda:0",
    ]  # fmt: skip
    assert device_of_worker("cuda:1", 2) == "cuda:1"
    assert device_of_worker("cpu", 2) == "cpu"
    monkeypatch.setattr("service.settings.count_gpus", lambda: 0)
    assert count_workers("auto") == count_workers("cpu") >= 1
    assert device_of_worker("auto", 2) == "auto"


def test_a_device_that_is_none_is_refused_as_a_setting():
    with pytest.raises(ValueError, match="device"):
        Settings(device="gpu")


@pytest.mark.soak
def test_all_workers_of_a_service_and_its_next_start_answer_by_one_engine(start, small_folder, tmp_path):
    data = (small_folder / PROBE_FILE).read_bytes()
    answers = []
    for _ in range(2):
        service = start(small_folder, jobs=tmp_path / "jobs", engine="auto", workers="2")
        for _ in range(12):
            answers.append(service.ask("/explain", data).json())
        service.stop()
    engines = {(item["provenance"]["engine"], item["provenance"]["precision"]) for item in answers}
    trials = [item["provenance"]["engine_trials"] for item in answers]
    assert len(engines) == 1
    assert all(item == trials[0] for item in trials)
    assert "eager fp32" in trials[0]
    grids = [item["evidence"][0]["grid"]["values"] for item in answers]
    assert all(grid == grids[0] for grid in grids)
