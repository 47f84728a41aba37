"""Routes that only read: what is served, and what it is made of."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from models.errors import LucidaError
from service.errors import answer_to


async def model_card(request: Request) -> JSONResponse:
    """GET /model: classes, geometry, blocks, methods, metrics and provenance of the served bundle."""
    return JSONResponse(request.app.state.engine.card())


async def anatomy(request: Request) -> Response:
    """GET /anatomy: each block and layer with shapes, receptive fields, parameters and multiply-adds; drawn
    as a PNG with ?picture=true.
    """
    found = request.app.state.engine.anatomy
    if request.query_params.get("picture", "").lower() in {"true", "1"}:
        from models.render.flow import flow
        from models.render.overlay import encode

        return Response(await run_in_threadpool(lambda: encode(flow(found), "png")), media_type="image/png")
    totals = {"parameters": found.parameters, "multiply_adds": found.multiply_adds}
    return JSONResponse({**asdict(found), **totals})


async def filters(request: Request) -> Response:
    """GET /filters?block=…&channels=1,2&steps=128: what channels look for, synthesised on the spot."""
    engine, query = request.app.state.engine, request.query_params

    def made() -> list[dict[str, Any]]:
        channels = _numbers(query.get("channels", "0"))
        steps = _numbers(query.get("steps", "128"))
        found: list[dict[str, Any]] = engine.filters(
            query.get("block") or engine.model.cam_block, channels, steps[0] if steps else 0
        )
        return found

    try:
        # One at a time: each takes a core for some seconds.
        limiter: CapacityLimiter = request.app.state.synthesis
        return JSONResponse({"templates": await to_thread.run_sync(made, limiter=limiter)})
    except LucidaError as error:
        return answer_to(error)


def make_pages() -> Starlette:
    """The application that BentoML mounts; the service puts its engine into ``state.engine``."""
    pages = Starlette(
        routes=[
            Route("/model", model_card, methods=["GET"]),
            Route("/anatomy", anatomy, methods=["GET"]),
            Route("/filters", filters, methods=["GET"]),
        ]
    )
    pages.state.synthesis = CapacityLimiter(1)
    return pages


def _numbers(text: str) -> list[int]:
    """Whole numbers with commas between; a channel that is no number is asked for as -1, which none has."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [int(part) if part.isascii() and part.isdigit() and len(part) < 7 else -1 for part in parts]
