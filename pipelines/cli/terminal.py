"""What the commands share: bars and tables on the terminal, heeding a request to stop, reading a data
folder.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from models.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.data.dataset import Dataset
    from pipelines.evaluation.classification import Evaluation
    from pipelines.progress import EpochResult, Reporter
    from pipelines.training.outcome import TrainedModel


SPECIMENS = "specimens"

DEVICE_OPTION = typer.Option(
    envvar="LUCIDA_DEVICE", help="Where the network computes: auto, cpu, cuda, cuda:N or mps."
)
Device = Annotated[str, DEVICE_OPTION]

# A file or another program has no width; a table that is folded to 80 columns cannot be read by either.
console = Console(width=None if sys.stdout.isatty() else 200)
_asked: list[int] = []


def handle_stop_signal(number: int, frame: object) -> None:
    """Remember the signal and stop: as KeyboardInterrupt for Ctrl-C, as exit code 143 for SIGTERM."""
    _asked.append(number)
    raise_if_stopped()


def raise_if_stopped() -> None:
    """Stop if a signal asked for it.

    An interrupt that falls into a library's clean-up is swallowed there: each progress report looks again.
    """
    if _asked:
        if _asked[-1] == signal.SIGTERM:
            sys.exit(143)
        raise KeyboardInterrupt


def check_out_folder(path: Path | None) -> Path | None:
    """Refuse, before any work, a folder to write to that cannot be one: a callback of ``--out``."""
    if path is None:
        return None
    nearest = next(part for part in (path, *path.absolute().parents) if part.exists() or part.is_symlink())
    if not nearest.is_dir():
        raise ConfigError(f"{nearest} is a file; {path} must be a folder, new or not.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{path} cannot be written to: {nearest} does not allow it.")
    return path


def check_new_folder(path: Path | None) -> Path | None:
    """Refuse, before any work, a folder that is there already."""
    if path is not None and path.exists():
        raise ConfigError(f"{path} exists already; name a new folder.")
    return check_out_folder(path)


def check_out_place(place: str) -> str:
    """Refuse, before any work, a place to write to that cannot be one, here or in an object store."""
    if not place.strip():
        raise ConfigError("--out is empty; name a folder.")
    if (path := local_path(place)) is not None:
        check_out_folder(path)
    return place


def local_path(place: str) -> Path | None:
    """Return the path of a folder of this machine; None for an address such as s3://bucket/folder."""
    return None if "://" in place else Path(place)


def check_out_file(path: Path | None) -> Path | None:
    """Refuse, before any work, a file to write that cannot be one: a callback of ``--out``."""
    if path is None:
        return None
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name the file to write, such as {path / 'page.html'}.")
    check_out_folder(path.absolute().parent)
    return path


def load_dataset(data: str, *, val_share: float = 0.25) -> Dataset:
    """Scan a folder, or draw the specimens first; say what was skipped."""
    from pipelines.data.dataset import scan_folder
    from pipelines.data.synthetic import SpecimenPlan, write_specimens

    if not data.strip():
        # An unset variable of a script, most likely; its folder would be the present one.
        raise ConfigError("--data is empty; name a picture folder, or 'specimens'.")
    root = Path(data)
    with progress_reporter() as reporter:
        if data == SPECIMENS and not (root / "train").is_dir():
            write_specimens(SpecimenPlan(), root, progress=reporter.step)
        dataset = scan_folder(root, val_share=val_share, progress=reporter.step)
    counts = ", ".join(
        f"{len(dataset.samples(split))} {split}"
        for split in ("train", "val", "test")
        if dataset.samples(split)
    )
    console.print(f"{dataset.name}: {len(dataset.classes)} classes, {counts}.", highlight=False, markup=False)
    for item in dataset.skipped[:5]:
        console.print(f"[yellow]skipped[/yellow] {escape(item.name)}: {escape(item.reason)}", highlight=False)
    if len(dataset.skipped) > 5:
        console.print(
            f"[yellow]skipped[/yellow] {len(dataset.skipped)} files in all; "
            "dataset.json in the run names each."
        )
    _print_pairs("same picture on both sides", dataset.shared)
    _print_pairs("same picture with two labels", dataset.conflicting)
    return dataset


def _print_pairs(what: str, pairs: list[tuple[str, str]]) -> None:
    for first, second in pairs[:5]:
        console.print(f"[yellow]{what}[/yellow] {escape(first)} and {escape(second)}", highlight=False)
    if len(pairs) > 5:
        console.print(
            f"[yellow]{what}[/yellow] {len(pairs)} pairs in all; dataset.json in the run names each."
        )


@contextmanager
def loading() -> Iterator[None]:
    """Show that libraries are being imported, which takes seconds; round a command's own imports."""
    with console.status("loading libraries"):
        yield


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Yield bars with count, time so far and time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # The pace of a minute ago says little where kinds of work alternate.
    with Progress(*columns, console=console, speed_estimate_period=900) as progress:
        yield progress


@contextmanager
def progress_reporter() -> Iterator[Reporter]:
    """Yield a reporter that shows one bar for each kind of work and one for each phase."""
    from pipelines.progress import Reporter

    with progress_bars() as progress:
        tasks = {}

        def step(what: str, done: int, total: int) -> None:
            raise_if_stopped()
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        def epoch(news: EpochResult) -> None:
            raise_if_stopped()
            bar = f"phase {news.phase}"
            if bar in tasks:
                progress.update(tasks[bar], description=f"{bar}: val accuracy {news.val_accuracy:.3f}")
                if news.number == news.of:
                    progress.update(tasks[bar], completed=progress.tasks[tasks[bar]].total)

        yield Reporter(
            epoch=epoch,
            step=step,
            say=lambda text: console.print(text, highlight=False, soft_wrap=True, markup=False),
        )


def print_evaluation(evaluation: Evaluation) -> None:
    """Print metrics of a split, and of its classes when they are few."""
    table = Table(title=f"{evaluation.split}: {len(evaluation.samples)} pictures", title_justify="left")
    for name in evaluation.metrics:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_row(*(f"{value:.3f}" for value in evaluation.metrics.values()))
    console.print(table)


def print_trained(done: TrainedModel) -> None:
    """Print what a training run came to: its phases, its figures, and what to do next."""
    table = Table("phase", "epochs", "kept", "val loss", "val accuracy", title="phases", title_justify="left")
    for phase in done.phases:
        best = f"epoch {phase.best_epoch}" if phase.best_epoch else "the state before"
        table.add_row(
            phase.name, f"{phase.epochs} of {phase.of}", best, f"{phase.val_loss:.3f}",
            f"{phase.val_accuracy:.3f}",
        )  # fmt: skip
    console.print(table)
    for evaluation in done.evaluations.values():
        print_evaluation(evaluation)
    if done.baseline is not None:
        console.print(
            f"A linear probe on the untouched features has {done.baseline:.3f} on val.", highlight=False
        )
    console.print(done.view, highlight=False)
    if done.skipped:
        console.print(f"{done.skipped} files were skipped; dataset.json in the run names each.")
    console.print(f"Peak memory {done.peak_memory_mb:.0f} MB.", highlight=False)
    console.print(
        f"Run [bold]{done.run_id}[/bold] registered [bold]{done.name}[/bold] version {done.version}."
    )
    console.print(f"Next: lucida promote {done.name}", highlight=False)
