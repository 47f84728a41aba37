"""The ASGI application of a worker, and the BentoML service that runs it.

The routes are ours and not BentoML's, for its parser fetches what a text in a file field names, and its
batches cannot hold requests with different options (docs/decisions/0012). Importing this module reads no
setting and loads no model: BentoML asks for the attribute ``CameraLucida``, which is made from the settings
then, and the model is loaded when a worker starts.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bentoml
import psutil
from bentoml import Tag
from bentoml.models import BentoModel
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from service.jobs.folder import claim_folder, is_bentoml, with_own_folder
from service.middleware.auth import ApiKeys
from service.middleware.connection_balance import ConnectionBalance
from service.middleware.connections import limit_connections
from service.middleware.gateway import BENTOML_ROUTES, Gateway
from service.middleware.rate_limit import RateLimit
from service.settings import Settings, device_of_worker
from service.tracing import start_tracing, stop_tracing

if TYPE_CHECKING:
    from service.inference.model_manager import ModelManager
    from service.jobs.supervisor import JobSupervisor
    from service.metrics import Metrics
    from service.monitoring import Monitor

log = logging.getLogger("lucida.service")

PROJECT_LABEL = "camera-lucida"
"""Label "project" of the Bento models that `lucida package` makes."""


class Application:
    """A worker's ASGI application with all that runs beside its requests.

    Until :meth:`start` it has no routes, so that a supervisor can hold one without loading the model.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.keys = ApiKeys(settings.api_keys)
        self.models: ModelManager | None = None
        self.metrics: Metrics | None = None
        self.monitor: Monitor | None = None
        self.rate_limit: RateLimit | None = None
        self.balance: ConnectionBalance | None = None
        self._supervisor: JobSupervisor | None = None
        self._routes: list[BaseRoute] = []
        self._starlette: ASGIApp = Starlette()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._starlette(scope, receive, send)

    def start(self, source: Callable[[], Path]) -> None:
        """Load the bundle that ``source`` names and begin to answer; raises BundleError."""
        from models.host_memory import return_freed_memory
        from service.api.jobs import JobApi
        from service.api.open_inference import open_inference_routes
        from service.api.reads import read_routes
        from service.api.routes import AppState, merge_paths, operation_routes
        from service.inference.admission import AdmissionControl
        from service.inference.model_manager import ModelManager
        from service.jobs.supervisor import JobSupervisor
        from service.metrics import get_metrics
        from service.monitoring import KeptSamples, Monitor
        from service.operations.trial import try_answers

        settings = self.settings
        self.metrics = get_metrics()
        start_tracing()
        self.balance = _connection_balance(settings)
        self.models = models = ModelManager(source, settings, self.metrics, try_answers)
        admission = AdmissionControl(settings, self._observe_places)
        folder = settings.keep_samples
        samples = KeptSamples(folder, settings.max_kept_bytes) if folder is not None else None
        self.monitor = Monitor(settings.jobs, samples)
        state = AppState(settings, models, admission, self.metrics, self.monitor)
        routes = [*operation_routes(state), *read_routes(state), *open_inference_routes(state)]
        if settings.max_jobs:
            routes += JobApi(state).routes()
            self._supervisor = JobSupervisor(settings, lambda: models.folder)
            self._supervisor.start()
        self._routes = merge_paths(routes)
        if settings.api_keys:
            self.rate_limit = RateLimit(settings.jobs, self.keys.names, settings.key_per_minute)
        self._starlette = Starlette(routes=self._routes)
        models.watch()
        return_freed_memory()

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and has explained its probe."""
        return self.models is not None and self.models.predictor.ready

    def stop(self) -> None:
        """End what runs beside the requests."""
        if self.models is not None:
            self.models.close()
        if self.monitor is not None:
            self.monitor.close()
        if self._supervisor is not None:
            self._supervisor.close()
        stop_tracing()

    def route_name(self, path: str) -> str | None:
        """Return the name under which a path is counted and logged; None for one that is not ours."""
        if path in BENTOML_ROUTES:
            return path
        scope = {"type": "http", "path": path, "method": "GET"}
        for route in self._routes:
            if route.matches(scope)[0] is not Match.NONE:
                return str(getattr(route, "path", path))
        return None

    def _observe_places(self, places: int) -> None:
        assert self.metrics is not None
        self.metrics.places.set(places)
        if self.balance is not None:
            self.balance.report(places)


def create_app(settings: Settings, source: Callable[[], Path] | None = None) -> ASGIApp:
    """Return a started application behind its gateway, for any ASGI server.

    ``source`` names the bundle folder, LUCIDA_BUNDLE without. Raises ValueError where there is neither, and
    BundleError for a bundle that cannot be served. BentoML's own routes, /livez and /readyz, are not in it.
    """
    bundle = settings.bundle
    if source is None and bundle is None:
        raise ValueError("Name the bundle folder to serve: set LUCIDA_BUNDLE, or give source.")
    application = Application(settings)
    application.start(source or (lambda: Path(str(bundle))))
    return Gateway(application, state=application)


def create_service(settings: Settings) -> Any:
    """Return the BentoML service: its worker processes, health checks, and our application within it."""
    application = Application(settings)
    limit_connections(settings)

    @bentoml.service(
        name="camera_lucida",
        workers=settings.workers,
        # Ours ends the work with the request; this one would only answer for it. It keeps a timer for each
        # request until then, however soon that is answered, so it is not much longer than our longest.
        traffic={"timeout": settings.upload_seconds + settings.deadline_ms / 1000 + 30},
        # BentoML's keeps a series for every path that anybody has asked for, for ever.
        metrics={"enabled": False},
        http={"host": "127.0.0.1", "port": 3000},
        logging={"access": {"enabled": False}},
        # Read by the C libraries when a worker starts. A thread that waits for work should not spin, for its
        # core is another worker's; and threads that take turns at large images should share the memory.
        envs=[
            {"name": "OMP_WAIT_POLICY", "value": "PASSIVE"},
            {"name": "OMP_NUM_THREADS", "value": str(settings.torch_threads)},
            {"name": "MALLOC_ARENA_MAX", "value": "2"},
        ],
    )
    @bentoml.asgi_app(application, path="/")
    class CameraLucida:
        """Predictions and explanations of one fine-tuned classifier, checks of them, and its inside."""

        def __init__(self) -> None:
            """Start the application; a bundle that cannot be served ends the service with one sentence.

            Its supervisor would start the worker again for ever.
            """
            _configure_logging()
            try:
                tag = _bento_model(settings, service) if settings.bundle is None else None
                application.settings = _settings_of_worker(settings, tag)
                application.start(lambda: _bundle_folder(settings, tag))
            except Exception as error:
                print(f"camera-lucida cannot start: {error}", file=sys.stderr, flush=True)
                _end_worker()
                raise SystemExit(1) from error

        def __is_ready__(self) -> bool:
            """Return whether /readyz answers 200."""
            return application.ready

        @bentoml.on_shutdown
        def stop(self) -> None:
            """End what runs beside the requests."""
            application.stop()

    service: Any = CameraLucida
    service.add_asgi_middleware(Gateway, state=application)
    return service


def __getattr__(name: str) -> Any:
    """Make the service when BentoML asks for it, and not when this module is imported."""
    if name != "CameraLucida":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # BentoML looks for the service among this module's variables.
    globals()[name] = service = create_service(Settings())
    return service


def _bento_model(settings: Settings, service: Any) -> Tag:
    """Return the tag of the Bento model to serve: the Bento's own, the one that was set, or the only one."""
    pinned = [model.tag for model in service.bento.info.all_models] if service.bento else []
    if len(pinned) == 1:
        return pinned[0]
    if settings.bento_model is not None:
        tag = Tag.from_taglike(settings.bento_model)
        return Tag(tag.name, tag.version or "latest")
    models = [model for model in bentoml.models.list() if model.info.labels.get("project") == PROJECT_LABEL]
    names = sorted({model.tag.name for model in models})
    if len(names) != 1:
        choices = f"one of {', '.join(names)}" if names else "a model of `lucida package`"
        raise ValueError(
            f"Name the model to serve: set LUCIDA_BENTO_MODEL to {choices}, or LUCIDA_BUNDLE to a folder."
        )
    return Tag(names[0], "latest")


def _bundle_folder(settings: Settings, tag: Tag | None) -> Path:
    """Return the bundle folder that is to be served now; of a Bento model, its latest version."""
    if tag is None:
        return Path(str(settings.bundle))
    return Path(BentoModel(tag).resolve().path)


def _settings_of_worker(settings: Settings, tag: Tag | None) -> Settings:
    """Return the settings with the folder of the jobs, which is this service's from now on.

    Raises FolderInUse; OSError where there are jobs and no folder that can be written.
    """
    served = tag.name if tag is not None else str(Path(str(settings.bundle)).absolute())
    device = device_of_worker(settings.device, bentoml.server_context.worker_index or 1)
    settings = with_own_folder(settings, served).model_copy(update={"device": device})
    try:
        claim_folder(settings.jobs)
    except OSError as error:
        if settings.max_jobs:
            raise OSError(
                f"The folder {settings.jobs} for jobs cannot be written ({error.strerror}). Set LUCIDA_JOBS "
                "to one that can, or LUCIDA_MAX_JOBS=0 for a service without jobs."
            ) from error
        log.warning("Figures are samples in BentoML's folder, for %s cannot be written.", settings.jobs)
    return settings


def _connection_balance(settings: Settings) -> ConnectionBalance | None:
    """Return the balance among the workers; None for one alone, or where there is no folder to share."""
    if settings.workers == 1:
        return None
    try:
        return ConnectionBalance(settings.jobs, settings.workers)
    except OSError as error:
        log.warning("Clients are not spread over the workers: %s", error)
        return None


def _configure_logging() -> None:
    """Write our lines to standard error as they are: a request's is JSON already."""
    # What is wrong with an image's tags is said in the answer.
    warnings.filterwarnings("ignore", module="PIL")
    # So is what is wrong with a form.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours = logging.getLogger("lucida")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)


def _end_worker() -> None:
    """End this process and BentoML's supervisor, where that has started it, without BentoML's traceback."""
    parent = psutil.Process(os.getppid())
    if is_bentoml(parent):
        parent.send_signal(signal.SIGTERM)
        os._exit(1)
