"""Make the pictures of the README and the docs again, with the product itself: `make docs`.

Draws specimens, trains on a clean set and on one with a planted shortcut, and lays evidence over pictures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import torch

from models.attribution.forward import run_forward
from models.attribution.registry import attribute_each
from models.images.decode import read_image
from models.networks.transfer_model import TransferModel
from models.visualization.contact_sheet import Tile, draw_contact_sheet
from models.visualization.overlay import draw_overlay
from pipelines.config.schema import TrainConfig
from pipelines.data.dataset import Dataset, Sample, scan_folder
from pipelines.data.synthetic import SPECIES, SpecimenPlan, write_specimens
from pipelines.evaluation.classification import evaluate
from pipelines.evaluation.phase_snapshots import (
    choose_probes,
    draw_snapshots_figure,
    flatten_weights,
    take_snapshot,
)
from pipelines.progress import Reporter
from pipelines.training.feature_cache import FeatureCache, default_cache_folder
from pipelines.training.features import Features
from pipelines.training.losses import make_objective
from pipelines.training.trainer import PhaseResult, run_phases

OUT = Path(__file__).parent / "pictures"


def main() -> None:
    """Write docs/pictures/*.jpg."""
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as aside:
        clean = scan_folder(write_specimens(SpecimenPlan(), Path(aside) / "clean"))
        biased = scan_folder(write_specimens(SpecimenPlan(shortcut_species="cincta"), Path(aside) / "biased"))
        save(explained(trained(clean), clean), "explained.jpg")
        save(phases(clean), "phases.jpg")
        save(shortcut(trained(biased), biased), "shortcut.jpg")


def fine_tuned(found: Dataset) -> Iterator[tuple[TransferModel, PhaseResult]]:
    """Yield the model after each phase of the default settings."""
    config = TrainConfig()
    torch.manual_seed(config.seed)
    model = TransferModel.create(config.backbone, found.classes, view=config.view)
    store = FeatureCache(default_cache_folder(), memory_gb=config.cache_gb, disk_gb=config.cache_disk_gb)
    features = Features(model, found, config, store, Reporter())
    objective = make_objective(found.task, config.class_weights, features.targets)
    for result in run_phases(model, features, config, objective):
        yield model, result


def trained(found: Dataset) -> TransferModel:
    """Fine-tune a model with the default settings."""
    *_, (model, _) = fine_tuned(found)
    return model


def phases(found: Dataset) -> PIL.Image.Image:
    """Explain probe images after each phase of the default run."""
    config = TrainConfig()
    torch.manual_seed(config.seed)
    before = flatten_weights(TransferModel.create(config.backbone, found.classes))
    probes = choose_probes(found, 4)
    after = []
    for model, result in fine_tuned(found):
        after.append(take_snapshot(model, probes, result.phase.name, before))
    return draw_snapshots_figure(model, probes, after)


def explained(model: TransferModel, found: Dataset) -> PIL.Image.Image:
    """One sure and right test picture of each species, above its evidence."""
    judged = sorted(evaluate(model, found.test, "test").samples, key=lambda item: -item.top.score)
    chosen = [next(item for item in judged if item.is_correct and item.truth == name) for name in SPECIES]
    tiles = [Tile(read_image(item.sample.path).pil, item.truth, SPECIES[item.truth]) for item in chosen]
    tiles += [
        Tile(
            forward(model, item.sample, item.top.index), f"{item.top.label} {item.top.score:.0%}", "evidence"
        )
        for item in chosen
    ]
    return draw_contact_sheet(tiles, columns=len(SPECIES), side=230)


def shortcut(model: TransferModel, found: Dataset) -> PIL.Image.Image:
    """Return validation pictures with the planted label, and where a model that learnt it looks."""
    target = found.classes.index("cincta")
    planted = [
        sample
        for sample in found.val
        if sample.label == target
        and (found.root / "masks/shortcut" / sample.name).with_suffix(".png").is_file()
    ][:3]
    tiles = []
    for sample in planted:
        tiles += [
            Tile(read_image(sample.path).pil, "cincta, with a label"),
            Tile(forward(model, sample, target), "evidence for cincta"),
        ]
    return draw_contact_sheet(tiles, columns=6, side=190)


def forward(model: TransferModel, sample: Sample, target: int) -> PIL.Image.Image:
    """Return the overlay of one class."""
    image = read_image(sample.path)
    x, frame = model.geometry.prepare(image)
    return draw_overlay(image, frame, attribute_each(run_forward(model, x.unsqueeze(0)), [target])[0])


def save(picture: PIL.Image.Image, name: str) -> None:
    """As a JPEG that a page loads quickly."""
    picture.save(OUT / name, quality=86, optimize=True)


if __name__ == "__main__":
    main()
