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
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from models.bundle import PROBE_FILE, SAMPLES_FILE, SAMPLES_FOLDER
from models.cancellation import Deadline, deadline_scope
from models.errors import BundleError
from models.images.decode import IMAGE_SUFFIXES
from models.images.encode import encode_image
from models.strict_files import parse_json, read_file
from models.visualization.architecture import draw_architecture
from models.visualization.colormaps import contrast_table, evidence_table
from service import schemas
from service.api.openapi import build_openapi, build_schema
from service.api.routes import AppState, StatefulEndpoint, json_errors
from service.errors import HTTPError
from service.inference.model_card import describe_model
from service.metrics import render_metrics
from service.monitoring import DriftMonitor
from service.operations.concepts import list_concepts
from service.operations.filters import synthesize

WEB = Path(__file__).parents[1] / "web"
_CARD_FORMATS = ("html", "markdown")
_CARD_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
_MAX_SAMPLES = 24
_MOST_LABEL_BYTES = 64_000
_MAX_WAITING = 4
"""Requests for templates that may wait for the one that is being answered."""
_MAX_CHANNELS, _MAX_STEPS = 8, 256


def read_routes(state: AppState) -> list[Route | Mount]:
    """Return the page with its files, and the routes that it asks."""
    answers: dict[str, StatefulEndpoint] = {
        "/model": _model_card,
        "/anatomy": _anatomy,
        "/card": _card,
        "/concepts": _concepts,
        "/drift": _drift,
        "/filters": FiltersEndpoint(),
        "/colours": _colours,
        "/samples": _samples,
        "/samples/{name}": _sample,
        "/docs.json": _open_api,
        "/openapi.json": _open_api,
        "/schema.json": _bentoml_schema,
    }
    return [
        Route("/", _page, methods=["GET"]),
        Mount("/web", StaticFiles(directory=WEB), name="web"),
        Route("/favicon.ico", _icon, methods=["GET"]),
        Route("/metrics", json_errors(_metrics, state), methods=["GET"]),
        *(Route(path, json_errors(answer, state), methods=["GET"]) for path, answer in answers.items()),
    ]


async def _page(request: Request) -> Response:
    return FileResponse(WEB / "index.html")


async def _icon(request: Request) -> Response:
    return RedirectResponse("web/icon.svg")


async def _metrics(request: Request, state: AppState) -> Response:
    _watched(state)
    content, media_type = await to_thread.run_sync(render_metrics, state.monitor)
    return Response(content, headers={"Content-Type": media_type})


async def _model_card(request: Request, state: AppState) -> Response:
    """Answer with classes, geometry, blocks, methods, metrics and provenance of the served bundle."""
    card = describe_model(state.models.predictor)
    return _json({**card, "refused_successor": state.models.refused})


async def _card(request: Request, state: AppState) -> Response:
    """Answer with the model card that was packaged with the model: a page, or Markdown if asked for."""
    card, form = state.models.predictor.card, request.query_params.get("format", "html")
    if form not in _CARD_FORMATS:
        choices = ", ".join(_CARD_FORMATS)
        raise HTTPError(
            HTTPStatus.UNPROCESSABLE_ENTITY, "bad_field", f"Field 'format': choose one of: {choices}."
        )
    if card is None:
        raise HTTPError(
            HTTPStatus.NOT_FOUND, "no_card",
            "The model was not packaged with a card; `lucida card` writes one, `lucida package` adds it.",
        )  # fmt: skip
    if form == "markdown":
        return Response(card.markdown, media_type="text/markdown; charset=utf-8")
    # Its style is its own; nothing else may run or be fetched.
    return HTMLResponse(card.html, headers={"Content-Security-Policy": _CARD_POLICY})


async def _concepts(request: Request, state: AppState) -> Response:
    """Answer with the concepts that were packaged with the model, with their patches and their effect."""
    listed = list_concepts(state.models.predictor)
    return Response(listed.model_dump_json(), media_type="application/json")


async def _drift(request: Request, state: AppState) -> Response:
    """Answer with the figures of the last hour and day, beside those of the model's validation images."""
    monitor = _watched(state)
    if monitor is None:
        raise HTTPError(
            HTTPStatus.NOT_FOUND, "no_reference",
            "The model's bundle has no reference to hold pictures against; it is made when a model is "
            "trained, or adopted with labelled data.",
        )  # fmt: skip
    return _json(await to_thread.run_sync(monitor.report))


def _watched(state: AppState) -> DriftMonitor | None:
    """Return the watch over the model that answers now."""
    bundle = state.models.predictor.bundle
    return state.monitor.watch(bundle.provenance.digest, bundle.reference)


async def _anatomy(request: Request, state: AppState) -> Response:
    """Answer with shapes, receptive fields, parameters and multiply-adds of each block and layer.

    They are drawn as a PNG with ?picture=true.
    """
    summary = state.models.predictor.summary
    as_image = request.query_params.get("picture", "false").lower()
    if as_image not in {"true", "false", "1", "0"}:
        raise HTTPError(
            HTTPStatus.UNPROCESSABLE_ENTITY, "bad_field", "Field 'picture': it must be true or false."
        )
    if as_image in {"true", "1"}:
        png = await to_thread.run_sync(lambda: encode_image(draw_architecture(summary), "png"))
        return Response(png, media_type="image/png")
    return _json(
        {**asdict(summary), "parameters": summary.parameters, "multiply_adds": summary.multiply_adds}
    )


class FiltersEndpoint:
    """The route GET /filters?block=…&channels=1,2&steps=128: templates of what channels look for.

    They come from the bundle's atlas, or are made on the spot, one request at a time: each takes a core for
    some seconds.
    """

    def __init__(self) -> None:
        self._limiter: CapacityLimiter | None = None

    async def __call__(self, request: Request, state: AppState) -> Response:
        """Answer a request."""
        predictor, query = state.models.predictor, request.query_params
        stored = self._from_atlas(predictor.atlas, query, predictor.model.cam_block)
        if stored is not None:
            answer = schemas.FiltersAnswer(templates=stored, provenance=predictor.origin())
            return Response(answer.model_dump_json(), media_type="application/json")
        block = query.get("block") or predictor.model.cam_block
        channels = schemas.parse_numbers(query.get("channels", "0"))
        steps = (schemas.parse_numbers(query.get("steps", "128")) or [0])[0]
        deadline = Deadline(state.settings.deadline_ms / 1000)

        def work() -> schemas.FiltersAnswer:
            with deadline_scope(deadline):
                return synthesize(
                    predictor, block, channels, steps, most=_MAX_CHANNELS, most_steps=_MAX_STEPS
                )

        answer = await to_thread.run_sync(work, limiter=self._free_limiter())
        return Response(answer.model_dump_json(), media_type="application/json")

    @staticmethod
    def _from_atlas(
        atlas: list[schemas.TemplateAnswer], query: Mapping[str, str], cam_block: str
    ) -> list[schemas.TemplateAnswer] | None:
        """Return the templates that the atlas has; None where some must be made."""
        if not atlas or "steps" in query:
            return None
        channels = schemas.parse_numbers(query["channels"]) if "channels" in query else None
        if channels is None and "block" not in query:
            return atlas
        block = query.get("block") or cam_block
        stored = [
            template
            for template in atlas
            if template.block == block and (channels is None or template.channel in channels)
        ]
        complete = stored and (channels is None or len(stored) == len(set(channels)))
        return stored if complete else None

    def _free_limiter(self) -> CapacityLimiter:
        if self._limiter is None:
            self._limiter = CapacityLimiter(1)
        if self._limiter.statistics().tasks_waiting >= _MAX_WAITING:
            raise HTTPError(
                HTTPStatus.SERVICE_UNAVAILABLE, "busy", "Other templates are being made. Come again in 5 s.",
                {"Retry-After": "5"},
            )  # fmt: skip
        return self._limiter


async def _colours(request: Request, state: AppState) -> Response:
    """Answer with the colour maps of the overlays, as red, green and blue."""
    return _json({"evidence": evidence_table().tolist(), "contrast": contrast_table().tolist()})


async def _samples(request: Request, state: AppState) -> Response:
    """Answer with the names of the images that the page offers to try, and their labels where known."""
    files = _sample_files(state)
    return _json({"samples": list(files), "labels": _sample_labels(files)})


async def _sample(request: Request, state: AppState) -> Response:
    """Answer with one of those images."""
    path = _sample_files(state).get(request.path_params["name"])
    if path is None:
        raise HTTPError(HTTPStatus.NOT_FOUND, "no_such_sample", "There is no such sample.")
    return FileResponse(path)


def _sample_files(state: AppState) -> Mapping[str, Path]:
    """Return the samples by name: a name is looked up, never joined to a path.

    They lie in the folder of the settings, or beside the bundle; without either it is the bundle's probe.
    """
    folder = state.settings.samples or state.models.folder / SAMPLES_FOLDER
    if not folder.is_dir():
        return {PROBE_FILE: state.models.folder / PROBE_FILE}
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return {path.name: path for path in paths[:_MAX_SAMPLES]}


def _sample_labels(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the true label of each sample that has one."""
    first = next(iter(files.values()), None)
    try:
        path = first.parent / SAMPLES_FILE if first is not None else None
        labels = parse_json(read_file(path, most=_MOST_LABEL_BYTES), SAMPLES_FILE) if path is not None else {}
    except BundleError:
        return {}
    pairs = labels.items() if isinstance(labels, dict) else ()
    return {name: label for name, label in pairs if name in files and isinstance(label, str)}


async def _open_api(request: Request, state: AppState) -> Response:
    """Answer with the OpenAPI document."""
    try:
        release = version("camera-lucida")
    except PackageNotFoundError:  # in a Bento the code lies beside, not installed
        release = "0"
    card = describe_model(state.models.predictor)
    return _json(build_openapi(state.settings, version=release, card=card))


async def _bentoml_schema(request: Request, state: AppState) -> Response:
    """Answer with what bentoml.SyncHTTPClient and AsyncHTTPClient ask for first."""
    return _json(build_schema(state.settings, describe_model(state.models.predictor)))


def _json(content: Mapping[str, Any]) -> Response:
    body = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return Response(body, media_type="application/json")
