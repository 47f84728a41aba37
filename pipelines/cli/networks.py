"""The commands about networks: which there are, how each is cut into blocks, and what one is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pipelines.cli.explain import Folder, Registered, bundle_of
from pipelines.cli.terminal import check_out_folder, console, loading, progress_reporter

if TYPE_CHECKING:
    from models.networks.backbone import Backbone


def register_commands(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (networks, anatomy):
        app.command()(command)


def networks(
    family: Annotated[
        str,
        typer.Option(
            help="Part of a name, such as convnext: also the networks of torchvision and timm with it."
        ),
    ] = "",
    most: Annotated[
        int, typer.Option(min=1, max=2000, help="How many are built and cut; the rest is named.")
    ] = 20,
) -> None:
    """List the networks that can be trained and explained, with their blocks and their Grad-CAM block."""
    with loading():
        from models.errors import LucidaError, UnknownChoice
        from models.networks.library import installed_names
        from models.networks.registry import BACKBONES, get_backbone

    names = [name for name in BACKBONES if family in name]
    others = installed_names()
    matching = [name for name in others if family in name] if family else []
    if not names and not matching:
        raise UnknownChoice("family", family, sorted({name.split("_")[0] for name in BACKBONES}))
    table = Table("network", "input", "blocks", "Grad-CAM block", "top blocks from", "maps")
    reasons = []
    with progress_reporter() as reporter:
        chosen = [*names, *matching][: max(most, len(names))]
        for done, name in enumerate(chosen, start=1):
            try:
                table.add_row(*_row(get_backbone(name)))
            except LucidaError as error:
                reasons.append(f"{name}: {error}")
            reporter.step("cutting networks", done, len(chosen))
    console.print(table)
    for reason in reasons:
        console.print(reason, markup=False, highlight=False)
    if rest := [*names, *matching][len(chosen) :]:
        console.print(
            f"Not cut, as {len(chosen)} were (--most): {', '.join(rest)}", markup=False, highlight=False
        )
    if not family:
        console.print(
            f"And {len(others):,} networks of torchvision and timm, such as timm:convnext_atto: "
            "lucida networks --family convnext",
            highlight=False,
        )


def anatomy(
    backbone: Annotated[str | None, typer.Argument(help="A backbone's name, without any weights.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for anatomy.json and flow.png.", callback=check_out_folder)
    ] = None,
    model: Registered = None,
    bundle: Folder = None,
) -> None:
    """Take a network apart: shapes, receptive fields, parameters, multiply-adds and kinds of its blocks."""
    from dataclasses import asdict

    from models.networks.summary import summarize_network as take_apart
    from models.networks.transfer_model import TransferModel
    from models.visualization.architecture import draw_architecture

    if backbone is not None:
        summary = take_apart(TransferModel.create(backbone, ["one", "other"], pretraining="none"))
    else:
        with bundle_of(model, bundle) as loaded:
            summary = take_apart(loaded.model)
    height, width, channels = summary.input
    title = f"{summary.backbone}, {height} x {width} x {channels}"
    table = Table(
        "block", "H x W x C", "sees px", "every px", "parameters", "multiply-adds", "kind", title=title
    )
    for block in (*summary.blocks, summary.head):
        seen = f"{block.field.rows.size} x {block.field.cols.size}"
        seen += " and more" if block.field.sees_all else ""
        table.add_row(
            block.name, " x ".join(map(str, block.shape)), seen, str(block.field.rows.jump),
            f"{block.parameters:,}", f"{block.multiply_adds:,}", ", ".join(block.tags),
        )  # fmt: skip
    console.print(table)
    console.print(
        f"{summary.parameters:,} parameters, {summary.multiply_adds:,} multiply-adds a picture.",
        highlight=False,
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "anatomy.json").write_text(json.dumps(asdict(summary), indent=2))
        draw_architecture(summary).save(out / "flow.png")
        console.print(f"Look at {out / 'flow.png'}", highlight=False)


def _row(backbone: Backbone) -> tuple[str, ...]:
    geometry = backbone.geometry()
    blocks = backbone.block_names()
    return (
        backbone.name,
        f"{geometry.crop_height} x {geometry.crop_width}",
        f"{len(blocks)}: {blocks[0]} … {blocks[-1]}" if len(blocks) > 1 else blocks[0],
        backbone.cam_block,
        backbone.top_block,
        backbone.layout_of(backbone.cam_block).name,
    )
