"""How far a whole training run is, beside the bar of each kind of work.

Each kind of work has its expected cost in forwards of one image through the whole network, so that the time
left can be told from the time so far. The figures are rough: they were measured on the drawn specimens.
"""

from __future__ import annotations

from models.networks.registry import get_backbone
from models.networks.transfer_model import HEAD
from models.progress import Progress
from pipelines.config.schema import PhaseConfig, TrainConfig
from pipelines.data.dataset import Dataset, has_regions
from pipelines.evaluation.reference import MOST_MEASURED

LABEL = "whole run, %"
_SANITY = {"all": 900.0, "block": 150.0, "none": 0.0}
_BENCHMARK = {"all": 2500.0, "block": 1100.0, "none": 0.0}
_LOCATED_IMAGE = 6.0
_MOST_LOCATED = 200
_EXPLAINED_IMAGE = 1.5
_HASHED_IMAGE = 0.4
_REVIEW = 60.0
_REGISTERING = 80.0
_TRAINED_STEP = 3.0
"""A forward and its backward, in forwards."""


class WholeRun:
    """A progress that passes everything on, and adds the share of the whole run that is done."""

    def __init__(self, config: TrainConfig, data: Dataset, progress: Progress) -> None:
        self._costs = expected_costs(config, data)
        self._progress = progress
        self._done = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Pass the news on, then tell the share; it never falls, and is whole only at the end."""
        self._progress(what, done, total)
        before = 0.0
        for prefix, cost in self._costs:
            if what == prefix or (prefix.endswith(" ") and what.startswith(prefix)):
                self._done = max(self._done, before + cost * done / max(total, 1))
                share = self._done / sum(cost for _, cost in self._costs)
                self._progress(LABEL, round(100 * share), 100)
                return
            before += cost


def expected_costs(config: TrainConfig, data: Dataset) -> list[tuple[str, float]]:
    """Return (beginning of a label, cost in forwards of one image) of each kind of work, in their order."""
    train, held_out = len(data.train), len(data.val) + len(data.test)
    views = [(f"training features, view {view + 1} ", float(train)) for view in range(config.views)]
    phases = [(f"phase {phase.name}", _phase_cost(phase, config, data)) for phase in config.phases]
    return [
        *views,
        ("validation features", float(len(data.val))),
        ("looking for near duplicates", _HASHED_IMAGE * (train + held_out)),
        *phases,
        ("evaluating", float(held_out)),
        *((f"locating evidence, {split}", _locating_cost(split, data)) for split in ("val", "test")),
        ("sanity of the methods", _SANITY[config.sanity]),
        ("measuring methods", _BENCHMARK[config.sanity]),
        ("measuring the validation pictures", _EXPLAINED_IMAGE * min(len(data.val), MOST_MEASURED)),
        ("embedding", float(min(train, 4000))),
        ("explaining mistakes", _REVIEW),
        ("explaining close calls", _REVIEW),
        ("registering", _REGISTERING),
    ]


def _locating_cost(split: str, data: Dataset) -> float:
    return _LOCATED_IMAGE * min(len(data.samples(split)), _MOST_LOCATED) * has_regions(data)


def _phase_cost(phase: PhaseConfig, config: TrainConfig, data: Dataset) -> float:
    """Return the cost of a phase that trains the share of the blocks from ``train_from`` up."""
    blocks = get_backbone(config.backbone).block_names()
    trained = 0.01 if phase.train_from == HEAD else 1 - blocks.index(phase.train_from) / len(blocks)
    return phase.epochs * trained * (_TRAINED_STEP * len(data.train) + len(data.val))
