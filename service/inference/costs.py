"""What a request costs in forwards, what it may cost, and how much of it there is time for."""

from __future__ import annotations

import time

from torch import Tensor

from models.attribution.forward import predict_logits
from models.attribution.perturbation import QUICK, Effort
from models.attribution.registry import count_forwards, get_method
from models.attribution.smoothing import Smoothing
from models.backends.base import Backend
from models.cancellation import current_deadline
from models.errors import DeadlineExceeded, ExplanationError, UnknownChoice
from models.images.geometry import Geometry
from models.metrics.faithfulness import count_faithfulness_forwards
from service.inference.request import Request
from service.settings import Settings

_SAFETY = 1.5
"""Of what the forwards left to do take on a quiet machine, the time that must be left for them."""
_MANY = 16
"""Pictures by which the time of a forward is measured: as many as the costly methods run at once."""


def measure_forward_seconds(engine: Backend, picture: Tensor) -> float:
    """Of one picture (1, 3, H, W) among many: the faster of two tries after one to warm up."""
    x = picture.expand(_MANY, -1, -1, -1)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        predict_logits(engine, x)
        taken.append(time.perf_counter() - start)
    return min(taken[1:]) / _MANY


class CostModel:
    """Of explanations by one model, on this machine."""

    def __init__(self, settings: Settings, geometry: Geometry, seconds: float) -> None:
        self._settings, self._geometry = settings, geometry
        self.forward_seconds = seconds

    def check(self, request: Request, method: str, *, unlimited: bool = False) -> None:
        """Refuse what would take longer than anybody waits, before any work is done; raises UnknownChoice
        or ExplanationError.
        """
        for name, value, low in (("steps", request.steps, 2), ("random_maps", request.random_maps, 1)):
            if not low <= value <= 200:
                raise UnknownChoice(name, value, (f"a whole number from {low} to 200",))
        total = self._forwards(method, request.top_k, request.work) * request.smoothing.variations
        if request.faithfulness:
            total += count_faithfulness_forwards(request.steps, request.random_maps) * request.top_k
        if total > self._settings.max_forwards and not unlimited:
            raise ExplanationError(
                f"This would take about {total:,} forwards; the limit is {self._settings.max_forwards:,}. "
                "Ask for fewer classes, without smoothing or faithfulness, for a method that reads a block, "
                "or by a job."
            )

    def affordable(self, request: Request, method: str, targets: int) -> tuple[Effort, Smoothing, list[str]]:
        """As much of what was asked for as the budget has time for, and what is left out.

        Raises DeadlineExceeded where the least of it would take too long, before the time is spent. A
        deadline that is no budget takes nothing away: how fast a machine is must not decide what it answers.
        """
        effort, smoothing, cut = request.work, request.smoothing, list[str]()
        deadline = current_deadline()
        remaining = deadline.remaining if deadline is not None and deadline.budget else None
        if remaining is None:
            return effort, smoothing, cut

        def too_long() -> bool:
            total = self._forwards(method, targets, effort) * smoothing.variations
            return total > 1 and total * self.forward_seconds * _SAFETY > remaining

        if smoothing.on and too_long():
            smoothing = Smoothing()
            cut.append("smoothing: the map is of the picture itself alone")
        if effort != QUICK and get_method(method).effort and too_long():
            effort = QUICK
            cut.append(f"effort: {method} ran with fewer steps or masks, see its settings")
        if too_long():
            raise DeadlineExceeded(f"There is no time for a map by {method} within {remaining:.2g} seconds.")
        return effort, smoothing, cut

    def _forwards(self, method: str, targets: int, effort: Effort) -> int:
        return count_forwards(method, targets, self._geometry.crop_height, self._geometry.crop_width, effort)
