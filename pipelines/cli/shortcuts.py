"""The command that searches for what a model relies on beside its objects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.explain import (
    AllowHttp,
    EngineName,
    Folder,
    ImageColumn,
    Precision,
    Registered,
    TruthColumn,
    bundle_of,
)
from pipelines.cli.terminal import (
    Device,
    check_new_folder,
    check_out_folder,
    console,
    load_dataset,
    loading,
    progress_reporter,
)

if TYPE_CHECKING:
    from models.bundle import Bundle
    from pipelines.batch.sources import SourceOptions
    from pipelines.shortcuts.evidence import SearchImage
    from pipelines.shortcuts.finder import ShortcutSearch

_FOUND = 3

BatchOrSource = Annotated[
    str | None,
    typer.Argument(
        metavar="[BATCH|SOURCE]", help="Folder that `lucida explain` wrote, or a source that it takes."
    ),
]
DataSet = Annotated[
    str | None, typer.Option("--data", help="Data set with classes, instead; masks and boxes help.")
]
MitigationFolder = Annotated[
    Path | None,
    typer.Option(
        help="New folder for training: augmentation.mitigation erases and pastes what was found.",
        callback=check_new_folder,
    ),
]
Most = Annotated[int, typer.Option(min=50, help="Pictures that are looked at, as many of each class.")]


def register_commands(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(shortcuts)


def shortcuts(
    pictures: BatchOrSource = None,
    data: DataSet = None,
    model: Registered = None,
    bundle: Folder = None,
    out: Annotated[
        Path, typer.Option(help="Folder for index.html and shortcuts.json.", callback=check_out_folder)
    ] = Path("shortcuts"),
    mitigate: MitigationFolder = None,
    most: Most = 600,
    column: ImageColumn = None,
    truth: TruthColumn = None,
    allow_http: AllowHttp = False,
    log: Annotated[bool, typer.Option(help="Keep the page with the registered version in MLflow.")] = True,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    engine: EngineName = "auto",
    precision: Precision = "auto",
    device: Device = "auto",
) -> None:
    """Find what the model answers by beside the object: labels, stamps, frames, light; then test each.

    Ends with exit code 3 where a shortcut was found.
    """
    if (pictures is None) == (data is None):
        raise typer.BadParameter("give either a batch or source, or --data")
    with loading():
        from models.explainer import Explainer
        from pipelines.batch.sources import SourceOptions
        from pipelines.reports.shortcuts import log_json, render_search
        from pipelines.shortcuts.finder import find_shortcuts
        from pipelines.shortcuts.mitigation import write_mitigation

    with bundle_of(model, bundle, device) as loaded:
        about, images = _images(loaded, pictures, data, SourceOptions(column, truth, allow_http), most)
        explainer = Explainer(loaded, engine, precision=precision)
        with progress_reporter() as reporter:
            search = find_shortcuts(explainer, images, seed=seed, progress=reporter.step)
        title = f"Shortcuts of {loaded.provenance.model}"
        page = render_search(search, explainer, title=title, about=about)
        figures = log_json(search, loaded.model.classes)
        out.mkdir(parents=True, exist_ok=True)
        (out / "index.html").write_text(page)
        (out / "shortcuts.json").write_text(figures)
        if model is not None and log:
            _log(model, page, figures, len(search.findings))
        _print(search, loaded, out)
    if mitigate is not None:
        count = write_mitigation(search, mitigate)
        console.print(
            f"{count} pictures have what was found. Train with --set augmentation.mitigation={mitigate}",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    if search.findings:
        raise typer.Exit(_FOUND)


def _images(
    bundle: Bundle, pictures: str | None, data: str | None, options: SourceOptions, most: int
) -> tuple[str, list[SearchImage]]:
    """Return what the pictures are, for people, and as many of each class as there may be."""
    from pipelines.batch.search_images import batch_images, is_batch, source_images
    from pipelines.data.dataset import match_classes
    from pipelines.shortcuts.samples import dataset_images

    classes = bundle.model.classes
    if data is not None:
        dataset = match_classes(load_dataset(data), classes)
        return f"Data set {dataset.name}", dataset_images(dataset, most)
    assert pictures is not None
    if is_batch(pictures):
        return f"Batch {pictures}", batch_images(pictures, bundle, options, most)
    return pictures, source_images(pictures, classes, options, most)


def _log(reference: str, page: str, figures: str, findings: int) -> None:
    from pipelines.reports.shortcuts import SHORTCUTS_HTML, SHORTCUTS_JSON
    from pipelines.tracking.registry import find_version, set_version_tag
    from pipelines.tracking.runs import log_file

    version = find_version(reference)
    log_file(version.run_id or "", page, SHORTCUTS_HTML)
    log_file(version.run_id or "", figures, SHORTCUTS_JSON)
    set_version_tag(version.name, str(version.version), "shortcut_findings", str(findings))


def _print(search: ShortcutSearch, bundle: Bundle, out: Path) -> None:
    from pipelines.reports.shortcuts import to_text

    for line in to_text(search, bundle.model.classes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if search.failed:
        console.print(f"{len(search.failed)} pictures could not be used; the page names them.")
    count = len(search.findings)
    verdict = f"{count} shortcut{'s' if count != 1 else ''} found" if count else "No shortcut was found"
    console.print(
        f"{verdict} in {len(search.images)} pictures, {len(search.tested)} suspicions tested. "
        f"Look at {out / 'index.html'}", highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
