"""The command that writes a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.terminal import check_out_folder, console, loading


def register_commands(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(card)


def card(
    model: Annotated[str, typer.Argument(help="Registered model: NAME, NAME@alias or NAME/number.")],
    intended: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML file that states what the model is for, and by whom."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder to write card.html and card.md to.", callback=check_out_folder)
    ] = Path("card"),
    log: Annotated[bool, typer.Option(help="Keep the card with the version in MLflow.")] = True,
) -> None:
    """Write a version's model card: what it is for, how it was made, how well it does, what is missing."""
    with loading():
        from pipelines.reports.intended_use import read_intended_use
        from pipelines.reports.model_card import log_card, make_card

    version, written = make_card(model, read_intended_use(intended))
    out.mkdir(parents=True, exist_ok=True)
    (out / "card.html").write_text(written.to_html())
    (out / "card.md").write_text(written.to_markdown())
    if log:
        log_card(version, written)
    console.print(f"The card of {written.title} is in {out}.", highlight=False)
