"""The routes of the verbs: read, check, work, answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from models.cancellation import Deadline
from models.errors import LucidaError
from models.metrics.audit import check_names
from service.errors import OUT_OF_MEMORY, HTTPError, to_http_error
from service.inference.admission import AdmissionControl
from service.inference.doubts import Doubts
from service.inference.model_manager import ModelManager
from service.metrics import Metrics
from service.operations.forms import split_names
from service.operations.multipart import check_form, parse_form, read_body, validate_form
from service.operations.registry import OPERATIONS, ImageResponse, Operation
from service.schemas import Answer
from service.settings import Settings

Endpoint = Callable[[Request], Awaitable[Response]]


class AppState:
    """What the routes of one worker share; made when the worker starts."""

    def __init__(
        self, settings: Settings, champion: ModelManager, desk: AdmissionControl, metrics: Metrics
    ) -> None:
        self.settings, self.champion, self.desk, self.metrics = settings, champion, desk, metrics


def operation_routes() -> list[Route]:
    """One route for each row of the table."""
    return [
        Route(verb.path, json_errors(partial(_asked, verb=verb)), methods=["POST"])
        for verb in OPERATIONS.values()
    ]


def json_errors(answer: Callable[[Request, AppState], Awaitable[Response]]) -> Endpoint:
    """A route whose refusals, and our errors, are answers."""

    async def endpoint(request: Request) -> Response:
        try:
            return await answer(request, request.app.state.shared)
        except HTTPError as refusal:
            return refusal.answer()
        except LucidaError as error:
            return to_http_error(error).answer()
        except MemoryError:
            return OUT_OF_MEMORY.answer()

    return endpoint


async def _asked(request: Request, state: AppState, *, verb: Operation) -> Response:
    settings, desk = state.settings, state.desk
    check_form(request)
    desk.check_room()
    most = settings.max_body_bytes
    with desk.hold() as held:
        body = await read_body(request, most=most, seconds=settings.upload_seconds, count=held.add)
        upload = await parse_form(
            request.headers, body, most_pictures=settings.most_pictures if verb.many else 1
        )
        del body
        form = validate_form(verb.form, upload.fields)
        budget = form.deadline_ms is not None
        deadline = Deadline(
            min(form.deadline_ms or settings.deadline_ms, settings.deadline_ms) / 1000, budget=budget
        )
        # One request is answered by one model, also when another takes over meanwhile.
        doubts = state.champion.doubts
        check(doubts, form)
        if len(upload.pictures) == 1:
            (answer,) = await desk.serve(
                request, deadline, [partial(_one, state, verb, doubts, upload.pictures[0], form)]
            )
            return answer
        work = [partial(_among_many, state, verb, doubts, data, form) for data in upload.pictures]
        found = await desk.serve(request, deadline, work, late=_refused)
        return _json(b'{"answers":[' + b",".join(found) + b"]}")


def check(doubts: Doubts, form: Any, *, unlimited: bool = False) -> None:
    """Raise for what cannot be asked of this model, before any picture is looked at."""
    if hasattr(form, "request"):
        doubts.engine.check(form.request(), unlimited=unlimited)
    for block in filter(None, (getattr(form, "block", None), *split_names(getattr(form, "blocks", "")))):
        doubts.engine.model.index_of(block)
    check_names(split_names(getattr(form, "checks", "")))


def _one(state: AppState, verb: Operation, doubts: Doubts, data: bytes, form: Any) -> Response:
    found = verb.run(doubts, data, form)
    if isinstance(found, ImageResponse):
        return Response(found.data, media_type=found.media_type, headers=found.headers)
    state.metrics.observe(found)
    return _json(_encoded(found))


def _among_many(state: AppState, verb: Operation, doubts: Doubts, data: bytes, form: Any) -> bytes:
    """One of several pictures: its own failure is its own answer, and stops no other."""
    try:
        found = verb.run(doubts, data, form)
    except LucidaError as error:
        return _refused(error)
    except MemoryError:
        return _encoded(OUT_OF_MEMORY.body)
    assert isinstance(found, Answer)
    state.metrics.observe(found)
    return _encoded(found)


def _refused(error: LucidaError) -> bytes:
    return _encoded(to_http_error(error).body)


def _encoded(answer: Answer) -> bytes:
    return answer.model_dump_json().encode()


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
