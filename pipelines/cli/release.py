"""The commands round a service: package what it serves, make keys for it, check what it has said."""

from __future__ import annotations

import hashlib
import json
import secrets
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.explain import Folder, Registered, bundle_of
from pipelines.cli.terminal import console, load_dataset, loading, progress_reporter

_FAILED = 2


def register_commands(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (package, key, verify):
        app.command()(command)


def package(
    model: Annotated[str, typer.Argument(help="Registered model; its champion is packaged.")],
    atlas: Annotated[
        Path | None,
        typer.Option(
            help="Folder that `lucida atlas` made of this very version; GET /filters answers from it."
        ),
    ] = None,
    concepts: Annotated[
        Path | None,
        typer.Option(
            help="Folder that `lucida concepts` made of this very version; /concepts answers from it."
        ),
    ] = None,
    samples: Annotated[
        bool,
        typer.Option(help="Let the page offer the few validation pictures that the run has kept for it."),
    ] = True,
    quantise: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Add int8 blocks, calibrated on these training pictures and measured on the held-out ones.",
        ),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="ed25519 private key in PEM, to sign the bundle with."),
    ] = None,
) -> None:
    """Turn the champion into a Bento model and build the Bento that serves it."""
    with loading():
        from pipelines.release.package import package as build
        from pipelines.release.quantize import describe_quantization
        from pipelines.tracking.registry import CHAMPION_ALIAS

    reference = model if "@" in model or "/" in model else f"{model}@{CHAMPION_ALIAS}"
    dataset = load_dataset(quantise) if quantise is not None else None
    with progress_reporter() as reporter:
        packaged = build(
            reference, atlas=atlas, concepts=concepts, samples=samples, quantise=dataset, sign=sign,
            progress=reporter.step,
        )  # fmt: skip
    if packaged.int8 is not None:
        console.print(describe_quantization(packaged.int8), highlight=False, soft_wrap=True)
    console.print(
        f"{packaged.name} version {packaged.version} is Bento model {packaged.model_tag}, "
        f"in Bento {packaged.bento_tag}.",
        soft_wrap=True,
        highlight=False,
    )
    console.print(f"Next: bentoml serve {packaged.bento_tag}", highlight=False)


def key(
    name: Annotated[str, typer.Argument(help="Whose key it is; it appears in the service's log.")],
) -> None:
    """Make an API key: the key itself, shown once, and the setting that lets the service know it."""
    secret = secrets.token_urlsafe(32)
    setting = json.dumps({name: hashlib.sha256(secret.encode()).hexdigest()})
    console.print(f"Give to {name}, and keep nowhere else:\n{secret}\n", highlight=False, soft_wrap=True)
    console.print(f"For the service:\nLUCIDA_API_KEYS='{setting}'", highlight=False, soft_wrap=True)


def verify(
    answer: Annotated[Path, typer.Argument(help="An answer of the service, as JSON.")],
    image: Annotated[Path, typer.Option(help="The picture that it was about.")],
    model: Registered = None,
    bundle: Folder = None,
) -> None:
    """Make an answer of the service again, and say whether it holds; exit code 2 where it does not."""
    from pipelines.errors import DataError
    from pipelines.release.verify import list_unverified, verify_answer as check

    for path in (answer, image):
        if not path.is_file():
            raise DataError(f"There is no file {path}.")
    text = answer.read_bytes()
    with bundle_of(model, bundle) as loaded:
        findings = check(text, image, loaded)
    for finding in findings:
        mark = "[green]holds[/green]" if finding.holds else "[red]does not hold[/red]"
        console.print(f"{finding.what}: {mark}. {finding.says}", highlight=False, soft_wrap=True)
    console.print(f"Not made again: {'; '.join(list_unverified(text))}.", highlight=False, soft_wrap=True)
    if not all(finding.holds for finding in findings):
        raise typer.Exit(_FAILED)
    console.print("The answer holds.", highlight=False)
