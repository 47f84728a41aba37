"""Which explanation methods depend on what a model has learnt, as its bundle keeps it (Adebayo et al.
2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.errors import BundleError

CLASS_BLIND_FROM = 0.9
"""Rank correlation of maps that should differ, from which on a method counts as blind to the class."""


@dataclass(frozen=True, slots=True)
class MethodCheck:
    """The randomization check of one method."""

    similarity: Mapping[str, float]
    """Mean rank correlation of its maps with those of the trained model, when everything from the named block
    (or the head) upwards is shuffled; from the head down to all."""
    disabled: bool
    reason: str
    other_class: float | None = None
    """Mean rank correlation of its maps of the predicted class with those of another class, by the trained
    model; None where there is one class only, and in bundles from before it was measured."""

    @property
    def class_blind(self) -> bool:
        """Whether its maps stay as they are when only the head is shuffled, and when another class is asked
        for: they show what the network responds to, and not why it is one class or another.
        """
        head = self.similarity.get("head", 0.0)
        return head >= CLASS_BLIND_FROM and (self.other_class is None or self.other_class >= CLASS_BLIND_FROM)


@dataclass(frozen=True, slots=True)
class RandomizationCheck:
    """The randomization check of all of a model's methods, kept in its bundle."""

    methods: Mapping[str, MethodCheck]
    pictures: int
    seed: int

    def disabled(self) -> dict[str, str]:
        """Return methods that may not be used with this model, with the reason."""
        return {name: check.reason for name, check in self.methods.items() if check.disabled}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        methods = {
            name: {
                "similarity": dict(check.similarity),
                "barred": check.disabled,
                "reason": check.reason,
                "other_class": check.other_class,
                "class_blind": check.class_blind,
            }
            for name, check in self.methods.items()
        }
        return {"methods": methods, "pictures": self.pictures, "seed": self.seed}

    @classmethod
    def from_dict(cls, data: Any) -> RandomizationCheck:
        """Rebuild from :meth:`to_dict`; raises BundleError for anything else."""
        try:
            methods = {
                str(name): MethodCheck(
                    similarity={str(stop): float(value) for stop, value in check["similarity"].items()},
                    disabled=bool(check["barred"]),
                    reason=str(check["reason"]),
                    other_class=_optional(check.get("other_class")),
                )
                for name, check in data["methods"].items()
            }
            return cls(methods, int(data["pictures"]), int(data["seed"]))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise BundleError(f"The sanity check {str(data)[:80]!r} is not complete: {error!r}.") from error


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)
