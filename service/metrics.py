"""What Prometheus is told: requests, batches, the queue, and what the explanations look like.

The last are what a change of the images or of the model shows first: scores that sink, maps that spread out
or gather at the border, evidence that is missing. They are not kept for each class, so
that their number does not grow with the classes.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from service.schemas import Evidence, ExplainAnswer, PredictAnswer

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Where the processes keep their figures; BentoML sets it."""
_SHARES = tuple(step / 10 for step in range(1, 11))


class Metrics:
    """Prometheus metrics of one worker process; :func:`render_metrics` adds the workers up."""

    def __init__(self) -> None:
        # The client decides on import whether there are several processes, from what BentoML sets by then.
        from prometheus_client import Counter, Gauge, Histogram

        self.requests = Counter("lucida_requests", "Answered requests.", ["route", "status"])
        self.seconds = Histogram(
            "lucida_request_seconds",
            "From a request's first byte to its answer.",
            ["route"],
            buckets=_SECONDS,
        )
        self.received = Counter("lucida_received_bytes", "Of request bodies, as declared.")
        self.places = Gauge("lucida_places", "Pictures at work or waiting.", multiprocess_mode="livesum")
        self.batch = Histogram("lucida_batch_size", "Pictures run together.", buckets=(1, 2, 4, 8, 16, 32))
        self.explanations = Counter(
            "lucida_explanations", "Maps by how they turned out.", ["method", "status"]
        )
        self.score = Histogram("lucida_score", "Of the class predicted.", buckets=_SHARES)
        self.concentration = Histogram(
            "lucida_map_concentration",
            "How gathered the evidence of a map is: 0 spread evenly, 1 all in one cell.",
            buckets=_SHARES,
        )
        self.border = Histogram(
            "lucida_border_mass", "Share of a map's evidence in its outermost cells.", buckets=_SHARES
        )
        self.model = Gauge(
            "lucida_model", "1 for the model that answers.", ["model", "version", "digest"],
            multiprocess_mode="livemax",
        )  # fmt: skip
        self.refused_models = Counter("lucida_refused_models", "Successors that were not taken.")
        self._served: tuple[str, str, str] | None = None

    def serves(self, model: str, version: str | None, digest: str) -> None:
        """Note which model answers from now on."""
        if self._served is not None:
            self.model.labels(*self._served).set(0)
        self._served = (model, version or "", digest[:12])
        self.model.labels(*self._served).set(1)

    def count(self, route: str, status: int, seconds: float, received: int) -> None:
        """Count one answered request."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        self.received.inc(received)

    def observe(self, answer: Any) -> None:
        """Observe the figures of one answer about an image."""
        if isinstance(answer, PredictAnswer) and answer.predictions:
            self.score.observe(answer.predictions[0].score)
        if isinstance(answer, ExplainAnswer):
            for evidence in answer.evidence:
                self._observe_map(evidence)

    def _observe_map(self, evidence: Evidence) -> None:
        # Torch comes with it, which the server's supervisor does not need.
        import numpy as np

        from models.metrics.observation import concentration

        self.explanations.labels(evidence.method, evidence.status).inc()
        if evidence.status == "ok":
            self.concentration.observe(concentration(np.array(evidence.grid.values)))
            if evidence.border is not None:
                self.border.observe(evidence.border.mass)


def render_metrics(windows: Any) -> tuple[bytes, str]:
    """Return the figures of all workers in Prometheus' format, and the media type of that; ``windows`` is a
    collector of what is held against the model's reference.
    """
    from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = REGISTRY
    if _FOLDER in os.environ:
        _forget_the_dead(Path(os.environ[_FOLDER]))
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    watched = CollectorRegistry()
    watched.register(windows)
    return generate_latest(registry) + generate_latest(watched), CONTENT_TYPE_LATEST


def _forget_the_dead(folder: Path) -> None:
    """Remove the gauges of workers that were killed; a worker that ends in order removes its own."""
    import psutil
    from prometheus_client.multiprocess import mark_process_dead

    for file in folder.glob("gauge_live*_*.db"):
        number = file.stem.rpartition("_")[2]
        if not number.isdigit():
            continue
        try:
            # One that was killed a moment ago may be there still, to be buried by its parent.
            alive = psutil.Process(int(number)).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            alive = False
        if not alive:
            mark_process_dead(int(number))  # type: ignore[no-untyped-call]


@functools.cache
def get_metrics() -> Metrics:
    """Return the one set of this process: a name can be registered once only."""
    return Metrics()
