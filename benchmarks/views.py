"""What a model should see of a picture: its centre, the whole of it resized, or the whole with margins.

The default run in each view, with three seeds, on the sets of photographs at hand, on the specimens, and on
two sets made of the same photographs: hymenoptera with train and val changed over, and caltech_animals cut to
the rows of the animal, so that the pictures are wide. Prints accuracy and loss on val, and how much of the
evidence lies in the object's mask beside the share that the mask takes; `benchmarks/views.py --help` says how
to run a part of it.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import PIL.Image
import torch

from models.images.geometry import VIEWS, View
from models.networks.transfer_model import TransferModel
from pipelines.config.schema import TrainConfig
from pipelines.data.dataset import Dataset, scan_folder
from pipelines.data.synthetic import SpecimenPlan, write_specimens
from pipelines.data.visibility import seen_shares
from pipelines.evaluation.classification import evaluate
from pipelines.evaluation.explanations import measure_localization
from pipelines.progress import Reporter
from pipelines.training.feature_cache import FeatureCache
from pipelines.training.features import Features
from pipelines.training.losses import make_objective
from pipelines.training.trainer import run_phases

PHOTOS = Path(os.environ.get("LUCIDA_DATA", Path(__file__).parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Outcome:
    """The figures of one run."""

    accuracy: float
    loss: float
    seen: float
    energy: float | None
    area: float | None
    pointing: float | None


def changed_over(source: Path, folder: Path) -> Path:
    """Copy a set with train and val in each other's place."""
    for split, other in (("train", "val"), ("val", "train")):
        shutil.copytree(source / split, folder / other)
    return folder


def cut_wide(source: Path, folder: Path) -> Path:
    """Copy a set with each picture and mask cut to the rows of its object, at least a third of its height."""
    with (source / "boxes.csv").open() as file:
        for row in csv.DictReader(file):
            name = Path(row["split"]) / row["class"] / row["file"]
            width, height = int(row["width"]), int(row["height"])
            middle = (int(row["ymin"]) + int(row["ymax"])) / 2
            half = max(int(row["ymax"]) - int(row["ymin"]), height / 3) / 2
            box = (0, max(0, round(middle - half)), width, min(height, round(middle + half)))
            for path in (name, Path("masks") / name.with_suffix(".png")):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                PIL.Image.open(source / path).crop(box).save(folder / path, quality=95)
    return folder


SETS: dict[str, Callable[[Path], Path]] = {
    "hymenoptera": lambda folder: PHOTOS / "hymenoptera",
    "hymenoptera changed over": lambda folder: changed_over(PHOTOS / "hymenoptera", folder),
    "caltech_animals": lambda folder: PHOTOS / "caltech_animals",
    "caltech_animals cut wide": lambda folder: cut_wide(PHOTOS / "caltech_animals", folder),
    "specimens": lambda folder: write_specimens(SpecimenPlan(), folder),
}


def train(data: Dataset, view: View, seed: int, size: tuple[int, int] | None) -> Outcome:
    """Run the default phases in one view; ``size`` is another input, (height, width)."""
    config = TrainConfig(view=view, seed=seed)
    torch.manual_seed(seed)
    model = TransferModel.create(config.backbone, data.classes, view=view)
    if size is not None:
        # The crop of a wide input is its height's, as much larger as before.
        resize = round(max(size) * model.geometry.resize / model.geometry.crop_height)
        model.geometry = replace(model.geometry, resize=resize, crop_height=size[0], crop_width=size[1])
    with tempfile.TemporaryDirectory() as cache:
        store = FeatureCache(Path(cache), memory_gb=4, disk_gb=20)
        features = Features(model, data, config, store, Reporter())
        objective = make_objective(data.task, config.class_weights, features.targets)
        for _ in run_phases(model, features, config, objective):
            pass
    metrics = evaluate(model, data.val, "val").metrics
    located = measure_localization(model, data, "val")
    mean = located[0].mean if located else None
    return Outcome(
        accuracy=metrics["accuracy"],
        loss=metrics["loss"],
        seen=fmean(seen_shares(model.geometry, data.val)),
        energy=mean.energy if mean else None,
        area=mean.area if mean else None,
        pointing=mean.pointing if mean else None,
    )


def row(name: str, view: str, outcomes: list[Outcome]) -> str:
    """Return one line of the table: means over the seeds, and the accuracies themselves."""
    each = ", ".join(f"{outcome.accuracy:.3f}" for outcome in outcomes)
    figures = [f"{fmean(outcome.accuracy for outcome in outcomes):.3f} ({each})"]
    figures += [f"{fmean(o.loss for o in outcomes):.3f}", f"{fmean(o.seen for o in outcomes):.2f}"]
    if outcomes[0].energy is not None:
        for key in ("energy", "area", "pointing"):
            figures.append(f"{fmean(getattr(outcome, key) for outcome in outcomes):.3f}")
    return f"| {name} | {view} | {' | '.join(figures)} |"


def main() -> None:
    """Print a table as Markdown, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="another input")
    arguments = parser.parse_args()
    size = tuple(arguments.size) if arguments.size else None
    print("| set | view | val accuracy | loss | seen | energy in the mask | mask | pointing |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.sets:
        with tempfile.TemporaryDirectory() as folder:
            data = scan_folder(SETS[name](Path(folder) / "set"))
            for view in VIEWS:
                outcomes = [train(data, view, seed, size) for seed in range(arguments.seeds)]
                print(row(name, view, outcomes), flush=True)


if __name__ == "__main__":
    main()
