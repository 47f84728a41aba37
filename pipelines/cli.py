"""The command ``lucida``: one verb for each thing that a user does."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import ModuleType
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

from models.errors import LucidaError

if TYPE_CHECKING:
    from pipelines.data import Dataset
    from pipelines.evaluate import Evaluation
    from pipelines.finetune import Epoch, Reporter

SPECIMENS = "specimens"
_CTRL_C = 130


class Where(StrEnum):
    """What runs a batch."""

    local = "local"
    ray = "ray"


app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="Fine-tune, register, serve and explain image classifiers.",
)  # fmt: skip
console = Console()

Data = Annotated[
    str, typer.Option(help="Image folder (train/ and val/, or one folder of classes), or 'specimens'.")
]
Model = Annotated[str, typer.Argument(help="Registered model: NAME, NAME@alias or NAME/number.")]


def main() -> None:
    """Run the command: an error of ours is one line and exit code 1, Ctrl-C is exit code 130, SIGTERM 143."""
    # Telemetry is a call to the outside that nobody asked for; who wants it sets this to false.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # MLflow and alembic narrate each table that they make; our own progress is what a user wants to read.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    logging.getLogger("alembic").setLevel(logging.ERROR)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _asked_to_stop)
    try:
        # Outside of standalone mode an exit code, that of Ctrl-C among them, comes back as the value.
        code = app(standalone_mode=False)
    except LucidaError as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        code = _CTRL_C
    except Exception as error:
        # Click's usage errors know how to show themselves.
        if hasattr(error, "exit_code") and hasattr(error, "show"):
            error.show()
            sys.exit(int(error.exit_code))
        raise
    if code == _CTRL_C:
        Console(stderr=True).print("stopped")
    sys.exit(code if isinstance(code, int) else 0)


_asked: list[int] = []


def _asked_to_stop(number: int, frame: object) -> None:
    """Remember the signal and stop: as KeyboardInterrupt for Ctrl-C, as exit code 143 for SIGTERM."""
    _asked.append(number)
    _heed()


def _heed() -> None:
    """Stop if a signal asked for it.

    An interrupt that falls into a library's clean-up is swallowed there: each progress report looks again.
    """
    if _asked:
        if _asked[-1] == signal.SIGTERM:
            sys.exit(143)
        raise KeyboardInterrupt


@app.command()
def specimens(
    folder: Annotated[Path, typer.Argument(help="New folder to draw into.")] = Path("specimens"),
    train: Annotated[int, typer.Option(help="Training pictures of each species.")] = 24,
    val: Annotated[int, typer.Option(help="Validation pictures of each species.")] = 12,
    test: Annotated[int, typer.Option(help="Test pictures of each species.")] = 12,
    seed: Annotated[int, typer.Option(help="Same seed, same pictures.")] = 0,
    shortcut: Annotated[
        str, typer.Option(help="Species to plant a collector's label on (train and val only).")
    ] = "",
) -> None:
    """Draw the embedded data set: invented butterflies with the masks of what makes each species."""
    from pipelines.specimens import SpecimenPlan, write

    plan = SpecimenPlan(train=train, val=val, test=test, seed=seed, shortcut_species=shortcut)
    with _progress() as progress:
        task = progress.add_task("drawing", total=None)
        write(plan, folder, progress=lambda done, total: progress.update(task, completed=done, total=total))
    console.print(f"Specimens lie in [bold]{folder}[/bold], their masks in {folder}/masks.")


@app.command()
def train(
    data: Data = SPECIMENS,
    backbone: Annotated[
        str | None, typer.Option(help="Row of the backbone table; efficientnet_lite0 is embedded.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with any of the settings and [[phases]].")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Registered model's name; the data folder's by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed and data, same model.")] = None,
    weights: Annotated[str | None, typer.Option(help="'imagenet' or 'none'.")] = None,
    threads: Annotated[int | None, typer.Option(help="Torch threads; 0 takes one a core.")] = None,
) -> None:
    """Fine-tune in phases, tracked in MLflow, and register the model version."""
    from pipelines.config import load
    from pipelines.train import train as run_training

    settings = load(config, {"backbone": backbone, "seed": seed, "weights": weights, "threads": threads})
    found = _dataset(data, val_share=settings.val_share)
    with _reporting() as reporter:
        done = run_training(found, settings, name=name or found.name, reporter=reporter)
    for each in done.evaluations.values():
        _print_evaluation(each)
    console.print(
        f"Run [bold]{done.run_id}[/bold] registered [bold]{done.name}[/bold] version {done.version}."
    )
    console.print(f"Next: lucida promote {done.name}", highlight=False)


@app.command()
def promote(model: Model) -> None:
    """Make a version the champion, if it is not worse than the present one."""
    from pipelines.promote import promote as decide

    decision = decide(model)
    if not decision.promoted:
        console.print(
            f"[red]{decision.name} version {decision.version} was not promoted[/red]: {decision.reason}."
        )
        raise typer.Exit(1)
    console.print(f"{decision.name} version {decision.version} is champion: {decision.reason}.")


@app.command()
def package(
    model: Annotated[str, typer.Argument(help="Registered model; its champion is packaged.")],
) -> None:
    """Turn the champion into a Bento model and build the Bento that serves it."""
    from pipelines.package import package as build
    from pipelines.tracking import CHAMPION

    made = build(model if "@" in model or "/" in model else f"{model}@{CHAMPION}")
    console.print(
        f"{made.name} version {made.version} is Bento model {made.model_tag}, in Bento {made.bento_tag}.",
        soft_wrap=True,
        highlight=False,
    )
    console.print(f"Next: bentoml serve {made.bento_tag}", highlight=False)


@app.command()
def explain(
    source: Annotated[Path, typer.Argument(help="Folder of pictures, or one picture.")],
    out: Annotated[Path, typer.Option(help="New folder for rows, overlays and index.html.")],
    model: Annotated[
        str | None, typer.Option(help="Registered model: NAME, NAME@alias or NAME/number.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder, instead of a registered model.")] = None,
    target: Annotated[
        str | None, typer.Option(help="Class to explain; each picture's own prediction by default.")
    ] = None,
    block: Annotated[str | None, typer.Option(help="Block to explain at.")] = None,
    on: Annotated[
        Where, typer.Option(help="This process, or Ray workers (needs the extra 'ray').")
    ] = Where.local,
) -> None:
    """Explain a folder of pictures into Parquet rows, overlays and a page to look at."""
    from models import bundle as bundles
    from pipelines.explain_job import local
    from pipelines.explain_job.job import plan

    if (model is None) == (bundle is None):
        raise typer.BadParameter("give either --model or --bundle")
    with tempfile.TemporaryDirectory() as aside, _progress() as progress:
        loaded = bundles.load(bundle if bundle is not None else _fetch(str(model), Path(aside)))
        job = plan(source, loaded, target=target, block=block)
        task = progress.add_task("explaining", total=len(job.files))

        def show(count: int, total: int) -> None:
            _heed()
            progress.update(task, completed=count, total=total)

        if on is Where.ray:
            done = _on_ray().run(job, loaded, out, progress=show)
        else:
            done = local.run(job, loaded, out, progress=show)
    already = f", {done.resumed} of them done before" if done.resumed else ""
    console.print(f"{done.pictures} pictures{already}, {done.errors} could not be used.")
    console.print(f"Look at {done.out / 'index.html'}", highlight=False)


@app.command()
def review(
    run: Annotated[str, typer.Argument(help="Run id, or registered model: NAME, NAME@alias, NAME/number.")],
    data: Data = SPECIMENS,
    out: Annotated[Path, typer.Option(help="Where to write the page as well.")] = Path("review.html"),
) -> None:
    """Make the misclassification gallery of a run, as one HTML file, and log it to the run."""
    from pipelines.review.runs import find_run, val_share_of
    from pipelines.review.runs import review as make

    run_id = find_run(run)
    found = _dataset(data, val_share=val_share_of(run_id))
    with _reporting() as reporter:
        html = make(run_id, found, reporter=reporter)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html)
    console.print(f"Logged to run {run_id} as review/review.html; look at {out}", highlight=False)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo"),
) -> None:
    """Run the whole path once: draw, train, register, promote, package, serve, explain, review."""
    from pipelines.demo import run

    with _reporting() as reporter:
        made = run(out, lambda text: console.print(text, highlight=False), reporter)
    table = Table(title="What lies where", title_justify="left", show_header=False, box=None)
    for what, where in (
        ("the picture, explained", made.explained),
        ("the service's whole answer", made.answer),
        ("mistakes, with where it looked", made.review),
        ("the test folder, explained", made.batch / "index.html"),
        ("the butterflies and their masks", made.out / "specimens"),
    ):
        table.add_row(what, str(where))
    console.print(table)
    say = partial(console.print, highlight=False, soft_wrap=True)
    say(f"make ui      then open http://127.0.0.1:5000 and look at run {made.run_id}")
    say(f"make serve   then: curl -F image=@{made.picture} http://127.0.0.1:3000/explain")


# ---------------------------------------------------------------- what the commands share


def _on_ray() -> ModuleType:
    """The module that needs Ray, or a usage error that says how to have it."""
    try:
        from pipelines.explain_job import on_ray
    except ImportError as error:
        raise typer.BadParameter("--on ray needs the extra: pip install 'camera-lucida[ray]'") from error
    return on_ray


def _fetch(reference: str, folder: Path) -> Path:
    from pipelines.tracking import fetch_bundle

    return fetch_bundle(reference, folder / "bundle").folder


def _dataset(data: str, *, val_share: float = 0.25) -> Dataset:
    """Scan a folder, or draw the specimens first; say what was skipped."""
    from pipelines.data import scan
    from pipelines.specimens import SpecimenPlan, write

    root = Path(data)
    with _progress() as progress:
        if data == SPECIMENS and not (root / "train").is_dir():
            drawing = progress.add_task("drawing specimens", total=None)
            write(
                SpecimenPlan(),
                root,
                progress=lambda done, total: progress.update(drawing, completed=done, total=total),
            )
        task = progress.add_task("reading pictures", total=None)
        found = scan(
            root,
            val_share=val_share,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    counts = ", ".join(
        f"{len(found.samples(split))} {split}" for split in ("train", "val", "test") if found.samples(split)
    )
    console.print(f"{found.name}: {len(found.classes)} classes, {counts}.", highlight=False)
    for item in found.skipped[:5]:
        console.print(f"[yellow]skipped[/yellow] {escape(item.name)}: {escape(item.reason)}", highlight=False)
    if len(found.skipped) > 5:
        console.print(
            f"[yellow]skipped[/yellow] {len(found.skipped)} files in all; dataset.json in the run names each."
        )
    for trained, held_out in found.shared[:5]:
        console.print(
            f"[yellow]same picture on both sides[/yellow] {escape(trained)} and {escape(held_out)}",
            highlight=False,
        )
    return found


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield progress


@contextmanager
def _reporting() -> Iterator[Reporter]:
    """A reporter that shows one bar for each kind of work and one for each phase."""
    from pipelines.finetune import Reporter

    with _progress() as progress:
        tasks = {}

        def step(what: str, done: int, total: int) -> None:
            _heed()
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        def epoch(news: Epoch) -> None:
            step(f"phase {news.phase}", news.number, news.of)
            text = f"phase {news.phase}: val accuracy {news.val_accuracy:.3f}"
            progress.update(tasks[f"phase {news.phase}"], description=text)

        yield Reporter(epoch=epoch, step=step)


def _print_evaluation(evaluation: Evaluation) -> None:
    table = Table(title=f"{evaluation.split}: {len(evaluation.judged)} pictures", title_justify="left")
    for name in evaluation.metrics:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_row(*(f"{value:.3f}" for value in evaluation.metrics.values()))
    console.print(table)


if __name__ == "__main__":
    main()
