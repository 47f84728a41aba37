"""Routes that only read: what is served."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


async def model_card(request: Request) -> JSONResponse:
    """GET /model: classes, geometry, blocks, metrics and provenance of the served bundle."""
    return JSONResponse(request.app.state.engine.card())


def make_pages() -> Starlette:
    """The application that BentoML mounts; the service puts its engine into ``state.engine``."""
    return Starlette(routes=[Route("/model", model_card, methods=["GET"])])
