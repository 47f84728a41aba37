"""What a training run keeps on disk until it is done: its plan, its last checkpoint, and news for the
tracker.

A run folder holds run.json (config, data, name), checkpoint.safetensors and outbox.jsonl. Each file is
written aside, flushed and renamed, so a reader sees the last good one whole or, before the first, none. A
lock says whether somebody works in the folder; the kernel takes it from a process that dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors

from models.atomic_write import atomic_write
from models.errors import ConfigError, UnknownChoice
from pipelines.config.loader import config_from_toml, config_to_toml
from pipelines.config.schema import TrainConfig
from pipelines.errors import TrainingError
from pipelines.evaluation.phase_snapshots import PhaseSnapshot
from pipelines.progress import EpochResult
from pipelines.training.trainer import PhaseState

RUNS_VARIABLE = "LUCIDA_RUNS"
_MANIFEST, _CHECKPOINT, _LOCK = "run.json", "checkpoint.safetensors", "lock"


@dataclass(frozen=True, slots=True)
class RunManifest:
    """The inputs of a run: all that is needed to start it again."""

    run_id: str
    phase_runs: tuple[str, ...]
    """The tracker's ids of the phases' own runs."""
    name: str
    data: str
    """Absolute path of the data folder."""
    data_name: str
    digest: str
    """Of the data set."""
    config: TrainConfig
    order: str
    """Digest of the images in their order: shuffling counts on it."""
    threads: int
    """Torch threads that it was started with: sums of floats depend on them."""
    started_ms: int
    """When, in ms since 1970."""


@dataclass(frozen=True, slots=True)
class FinishedPhase:
    """A finished phase: its epochs, and the network after it."""

    epochs: list[EpochResult]
    after: PhaseSnapshot


@dataclass(frozen=True, slots=True)
class TrainingCheckpoint:
    """The state of a run: the phases that are done, and the state within the present one."""

    done: list[FinishedPhase]
    state: PhaseState


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def outbox(self) -> Path:
        """Where news for the tracker waits."""
        return self.path / "outbox.jsonl"

    def write_plan(self, plan: RunManifest) -> None:
        """Keep the plan; raises TrainingError when the disk is full."""
        plain = asdict(plan) | {"config": config_to_toml(plan.config)}
        self._write(_MANIFEST, json.dumps(plain, indent=2).encode())

    def read_plan(self) -> RunManifest:
        """Return the plan; raises TrainingError when it cannot be read."""
        try:
            plain = json.loads((self.path / _MANIFEST).read_text())
            plain["config"] = config_from_toml(plain["config"])
            plain["phase_runs"] = tuple(plain["phase_runs"])
            return RunManifest(**plain)
        except (OSError, ValueError, TypeError, KeyError, ConfigError, UnknownChoice) as error:
            raise TrainingError(
                f"The run folder {self.path} has no readable {_MANIFEST}: {error}."
            ) from error

    def write_checkpoint(self, checkpoint: TrainingCheckpoint) -> None:
        """Replace the checkpoint; raises TrainingError when the disk is full, the one before then stays."""
        facts = {
            "done": [asdict(phase) for phase in checkpoint.done],
            "epochs": [asdict(epoch) for epoch in checkpoint.state.epochs],
        }
        tensors = {key: value.detach().contiguous() for key, value in checkpoint.state.tensors.items()}
        self._write(_CHECKPOINT, save_tensors(tensors, metadata={"lucida": json.dumps(facts)}))

    def read_checkpoint(self) -> TrainingCheckpoint | None:
        """Return the last checkpoint, or None before the first; raises TrainingError for a damaged one."""
        path = self.path / _CHECKPOINT
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["lucida"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            done = [
                FinishedPhase(
                    [EpochResult(**epoch) for epoch in phase["epochs"]], PhaseSnapshot(**phase["after"])
                )
                for phase in facts["done"]
            ]
            return TrainingCheckpoint(
                done, PhaseState([EpochResult(**epoch) for epoch in facts["epochs"]], tensors)
            )
        except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
            raise TrainingError(f"The checkpoint {path} is damaged: {error}.") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; raises TrainingError while another process holds it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / _LOCK).open("w")
        except OSError as error:
            raise TrainingError(f"No run can be kept in {self.path}: {error.strerror}.") from error
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise TrainingError(f"The run in {self.path} is being trained by another process.") from error
            yield

    @property
    def in_use(self) -> bool:
        """Whether a living process works in the folder."""
        try:
            with (self.path / _LOCK).open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def remove(self) -> None:
        """Delete the folder of a run that is done."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _write(self, name: str, data: bytes) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path / name, data)
        except OSError as error:
            raise TrainingError(
                f"{name} cannot be written to {self.path} ({error.strerror}); what was kept there before is "
                "whole. Make room and resume the run."
            ) from error


def default_runs_root() -> Path:
    """Return $LUCIDA_RUNS, or runs/ in the working folder."""
    return Path(os.environ.get(RUNS_VARIABLE) or "runs")


def list_run_folders(root: Path) -> list[RunFolder]:
    """Return every folder that a run made, the newest first, also those of runs that were killed while they
    began.
    """
    times = {}
    for path in root.glob(f"*/{_LOCK}"):
        with suppress(FileNotFoundError):  # a run that ends just now
            times[path.parent] = path.stat().st_mtime
    return [RunFolder(path) for path in sorted(times, key=lambda path: -times[path])]


def unfinished_runs(root: Path) -> dict[str, tuple[RunFolder, RunManifest]]:
    """Return the runs that can be gone on with, by their ids, the newest first; a folder without a readable
    plan is none.
    """
    runs = {}
    for folder in list_run_folders(root):
        with suppress(TrainingError):
            plan = folder.read_plan()
            runs[plan.run_id] = (folder, plan)
    return runs


def find_run_folder(root: Path, run_id: str) -> RunFolder:
    """Return the folder of an unfinished run by its id or the first six or more of its letters; raises
    UnknownChoice.
    """
    folders = unfinished_runs(root)
    matching = [name for name in folders if len(run_id) >= 6 and name.startswith(run_id)]
    if len(matching) != 1:
        raise UnknownChoice("run to resume", run_id, list(folders) or [f"there is none in {root}"])
    return folders[matching[0]][0]
