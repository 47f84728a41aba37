"""Run folders and checkpoints are read whole or refused with the reason."""

from __future__ import annotations

from dataclasses import replace

import mlflow
import pytest
import torch

from models.errors import UnknownChoice
from pipelines.config.schema import TrainConfig
from pipelines.data.dataset import scan_folder
from pipelines.errors import TrackerUnavailable, TrainingError
from pipelines.evaluation.phase_snapshots import PhaseSnapshot
from pipelines.progress import EpochResult
from pipelines.tracking.runs import check_run_exists, log_comparison, open_runs
from pipelines.tracking.store import tracking_uri_without_password
from pipelines.training.checkpoint import (
    FinishedPhase,
    RunFolder,
    RunManifest,
    TrainingCheckpoint,
    default_runs_root,
    find_run_folder,
    list_run_folders,
)
from pipelines.training.train import discard_run, end_abandoned, train_model
from pipelines.training.trainer import PhaseState

PLAN = RunManifest(
    run_id="ab" * 16, phase_runs=("c", "d"), name="n", data="/d", data_name="d", digest="e", order="f",
    config=TrainConfig(), threads=2, started_ms=7,
)  # fmt: skip
EPOCH = EpochResult("head", 3, 9, 0.5, 0.25, 0.75, {"head": 0.125}, True, ended_ms=11)


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    made = RunFolder(tmp_path / "runs" / "one")
    with made.locked():
        made.write_plan(PLAN)
    return made


def test_plan_and_checkpoint_come_back_as_they_were(folder):
    assert folder.read_plan() == PLAN
    assert folder.read_checkpoint() is None
    tensors = {"model.a": torch.randn(3, 4), "adamw.0.step": torch.tensor(5.0), "n": torch.tensor(3)}
    done = FinishedPhase([EPOCH], PhaseSnapshot("head", [[[0.1, -0.2]]], [0.3], {"head": 2.0}))
    folder.write_checkpoint(TrainingCheckpoint([done], PhaseState([EPOCH, EPOCH], tensors)))
    back = folder.read_checkpoint()
    assert back is not None
    assert back.done == [done]
    assert back.state.epochs == [EPOCH, EPOCH]
    assert all(torch.equal(back.state.tensors[key], value) for key, value in tensors.items())


def test_a_damaged_checkpoint_is_never_loaded(folder):
    folder.write_checkpoint(TrainingCheckpoint([], PhaseState([EPOCH], {"a": torch.zeros(100)})))
    path = folder.path / "checkpoint.safetensors"
    for cut in (3, 40, 200):
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(TrainingError, match="damaged"):
            folder.read_checkpoint()


def test_a_run_is_found_by_its_id_or_its_beginning_and_a_broken_neighbour_is_no_hindrance(folder):
    root = folder.path.parent
    with RunFolder(root / "two").locked():
        (root / "two" / "run.json").write_text("{}")
    assert find_run_folder(root, PLAN.run_id).path == folder.path
    assert find_run_folder(root, "ababab").path == folder.path
    for wrong in ("ab", "", "cd" * 16):
        with pytest.raises(UnknownChoice, match=PLAN.run_id):
            find_run_folder(root, wrong)
    with pytest.raises(TrainingError, match="two has no readable"):
        RunFolder(root / "two").read_plan()


def test_one_process_at_a_time(folder):
    assert not folder.in_use
    with folder.locked():
        assert folder.in_use
        with pytest.raises(TrainingError, match="another process"), RunFolder(folder.path).locked():
            pass
    assert not folder.in_use


def test_runs_of_a_process_that_died_before_it_had_a_plan_are_ended_too(in_tmp):
    root = default_runs_root()
    with RunFolder(root / "young").locked():
        pass
    run_id, children = open_runs("x", ["head"], folder="young")
    end_abandoned(root)
    client = mlflow.MlflowClient()
    assert {client.get_run(each).info.status for each in (run_id, *children)} == {"KILLED"}
    assert list_run_folders(root) == []


def test_what_was_opened_is_ended_when_a_run_cannot_begin(in_tmp, butterflies, monkeypatch):
    def full(self, plan):
        raise TrainingError("no room")

    monkeypatch.setattr(RunFolder, "write_plan", full)
    with pytest.raises(TrainingError, match="no room"):
        train_model(scan_folder(butterflies), TrainConfig(), name="x")
    told = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert {run.info.status for run in told} == {"KILLED"}
    assert list_run_folders(default_runs_root()) == []


def test_a_run_can_be_given_up_unless_somebody_is_at_it(in_tmp):
    folder = RunFolder(default_runs_root() / "one")
    run_id, _ = open_runs("x", [], folder="one")
    with folder.locked():
        folder.write_plan(replace(PLAN, run_id=run_id))
        with pytest.raises(TrainingError, match="another process"):
            discard_run(run_id)
    discard_run(run_id)
    assert mlflow.get_run(run_id).info.status == "KILLED"
    assert not folder.path.exists()


def test_a_store_without_the_run_is_said_before_any_work(in_tmp):
    open_runs("x", [], folder="f")
    with pytest.raises(Exception, match="has no run"):
        check_run_exists("ab" * 16)


def test_a_password_is_never_shown(monkeypatch):
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "postgresql://me:secret@host/db")
    assert tracking_uri_without_password() == "postgresql://me:***@host/db"


def test_a_comparison_that_cannot_be_logged_leaves_no_running_run(in_tmp, monkeypatch):
    with pytest.raises(TrackerUnavailable, match="run compare aaaaaaaa bbbbbbbb cannot be logged"):
        log_comparison(("a" * 32, "b" * 32), {"bad name!": 1.0}, {}, "d")
    told = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert [run.info.status for run in told] == ["FAILED"]
