"""Whether the gate hears a shortcut and not a seed: five sets of specimens, each with a champion, the same
recipe with another seed, and one that was trained where a collector's label lies on one species.

python benchmarks/gate.py [--sets 5] [--train 40] [--val 24]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models.explainer import Explainer
from models.networks.batchnorm_folding import inference_copy
from models.networks.transfer_model import TransferModel
from pipelines.config.loader import load_config
from pipelines.data.dataset import Dataset, scan_folder
from pipelines.data.synthetic import SpecimenPlan, write_specimens
from pipelines.evaluation.explanation_drift import explain_truths, measure_drift
from pipelines.release.gate import judge_drift
from pipelines.release.judged_version import held_out
from pipelines.release.policy import DEFAULT_POLICY
from tests.support.training import fine_tune

SPECIES = "cincta"


def main() -> None:
    """Print for each set how far the evidence moved, and the verdicts by both yardsticks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=5)
    parser.add_argument("--train", type=int, default=40, help="pictures of each species")
    parser.add_argument("--val", type=int, default=24)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.sets):
            judge_set(Path(folder), SpecimenPlan(train=options.train, val=options.val, test=0, seed=seed))


def judge_set(folder: Path, plan: SpecimenPlan) -> None:
    """Train three models on one set and one with the label, and judge two of them."""
    seed = plan.seed
    plain = scan_folder(write_specimens(plan, folder / f"plain{seed}"))
    labelled = scan_folder(
        write_specimens(replace(plan, shortcut_species=SPECIES), folder / f"labelled{seed}")
    )
    first, second, third = (train(plain, seed + turn) for turn in (0, 1000, 2000))
    marked = train(labelled, seed)
    pairs = ((first, plain), (second, plain), (third, plain), (first, labelled), (marked, labelled))
    maps = [explain_held_out(model, data) for model, data in pairs]
    seeds, again, planted = (drift(maps, one, other) for one, other in ((0, 1), (0, 2), (3, 4)))
    print(f"set {seed}")
    print(f"  another seed moves {mean(seeds)}, a third {mean(again)}; with the label {mean(planted)}")
    for what, drifts in (("a third seed", again), ("with the label", planted)):
        for yardstick, known in (("measured", seeds), ("default", None)):
            print(f"  {what}, yardstick {yardstick}: {verdict(drifts, known)}", flush=True)


def train(data: Dataset, seed: int) -> TransferModel:
    """Return a model that the quick recipe made of a set."""
    config = replace(load_config(None, preset="quick"), seed=seed)
    torch.manual_seed(seed)
    model = TransferModel.create(config.backbone, data.classes, view=config.view)
    fine_tune(model, data, config)
    return model.eval()


def explain_held_out(model: TransferModel, data: Dataset) -> tuple[list, list[str]]:
    """Return a model's maps of the true classes of the held-out pictures, and the classes."""
    return explain_truths(Explainer(inference_copy(model)), held_out(data)), model.classes


def drift(maps: list, one: int, other: int) -> list:
    """Return how far the evidence moved from one version to another."""
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
    (check,) = (item for item in DEFAULT_POLICY.checks if item.metric == "explanation_drift")
    classes = sorted({item.label for item in drifts})
    found = {name: judge_drift(replace(check, slice=name), classes, drifts, seeds).status for name in classes}
    failed = [name for name, status in found.items() if status == "failed"]
    small = [name for name, status in found.items() if status == "too small to tell"]
    said = f"blocked by {', '.join(failed)}" if failed else "passes"
    return f"{said} (too small to tell: {', '.join(small) or 'none'})"


if __name__ == "__main__":
    main()
