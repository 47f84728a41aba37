"""The command that measures which method of explanation to believe for a model."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
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
    from models.images.frame import Frame
    from pipelines.batch.sources import Source
    from pipelines.evaluation.benchmark_tasks import MaskedImage
    from pipelines.evaluation.best_methods import BestMethod


_FEWEST = 8
_SPECIMENS = 6
"""Of each species, where the model knows them."""


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
    masks: Annotated[
        Path | None, typer.Option(help="Folder of masks by the pictures' names (.png, white: the object).",
                                  exists=True, file_okay=False)
    ] = None,
    images: Annotated[int, typer.Option(min=_FEWEST, max=2000, help="Pictures that are measured.")] = 60,
    grids: Annotated[int, typer.Option(min=4, max=1000, help="Mosaics of each size.")] = 40,
    device: Device = "auto",
) -> None:  # fmt: skip
    """Measure which method to believe: by pictures in a grid, by covering places, against controls."""
    with loading():
        from pipelines.batch.sources import open_source
        from pipelines.evaluation.benchmark_plan import plan_specimens, plan_tasks
        from pipelines.evaluation.best_methods import choose_best, summarize_rows
        from pipelines.evaluation.method_benchmark import (
            MethodBenchmark,
            cells_by_candidate,
            list_candidates,
            make_contestants,
        )
        from pipelines.reports.benchmark_cases import draw_cases
        from pipelines.reports.method_benchmark import benchmark_to_json, render_benchmark

    with _explainer_of(model, bundle, network, device) as (explainer, name, digest), \
            progress_reporter() as reporter:  # fmt: skip
        pictures = open_source(source)
        backend, samples = explainer.backend, _prepare(explainer, pictures, images, masks)
        x = samples.x
        about = {"model": name, "digest": digest, "source": pictures.where, "engine": backend.name,
                 "precision": backend.precision, "pictures": samples.names, "skipped": samples.skipped,
                 "masks": len(samples.masked)}  # fmt: skip
        tasks = plan_tasks(backend, x, grids=grids, masked=samples.masked)
        tasks += plan_specimens(backend, _SPECIMENS)
        candidates = list_candidates(explainer.model, x[0])
        contestants = make_contestants(backend, candidates)
        measured = MethodBenchmark(contestants, tasks, out / "rows.jsonl", about=about)
        measured.run(reporter.step)
    figures = summarize_rows(measured.rows)
    best = choose_best(figures, candidates, cells_by_candidate(candidates, explainer.model, x[0]))
    words = f"{name}, {len(x)} pictures of {pictures.where}"
    words += f", {len(samples.skipped)} skipped" if samples.skipped else ""
    cases = draw_cases(measured, best, explainer.model)
    page = render_benchmark(figures, best, cases, title="Which method to believe", about=words)
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


@dataclass
class _Samples:
    """The pictures of a benchmark."""

    x: list[Tensor] = field(default_factory=list)
    """Inputs (3, H, W)."""
    names: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    masked: list[MaskedImage] = field(default_factory=list)


def _prepare(explainer: Explainer, source: Source, most: int, masks: Path | None) -> _Samples:
    """Return so many pictures, evenly taken, as inputs; raises DataError for too few that can be read, and
    for a folder of masks that has none of them.
    """
    from models.errors import LucidaError
    from models.images.decode import Limits, decode_image
    from pipelines.errors import DataError

    samples = _Samples()
    for item in source.items[:: max(1, len(source.items) // most)][:most]:
        try:
            x, frame = explainer.model.geometry.prepare(decode_image(source.read(item, Limits())))
            mask = _find_mask(masks, item.name, explainer, x, frame)
        except LucidaError as error:
            console.print(f"skipped {item.name}: {error}", highlight=False, markup=False)
            samples.skipped.append(item.name)
            continue
        samples.x.append(x)
        samples.names.append(item.name)
        samples.masked += [] if mask is None else [mask]
    if len(samples.x) < _FEWEST:
        raise DataError(
            f"{source.where} has {len(samples.x)} pictures that can be used ({len(samples.skipped)} "
            f"skipped); a benchmark needs {_FEWEST} at least."
        )
    if masks is not None and not samples.masked:
        raise DataError(
            f"{masks} has no mask of these pictures; one would be "
            f"{(masks / samples.names[0]).with_suffix('.png')}."
        )
    return samples


def _find_mask(
    folder: Path | None, name: str, explainer: Explainer, x: Tensor, frame: Frame
) -> MaskedImage | None:
    """Return the input with its mask, where there is one; raises DataError for one of another size."""
    from models.images.decode import read_image
    from pipelines.errors import DataError
    from pipelines.evaluation.benchmark_plan import masked_image, read_mask

    path = (folder / name).with_suffix(".png") if folder is not None else None
    if path is None or not path.is_file():
        return None
    mask = read_mask(read_image(path).pil)
    if mask.shape != (frame.height, frame.width):
        raise DataError(f"the mask is {mask.shape[1]} x {mask.shape[0]}, not {frame.width} x {frame.height}")
    return masked_image(explainer.backend, x, frame, mask)


def _print_best(best: list[BestMethod]) -> None:
    for item in best:
        console.print(f"{item.question} [bold]{item.candidate or 'none'}[/bold]", highlight=False)
        console.print(f"  {item.why}", highlight=False, markup=False)
