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
from models.explain.look import look
from models.explain.methods import METHODS, explain_each
from models.explain.pixels import QUICK
from models.transfer import HEAD, TransferModel

BARRED_FROM = 0.5
"""Rank correlation with the trained model's maps when all weights are shuffled."""


@dataclass(frozen=True, slots=True)
class MethodSanity:
    """Of one method."""

    similarity: Mapping[str, float]
    """Mean rank correlation of its maps with those of the trained model, when everything from the named block
    (or the head) upwards is shuffled; from the head down to all."""
    barred: bool
    reason: str

    @property
    def note(self) -> str:
        """One sentence."""
        return self.reason


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

    Methods that do not apply to the network are left out.
    """
    count = len(model.block_names)
    starts = [HEAD, *(model.block_names[count * share // 4] for share in (3, 2, 1)), model.block_names[0]]
    stages = [(start, shuffled(model, start, seed=seed)) for start in starts]
    found: dict[str, MethodSanity] = {}
    for number, name in enumerate(methods):
        # What costs many forwards is asked at both ends only.
        chosen = stages if METHODS[name].reads_block else [stages[0], stages[-1]]
        try:
            found[name] = _check(name, model, x, chosen)
        except ExplanationError:
            continue
        finally:
            if report:
                report("sanity of the methods", number + 1, len(methods))
    return Sanity(found, len(x), seed)


def _check(
    name: str, model: TransferModel, x: Tensor, stages: Sequence[tuple[str, TransferModel]]
) -> MethodSanity:
    trained = look(model, x)
    targets = trained.logits.argmax(1).tolist()
    maps = explain_each(trained, targets, method=name, effort=QUICK)
    similarity = {}
    for start, other in stages:
        changed = explain_each(look(other, x), targets, method=name, effort=QUICK)
        pairs = zip(maps, changed, strict=True)
        similarity[start] = float(np.mean([rank_correlation(a.values, b.values) for a, b in pairs]))
    last = similarity[stages[-1][0]]
    barred = last >= BARRED_FROM
    said = "hardly change" if barred else "change"
    reason = f"Its maps {said} when every weight is shuffled (rank correlation {last:.2f})"
    return MethodSanity(
        similarity, barred, f"{reason}: it shows the picture, not the model." if barred else f"{reason}."
    )
