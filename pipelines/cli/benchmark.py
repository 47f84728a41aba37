"""The command that measures which method of explanation to believe for a model."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.explain import Folder, Registered, bundle_of
from pipelines.cli.terminal import (
    Device,
    check_out_folder,
    console,
    loading,
    progress_reporter,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from models.explainer import Explainer
    from pipelines.batch.sources import Source
    from pipelines.evaluation.best_methods import BestMethod


_FEWEST = 8


def register_commands(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(benchmark)


def benchmark(
    source: Annotated[str, typer.Argument(help="Pictures, as `lucida explain` takes them; no truth needed.")],
    out: Annotated[
        Path, typer.Option(help="Folder for index.html, benchmark.json and rows.jsonl; one that was begun "
                                "is gone on with.", callback=check_out_folder)
    ],
    model: Registered = None,
    bundle: Folder = None,
    network: Annotated[
        str | None, typer.Option(help="A network with its ImageNet weights, instead of a model.")
    ] = None,
    images: Annotated[int, typer.Option(min=_FEWEST, max=2000, help="Pictures that are measured.")] = 60,
    grids: Annotated[int, typer.Option(min=4, max=1000, help="Mosaics of each size.")] = 40,
    device: Device = "auto",
) -> None:  # fmt: skip
    """Measure which method to believe: by pictures in a grid, by covering places, against controls."""
    with loading():
        from pipelines.batch.sources import open_source
        from pipelines.evaluation.best_methods import choose_best, summarize_rows
        from pipelines.evaluation.method_benchmark import MethodBenchmark, cells_by_candidate
        from pipelines.reports.method_benchmark import benchmark_to_json, render_benchmark

    with _explainer_of(model, bundle, network, device) as (explainer, name, digest), \
            progress_reporter() as reporter:  # fmt: skip
        pictures = open_source(source)
        x, used = _prepare(explainer, pictures, images)
        about = {"model": name, "digest": digest, "source": pictures.where, "engine": explainer.backend.name,
                 "precision": explainer.backend.precision, "pictures": used}  # fmt: skip
        measured = MethodBenchmark(explainer.backend, x, out / "rows.jsonl", about=about, grids=grids)
        measured.run(reporter.step)
    figures = summarize_rows(measured.rows)
    cells = cells_by_candidate(measured.candidates, explainer.model, x[0])
    best = choose_best(figures, measured.candidates, cells)
    words = f"{name}, {len(x)} pictures of {pictures.where}"
    page = render_benchmark(figures, best, title="Which method to believe", about=words)
    (out / "index.html").write_text(page)
    (out / "benchmark.json").write_text(benchmark_to_json(figures, best, about))
    _print_best(best)
    console.print(f"Look at {out / 'index.html'}", highlight=False)


@contextmanager
def _explainer_of(
    model: str | None, bundle: str | None, network: str | None, device: str
) -> Iterator[tuple[Explainer, str, str]]:
    """Yield an explainer, with its name and digest."""
    with loading():
        import torch

        from models.backends.registry import AUTO, create_backend
        from models.explainer import Explainer
        from models.networks.transfer_model import TransferModel

    if network is None:
        with bundle_of(model, bundle, device) as loaded:
            origin, explainer = loaded.provenance, Explainer(loaded, AUTO, threads=os.cpu_count() or 1)
            yield explainer, f"{origin.model} ({origin.backbone})", origin.digest
        return
    if model is not None or bundle is not None:
        raise typer.BadParameter("give one of --model, --bundle and --network")
    own = TransferModel.imagenet(network)
    probe = torch.randn(1, 3, own.geometry.crop_height, own.geometry.crop_width)
    backend = create_backend(AUTO, own, probe=probe, threads=os.cpu_count() or 1)
    yield Explainer(own, backend), network, "ImageNet"


def _prepare(explainer: Explainer, source: Source, most: int) -> tuple[list[Tensor], list[str]]:
    """Return so many pictures, evenly taken, as inputs (3, H, W), and their names; raises DataError for too
    few that can be read.
    """
    from models.errors import LucidaError
    from models.images.decode import Limits, decode_image
    from pipelines.errors import DataError

    x: list[Tensor] = []
    names: list[str] = []
    for item in source.items[:: max(1, len(source.items) // most)][:most]:
        try:
            x.append(explainer.prepare(decode_image(source.read(item, Limits()))).x)
        except LucidaError as error:
            console.print(f"skipped {item.name}: {error}", highlight=False, markup=False)
            continue
        names.append(item.name)
    if len(x) < _FEWEST:
        raise DataError(
            f"{source.where} has {len(x)} pictures that can be used; a benchmark needs {_FEWEST} at least."
        )
    return x, names


def _print_best(best: list[BestMethod]) -> None:
    for item in best:
        console.print(f"{item.question} [bold]{item.candidate or 'none'}[/bold]", highlight=False)
        console.print(f"  {item.why}", highlight=False, markup=False)
