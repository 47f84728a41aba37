"""What a request costs in forwards, what it may cost, and how much of it there is time for."""

from __future__ import annotations

import time
from dataclasses import asdict, replace

from torch import Tensor

from models.attribution.forward import predict_logits
from models.attribution.registry import get_method
from models.attribution.result import FrozenSettings
from models.backends.base import Backend
from models.cancellation import current_deadline
from models.errors import DeadlineExceeded, ExplanationError
from models.explainer import ExplainOptions
from models.images.geometry import Geometry
from service.settings import Settings

_SAFETY = 1.5
"""Multiple of what the remaining forwards take on a quiet machine that must be left for them."""
_BATCH = 16
"""Images by which the time of a forward is measured: as many as the costly methods run at once."""


def measure_forward_seconds(backend: Backend, x: Tensor) -> float:
    """Return the seconds of one image (1, 3, H, W) among many: the faster of two tries after a warm-up."""
    batch = x.expand(_BATCH, -1, -1, -1)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        predict_logits(backend, batch)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]) / _BATCH


class CostModel:
    """The cost of explanations by one model on this machine."""

    def __init__(self, settings: Settings, geometry: Geometry, forward_seconds: float) -> None:
        self._settings, self._geometry = settings, geometry
        self.forward_seconds = forward_seconds

    def check(self, options: ExplainOptions, extra_forwards: int = 0) -> None:
        """Raise ExplanationError for what would take longer than anybody waits, before any work is done."""
        total = self._forwards(options, options.top_k) * options.smoothing.variations + extra_forwards
        if total > self._settings.max_forwards:
            raise ExplanationError(
                f"This would take about {total:,} forwards; the limit is {self._settings.max_forwards:,}. "
                "Ask for fewer classes, without smoothing or faithfulness, for a method that reads a block, "
                "or by a job."
            )

    def reduce(self, options: ExplainOptions, targets: int) -> tuple[ExplainOptions, list[str]]:
        """Return as much of the options as the budget has time for, and what is left out.

        Raises DeadlineExceeded where the least of it would take too long, before the time is spent. A
        deadline that is no budget takes nothing away: how fast a machine is must not decide what it answers.
        """
        skipped: list[str] = []
        deadline = current_deadline()
        remaining = deadline.remaining if deadline is not None and deadline.budget else None
        if remaining is None:
            return options, skipped
        if options.smoothing.on and self._takes_too_long(options, targets, remaining):
            options = replace(options, flip=False, noise=0.0)
            skipped.append("smoothing: the map is of the picture itself alone")
        quick = asdict(get_method(str(options.method)).parameters.from_names({}, quick=True))
        if dict(options.parameters) != quick and self._takes_too_long(options, targets, remaining):
            options = replace(options, parameters=FrozenSettings(quick))
            skipped.append(f"effort: {options.method} ran with fewer steps or masks, see its settings")
        if self._takes_too_long(options, targets, remaining):
            raise DeadlineExceeded(
                f"There is no time for a map by {options.method} within {remaining:.2g} seconds."
            )
        return options, skipped

    def _takes_too_long(self, options: ExplainOptions, targets: int, remaining: float) -> bool:
        total = self._forwards(options, targets) * options.smoothing.variations
        return total > 1 and total * self.forward_seconds * _SAFETY > remaining

    def _forwards(self, options: ExplainOptions, targets: int) -> int:
        method = get_method(str(options.method))
        parameters = method.parameters.from_names(options.parameters)
        # The scale of the colours needs the predicted class, which may be none of those that are asked for.
        others = int(options.target is not None or options.against is not None or options.negative)
        return method.count_forwards(
            parameters, targets + others, self._geometry.crop_height, self._geometry.crop_width
        )
