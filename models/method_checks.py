"""Which explanation methods depend on what a model has learnt, as its bundle keeps it (Adebayo et al.
2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.errors import BundleError


@dataclass(frozen=True, slots=True)
class MethodCheck:
    """The randomization check of one method."""

    similarity: Mapping[str, float]
    """Mean rank correlation of its maps with those of the trained model, when everything from the named block
    (or the head) upwards is shuffled; from the head down to all."""
    disabled: bool
    reason: str


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
                )
                for name, check in data["methods"].items()
            }
            return cls(methods, int(data["pictures"]), int(data["seed"]))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise BundleError(f"The sanity check {str(data)[:80]!r} is not complete: {error!r}.") from error
