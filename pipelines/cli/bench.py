"""The command that times the engines for a model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pipelines.cli.explain import Folder, Registered, bundle_of
from pipelines.cli.terminal import Device, console, loading, progress_reporter

if TYPE_CHECKING:
    from models.backends.registry import BackendTrial
    from models.bundle import Bundle
    from pipelines.progress import Reporter


def register_commands(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(bench)


def bench(
    model: Registered = None,
    bundle: Folder = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, max=256, help="Pictures at once; repeatable. 1 and 8 without.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="Threads; 0 takes one a core.")] = 0,
    device: Device = "auto",
) -> None:
    """Time each engine and precision for a model on this machine, and name the one that auto takes."""
    with loading():
        import torch

        from models.backends.registry import pick_fastest
        from models.devices import describe_device

    batches = sorted(set(batch or (1, 8)))
    count = threads or os.cpu_count() or 1
    torch.set_num_threads(count)
    with bundle_of(model, bundle, device) as loaded, progress_reporter() as reporter:
        trials = {size: _trials(loaded, size, count, reporter) for size in batches}
        where = describe_device(loaded.model.device)
        name = f"{loaded.provenance.model} ({loaded.provenance.backbone})"
    columns = [f"ms, batch {size}" for size in batches]
    table = Table("engine", "precision", *columns, "of eager", title=f"{name} on {where}, {count} threads")
    for row in zip(*trials.values(), strict=True):
        eager = trials[batches[-1]][0].milliseconds
        last = row[-1].milliseconds
        share = f"{last / eager:.2f}" if last is not None and eager else ""
        times = [item.refusal if item.milliseconds is None else f"{item.milliseconds:.1f}" for item in row]
        table.add_row(row[0].name, row[0].precision, *times, share)
    console.print(table)
    best = pick_fastest(trials[batches[0]])
    if best is not None:
        console.print(f"auto takes {best.name} {best.precision}.", highlight=False)


def _trials(bundle: Bundle, batch: int, threads: int, reporter: Reporter) -> list[BackendTrial]:
    from models.backends.quantized import read_quantized
    from models.backends.registry import count_candidates, try_backends

    quantized = read_quantized(bundle.folder, bundle.provenance.digest)
    probe = bundle.probe[0].expand(batch, -1, -1, -1).contiguous()
    total, trials = count_candidates(bundle.model, quantized), []
    for _, trial in try_backends(bundle.model, probe=probe, threads=threads, quantized=quantized):
        trials.append(trial)
        reporter.step(f"timing engines, batch {batch}", len(trials), total)
    return trials
