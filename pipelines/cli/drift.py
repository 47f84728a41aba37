"""The command that holds a batch against another, or against what its model was validated on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.explain import Folder, Registered, bundle_of
from pipelines.cli.terminal import check_out_file, console, loading

_DRIFTED = 3


def register_commands(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(drift)


def drift(
    batch: Annotated[Path, typer.Argument(help="Folder that `lucida explain` wrote.")],
    other: Annotated[
        Path | None, typer.Argument(help="Another such folder, which it is held against.")
    ] = None,
    model: Registered = None,
    bundle: Folder = None,
    level: Annotated[
        float, typer.Option(min=1e-9, max=0.5, help="Chance of an alarm without drift, all figures together.")
    ] = 0.01,
    out: Annotated[Path, typer.Option(help="The page to write.", callback=check_out_file)] = Path(
        "drift.html"
    ),
) -> None:
    """Say whether a batch of pictures is like another, or like those that its model was validated on.

    Ends with exit code 3 where a figure drifted.
    """
    with loading():
        from models.metrics.drift import LARGE_PSI
        from models.reference import FIGURES
        from pipelines.batch.drift import compare_batch, read_classes, read_digest, reference_of_batch
        from pipelines.errors import DataError
        from pipelines.reports.html import render_template

    if other is not None:
        if model is not None or bundle is not None:
            raise DataError("Name another batch or a model to hold the batch against, not both.")
        classes = sorted({*read_classes(batch), *read_classes(other)})
        reference, against = reference_of_batch(other, classes), f"the batch {other.name}"
    else:
        with bundle_of(model, bundle, "cpu") as loaded:
            if loaded.reference is None:
                raise DataError(
                    "The bundle has no reference; train the model again, or adopt it with --data, or name "
                    "another batch."
                )
            if loaded.provenance.digest != (digest := read_digest(batch)):
                raise DataError(
                    f"The batch {batch} was explained by the bundle {digest[:12]}, not by "
                    f"{loaded.provenance.digest[:12]}."
                )
            classes, reference = list(loaded.model.classes), loaded.reference
            against = f"the validation pictures of {loaded.provenance.model}"
    result = compare_batch(batch, classes, reference, against=against, level=level)
    page = render_template(
        "drift.html.j2", title=f"Drift of {batch.name}", drift=result, meanings=FIGURES, level=level,
        large_psi=LARGE_PSI,
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page)
    for row in result.results:
        if row.alarm:
            console.print(f"{row.figure}: PSI {row.psi:.2f}, p {row.p_value:.2g} ({row.test}).", markup=False)
    console.print(f"{result.summary} Look at {out}", highlight=False, markup=False, soft_wrap=True)
    if result.drifted:
        raise typer.Exit(_DRIFTED)
