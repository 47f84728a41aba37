"""The BentoML service: its worker processes, its health checks and metrics, and our routes within it.

The routes are ours and not BentoML's, for its parser fetches what a text in a file field names, and its
batches cannot hold requests with different options (docs/decisions/0012). Torch and the model are loaded in
``__init__``, in the worker, not on import.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, cast

import bentoml
from bentoml.models import BentoModel
from starlette.applications import Starlette

from service.middleware.auth import ApiKeys
from service.middleware.connection_balance import ConnectionBalance
from service.middleware.gateway import BENTOML_ROUTES, Gateway
from service.middleware.rate_limit import RateLimit
from service.settings import Settings

if TYPE_CHECKING:
    from bentoml import Service

    from service.inference.model_manager import ModelManager

log = logging.getLogger("lucida.service")

_MODEL = "camera-lucida"
"""Name of the Bento model, as `lucida package` makes it."""

settings = Settings()
routes = Starlette()
keys = ApiKeys(settings.api_keys)


@bentoml.service(
    name="camera_lucida",
    workers=settings.workers,
    # Ours ends the work with the request; this one would only answer for it. It keeps a timer for each
    # request until then, however soon that is answered, so it is not much longer than the longest of ours.
    traffic={"timeout": settings.upload_seconds + settings.deadline_ms / 1000 + 30},
    # BentoML's keeps a series for every path that anybody has asked for, for ever.
    metrics={"enabled": False},
    http={"host": "127.0.0.1", "port": 3000},
    logging={"access": {"enabled": False}},
    # Read by the C libraries when a worker starts. A thread that waits for work should not spin, for its core
    # is another worker's; and threads that take turns at large pictures should share the memory for them.
    envs=[
        {"name": "OMP_WAIT_POLICY", "value": "PASSIVE"},
        {"name": "OMP_NUM_THREADS", "value": str(settings.torch_threads)},
        {"name": "MALLOC_ARENA_MAX", "value": "2"},
    ],
)
@bentoml.asgi_app(routes, path="/")
class CameraLucida:
    """Predictions, explanations and doubts about them, and the inside of one fine-tuned classifier."""

    if settings.bundle is None:
        stored = BentoModel(f"{_MODEL}:latest")

    def __init__(self) -> None:
        """Load the bundle, check it, and explain its probe once; the service is ready after that.

        A bundle that cannot be served ends the service with one sentence: its supervisor would start the
        worker again for ever.
        """
        _log_plainly()
        try:
            self._start()
        except Exception as error:
            print(f"camera-lucida cannot start: {error}", file=sys.stderr, flush=True)
            _end_supervisor()
            raise SystemExit(1) from error

    def _start(self) -> None:
        from service.api.jobs import JobApi, job_routes
        from service.api.reads import read_routes
        from service.api.routes import AppState, operation_routes
        from service.inference.admission import AdmissionControl, give_back_memory
        from service.inference.model_manager import ModelManager
        from service.jobs.supervisor import JobSupervisor
        from service.metrics import get_metrics

        counts = get_metrics()
        balance = _balance()

        def observe(pictures: int) -> None:
            counts.places.set(pictures)
            if balance is not None:
                balance.tell(pictures)

        self.champion: ModelManager = ModelManager(self._source, settings, counts)
        state = AppState(settings, self.champion, AdmissionControl(settings, observe), counts)
        routes.state.shared = state
        routes.router.routes.extend([*operation_routes(), *read_routes()])
        self.keeper = JobSupervisor(settings, lambda: self.champion.folder)
        if settings.max_jobs:
            routes.state.jobs = JobApi(state)
            routes.router.routes.extend(job_routes())
            self.keeper.start()
        if settings.api_keys:
            routes.state.allowance = RateLimit(settings.jobs, keys.names, settings.key_per_minute)
        self.champion.watch()
        give_back_memory()

    def __is_ready__(self) -> bool:
        """Whether /readyz answers 200."""
        return self.champion.engine.ready

    @bentoml.on_shutdown
    def stop(self) -> None:
        """End what runs beside the requests."""
        self.champion.close()
        if settings.max_jobs:
            self.keeper.close()

    def _source(self) -> Path:
        """The bundle folder that is to be served now: a Bento's own model, or the store's latest."""
        if settings.bundle is not None:
            return settings.bundle
        bento = cast("Service[CameraLucida]", CameraLucida).bento
        pinned = {model.tag.name: model.tag for model in bento.info.all_models} if bento else {}
        return Path(BentoModel(pinned.get(_MODEL, f"{_MODEL}:latest")).resolve().path)


def _balance() -> ConnectionBalance | None:
    """Among the workers; none for one alone, and none where there is no place for what they share."""
    if settings.workers == 1:
        return None
    try:
        balance = routes.state.balance = ConnectionBalance(settings.jobs, settings.workers)
    except OSError as error:
        log.warning("Clients are not spread over the workers: %s", error)
        return None
    return balance


def _known(path: str) -> str | None:
    """The name under which a path is counted and logged; None for one that is not ours."""
    if path in BENTOML_ROUTES:
        return path
    for route in routes.router.routes:
        pattern = getattr(route, "path_regex", None)
        if pattern is not None and pattern.match(path):
            return str(getattr(route, "path", path))
    return None


cast("Service[CameraLucida]", CameraLucida).add_asgi_middleware(
    Gateway,
    known=_known,
    keys=keys,
    allowance=lambda: getattr(routes.state, "allowance", None),
    count=lambda: routes.state.shared.metrics.count if hasattr(routes.state, "shared") else None,
    shed=lambda: hasattr(routes.state, "balance") and routes.state.balance.sheds(),
    log_requests=settings.log_requests,
)


def _log_plainly() -> None:
    """Our lines on standard error as they are: a request's is JSON already."""
    # What is wrong with a picture's tags is told in the answer.
    warnings.filterwarnings("ignore", module="PIL")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours = logging.getLogger("lucida")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)


def _end_supervisor() -> None:
    """Stop BentoML's supervisor, where that is what started this process."""
    import psutil

    parent = psutil.Process(os.getppid())
    if any(Path(word).name == "bentoml" for word in parent.cmdline()[:3]):
        parent.send_signal(signal.SIGTERM)
