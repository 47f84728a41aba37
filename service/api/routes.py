"""The routes of the operations: read, check, work, answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from models.cancellation import Deadline
from models.errors import LucidaError
from service.errors import OUT_OF_MEMORY, HTTPError, to_http_error
from service.inference.admission import AdmissionControl
from service.inference.model_manager import ModelManager
from service.inference.predictor import Predictor
from service.metrics import Metrics
from service.monitoring import Monitor
from service.operations import multipart
from service.operations.form import Form
from service.operations.operation import ImageResponse, Operation
from service.operations.registry import ROUTED
from service.schemas import Answer
from service.settings import Settings

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class AppState:
    """State that the routes of one worker share; made when the worker starts."""

    settings: Settings
    models: ModelManager
    admission: AdmissionControl
    metrics: Metrics
    monitor: Monitor

    def observe(self, predictor: Predictor, answer: Answer | ImageResponse, data: bytes) -> None:
        """Count what one answer about an encoded image looks like."""
        self.metrics.observe(answer)
        observation = getattr(answer, "observation", None)
        bundle = predictor.bundle
        self.monitor.observe(bundle.provenance.digest, bundle.reference, observation, data)


StatefulEndpoint = Callable[[Request, AppState], Awaitable[Response]]


def operation_routes(state: AppState) -> list[Route]:
    """Return one route for each operation that has one."""
    return [
        Route(operation.path, json_errors(partial(_answer, operation=operation), state), methods=["POST"])
        for operation in ROUTED.values()
    ]


def merge_paths(routes: Sequence[BaseRoute]) -> list[BaseRoute]:
    """Return the routes, those of one path as one: it refuses a method with all that the path answers to."""
    merged: list[BaseRoute] = []
    places: dict[str, int] = {}
    for route in routes:
        earlier = merged[places[route.path]] if isinstance(route, Route) and route.path in places else None
        if isinstance(route, Route) and isinstance(earlier, Route):
            merged[places[route.path]] = _merge(earlier, route)
            continue
        if isinstance(route, Route):
            places[route.path] = len(merged)
        merged.append(route)
    return merged


def _merge(one: Route, other: Route) -> Route:
    endpoints = {method: route.endpoint for route in (one, other) for method in route.methods or ()}

    async def endpoint(request: Request) -> Response:
        answer: Response = await endpoints[request.method](request)
        return answer

    return Route(one.path, endpoint, methods=list(endpoints))


def json_errors(answer: StatefulEndpoint, state: AppState) -> Endpoint:
    """Return an endpoint whose errors of ours become JSON answers."""

    async def endpoint(request: Request) -> Response:
        try:
            return await answer(request, state)
        except HTTPError as error:
            return error.response()
        except LucidaError as error:
            return to_http_error(error).response()
        except MemoryError:
            return OUT_OF_MEMORY.response()

    return endpoint


async def _answer(request: Request, state: AppState, *, operation: Operation) -> Response:
    settings, admission = state.settings, state.admission
    multipart.check_form(request)
    admission.check_room()
    with admission.reserve() as reserved:
        body = await multipart.read_body(
            request, most=settings.max_body_bytes, seconds=settings.upload_seconds, count=reserved.add
        )
        upload = await multipart.parse_form(
            request.headers, body, most_images=settings.most_pictures if operation.several else 1
        )
        del body
        form = multipart.validate_form(operation.form, upload.fields)
        deadline = form_deadline(form, settings)
        # One request is answered by one model, also when another takes over meanwhile.
        predictor = state.models.predictor
        form.check(predictor)
        if len(upload.images) == 1:
            work = [partial(_run_one, state, operation, predictor, upload.images[0], form)]
            (response,) = await admission.run(request, deadline, work)
            return response
        several = [
            partial(_run_among_several, state, operation, predictor, data, form) for data in upload.images
        ]
        answers = await admission.run(request, deadline, several, late=_error_body)
        return _json(b'{"answers":[' + b",".join(answers) + b"]}")


def form_deadline(form: Form, settings: Settings) -> Deadline:
    """Return the deadline of a form: its own within the service's, or the service's."""
    milliseconds = min(form.deadline_ms or settings.deadline_ms, settings.deadline_ms)
    return Deadline(milliseconds / 1000, budget=form.deadline_ms is not None)


def _run_one(
    state: AppState, operation: Operation, predictor: Predictor, data: bytes, form: Form
) -> Response:
    answer = operation.run(predictor, data, form)
    state.observe(predictor, answer, data)
    if isinstance(answer, ImageResponse):
        return Response(answer.data, media_type=answer.media_type, headers=answer.headers)
    return _json(_encode(answer))


def _run_among_several(
    state: AppState, operation: Operation, predictor: Predictor, data: bytes, form: Form
) -> bytes:
    """Answer for one of several images: its own failure is its own answer, and stops no other."""
    try:
        answer = operation.run(predictor, data, form)
    except LucidaError as error:
        return _error_body(error)
    except MemoryError:
        return _encode(OUT_OF_MEMORY.body)
    assert isinstance(answer, Answer)
    state.observe(predictor, answer, data)
    return _encode(answer)


def _error_body(error: LucidaError) -> bytes:
    return _encode(to_http_error(error).body)


def _encode(answer: Answer) -> bytes:
    return answer.model_dump_json().encode()


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
