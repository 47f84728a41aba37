"""The command that takes in a model that was trained elsewhere."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.terminal import Device, console, load_dataset, loading, progress_reporter

if TYPE_CHECKING:
    from models.networks.transfer_model import TransferModel
    from pipelines.training.adoption import Adoption


Source = Annotated[
    str,
    typer.Argument(
        help="timm:NAME, torchvision:NAME, a folder of the hub (timm's or transformers'), a program of "
        "torch.export (.pt2), python:package.module:factory, or mlflow:models:/NAME/VERSION."
    ),
]


def register_commands(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(adopt)


def adopt(
    source: Source,
    classes: Annotated[
        str,
        typer.Option(help="Classes in the order of the outputs, with commas between; or a file, one a line."),
    ] = "",
    weights: Annotated[
        Path | None, typer.Option(help="File of weights: .safetensors, or a state dict that torch saved.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Labelled pictures to judge and calibrate it by; or 'specimens'.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Registered model's name; the source's by default.")
    ] = None,
    view: Annotated[
        str | None, typer.Option(help="What it sees of a picture: crop, whole or pad; the source's without.")
    ] = None,
    mean: Annotated[str, typer.Option(help="Another normalisation, such as 0.5,0.5,0.5.")] = "",
    std: Annotated[str, typer.Option(help="The standard deviations that belong to it.")] = "",
    size: Annotated[str, typer.Option(help="Another input size, such as 288 or 192x256.")] = "",
    sanity: Annotated[
        str, typer.Option(help="Methods to check by shuffled weights and a benchmark: all, block or none.")
    ] = "all",
    device: Device = "auto",
) -> None:
    """Register a model that was trained elsewhere: cut it into blocks, check it, judge it, explain it."""
    with loading():
        from models.devices import resolve_device
        from models.networks.adoption import adopt_source, check_source
        from pipelines.tracking.registry import check_name
        from pipelines.training.adoption import adopt_model

    if sanity not in {"all", "block", "none"}:
        raise typer.BadParameter(f"--sanity is {sanity!r}; choose one of: all, block, none")
    # What costs nothing is refused before pictures are read.
    chosen = check_name(name or _default_name(source))
    where = resolve_device(device)
    geometry = _geometry(view, mean, std, size)
    with _located(source) as located:
        check_source(located, weights)
        dataset = load_dataset(data) if data is not None else None
        likely = dataset.classes if dataset is not None else ()
        with console.status("cutting the network into blocks"):
            adopted = adopt_source(
                located, weights=weights, classes=_classes(classes), likely_classes=likely, geometry=geometry
            )
    _print_blocks(source, adopted.model)
    with progress_reporter() as reporter:
        done = adopt_model(
            adopted, source=source, name=chosen, data=dataset, reporter=reporter, sanity=sanity, device=where
        )
    _print_adopted(done)


def _default_name(source: str) -> str:
    """Return a registered model's name for a source: the network's, the file's, or the model's in MLflow."""
    registered = re.match(r"mlflow:models:/([^/@]+)", source)
    return registered[1] if registered is not None else Path(source.rsplit(":", 1)[-1]).stem


@contextmanager
def _located(source: str) -> Iterator[str]:
    """Yield the source itself, or where a model of MLflow was downloaded to."""
    if source.startswith("python:"):
        # The function's code is run in any case; what it exports is loaded by the same process.
        from models.networks.exported import ALLOW

        os.environ[ALLOW] = "true"
        sys.path.insert(0, str(Path.cwd()))
    if not source.startswith("mlflow:"):
        yield source
        return
    from pipelines.tracking.foreign_model import fetch_foreign_model

    with tempfile.TemporaryDirectory() as aside:
        yield str(fetch_foreign_model(source, Path(aside)))


def _geometry(view: str | None, mean: str, std: str, size: str) -> dict[str, object]:
    """Return the fields of the geometry that were set."""
    fields: dict[str, object] = {
        name: _three_numbers(name, text) for name, text in (("mean", mean), ("std", std)) if text
    }
    if size:
        match = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", size)
        if match is None:
            raise typer.BadParameter(f"--size is {size!r}; it must be such as 288 or 192x256, height x width")
        height, width = int(match[1]), int(match[2] or match[1])
        fields |= {"crop_height": height, "crop_width": width, "resize": max(height, width) * 8 // 7}
    return fields if view is None else {"view": view, **fields}


def _print_adopted(done: Adoption) -> None:
    if done.accuracy is not None:
        console.print(f"Validation accuracy {done.accuracy:.3f}.", highlight=False)
    console.print(
        f"Run [bold]{done.run_id}[/bold] registered [bold]{done.name}[/bold] version {done.version}."
    )
    console.print(f"Next: lucida promote {done.name}", highlight=False)


def _print_blocks(source: str, model: TransferModel) -> None:
    names = model.block_names
    reads = f"Grad-CAM reads {model.cam_block} ({model.layout(model.cam_block).name})"
    if not model.blocks_with_map:
        reads = "no block passes a map on, so only methods that ask the pixels explain it"
    console.print(
        f"{source}: {len(names)} block{'s' * (len(names) > 1)}, {names[0]} … {names[-1]}; {reads}. "
        "Cut and uncut, its logits are equal.",
        highlight=False, markup=False,
    )  # fmt: skip


def _classes(text: str) -> list[str]:
    """Return the classes named in a text or a file."""
    if text and Path(text).is_file():
        text = Path(text).read_text().replace("\n", ",")
    return [part.strip() for part in text.split(",") if part.strip()]


def _three_numbers(field: str, text: str) -> tuple[float, ...]:
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"--{field} is {text!r}; it must be three numbers, such as 0.5,0.5,0.5"
        ) from error
    return red, green, blue
