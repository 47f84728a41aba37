"""What can be asked about one picture, in plain Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from models.attribution.perturbation import QUICK, Effort
from models.attribution.smoothing import Smoothing


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be explained, and how."""

    target: str | None = None
    """A class by name; the highest score without."""
    against: str | None = None
    """A class that it is held against."""
    top_k: int = 1
    block: str | None = None
    method: str | None = None
    """A method of the table; the first that is not barred without."""
    flip: bool = False
    noise: float = 0.0
    effort: Literal["full", "quick"] = "full"
    faithfulness: bool = False
    steps: int = 10
    """Of the faithfulness curves."""
    random_maps: int = 19
    """That faithfulness is held against."""
    overlay: bool = False

    @property
    def smoothing(self) -> Smoothing:
        """Raises ConfigError for noise out of range."""
        return Smoothing(flip=self.flip, noise=self.noise)

    @property
    def work(self) -> Effort:
        """Of the methods that run the network many times."""
        return QUICK if self.effort == "quick" else Effort()
