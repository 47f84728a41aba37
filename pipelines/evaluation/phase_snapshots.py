"""What each phase did to the network: a fixed set of probe images explained after it, and how far the
weights of each block had moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from models.attribution.registry import DEFAULT_METHOD
from models.attribution.result import Attribution, make_attribution
from models.attribution.targets import make_target
from models.devices import to_host
from models.errors import LucidaError
from models.explainer import Explainer, ExplainOptions
from models.images.decode import read_image
from models.networks.transfer_model import HEAD, TransferModel
from models.visualization.contact_sheet import Tile, draw_contact_sheet
from models.visualization.overlay import draw_overlay
from pipelines.data.dataset import Dataset, Sample

PROBE_COUNT = 8


@dataclass(frozen=True, slots=True)
class PhaseSnapshot:
    """The network after one phase."""

    phase: str
    maps: list[list[list[float]]]
    """Signed Grad-CAM map of each probe's own class, at the model's Grad-CAM block."""
    scores: list[float]
    """Of the same class."""
    moved: dict[str, float]
    """Of each block and the head, the distance of its weights from where they began, in their length then."""


def choose_probes(data: Dataset, count: int = PROBE_COUNT) -> list[Sample]:
    """Return validation images that stay the same from run to run: of each class in turn, by their
    digests.
    """
    by_class = [
        sorted((sample for sample in data.val if label in sample.labels), key=lambda sample: sample.sha256)
        for label in range(len(data.classes))
    ]
    turns = [
        of_class[turn]
        for turn in range(max(map(len, by_class)))
        for of_class in by_class
        if turn < len(of_class)
    ]
    return list(dict.fromkeys(turns))[:count]


def flatten_weights(model: TransferModel) -> dict[str, Tensor]:
    """Return a copy of the weights of each block and of the head, as one long vector each."""
    parts = {name: model.block(name) for name in model.block_names} | {HEAD: model.classifier}
    vectors = {}
    for name, part in parts.items():
        if weights := [p.detach().flatten() for p in part.parameters()]:
            vectors[name] = to_host(torch.cat(weights)).clone()
    return vectors


def take_snapshot(
    model: TransferModel, probes: Sequence[Sample], phase: str, before: Mapping[str, Tensor]
) -> PhaseSnapshot:
    """Explain the probes for their own class, and measure how far the weights are from ``before``."""
    model.eval()
    explainer = Explainer(model)
    targets = [make_target(model.classes, sample.labels[0]) for sample in probes]
    images = [explainer.prepare(read_image(sample.path)) for sample in probes]
    results = explainer.explain_batch(
        images, ExplainOptions(method=DEFAULT_METHOD), targets=[[target] for target in targets]
    )
    explanations = []
    for result in results:
        if isinstance(result, LucidaError):
            raise result
        explanations.append(result)
    moved = {
        name: float((after - before[name]).norm() / before[name].norm().clamp(min=1e-12))
        for name, after in flatten_weights(model).items()
    }
    maps = [item.attributions[0].values.tolist() for item in explanations]
    scores = [item.score(item.attributions[0]) for item in explanations]
    return PhaseSnapshot(phase, maps, scores, moved)


def evidence_moved(
    before: Sequence[Sequence[float]] | np.ndarray, after: Sequence[Sequence[float]] | np.ndarray
) -> float | None:
    """Return the share of positive evidence that lies elsewhere than before, 0 to 1: the total variation
    distance of the two maps, each as shares of its own sum. None where one of them has no positive evidence:
    nothing has a place to have moved from.
    """
    one, other = (np.maximum(np.asarray(grid, dtype=np.float64), 0.0) for grid in (before, after))
    if one.sum() == 0 or other.sum() == 0:
        return None
    return float(np.abs(one / one.sum() - other / other.sum()).sum()) / 2


def map_movement(snapshots: Sequence[PhaseSnapshot]) -> dict[str, float]:
    """Return the mean share of evidence that each phase moved, from the phase before it; nothing for a phase
    where no map can be compared.
    """
    movements = {}
    for before, after in pairwise(snapshots):
        shares = [evidence_moved(a, b) for a, b in zip(before.maps, after.maps, strict=True)]
        if compared := [share for share in shares if share is not None]:
            movements[after.phase] = float(np.mean(compared))
    return movements


def draw_snapshots_figure(
    model: TransferModel, probes: Sequence[Sample], snapshots: Sequence[PhaseSnapshot]
) -> PIL.Image.Image:
    """Draw a row for each probe: the image, then its evidence after each phase on one scale."""
    tiles: list[Tile] = []
    for place, sample in enumerate(probes):
        image = read_image(sample.path)
        _, frame = model.geometry.prepare(image)
        maps = [
            _attribution(model, sample, np.array(snapshot.maps[place], np.float32)) for snapshot in snapshots
        ]
        scale = max(attribution.maximum for attribution in maps)
        tiles.append(Tile(image.pil, model.classes[sample.labels[0]], sample.name.rsplit("/", 1)[-1]))
        for number, (snapshot, attribution) in enumerate(zip(snapshots, maps, strict=True)):
            went = ""
            if number:
                share = evidence_moved(snapshots[number - 1].maps[place], snapshot.maps[place])
                went = f", {share:.0%} of it moved" if share is not None else ""
            overlay = draw_overlay(image, frame, attribution, max_side=400, full_scale=scale)
            tiles.append(
                Tile(overlay, f"after {snapshot.phase}", f"score {snapshot.scores[place]:.2f}{went}")
            )
    columns = (1 + len(snapshots)) * (2 if len(snapshots) < 4 and len(probes) > 1 else 1)
    return draw_contact_sheet(
        tiles, columns=columns, side=190, title="What the network looked at, phase by phase"
    )


def _attribution(model: TransferModel, sample: Sample, values: np.ndarray) -> Attribution:
    return make_attribution(
        make_target(model.classes, sample.labels[0]), values, method=DEFAULT_METHOD, block=model.cam_block
    )
