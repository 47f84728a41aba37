"""Whether a method's maps depend on what the model has learnt (Adebayo et al. 2018).

The weights are shuffled from the head downwards, and the same pictures are explained after each step. A map
that stays as it was does not show the model but the picture; the method is then barred for that model.
Shuffling within each tensor, rather than drawing anew, keeps the sizes of the signals, so that the shuffled
network is no dead one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.errors import BundleError, ExplanationError
from models.explain.agreement import rank_correlation
from models.explain.look import Evidence, look
from models.explain.methods import METHODS
from models.explain.pixels import QUICK, in_cells
from models.explain.targets import target
from models.transfer import HEAD, TransferModel

BARRED_FROM = 0.5
"""Rank correlation with the trained model's maps when all weights are shuffled."""
_BLIND_FROM = 0.9
_SHUFFLINGS = 2
_COSTLY_PICTURES = 2
"""For methods that take many forwards a picture."""


@dataclass(frozen=True, slots=True)
class MethodSanity:
    """Of one method."""

    similarity: Mapping[str, float]
    """Mean rank correlation of its maps with those of the trained model, when everything from the named block
    (or the head) upwards is shuffled; from the head down to all."""
    barred: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Sanity:
    """Of a model's methods; kept in its bundle."""

    methods: Mapping[str, MethodSanity]
    pictures: int
    seed: int

    def barred(self) -> dict[str, str]:
        """Methods that may not be used with this model, with the reason."""
        return {name: each.reason for name, each in self.methods.items() if each.barred}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        methods = {
            name: {**asdict(each), "similarity": dict(each.similarity)} for name, each in self.methods.items()
        }
        return {"methods": methods, "pictures": self.pictures, "seed": self.seed}

    @classmethod
    def from_dict(cls, data: Any) -> Sanity:
        """Rebuild from :meth:`to_dict`; raises BundleError for anything else."""
        try:
            methods = {
                str(name): MethodSanity(
                    similarity={str(stop): float(value) for stop, value in each["similarity"].items()},
                    barred=bool(each["barred"]),
                    reason=str(each["reason"]),
                )
                for name, each in data["methods"].items()
            }
            return cls(methods, int(data["pictures"]), int(data["seed"]))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise BundleError(f"The sanity check {str(data)[:80]!r} is not complete: {error!r}.") from error


def shuffled(model: TransferModel, start: str, *, seed: int) -> TransferModel:
    """A copy with the weights of the head and of every block from ``start`` upwards shuffled within each
    tensor.
    """
    made = copy.deepcopy(model).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    first = len(model.block_names) if start == HEAD else model.index_of(start)
    parts = [made.classifier, *(made.block(name) for name in model.block_names[first:])]
    for part in parts:
        for weights in part.parameters():
            order = torch.randperm(weights.numel(), generator=generator)
            weights.copy_(weights.flatten()[order].view_as(weights))
    return made


def sanity(
    model: TransferModel,
    x: Tensor,
    *,
    methods: Sequence[str] = tuple(METHODS),
    seed: int = 0,
    report: Callable[[str, int, int], None] | None = None,
) -> Sanity:
    """Check methods on some pictures (N, 3, H, W), each explained for the class that the model predicts.

    Methods that read a block are asked after each step of two shufflings, those that cost many forwards
    after the first and the last step of one, on two pictures. Methods that do not apply to the network are
    left out.
    """
    count = len(model.block_names)
    starts = [HEAD, *(model.block_names[count * share // 4] for share in (3, 2, 1)), model.block_names[0]]
    found: dict[str, MethodSanity] = {}
    trained = look(model, x)
    targets = trained.logits.argmax(1).tolist()
    before = {name: maps for name in methods if (maps := _maps(name, trained, targets)) is not None}
    alike: dict[str, dict[str, list[float]]] = {name: {} for name in before}
    for number, start in enumerate(starts):
        for turn in range(_SHUFFLINGS):
            able = [name for name in before if _is_asked(name, start in (starts[0], starts[-1]), turn)]
            if able:
                other = look(shuffled(model, start, seed=seed + turn), x)
            for name in able:
                changed = _maps(name, other, targets)
                alike[name].setdefault(start, []).extend(_similarities(before[name], changed or []))
        if report:
            report("sanity of the methods", number + 1, len(starts))
    for name, steps in alike.items():
        found[name] = _verdict({start: values for start, values in steps.items() if values})
    return Sanity(found, len(x), seed)


def _is_asked(name: str, at_an_end: bool, turn: int) -> bool:
    return METHODS[name].grid == "block" or (at_an_end and turn == 0)


def _maps(name: str, evidence: Evidence, targets: Sequence[int]) -> list[np.ndarray] | None:
    """What of each picture's map could be blind to the weights; None where the method does not apply."""
    row = METHODS[name]
    if row.grid == "input":
        targets = targets[:_COSTLY_PICTURES]
        evidence = look(evidence.model, evidence.x[:_COSTLY_PICTURES])
    rows = [[target(evidence.model.classes, index) for index in targets]]
    try:
        found = (row.core or row.run)(evidence, rows, QUICK)[0]
    except ExplanationError:
        return None
    if row.grid == "input":
        found = in_cells(found, QUICK.cell, adds_up=row.adds_up)
    return [values.float().cpu().numpy() for values in found]


def _similarities(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> list[float]:
    """Of each pair of maps, 0 for one turned round: that it changed is all that is asked. A map that came out
    empty or not finite says nothing about whether the method would have changed, and is left out.
    """
    pairs = [
        (a, b)
        for a, b in zip(before, after, strict=True)
        if np.isfinite(a).all() and np.isfinite(b).all() and a.any() and b.any()
    ]
    return [max(rank_correlation(a, b), 0.0) for a, b in pairs]


def _verdict(alike: Mapping[str, Sequence[float]]) -> MethodSanity:
    similarity = {start: float(np.mean(values)) for start, values in alike.items()}
    if not similarity:
        return MethodSanity({}, False, "It could not be checked: its maps came out empty.")
    last = list(similarity.values())[-1]
    barred = last >= BARRED_FROM
    said = "hardly change" if barred else "change"
    reason = f"Its maps {said} when every weight is shuffled (rank correlation {last:.2f})"
    if barred:
        return MethodSanity(similarity, True, f"{reason}: it shows the picture, not the model.")
    head = similarity.get(HEAD, 0.0)
    if head >= _BLIND_FROM:
        reason += f", but hardly when only the head's are ({head:.2f}): it says little about which class"
    return MethodSanity(similarity, False, f"{reason}.")
