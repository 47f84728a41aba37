"""The commands that write a model for other programs to run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.explain import Folder, Registered, bundle_of
from pipelines.cli.terminal import check_out_file, console, loading

_app = typer.Typer(no_args_is_help=True, help="Write a model for other programs to run.")


def register_commands(app: typer.Typer) -> None:
    """Add the commands."""
    _app.command("onnx")(export_onnx)
    app.add_typer(_app, name="export")


@_app.callback()
def _export() -> None:
    """Write a model for other programs to run."""


def export_onnx(
    out: Annotated[Path, typer.Option(help="The file to write.", callback=check_out_file)] = Path(
        "model.onnx"
    ),
    model: Registered = None,
    bundle: Folder = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Class whose evidence is given; repeatable. The highest without.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Evidence for so many highest classes.")] = 1,
    method: Annotated[str, typer.Option(help="grad_cam, hires_cam or layer_cam.")] = "grad_cam",
    block: Annotated[str | None, typer.Option(help="Block to explain at.")] = None,
) -> None:
    """Write logits, scores and evidence as one ONNX graph, held against torch before it is kept."""
    with loading():
        from pipelines.release.onnx_export import export_onnx as write

    with bundle_of(model, bundle) as loaded, console.status("tracing the network with its gradient"):
        out.parent.mkdir(parents=True, exist_ok=True)
        done = write(loaded, out, targets=tuple(target or ()), top_k=top_k, method=method, block=block)
    rows, cols = done.maps
    console.print(
        f"{done.path}, {done.bytes / 1e6:.1f} MB: image (N, 3, H, W) to logits, scores, classes and maps of "
        f"{rows} x {cols}; N is {done.batch}. In onnxruntime its logits are within {done.worst_logit:.1g} "
        f"and its maps within {done.worst_map:.1g} of torch's.",
        highlight=False,
        soft_wrap=True,
    )
