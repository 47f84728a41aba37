"""The commands that find a model's concepts and give them names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.explain import EngineName, Folder, Precision, Registered, bundle_of
from pipelines.cli.terminal import (
    SPECIMENS,
    Device,
    check_out_folder,
    console,
    load_dataset,
    loading,
    progress_reporter,
)

if TYPE_CHECKING:
    from pipelines.evaluation.concepts import ConceptStudy

Class = Annotated[
    str | None, typer.Option("--class", help="Look at the pictures of one class; of all classes without.")
]
Block = Annotated[str | None, typer.Option(help="The end of the stage before the last without.")]
Method = Annotated[str, typer.Option(help="factorization, or sparse_autoencoder.")]
ConceptFolder = Annotated[Path, typer.Argument(help="Folder that `lucida concepts` wrote.")]


def register_commands(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(concepts)
    app.command()(name_concept)


def concepts(
    data: Annotated[
        str, typer.Option(help="Data set: found on training, measured on validation.")
    ] = SPECIMENS,
    out: Annotated[
        Path, typer.Option(help="Folder for index.html and the concepts.", callback=check_out_folder)
    ] = Path("concepts"),
    model: Registered = None,
    bundle: Folder = None,
    label: Class = None,
    block: Block = None,
    count: Annotated[int, typer.Option(min=2, max=64, help="How many.")] = 12,
    method: Method = "factorization",
    most: Annotated[int, typer.Option(min=10, max=2000, help="Training pictures that are looked at.")] = 300,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    engine: EngineName = "auto",
    precision: Precision = "auto",
    device: Device = "auto",
) -> None:
    """Find directions that a model's evidence runs along, with their patches and their effect."""
    with loading():
        from models.explainer import Explainer
        from models.introspection.concept_set import check_method, read_concepts, write_concepts
        from pipelines.errors import DataError
        from pipelines.evaluation.concepts import study_concepts
        from pipelines.reports.concepts import describe_concepts, render_concepts

    if (present := read_concepts(out)) is not None and any(present.names):
        named = ", ".join(name for name in present.names if name)
        raise DataError(
            f"The concepts in {out} have names ({named}), which would be lost; choose another --out."
        )
    check_method(method)
    with bundle_of(model, bundle, device) as loaded:
        dataset = load_dataset(data)
        explainer = Explainer(loaded, engine, precision=precision)
        with progress_reporter() as reporter:
            study = study_concepts(
                explainer, dataset, block=block, label=label, count=count, method=method, most=most,
                seed=seed, progress=reporter.step,
            )  # fmt: skip
        origin = loaded.provenance
        facts = {
            "model": origin.model,
            "version": origin.version or "not from a registry",
            "bundle digest": origin.digest,
            "data set": dataset.name,
            "data set's digest": dataset.digest,
            "found by": f"{method}, {count} of {study.concepts.block}, seed {seed}",
        }
        described = describe_concepts(study, explainer, dataset, facts)
        out.mkdir(parents=True, exist_ok=True)
        write_concepts(described, out)
        (out / "index.html").write_text(render_concepts(described))
    _print(study, out)


def name_concept(
    folder: ConceptFolder,
    number: Annotated[int, typer.Argument(min=0, help="The concept's number.")],
    name: Annotated[str, typer.Argument(help="What you call it; empty to take its name away.")],
) -> None:
    """Give a concept a name; `lucida package --concepts` keeps it beside the bundle."""
    with loading():
        from models.introspection.concept_set import CONCEPTS_FILE, read_concepts, write_concepts
        from pipelines.errors import DataError
        from pipelines.reports.concepts import render_concepts

    present = read_concepts(folder)
    if present is None:
        raise DataError(f"There is no {CONCEPTS_FILE} of `lucida concepts` in {folder}.")
    renamed = present.renamed(number, name)
    write_concepts(renamed, folder)
    (folder / "index.html").write_text(render_concepts(renamed))
    console.print(f"Concept {number} is {renamed.title(number)!r} now.", highlight=False, markup=False)


def _print(study: ConceptStudy, out: Path) -> None:
    for measure in study.measures:
        largest = max(measure.by_class.items(), key=lambda item: abs(item[1]), default=None)
        says = f", {largest[1]:+.2f} of the logit for {largest[0]}" if largest is not None else ""
        console.print(
            f"{study.concepts.title(measure.number)}: in {measure.present} of {study.measured} pictures"
            f"{says}; {measure.flips} get another class without it.",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    for part in study.parts:
        console.print(
            f"{part.part} of {part.label}: {study.concepts.title(part.number)}, IoU of 0.5 or more in "
            f"{part.matched} of {part.images} pictures.", highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    console.print(f"Look at {out / 'index.html'}", highlight=False)
