"""The command ``lucida``: one verb for each thing that a user does."""

from __future__ import annotations

import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.errors import LucidaError
from pipelines.cli import explain as explain_commands, release as release_commands
from pipelines.cli.terminal import (
    SPECIMENS,
    check_out_file,
    check_out_folder,
    console,
    handle_stop_signal,
    load_dataset,
    print_evaluation,
    progress_reporter,
)

if TYPE_CHECKING:
    from pipelines.data.dataset import Dataset
    from pipelines.training.checkpoint import RunManifest
    from pipelines.training.run import TrainedModel


_CTRL_C = 130


app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="Fine-tune, register, serve and explain image classifiers.",
)  # fmt: skip

explain_commands.register_commands(app)
release_commands.register_commands(app)

Data = Annotated[
    str, typer.Option(help="Image folder (train/ and val/, or one folder of classes), or 'specimens'.")
]
Config = Annotated[Path | None, typer.Option(help="TOML file with any of the settings and [[phases]].")]
Preset = Annotated[str | None, typer.Option(help="Settings to start from: quick, default or thorough.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="One setting, such as phases.head.epochs=4; repeatable."
    ),
]
PageFile = Annotated[Path, typer.Option(help="Where to write the page as well.", callback=check_out_file)]
Model = Annotated[str, typer.Argument(help="Registered model: NAME, NAME@alias or NAME/number.")]


def main() -> None:
    """Run the command: an error of ours is one line and exit code 1, Ctrl-C is exit code 130, SIGTERM 143."""
    # Telemetry is a call to the outside that nobody asked for; who wants it sets this to false.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # MLflow and alembic narrate each table that they make, and print a traceback for each try at a store that
    # is away; our own progress and our own sentence are what a user wants to read.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    # News for a tracker waits on disk and is tried again, so one request need not be patient.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    logging.getLogger("alembic").setLevel(logging.ERROR)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle_stop_signal)
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


@app.command()
def specimens(
    folder: Annotated[
        Path, typer.Argument(help="New folder to draw into.", callback=check_out_folder)
    ] = Path("specimens"),
    train: Annotated[int, typer.Option(help="Training pictures of each species.")] = 24,
    val: Annotated[int, typer.Option(help="Validation pictures of each species.")] = 12,
    test: Annotated[int, typer.Option(help="Test pictures of each species.")] = 12,
    seed: Annotated[int, typer.Option(help="Same seed, same pictures.")] = 0,
    shortcut: Annotated[
        str, typer.Option(help="Species to plant a collector's label on (train and val only).")
    ] = "",
) -> None:
    """Draw the embedded data set: invented butterflies with the masks of what makes each species."""
    from pipelines.data.synthetic import SpecimenPlan, write_specimens

    plan = SpecimenPlan(train=train, val=val, test=test, seed=seed, shortcut_species=shortcut)
    with progress_reporter() as reporter:
        write_specimens(plan, folder, progress=reporter.step)
    console.print(f"Specimens lie in [bold]{folder}[/bold], their masks in {folder}/masks.")


@app.command()
def train(
    data: Annotated[
        str | None,
        typer.Option(
            help="Labelled picture folder, or 'specimens' (the default); with --resume, where it lies now."
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Row of the backbone table; efficientnet_lite0 is embedded.")
    ] = None,
    config: Config = None,
    preset: Preset = None,
    settings: Settings = None,
    name: Annotated[
        str | None, typer.Option(help="Registered model's name; the data folder's by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed and data, same model.")] = None,
    weights: Annotated[str | None, typer.Option(help="'imagenet' or 'none'.")] = None,
    threads: Annotated[int | None, typer.Option(help="Torch threads; 0 takes one a core.")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with an interrupted or killed run, by its id.")
    ] = None,
) -> None:
    """Fine-tune in phases, tracked in MLflow, and register the model version."""
    from pipelines.config.loader import load_config
    from pipelines.training.train import resume_training, train_model

    chosen = {"backbone": backbone, "seed": seed, "weights": weights, "threads": threads}
    if resume is not None:
        other_options = {**chosen, "config": config, "preset": preset, "set": settings, "name": name}
        if also := [f"--{option}" for option, value in other_options.items() if value not in (None, [])]:
            raise typer.BadParameter(f"--resume takes the run's own settings, not {', '.join(also)}")
        with progress_reporter() as reporter:
            _print_trained(resume_training(resume, partial(_scan_again, data), reporter=reporter))
        return
    train_config = load_config(config, chosen, preset=preset, settings=settings or ())
    dataset = load_dataset(data or SPECIMENS, val_share=train_config.val_share)
    with progress_reporter() as reporter:
        done = train_model(dataset, train_config, name=name or dataset.name, reporter=reporter)
    _print_trained(done)


@app.command()
def rates(
    data: Data = SPECIMENS,
    config: Config = None,
    preset: Preset = None,
    settings: Settings = None,
    out: Annotated[
        Path, typer.Option(help="Folder for a plot of each phase.", callback=check_out_folder)
    ] = Path("rates"),
) -> None:
    """Find learning rates: try rising ones on each phase's features, plot the loss, suggest a peak."""
    from models.images.encode import encode_image
    from pipelines.config.loader import load_config
    from pipelines.evaluation.plots import plot_lr_range_test
    from pipelines.training.train import find_rates

    train_config = load_config(config, preset=preset, settings=settings or ())
    dataset = load_dataset(data, val_share=train_config.val_share)
    with progress_reporter() as reporter:
        tests = find_rates(dataset, train_config, reporter=reporter)
    out.mkdir(parents=True, exist_ok=True)
    for number, (phase, test) in enumerate(zip(train_config.phases, tests, strict=True), start=1):
        title = f"phase {phase.name}: suggested {test.suggested:.2g}, set {phase.rate:.2g}"
        file = out / f"{number}.png"
        file.write_bytes(
            encode_image(plot_lr_range_test(test.rates, test.losses, test.suggested, title=title), "png")
        )
        console.print(f"{title}; look at {file}", highlight=False)


@app.command()
def promote(model: Model) -> None:
    """Make a version the champion, if it is not worse than the present one."""
    from pipelines.release.promote import promote as decide

    decision = decide(model)
    if not decision.promoted:
        console.print(
            f"[red]{decision.name} version {decision.version} was not promoted[/red]: {decision.reason}."
        )
        raise typer.Exit(1)
    console.print(f"{decision.name} version {decision.version} is champion: {decision.reason}.")


@app.command()
def review(
    run: Annotated[str, typer.Argument(help="Run id, or registered model: NAME, NAME@alias, NAME/number.")],
    data: Data = SPECIMENS,
    out: PageFile = Path("review.html"),
) -> None:
    """Make the misclassification gallery of a run, as one HTML file, and log it to the run."""
    from pipelines.reports.review import review_run as make
    from pipelines.tracking.registry import find_run, run_val_share

    run_id = find_run(run)
    dataset = load_dataset(data, val_share=run_val_share(run_id))
    out.parent.mkdir(parents=True, exist_ok=True)
    with progress_reporter() as reporter:
        # The page is written before it is logged: a tracker that is away must not cost the work.
        make(run_id, dataset, reporter=reporter, keep=out.write_text)
    console.print(f"Logged to run {run_id} as review/review.html; look at {out}", highlight=False)


@app.command()
def compare(
    one: Annotated[str, typer.Argument(metavar="RUN", help="Run id or registered model.")],
    other: Annotated[
        str, typer.Argument(metavar="RUN", help="Run id or registered model to hold against it.")
    ],
    data: Data = SPECIMENS,
    out: PageFile = Path("compare.html"),
) -> None:
    """Compare two runs on one data set: metrics, pictures that changed sides, evidence that moved."""
    from pipelines.reports.compare import compare_runs as make
    from pipelines.tracking.registry import find_run, run_val_share

    first, second = find_run(one), find_run(other)
    dataset = load_dataset(data, val_share=run_val_share(first))
    out.parent.mkdir(parents=True, exist_ok=True)
    with progress_reporter() as reporter:
        # The page is written before it is logged: a tracker that is away must not cost the work.
        comparison = make(first, second, dataset, reporter=reporter, keep=out.write_text)
    for sentence in comparison.summary:
        console.print(sentence, highlight=False)
    console.print(f"Logged as run {comparison.run_id}; look at {out}", highlight=False)


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete the cached features.")] = False,
    drop: Annotated[
        str | None, typer.Option(metavar="RUN", help="Give up an unfinished run: delete its folder.")
    ] = None,
) -> None:
    """Show what training keeps on disk: cached features, and the folders of unfinished runs."""
    from pipelines.training.checkpoint import default_runs_root, unfinished_runs
    from pipelines.training.feature_cache import cache_size, clear_cache, default_cache_folder

    folder = default_cache_folder()
    if clear:
        clear_cache(folder)
    files, size = cache_size(folder)
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    say(f"{files} arrays of features, {size / 1e9:.2f} GB, in {folder}")
    if drop is not None:
        from pipelines.training.train import discard_run

        discard_run(drop)
    for run_id, (left, plan) in unfinished_runs(default_runs_root()).items():
        state = "in progress" if left.in_use else f"go on with: lucida train --resume {run_id}"
        say(f"unfinished run of {plan.name} in {left.path}: {state}")


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for everything that the demo makes.", callback=check_out_folder)
    ] = Path("demo"),
) -> None:
    """Run the whole path once: draw, train, register, promote, package, serve, explain, review."""
    from pipelines.demo import run_demo

    with progress_reporter() as reporter:
        result = run_demo(out, lambda text: console.print(text, highlight=False), reporter)
    table = Table(title="What lies where", title_justify="left", show_header=False, box=None)
    for what, where in (
        ("the picture, explained", result.explained),
        ("the service's whole answer", result.answer),
        ("the picture, put to all the questions", result.inspection),
        ("mistakes, with where it looked", result.review),
        ("the test folder, explained", result.batch / "index.html"),
        ("the butterflies and their masks", result.out / "specimens"),
    ):
        table.add_row(what, str(where))
    console.print(table)
    say = partial(console.print, highlight=False, soft_wrap=True)
    say(f"make ui      then open http://127.0.0.1:5000 and look at run {result.run_id}")
    say("make serve   then open http://127.0.0.1:3000, or")
    say(f"             curl -F image=@{result.image} http://127.0.0.1:3000/explain")


# ---------------------------------------------------------------- parts of the commands


def _scan_again(moved_to: str | None, plan: RunManifest) -> Dataset:
    return load_dataset(moved_to or plan.data, val_share=plan.config.val_share)


def _print_trained(done: TrainedModel) -> None:
    for evaluation in done.evaluations.values():
        print_evaluation(evaluation)
    if done.baseline is not None:
        console.print(
            f"A linear probe on the untouched features has {done.baseline:.3f} on val.", highlight=False
        )
    console.print(f"Peak memory {done.peak_memory_mb:.0f} MB.", highlight=False)
    console.print(
        f"Run [bold]{done.run_id}[/bold] registered [bold]{done.name}[/bold] version {done.version}."
    )
    console.print(f"Next: lucida promote {done.name}", highlight=False)


if __name__ == "__main__":
    main()
