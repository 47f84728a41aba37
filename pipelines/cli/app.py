"""The command ``lucida``: one verb for each thing that a user does."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import traceback
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.errors import LucidaError
from models.host_memory import keep_freed_memory
from pipelines.cli import (
    adopt as adopt_commands,
    bench as bench_commands,
    benchmark as benchmark_commands,
    card as card_commands,
    concepts as concepts_commands,
    drift as drift_commands,
    explain as explain_commands,
    export as export_commands,
    networks as networks_commands,
    promote as promote_commands,
    release as release_commands,
    shortcuts as shortcuts_commands,
)
from pipelines.cli.terminal import (
    DEVICE_OPTION,
    SPECIMENS,
    Device,
    check_out_file,
    check_out_folder,
    console,
    handle_stop_signal,
    load_dataset,
    loading,
    print_trained,
    progress_reporter,
)

if TYPE_CHECKING:
    from pipelines.data.dataset import Dataset
    from pipelines.training.checkpoint import RunManifest


_CTRL_C = 130
_FAULT = 70
"""As sysexits.h has it: an error within the program itself."""


app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="Fine-tune, register, serve and explain image classifiers.",
)  # fmt: skip

explain_commands.register_commands(app)
adopt_commands.register_commands(app)
networks_commands.register_commands(app)
bench_commands.register_commands(app)
benchmark_commands.register_commands(app)
card_commands.register_commands(app)
concepts_commands.register_commands(app)
drift_commands.register_commands(app)
export_commands.register_commands(app)
promote_commands.register_commands(app)
release_commands.register_commands(app)
shortcuts_commands.register_commands(app)

Data = Annotated[
    str, typer.Option(help="Image folder (train/ and val/, or one folder of classes), or 'specimens'.")
]
Config = Annotated[Path | None, typer.Option(help="TOML file with any of the settings and \\[\\[phases]].")]
Preset = Annotated[str | None, typer.Option(help="Settings to start from: quick, default or thorough.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="One setting, such as phases.head.epochs=4; repeatable."
    ),
]
OwnDevice = Annotated[str | None, DEVICE_OPTION]
"""The config's own without."""
PageFile = Annotated[Path, typer.Option(help="Where to write the page as well.", callback=check_out_file)]


def main() -> None:
    """Run the command: an error of ours is one line and exit code 1, Ctrl-C is exit code 130, SIGTERM 143."""
    # Telemetry is a call to the outside that nobody asked for; who wants it sets this to false.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    if not sys.warnoptions:
        # Meant for who writes the program; `python -W default -m pipelines.cli.app` shows them.
        warnings.simplefilter("ignore")
    # MLflow and alembic narrate each table that they make, and print a traceback for each try at a store that
    # is away; our own progress and our own sentence are what a user wants to read.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    # News for a tracker waits on disk and is tried again, so one request need not be patient.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    logging.getLogger("alembic").setLevel(logging.ERROR)
    keep_freed_memory()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle_stop_signal)
    try:
        # Outside of standalone mode an exit code, that of Ctrl-C among them, comes back as the value.
        code = app(standalone_mode=False)
    except LucidaError as error:
        _print_error(str(error))
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        code = _CTRL_C
    except Exception as error:
        # Click's usage errors know how to show themselves.
        if hasattr(error, "exit_code") and hasattr(error, "show"):
            error.show()
            sys.exit(int(error.exit_code))
        sys.exit(_report(error))
    if code == _CTRL_C:
        Console(stderr=True).print("stopped")
    sys.exit(code if isinstance(code, int) else 0)


def _print_error(sentence: str) -> None:
    Console(stderr=True).print(f"[red]error:[/red] {escape(sentence)}", highlight=False, soft_wrap=True)


def _report(error: Exception) -> int:
    """Say in a sentence what nobody caught, and return the exit code: 1 for a file or folder that cannot be
    used, 70 for a fault of ours, whose traceback is kept in a file.
    """
    if isinstance(error, BrokenPipeError):
        # Who read our output has gone, as `head` does; what is left of it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError):
        what = error.filename or "A file or a connection"
        _print_error(f"{what} cannot be used: {error.strerror or error}.")
        return 1
    with tempfile.NamedTemporaryFile("w", prefix="lucida-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    what = " ".join(str(error).split())[:300]
    _print_error(
        f"This is a fault of lucida ({type(error).__name__}: {what}). Its traceback is in {file.name}."
    )
    return _FAULT


@app.command()
def specimens(
    folder: Annotated[
        Path, typer.Argument(help="New folder to draw into.", callback=check_out_folder)
    ] = Path("specimens"),
    train: Annotated[int, typer.Option(min=1, max=10_000, help="Training pictures of each species.")] = 24,
    val: Annotated[int, typer.Option(min=1, max=10_000, help="Validation pictures of each species.")] = 12,
    test: Annotated[int, typer.Option(min=0, max=10_000, help="Test pictures of each species.")] = 12,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Same seed, same pictures.")] = 0,
    shortcut: Annotated[
        str, typer.Option(help="Species to plant a collector's label on (train and val only).")
    ] = "",
) -> None:
    """Draw the embedded data set: invented butterflies with the masks of what makes each species."""
    with loading():
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
        str | None, typer.Option(help="A name of 'lucida networks', or timm:NAME or torchvision:NAME.")
    ] = None,
    config: Config = None,
    preset: Preset = None,
    settings: Settings = None,
    name: Annotated[
        str | None, typer.Option(help="Registered model's name; the data folder's by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed and data, same model.")] = None,
    weights: Annotated[str | None, typer.Option(help="'imagenet', 'none', or a file of weights.")] = None,
    threads: Annotated[int | None, typer.Option(help="Torch threads; 0 takes one a core.")] = None,
    device: OwnDevice = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with an interrupted or killed run, by its id.")
    ] = None,
) -> None:
    """Fine-tune in phases, tracked in MLflow, and register the model version."""
    with loading():
        from models.devices import resolve_device
        from pipelines.config.loader import load_config
        from pipelines.training.train import resume_training, train_model

    chosen = {"backbone": backbone, "seed": seed, "weights": weights, "threads": threads, "device": device}
    if resume is not None:
        own = {name: value for name, value in chosen.items() if name != "device"}
        other_options = {**own, "config": config, "preset": preset, "set": settings, "name": name}
        if also := [f"--{option}" for option, value in other_options.items() if value not in (None, [])]:
            raise typer.BadParameter(f"--resume takes the run's own settings, not {', '.join(also)}")
        with progress_reporter() as reporter:
            scan = partial(_scan_again, data)
            print_trained(resume_training(resume, scan, device=device, reporter=reporter))
        return
    train_config = load_config(config, chosen, preset=preset, settings=settings or ())
    resolve_device(train_config.device)
    dataset = load_dataset(SPECIMENS if data is None else data, val_share=train_config.val_share)
    with progress_reporter() as reporter:
        done = train_model(dataset, train_config, name=name or dataset.name, reporter=reporter)
    print_trained(done)


@app.command()
def rates(
    data: Data = SPECIMENS,
    config: Config = None,
    preset: Preset = None,
    settings: Settings = None,
    out: Annotated[
        Path, typer.Option(help="Folder for a plot of each phase.", callback=check_out_folder)
    ] = Path("rates"),
    device: OwnDevice = None,
) -> None:
    """Find learning rates: try rising ones on each phase's features, plot the loss, suggest a peak."""
    with loading():
        from models.devices import resolve_device
        from models.images.encode import encode_image
        from pipelines.config.loader import load_config
        from pipelines.evaluation.plots import plot_lr_range_test
        from pipelines.training.train import find_rates

    train_config = load_config(config, {"device": device}, preset=preset, settings=settings or ())
    resolve_device(train_config.device)
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
def review(
    run: Annotated[str, typer.Argument(help="Run id, or registered model: NAME, NAME@alias, NAME/number.")],
    data: Data = SPECIMENS,
    out: PageFile = Path("review.html"),
    device: Device = "auto",
) -> None:
    """Make the misclassification gallery of a run, as one HTML file, and log it to the run."""
    with loading():
        from models.devices import resolve_device
        from pipelines.reports.review import review_run as make
        from pipelines.tracking.registry import find_run, run_val_share

    where = resolve_device(device)
    run_id = find_run(run)
    dataset = load_dataset(data, val_share=run_val_share(run_id))
    out.parent.mkdir(parents=True, exist_ok=True)
    with progress_reporter() as reporter:
        # The page is written before it is logged: a tracker that is away must not cost the work.
        make(run_id, dataset, reporter=reporter, keep=out.write_text, device=where)
    console.print(f"Logged to run {run_id} as review/review.html; look at {out}", highlight=False)


@app.command()
def compare(
    one: Annotated[str, typer.Argument(metavar="RUN", help="Run id or registered model.")],
    other: Annotated[
        str, typer.Argument(metavar="RUN", help="Run id or registered model to hold against it.")
    ],
    data: Data = SPECIMENS,
    out: PageFile = Path("compare.html"),
    device: Device = "auto",
) -> None:
    """Compare two runs on one data set: metrics, pictures that changed sides, evidence that moved."""
    with loading():
        from models.devices import resolve_device
        from pipelines.reports.compare import compare_runs as make
        from pipelines.tracking.registry import find_run, run_val_share

    where = resolve_device(device)
    first, second = find_run(one), find_run(other)
    dataset = load_dataset(data, val_share=run_val_share(first))
    out.parent.mkdir(parents=True, exist_ok=True)
    with progress_reporter() as reporter:
        # The page is written before it is logged: a tracker that is away must not cost the work.
        comparison = make(first, second, dataset, reporter=reporter, keep=out.write_text, device=where)
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
    with loading():
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
    with loading():
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
    return load_dataset(plan.data if moved_to is None else moved_to, val_share=plan.config.val_share)


if __name__ == "__main__":
    main()
