"""Whether planted shortcuts are found, and nothing where nothing was planted: specimens with a collector's
label or a tinted ground on one species, photographs with a watermark on one class, and clean sets.

python benchmarks/shortcuts.py [--seeds 10] [--only label-30] [--photographs ../shared/data]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
from planted_shortcuts import PLACES, labelled_specimens, plant, tint, watermark

LABEL = "cincta"
SPECIMENS = {f"label-{share}": share / 100 for share in (95, 60, 30, 10)}
TINTS = {"tint-60": 0.6, "tint-30": 0.3}
PHOTOGRAPHS = {
    f"{name}-{share}": (folder, label, share / 100)
    for name, folder, label in (("bees", "hymenoptera", "bees"), ("emus", "caltech_animals", "emu"))
    for share in (60, 30)
}
CLEAN = ("clean-specimens", "clean-hymenoptera", "clean-caltech_animals")


def main() -> None:
    """Print for each kind of set in how many seeds the shortcut was found, and where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", help="One kind of set.")
    parser.add_argument(
        "--photographs", type=Path, default=Path(os.environ.get("LUCIDA_DATA", "../shared/data"))
    )
    given = parser.parse_args()
    kinds = [*SPECIMENS, *TINTS, *PHOTOGRAPHS, *CLEAN]
    outcomes = defaultdict(list)
    for seed in range(given.first, given.first + given.seeds):
        for kind in [given.only] if given.only else kinds:
            with tempfile.TemporaryDirectory() as aside:
                folder, label = make_set(Path(aside), kind, seed, given.photographs.resolve())
                outcomes[kind].append(judge(folder, label, kind, seed))
    for kind, results in outcomes.items():
        print(f"{kind}: right in {sum(results)} of {len(results)} seeds")


def make_set(aside: Path, kind: str, seed: int, photographs: Path) -> tuple[Path, str | None]:
    """Write one set; return its folder and the class that the shortcut lies on."""
    folder = aside / "set"
    if kind in SPECIMENS:
        return labelled_specimens(folder, seed=seed, share=SPECIMENS[kind]), LABEL
    if kind in TINTS:
        plain = labelled_specimens(aside / "plain", seed=seed, share=0)
        return plant(plain, folder, tint, label=LABEL, share=TINTS[kind], seed=seed), LABEL
    if kind in PHOTOGRAPHS:
        source, label, share = PHOTOGRAPHS[kind]
        return plant(photographs / source, folder, watermark, label=label, share=share, seed=seed), label
    if kind == "clean-specimens":
        return labelled_specimens(folder, seed=seed, share=0), None
    return photographs / kind.removeprefix("clean-"), None


def judge(folder: Path, label: str | None, kind: str, seed: int) -> bool:
    """Train on a set, search it, say what was found, and return whether that is right."""
    from models.explainer import Explainer
    from pipelines.shortcuts.finder import find_shortcuts
    from pipelines.shortcuts.mitigation import write_mitigation
    from pipelines.shortcuts.samples import dataset_images

    model, data = train(folder, seed)
    began = time.perf_counter()
    search = find_shortcuts(Explainer(model), dataset_images(data, 600))
    seconds = time.perf_counter() - began
    found = [(data.classes[item.suspicion.label], item) for item in search.findings]
    line = ", ".join(f"{name} ({item.suspicion.kind}{where(item, folder)})" for name, item in found)
    print(f"{kind} seed {seed}: {line or 'nothing'} in {seconds:.0f} s", flush=True)
    if kind == "label-95" and found:
        write_mitigation(search, folder.parent / "mitigation")
        mended, _ = train(folder, seed, mitigation=str(folder.parent / "mitigation"))
        print(f"    gap of validation and clean test: {gap(model, data):+.3f}, with the mitigation "
              f"{gap(mended, data):+.3f}", flush=True)  # fmt: skip
    names = {name for name, _ in found}
    return names == ({label} if label else set())


def train(folder: Path, seed: int, **augmentation: object) -> tuple:
    """Fine-tune on a set, as `lucida train` does; return the model and the data."""
    from models.networks.transfer_model import TransferModel
    from pipelines.config.loader import load_config
    from pipelines.data.dataset import scan_folder
    from pipelines.progress import Reporter
    from pipelines.training.feature_cache import FeatureCache, default_cache_folder
    from pipelines.training.features import Features
    from pipelines.training.losses import make_objective
    from pipelines.training.trainer import run_phases

    data = scan_folder(folder)
    config = load_config(None, preset="default")
    config = replace(config, seed=seed, augmentation=replace(config.augmentation, **augmentation))
    model = TransferModel.create("efficientnet_lite0", data.classes)
    store = FeatureCache(default_cache_folder(), memory_gb=config.cache_gb, disk_gb=config.cache_disk_gb)
    features = Features(model, data, config, store, Reporter())
    objective = make_objective(data.task, config.class_weights, features.targets)
    list(run_phases(model, features, config, objective, reporter_of=lambda number: Reporter()))
    return model.eval(), data


def where(item: object, folder: Path) -> str:
    """Say in how many of a finding's pictures its place overlaps the planted one by at least half."""
    from pipelines.shortcuts.evidence import mask_in_input

    overlaps = []
    for image in item.suspicion.carriers:
        for tree in (folder / PLACES, folder / "masks" / "shortcut"):
            path = (tree / image.name).with_suffix(".png")
            if path.is_file():
                mask = np.asarray(PIL.Image.open(path).convert("L")) > 127
                planted = mask_in_input(image.frame, mask, image.pixels.shape[:2])
                if planted.any():
                    overlaps.append((planted & item.suspicion.masks[image.name]).sum() / planted.sum() >= 0.5)
    placed = sum(overlaps)
    return f", {len(item.suspicion.carriers)} pictures, {placed} of {len(overlaps)} planted overlapped"


def gap(model: object, data: object) -> float:
    """Return the recall of the planted class on validation pictures less that on the clean test pictures."""
    from pipelines.evaluation.classification import evaluate

    recalls = []
    for split in ("val", "test"):
        own = [sample for sample in data.samples(split) if data.classes[sample.label] == LABEL]
        recalls.append(np.mean([item.is_correct for item in evaluate(model, own, split).samples]))
    return float(recalls[0] - recalls[1])


if __name__ == "__main__":
    main()
