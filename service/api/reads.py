"""Routes that only read: the page, what is served, and what it is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from models.cancellation import Deadline, deadline_scope
from models.images.decode import IMAGE_SUFFIXES
from models.networks.summary import NetworkSummary
from models.visualization.colormaps import contrast_table, evidence_table
from service import schemas
from service.api.openapi import build_openapi
from service.api.routes import AppState, json_errors
from service.errors import HTTPError
from service.inference.model_card import describe_model
from service.metrics import render_metrics

WEB = Path(__file__).parents[1] / "web"


def read_routes() -> list[Route | Mount]:
    """The page with its files, and the routes that it asks."""
    return [
        Route("/", _page, methods=["GET"]),
        Mount("/web", StaticFiles(directory=WEB), name="web"),
        Route("/favicon.ico", _icon, methods=["GET"]),
        Route("/model", json_errors(_model_card), methods=["GET"]),
        Route("/anatomy", json_errors(_anatomy), methods=["GET"]),
        Route("/filters", json_errors(FiltersEndpoint()), methods=["GET"]),
        Route("/metrics", _figures, methods=["GET"]),
        Route("/colours", json_errors(_colours), methods=["GET"]),
        Route("/samples", json_errors(_samples), methods=["GET"]),
        Route("/samples/{name}", json_errors(_sample), methods=["GET"]),
        Route("/docs.json", json_errors(_open_api), methods=["GET"]),
        Route("/openapi.json", json_errors(_open_api), methods=["GET"]),
    ]


async def _page(request: Request) -> Response:
    return FileResponse(WEB / "index.html")


async def _icon(request: Request) -> Response:
    return RedirectResponse("/web/icon.svg")


async def _figures(request: Request) -> Response:
    content, kind = await to_thread.run_sync(render_metrics)
    return Response(content, headers={"Content-Type": kind})


async def _model_card(request: Request, state: AppState) -> Response:
    """Classes, geometry, blocks, methods, metrics and provenance of the served bundle."""
    return _json({**describe_model(state.champion.engine), "refused_successor": state.champion.refused})


async def _anatomy(request: Request, state: AppState) -> Response:
    """Each block and layer with shapes, receptive fields, parameters and multiply-adds; drawn as a PNG with
    ?picture=true.
    """
    found: NetworkSummary = state.champion.engine.anatomy
    asked = request.query_params.get("picture", "false").lower()
    if asked not in {"true", "false", "1", "0"}:
        raise HTTPError(
            HTTPStatus.UNPROCESSABLE_ENTITY, "bad_field", "Field 'picture': it must be true or false."
        )
    if asked in {"true", "1"}:
        from models.images.encode import encode_image
        from models.visualization.architecture import draw_architecture

        return Response(
            await to_thread.run_sync(lambda: encode_image(draw_architecture(found), "png")),
            media_type="image/png",
        )
    return _json({**asdict(found), "parameters": found.parameters, "multiply_adds": found.multiply_adds})


class FiltersEndpoint:
    """GET /filters?block=…&channels=1,2&steps=128: what channels look for, from the bundle's atlas or made on
    the spot, one request at a time: each takes a core for some seconds.
    """

    def __init__(self) -> None:
        self._limiter: CapacityLimiter | None = None

    async def __call__(self, request: Request, state: AppState) -> Response:
        """As a route."""
        engine, query = state.champion.engine, request.query_params
        block = query.get("block") or engine.model.cam_block
        atlas = engine.atlas
        if atlas and "steps" not in query:
            wanted = schemas.numbers(query["channels"]) if "channels" in query else None
            if wanted is None and "block" not in query:
                return _filters(engine.origin(), atlas)
            kept = [
                each for each in atlas if each.block == block and (wanted is None or each.channel in wanted)
            ]
            if kept and (wanted is None or len(kept) == len(set(wanted))):
                return _filters(engine.origin(), kept)
        channels = schemas.numbers(query.get("channels", "0"))
        steps = (schemas.numbers(query.get("steps", "128")) or [0])[0]
        if self._limiter is None:
            self._limiter = CapacityLimiter(1)
        if self._limiter.statistics().tasks_waiting >= _WAITING:
            raise HTTPError(
                HTTPStatus.SERVICE_UNAVAILABLE, "busy", "Other templates are being made. Come again in 5 s.",
                {"Retry-After": "5"},
            )  # fmt: skip
        deadline = Deadline(state.settings.deadline_ms / 1000)

        def made() -> list[schemas.TemplateAnswer]:
            with deadline_scope(deadline):
                return engine.filters(block, channels, steps)

        return _filters(engine.origin(), await to_thread.run_sync(made, limiter=self._limiter))


_WAITING = 4


def _filters(origin: schemas.Origin, found: list[schemas.TemplateAnswer]) -> Response:
    answer = schemas.FiltersAnswer(templates=found, provenance=origin)
    return Response(answer.model_dump_json(), media_type="application/json")


async def _colours(request: Request, state: AppState) -> Response:
    """The colour maps of the overlays, as red, green and blue: for evidence, and for one class against
    another.
    """
    return _json({"evidence": evidence_table().tolist(), "contrast": contrast_table().tolist()})


async def _samples(request: Request, state: AppState) -> Response:
    """Names of the pictures that the page offers to try."""
    return _json({"samples": list(_sample_files(state))})


async def _sample(request: Request, state: AppState) -> Response:
    """One of them."""
    path = _sample_files(state).get(request.path_params["name"])
    if path is None:
        raise HTTPError(HTTPStatus.NOT_FOUND, "no_such_sample", "There is no such sample.")
    return FileResponse(path)


def _sample_files(state: AppState) -> Mapping[str, Path]:
    """The probe of the bundle, unless a folder of samples was set. A name is looked up, never joined."""
    folder = state.settings.samples
    if folder is None or not folder.is_dir():
        return {"probe.png": state.champion.engine.bundle.folder / "probe.png"}
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return {path.name: path for path in found[:_SAMPLES]}


_SAMPLES = 24


async def _open_api(request: Request, state: AppState) -> Response:
    """What can be asked, for programs."""
    try:
        release = version("camera-lucida")
    except PackageNotFoundError:  # in a Bento the code lies beside, not installed
        release = "0"
    return _json(build_openapi(state.settings, version=release, card=describe_model(state.champion.engine)))


def _json(content: Mapping[str, Any]) -> Response:
    body = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return Response(body, media_type="application/json")
