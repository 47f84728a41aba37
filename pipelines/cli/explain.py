"""The commands that look at a model: explain a folder, inspect an image, take the network apart, chart its
filters.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.batch.processes import import_beside
from pipelines.cli.terminal import (
    SPECIMENS,
    Device,
    check_out_file,
    check_out_folder,
    check_out_place,
    console,
    load_dataset,
    loading,
    local_path,
    progress_reporter,
)

if TYPE_CHECKING:
    from models.bundle import Bundle
    from pipelines.batch.estimate import JobEstimate
    from pipelines.batch.job import ExplainJob
    from pipelines.batch.parts import BatchResult


class BatchRunner(StrEnum):
    """The names of what can run a batch."""

    local = "local"
    ray = "ray"


Registered = Annotated[
    str | None, typer.Option("--model", help="Registered model: NAME, NAME@alias or NAME/number.")
]
Folder = Annotated[
    str | None,
    typer.Option(
        "--bundle", help="Bundle folder, here or at s3://, gs://, az://, instead of a registered model."
    ),
]
Target = Annotated[
    str | None, typer.Option(help="Class to explain; each picture's own prediction by default.")
]
Against = Annotated[str | None, typer.Option(help="A class that it is held against: why this, not that.")]
Block = Annotated[str | None, typer.Option(help="Block to explain at.")]
Parameter = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="A parameter of the method, such as masks=800; repeatable."),
]
Checks = Annotated[
    list[str] | None,
    typer.Option(help="faithfulness, agreement, shifts, sweep or what_if; repeatable, some seconds each."),
]
Sheets = Annotated[
    list[str] | None, typer.Option(help="Draw methods, sweep, trace or split of each picture; repeatable.")
]
EngineName = Annotated[
    str,
    typer.Option(
        envvar="LUCIDA_ENGINE", help="eager, compile or openvino; auto takes the fastest that agrees."
    ),
]
Precision = Annotated[
    str, typer.Option(envvar="LUCIDA_PRECISION", help="Of the engine: auto, fp32, bf16 or int8.")
]
Flip = Annotated[bool, typer.Option(help="Average over each picture and its mirror image.")]
Noise = Annotated[float, typer.Option(help="Average over noisy pictures; of the picture's range.")]
Features = Annotated[
    bool, typer.Option("--features", help="Keep each picture's features in its row, for `lucida drift`.")
]
Also = Annotated[
    list[str] | None,
    typer.Option(help="Further targets in each row: truth, contrast or top3 …; repeatable."),
]
SourcePlace = Annotated[
    str,
    typer.Argument(
        help="Folder, picture, pattern, list (.txt), table (.csv, .jsonl, .parquet) or archive (.zip, .tar), "
        "here or at s3://, gs://, az://."
    ),
]
ResultPlace = Annotated[
    str,
    typer.Option(
        help="New folder for rows, overlays and index.html, here or at s3://, gs://, az://.",
        callback=check_out_place,
    ),
]
ImageColumn = Annotated[str | None, typer.Option(help="Column of a table with the paths or the pictures.")]
TruthColumn = Annotated[str | None, typer.Option(help="Column of a table with the true class.")]
AllowHttp = Annotated[
    bool, typer.Option("--allow-http", help="Fetch the addresses of the web that a list or a table names.")
]
WhichOverlays = Annotated[
    str, typer.Option(help="all, none, or interesting: wrong, unsure, unusual, at the border, empty.")
]
FiftyOne = Annotated[
    bool, typer.Option("--fiftyone", help="Write a dataset of FiftyOne too, the maps as its heatmaps.")
]
Processes = Annotated[
    int | None, typer.Option(min=1, help="Worker processes on this machine; one a core for a long job.")
]
Estimate = Annotated[
    bool, typer.Option("--estimate", help="Say what it will take, by a sample, and write nothing.")
]
Track = Annotated[bool, typer.Option("--track", help="Log the job as a run in MLflow.")]
Runner = Annotated[BatchRunner, typer.Option(help="This machine, or Ray workers (needs the extra 'ray').")]
Method = Annotated[
    str, typer.Option(help="grad_cam, hires_cam, layer_cam, integrated_gradients, occlusion, rise …")
]


def register_commands(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (explain, inspect, atlas):
        app.command()(command)


def explain(
    source: SourcePlace,
    out: ResultPlace,
    model: Registered = None,
    bundle: Folder = None,
    target: Target = None,
    against: Against = None,
    block: Block = None,
    method: Method = "grad_cam",
    parameter: Parameter = None,
    flip: Flip = False,
    noise: Noise = 0.0,
    check: Checks = None,
    sheet: Sheets = None,
    column: ImageColumn = None,
    truth: TruthColumn = None,
    allow_http: AllowHttp = False,
    features: Features = False,
    also: Also = None,
    overlays: WhichOverlays = "all",
    fiftyone: FiftyOne = False,
    on: Runner = BatchRunner.local,
    processes: Processes = None,
    estimate: Estimate = False,
    track: Track = False,
    engine: EngineName = "auto",
    precision: Precision = "auto",
    device: Device = "auto",
) -> None:
    """Explain pictures into Parquet rows, overlays and a page to look at."""
    _prepare_processes(on, processes)
    with loading():
        from models.explainer import ExplainOptions
        from pipelines.batch.engine import make_explainer
        from pipelines.batch.estimate import estimate_job
        from pipelines.batch.job import plan_job
        from pipelines.batch.sources import SourceOptions, count_left_out, open_source

    with bundle_of(model, bundle, device) as loaded, progress_reporter() as reporter:
        explainer = make_explainer(loaded, out, engine=engine, precision=precision)
        options = ExplainOptions(
            target=target, against=against, block=block, method=method, flip=flip, noise=noise,
            parameters=parse_parameters(parameter or ()),
        )  # fmt: skip
        pictures = open_source(source, SourceOptions(column, truth, allow_http), out=local_path(out))
        job = plan_job(
            pictures, explainer, options, checks=tuple(check or ()), figures=tuple(sheet or ()),
            features=features, also=also or (), overlays=overlays, fiftyone=fiftyone,
        )  # fmt: skip
        if estimate:
            _print_estimate(estimate_job(job, loaded, processes=processes, progress=reporter.step))
            return
        began = time.monotonic()
        own = {} if on is BatchRunner.ray else {"explainer": explainer, "processes": processes}
        done = _runner(on)(job, loaded, out, progress=reporter.step, **own)
        if track:
            _track(job, loaded, done, time.monotonic() - began)
    _print_batch(done, count_left_out(source))


def _print_estimate(expected: JobEstimate) -> None:
    console.print(str(expected), highlight=False, soft_wrap=True)


def _track(job: ExplainJob, bundle: Bundle, done: BatchResult, seconds: float) -> None:
    from pipelines.batch.tracked import track_job

    console.print(f"MLflow run {track_job(job, bundle, done, seconds)}", highlight=False, markup=False)


def _prepare_processes(on: BatchRunner, processes: int | None) -> None:
    """Have worker processes begin their imports beside this one's."""
    if on is BatchRunner.local and processes != 1:
        import_beside()


def _print_batch(done: BatchResult, left_out: Mapping[str, int]) -> None:
    already = f", {done.resumed} of them done before" if done.resumed else ""
    console.print(f"{done.pictures} pictures{already}, {done.errors} could not be used.")
    for folder, count in left_out.items():
        console.print(
            f"{count} pictures in {folder} were left out: hidden, or left behind by a system.", markup=False
        )
    console.print(f"Look at {done.page}", highlight=False)


def inspect(
    path: Annotated[Path, typer.Argument(metavar="picture", help="One picture.")],
    out: Annotated[Path, typer.Option(help="The page to write.", callback=check_out_file)] = Path(
        "inspection.html"
    ),
    model: Registered = None,
    bundle: Folder = None,
    target: Target = None,
    against: Against = None,
    block: Block = None,
    method: Annotated[str | None, typer.Option(help="The first that is not barred without.")] = None,
    parameter: Parameter = None,
    device: Device = "auto",
) -> None:
    """Put one picture to all the questions: faithfulness, sanity, agreement, shifts, stages, steps."""
    with loading():
        from models.explainer import ExplainOptions
        from models.images.decode import read_image
        from pipelines.reports.inspect import inspect_image, render_inspection

    with bundle_of(model, bundle, device) as loaded, progress_reporter() as reporter:
        options = ExplainOptions(
            target=target, against=against, method=method, block=block,
            parameters=parse_parameters(parameter or ()),
        )  # fmt: skip
        image = read_image(path)
        inspection = inspect_image(image, path.name, loaded, options, progress=reporter.step)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(render_inspection(inspection, loaded))
    faithfulness = inspection.audit.faithfulness
    console.print(
        f"{inspection.explanation.predictions[0].label} {inspection.explanation.predictions[0].score:.3f}",
        markup=False,
        highlight=False,
    )
    for verdict in (
        faithfulness and faithfulness.verdict,
        inspection.audit.agreement and inspection.audit.agreement.verdict,
    ):
        if verdict:
            console.print(verdict, markup=False, highlight=False)
    for warning in inspection.explanation.warnings:
        console.print(f"! {warning}", markup=False, highlight=False)
    console.print(f"Look at {out}", highlight=False)


def atlas(
    block: Annotated[str, typer.Argument(help="Block whose channels are charted.")],
    data: Annotated[str, typer.Option(help="Data set whose training pictures are searched.")] = SPECIMENS,
    out: Annotated[
        Path,
        typer.Option(help="Folder for index.html, sheet.png and atlas.json.", callback=check_out_folder),
    ] = Path("atlas"),
    model: Registered = None,
    bundle: Folder = None,
    channels: Annotated[str, typer.Option(help="Channel numbers with commas between.")] = "",
    count: Annotated[int, typer.Option(min=1, max=64, help="How many channels, if none are named.")] = 12,
    device: Device = "auto",
) -> None:
    """Chart what channels of a block look for, beside the patches that they answer most."""
    with loading():
        from models.errors import UnknownChoice
        from pipelines.reports.filter_atlas import atlas_to_json, build_atlas, draw_atlas_figure, render_atlas

    try:
        named = [int(part) for part in channels.split(",") if part.strip()]
    except ValueError as error:
        raise UnknownChoice("channels", channels, ("numbers with commas between",)) from error
    with bundle_of(model, bundle, device) as loaded:
        dataset = load_dataset(data)
        with progress_reporter() as reporter:
            charted = build_atlas(
                loaded.model, dataset, block, channels=named or None, count=count, progress=reporter.step
            )
        origin = loaded.provenance
        facts = {
            "model": origin.model,
            "version": origin.version or "not from a registry",
            "bundle digest": origin.digest,
            "data set": dataset.name,
            "data set's digest": dataset.digest,
        }
        out.mkdir(parents=True, exist_ok=True)
        (out / "index.html").write_text(render_atlas(charted, facts))
        draw_atlas_figure(charted).save(out / "sheet.png")
        (out / "atlas.json").write_text(json.dumps({**atlas_to_json(charted), "provenance": facts}, indent=2))
    console.print(
        f"{len(charted.entries)} of {charted.channels} channels; {len(charted.dead)} never answer, "
        f"{len(charted.duplicates)} pairs answer alike.", highlight=False,
    )  # fmt: skip
    console.print(f"Look at {out / 'index.html'}", highlight=False)


@contextmanager
def bundle_of(model: str | None, bundle: str | None, device: str = "cpu") -> Iterator[Bundle]:
    """Yield the checked bundle of a registered model or of a folder, here or elsewhere, on a device."""
    with loading():
        from models.bundle import load_bundle
        from models.devices import resolve_device
        from pipelines.batch.remote_bundle import fetch_remote_bundle
        from pipelines.batch.store import scheme_of

    if (model is None) == (bundle is None):
        raise typer.BadParameter("give either --model or --bundle")
    where = resolve_device(device)
    with tempfile.TemporaryDirectory() as aside:
        if bundle is None:
            folder = fetch(str(model), Path(aside))
        elif scheme_of(bundle) is not None:
            folder = fetch_remote_bundle(bundle, Path(aside) / "bundle")
        else:
            folder = Path(bundle)
        yield load_bundle(folder, device=where)


def fetch(reference: str, folder: Path) -> Path:
    """Fetch a registered model's bundle into a new folder within ``folder``."""
    with loading():
        from pipelines.tracking.registry import fetch_bundle

    return fetch_bundle(reference, folder / "bundle").folder


def _runner(on: BatchRunner) -> Callable[..., BatchResult]:
    """Return the function that runs a batch, or raise a usage error that says how to have it."""
    if on is BatchRunner.local:
        from pipelines.batch.local import run_local

        return run_local
    try:
        from pipelines.batch.ray import run_on_ray
    except ImportError as error:
        raise typer.BadParameter("--on ray needs the extra: pip install 'camera-lucida[ray]'") from error
    return run_on_ray


def parse_parameters(settings: Sequence[str]) -> dict[str, str]:
    """Read settings such as ``masks=800``; raises a usage error for anything else."""
    for setting in settings:
        if "=" not in setting:
            raise typer.BadParameter(f"a parameter is written NAME=VALUE, not {setting!r}")
    return dict(setting.split("=", 1) for setting in settings)
