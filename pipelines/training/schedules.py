"""Learning rate and momentum as pure functions of the step, so that a resumed run needs only its step
number.
"""

from __future__ import annotations

import math

from pipelines.config.schema import Schedule

_WARM_SHARE, _COSINE_END = 0.1, 0.01
_CYCLE_RISE, _CYCLE_START, _CYCLE_END = 0.3, 1 / 25, 1 / 250_000
_MOMENTUM = (0.95, 0.85)
"""At the ends and at the peak of one cycle."""
_STEADY_MOMENTUM = 0.9


def lr_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Return the share of the peak rate at ``step`` (from 0) of ``steps``.

    "cosine": linear warm-up over a tenth, then half a cosine to a hundredth (Loshchilov & Hutter 2017).
    "one_cycle": up from 1/25 over 30 % of the steps and down to 1/250000, both along a cosine (Smith 2018).
    """
    if schedule == "constant":
        return 1.0
    if schedule == "one_cycle":
        place, rising = _cycle_place(step, steps)
        return (
            _cosine_between(_CYCLE_START, 1.0, place) if rising else _cosine_between(1.0, _CYCLE_END, place)
        )
    warm = max(1, int(steps * _WARM_SHARE))
    if step < warm:
        return (step + 1) / warm
    progress = min((step - warm) / max(steps - warm, 1), 1.0)
    return _cosine_between(1.0, _COSINE_END, progress)


def momentum(schedule: Schedule, step: int, steps: int) -> float:
    """Return AdamW's first beta: in one cycle it falls as the rate rises, otherwise it is 0.9."""
    if schedule != "one_cycle":
        return _STEADY_MOMENTUM
    place, rising = _cycle_place(step, steps)
    start, end = _MOMENTUM if rising else _MOMENTUM[::-1]
    return _cosine_between(start, end, place)


def _cycle_place(step: int, steps: int) -> tuple[float, bool]:
    """Return (share of the way through the rise or the fall, whether it is the rise)."""
    peak = max(_CYCLE_RISE * steps - 1, 1e-9)
    if step <= peak:
        return step / peak, True
    return min((step - peak) / max(steps - 1 - peak, 1e-9), 1.0), False


def _cosine_between(start: float, end: float, share: float) -> float:
    """Interpolate from start to end along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
