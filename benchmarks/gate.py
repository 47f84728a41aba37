"""Whether the gate hears a shortcut and not a seed: five sets of specimens, each with a champion, the same
recipe with another seed, and a version that was trained where a collector's label lies on one species.

python benchmarks/gate.py [--sets 5] [--train 40] [--val 24]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.data.synthetic import SpecimenPlan

SPECIES = "cincta"


def main() -> None:
    """Print for each set how far the evidence moved, and the verdicts by both yardsticks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=5)
    parser.add_argument("--train", type=int, default=40, help="pictures of each species")
    parser.add_argument("--val", type=int, default=24)
    options = parser.parse_args()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        for seed in range(options.sets):
            judge_set(Path(folder), SpecimenPlan(train=options.train, val=options.val, test=0, seed=seed))


def judge_set(folder: Path, plan: SpecimenPlan) -> None:
    """Train three versions on one set, with and without the label, and judge two of them."""
    from pipelines.config.loader import load_config
    from pipelines.data.dataset import scan_folder
    from pipelines.data.synthetic import write_specimens
    from pipelines.training.train import train_model

    seed = plan.seed
    plain = scan_folder(write_specimens(plan, folder / f"plain{seed}"))
    labelled = scan_folder(
        write_specimens(replace(plan, shortcut_species=SPECIES), folder / f"labelled{seed}")
    )
    recipe = replace(load_config(None, preset="quick"), sanity="none", seed=seed)
    name = f"wings{seed}"
    train_model(plain, recipe, name=name)
    train_model(plain, replace(recipe, seed=seed + 1000), name=name)
    train_model(plain, replace(recipe, seed=seed + 2000), name=name)
    train_model(labelled, recipe, name=name)
    maps = [explain_version(f"{name}/{number}", data) for number, data in
            ((1, plain), (2, plain), (3, plain), (1, labelled), (4, labelled))]  # fmt: skip
    seeds, again, planted = (drift(maps, one, other) for one, other in ((0, 1), (0, 2), (3, 4)))
    print(f"set {seed}")
    print(f"  another seed moves {mean(seeds)}, a third {mean(again)}; with the label {mean(planted)}")
    for what, drifts in (("a third seed", again), ("with the label", planted)):
        for yardstick, known in (("measured", seeds), ("default", None)):
            print(f"  {what}, yardstick {yardstick}: {verdict(drifts, known)}", flush=True)


def explain_version(reference: str, data: object) -> tuple[list, list[str]]:
    """Return a version's maps of the true classes of the held-out pictures, and the classes."""
    from models.bundle import load_bundle
    from models.explainer import Explainer
    from pipelines.data.dataset import match_classes
    from pipelines.evaluation.explanation_drift import explain_truths
    from pipelines.release.gated_promotion import held_out
    from pipelines.tracking.registry import fetch_bundle

    with tempfile.TemporaryDirectory() as aside:
        bundle = load_bundle(fetch_bundle(reference, Path(aside) / "bundle").folder)
        own = match_classes(data, bundle.model.classes)
        return explain_truths(Explainer(bundle), held_out(own)), bundle.model.classes


def drift(maps: list, one: int, other: int) -> list:
    """Return how far the evidence moved from one version to another."""
    from pipelines.evaluation.explanation_drift import measure_drift

    return measure_drift(maps[one][0], maps[other][0], maps[one][1])


def mean(drifts: list) -> str:
    """Write the mean share that moved, and that of each class."""

    def share(chosen: list) -> str:
        moved = [item.moved for item in chosen if item.moved is not None]
        return f"{np.mean(moved):.0%}" if moved else "-"

    classes = sorted({item.label for item in drifts})
    by_class = ", ".join(f"{name} {share([d for d in drifts if d.label == name])}" for name in classes)
    return f"{share(drifts)} ({by_class})"


def verdict(drifts: list, seeds: list | None) -> str:
    """Judge by the default policy's check of explanation drift, class by class."""
    from pipelines.release.gate import judge_drift
    from pipelines.release.policy import DEFAULT_POLICY

    (check,) = (item for item in DEFAULT_POLICY.checks if item.metric == "explanation_drift")
    classes = sorted({item.label for item in drifts})
    found = {name: judge_drift(replace(check, slice=name), classes, drifts, seeds).status for name in classes}
    failed = [name for name, status in found.items() if status == "failed"]
    small = [name for name, status in found.items() if status == "too small to tell"]
    said = f"blocked by {', '.join(failed)}" if failed else "passes"
    return f"{said} (too small to tell: {', '.join(small) or 'none'})"


if __name__ == "__main__":
    main()
