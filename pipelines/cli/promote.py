"""The commands that decide which version is live: promote, demote, and the yardstick for the evidence."""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.terminal import (
    Device,
    check_out_file,
    console,
    load_dataset,
    loading,
    progress_reporter,
)

Model = Annotated[str, typer.Argument(help="Registered model: NAME, NAME@alias or NAME/number.")]
_BLOCKED = 3


def register_commands(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (promote, demote):
        app.command()(command)
    app.command("baseline-drift")(baseline_drift)


def promote(
    model: Model,
    data: Annotated[
        str | None, typer.Option(help="Labelled pictures to judge it on by a policy, beside the champion.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="TOML file of \\[\\[checks]]; a sensible default without.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Judge only: nothing is logged, nothing moves.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Where to write the report as well.", callback=check_out_file)
    ] = Path("gate.html"),
    junit: Annotated[
        Path | None, typer.Option(help="Write JUnit XML for CI.", callback=check_out_file)
    ] = None,
    then: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="Run this once the version is champion.")
    ] = None,
    accept_tie: Annotated[
        bool, typer.Option("--accept-tie", help="Also where it is as good as the present champion.")
    ] = False,
    force: Annotated[
        str | None,
        typer.Option(
            "--override",
            "--force",
            metavar="REASON",
            help="Even where it is worse or blocked; the reason is kept with the version.",
        ),
    ] = None,
    previous: Annotated[
        bool, typer.Option("--previous", help="Go back to the version that was champion before.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Make a version the champion: by a policy on --data, or if its run's own figure is better."""
    if previous and (accept_tie or force is not None or data is not None or {"@", "/"} & set(model)):
        raise typer.BadParameter("--previous takes a model's name and no other option")
    if force is not None and not force.strip():
        raise typer.BadParameter("--override needs a reason, in words")
    if data is None and (policy is not None or dry_run or junit is not None):
        raise typer.BadParameter("--policy, --dry-run and --junit judge pictures: they need --data")
    if data is not None and accept_tie:
        raise typer.BadParameter("--accept-tie is for promotion without --data; a policy has margins")
    if data is not None:
        _by_gate(model, data, policy, dry_run, out, junit, force, device)
    else:
        _by_figures(model, accept_tie, force, previous)
    if then is not None and not dry_run:
        _run_hook(then, model)


def demote(model: Annotated[str, typer.Argument(help="Registered model's name.")]) -> None:
    """Go back to the version that was champion before the present one."""
    if {"@", "/"} & set(model):
        raise typer.BadParameter("demote takes a model's name, without a version")
    _by_figures(model, accept_tie=False, force=None, previous=True)


def baseline_drift(
    model: Model,
    data: Annotated[str, typer.Option(help="The pictures that the model was trained and judged on.")],
    device: Device = "auto",
) -> None:
    """Train a version's recipe once more with another seed, and keep how far that moves the evidence.

    It is the yardstick by which later promotions tell evidence that moved from noise.
    """
    with loading():
        from models.devices import resolve_device
        from pipelines.config.loader import config_from_toml
        from pipelines.release.gated_promotion import measure_seed_drift
        from pipelines.tracking.registry import find_version, read_run_file, run_val_share
        from pipelines.training.train import train_again

    where = resolve_device(device)
    version = find_version(model)
    run_id = version.run_id or ""
    dataset = load_dataset(data, val_share=run_val_share(run_id))
    text = read_run_file(run_id, "config.toml")
    if text is None:
        raise typer.BadParameter(f"{model} was not trained here, so there is no recipe to train again")
    with progress_reporter() as reporter:
        recipe = replace(config_from_toml(text), device=device)
        other = train_again(dataset, recipe, name=f"{version.name}.seed", reporter=reporter)
        references = (f"{version.name}/{version.version}", f"{other.name}/{other.version}")
        drifts = measure_seed_drift(*references, dataset, reporter=reporter, device=where)
    moved = [item.moved for item in drifts if item.moved is not None]
    console.print(
        f"Another seed moves {sum(moved) / max(len(moved), 1):.0%} of the evidence ({len(moved)} pictures); "
        f"kept with run {run_id}.",
        highlight=False,
    )


def _by_figures(model: str, accept_tie: bool, force: str | None, previous: bool) -> None:
    with loading():
        from pipelines.release.promote import promote as decide, promote_previous

    decision = promote_previous(model) if previous else decide(model, accept_tie=accept_tie, force=force)
    if not decision.promoted:
        console.print(
            f"[red]{decision.name} version {decision.version} was not promoted[/red]: {decision.reason}."
        )
        raise typer.Exit(1)
    console.print(f"{decision.name} version {decision.version} is champion: {decision.reason}.")


def _by_gate(
    model: str,
    data: str,
    policy: Path | None,
    dry_run: bool,
    out: Path,
    junit: Path | None,
    override: str | None,
    device: str,
) -> None:
    with loading():
        from models.devices import resolve_device
        from pipelines.release.gate_report import verdict_to_junit
        from pipelines.release.gated_promotion import promote_by_gate
        from pipelines.release.policy import load_policy
        from pipelines.tracking.registry import find_run, run_val_share

    checks, where = load_policy(policy), resolve_device(device)
    dataset = load_dataset(data, val_share=run_val_share(find_run(model)))
    out.parent.mkdir(parents=True, exist_ok=True)
    with progress_reporter() as reporter:
        done = promote_by_gate(
            model, dataset, checks, dry_run=dry_run, override=override, reporter=reporter,
            keep=out.write_text, device=where,
        )  # fmt: skip
    if junit is not None:
        junit.write_bytes(verdict_to_junit(done.verdict))
    for result in done.verdict.results:
        if result.status != "passed":
            consequence = "[red]blocks[/red]" if result.blocks else "warns"
            console.print(f"{result.check.title}: {result.status}, {consequence}.", highlight=False, end=" ")
            console.print(result.reason, highlight=False, markup=False, soft_wrap=True)
    console.print(done.verdict.summary, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{done.decision} Look at {out}", highlight=False, markup=False, soft_wrap=True)
    if not done.verdict.passed and not done.promoted:
        raise typer.Exit(_BLOCKED)


def _run_hook(command: str, model: str) -> None:
    """Run a command of the user's own, which is told the model by LUCIDA_MODEL; no shell reads it."""
    environment = os.environ | {"LUCIDA_MODEL": model.split("@")[0].split("/")[0]}
    try:
        code = subprocess.run(shlex.split(command), env=environment, check=False).returncode
    except (OSError, ValueError) as error:
        console.print(f"The version is champion, but {command!r} cannot be run: {error}.", markup=False)
        raise typer.Exit(1) from error
    if code:
        console.print(f"The version is champion, but {command!r} ended with exit code {code}.", markup=False)
        raise typer.Exit(1)
