from __future__ import annotations

from dataclasses import replace

import mlflow
import pytest
import torch

from models.errors import TrackerUnavailable, TrainingError, UnknownChoice
from pipelines import data, run_folder, train
from pipelines.config import TrainConfig
from pipelines.finetune import PhaseState
from pipelines.forensics import Snapshot
from pipelines.reporter import Epoch
from pipelines.run_folder import Checkpoint, DonePhase, Plan, RunFolder
from pipelines.tracking import runs

PLAN = Plan(
    run_id="ab" * 16, phase_runs=("c", "d"), name="n", data="/d", data_name="d", digest="e", order="f",
    config=TrainConfig(), threads=2, started_ms=7,
)  # fmt: skip
EPOCH = Epoch("head", 3, 9, 0.5, 0.25, 0.75, {"head": 0.125}, True, ended_ms=11)


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
    done = DonePhase([EPOCH], Snapshot("head", [[[0.1, -0.2]]], [0.3], {"head": 2.0}))
    folder.write_checkpoint(Checkpoint([done], PhaseState([EPOCH, EPOCH], tensors)))
    back = folder.read_checkpoint()
    assert back is not None
    assert back.done == [done]
    assert back.state.epochs == [EPOCH, EPOCH]
    assert all(torch.equal(back.state.tensors[key], value) for key, value in tensors.items())


def test_a_damaged_checkpoint_is_never_loaded(folder):
    folder.write_checkpoint(Checkpoint([], PhaseState([EPOCH], {"a": torch.zeros(100)})))
    path = folder.path / "checkpoint.safetensors"
    for cut in (3, 40, 200):
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(TrainingError, match="damaged"):
            folder.read_checkpoint()


def test_a_run_is_found_by_its_id_or_its_beginning_and_a_broken_neighbour_is_no_hindrance(folder):
    root = folder.path.parent
    with RunFolder(root / "two").locked():
        (root / "two" / "run.json").write_text("{}")
    assert run_folder.find(root, PLAN.run_id).path == folder.path
    assert run_folder.find(root, "ababab").path == folder.path
    for wrong in ("ab", "", "cd" * 16):
        with pytest.raises(UnknownChoice, match=PLAN.run_id):
            run_folder.find(root, wrong)
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
    root = run_folder.default_root()
    with RunFolder(root / "young").locked():
        pass
    run_id, children = runs.open_runs("x", ["head"], folder="young")
    train.end_abandoned(root)
    client = mlflow.MlflowClient()
    assert {client.get_run(each).info.status for each in (run_id, *children)} == {"KILLED"}
    assert run_folder.all_folders(root) == []


def test_what_was_opened_is_ended_when_a_run_cannot_begin(in_tmp, butterflies, monkeypatch):
    def full(self, plan):
        raise TrainingError("no room")

    monkeypatch.setattr(RunFolder, "write_plan", full)
    with pytest.raises(TrainingError, match="no room"):
        train.train(data.scan(butterflies), TrainConfig(), name="x")
    told = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert {run.info.status for run in told} == {"KILLED"}
    assert run_folder.all_folders(run_folder.default_root()) == []


def test_a_run_can_be_given_up_unless_somebody_is_at_it(in_tmp):
    folder = RunFolder(run_folder.default_root() / "one")
    run_id, _ = runs.open_runs("x", [], folder="one")
    with folder.locked():
        folder.write_plan(replace(PLAN, run_id=run_id))
        with pytest.raises(TrainingError, match="another process"):
            train.give_up(run_id)
    train.give_up(run_id)
    assert mlflow.get_run(run_id).info.status == "KILLED"
    assert not folder.path.exists()


def test_a_store_without_the_run_is_said_before_any_work(in_tmp):
    runs.open_runs("x", [], folder="f")
    with pytest.raises(Exception, match="has no run"):
        runs.check_known("ab" * 16)


def test_a_password_is_never_shown(monkeypatch):
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "postgresql://me:secret@host/db")
    assert runs.shown_uri() == "postgresql://me:***@host/db"


def test_a_comparison_that_cannot_be_logged_leaves_no_running_run(in_tmp, monkeypatch):
    with pytest.raises(TrackerUnavailable, match="comparison cannot be logged"):
        runs.log_comparison(("a" * 32, "b" * 32), {"bad name!": 1.0}, {}, "d")
    told = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert [run.info.status for run in told] == ["FAILED"]
