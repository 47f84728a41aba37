"""Which method of explanation a benchmark found best for a model and a question, as its bundle keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from models.errors import BundleError


@dataclass(frozen=True, slots=True)
class MethodChoice:
    """The method that does best for a question."""

    question: str
    method: str | None
    """None where no method does better than chance, or none was measured."""
    block: str | None
    """None for a method that reads no block."""
    why: str
    """The figure that decided it, beside those of other methods."""

    def __str__(self) -> str:
        """Name method and block."""
        return " at ".join(filter(None, (self.method, self.block))) or "none"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MethodChoice:
        """Read a choice of a manifest; raises BundleError."""
        try:
            question, why = str(data["question"]), str(data["why"])
            method, block = (None if data[name] is None else str(data[name]) for name in ("method", "block"))
        except (KeyError, TypeError) as error:
            raise BundleError(
                f"The choice of a method {str(data)[:80]!r} is not complete: {error!r}."
            ) from error
        return cls(question, method, block, why)
