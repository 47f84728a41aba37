"""The routes of the Open Inference Protocol (version 2), as KServe, Triton and Seldon speak it.

The request's ``parameters`` are the fields of /explain. A picture that cannot be used fails the whole
request: the protocol has no error for one element.
"""

from __future__ import annotations

from functools import partial
from http import HTTPStatus

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from models.errors import DeadlineExceeded
from service import schemas
from service.api.inference_messages import (
    HEADER_LENGTH,
    INPUT,
    OF_PREDICTION,
    OUTPUTS,
    encode_answers,
    evidence_of,
    parse_inference,
)
from service.api.routes import AppState, StatefulEndpoint, form_deadline, json_errors
from service.errors import HTTPError
from service.inference.predictor import Predictor
from service.operations import explain, multipart, predict
from service.operations.explain import ExplainForm
from service.operations.form import Form
from service.operations.operation import ImageResponse, Operation
from service.schemas import Answer


def open_inference_routes(state: AppState) -> list[Route]:
    """Return the routes of the protocol."""
    reads: dict[str, StatefulEndpoint] = {
        "/v2": _server,
        "/v2/health/live": _live,
        "/v2/health/ready": _ready,
        "/v2/models/{name}": _metadata,
        "/v2/models/{name}/ready": _model_ready,
        "/v2/models/{name}/versions/{version}": _metadata,
        "/v2/models/{name}/versions/{version}/ready": _model_ready,
    }
    infer = json_errors(_infer, state)
    return [
        *(Route(path, json_errors(answer, state), methods=["GET"]) for path, answer in reads.items()),
        Route("/v2/models/{name}/infer", infer, methods=["POST"]),
        Route("/v2/models/{name}/versions/{version}/infer", infer, methods=["POST"]),
    ]


async def _server(request: Request, state: AppState) -> Response:
    return JSONResponse({"name": "camera-lucida", "version": "2", "extensions": ["binary_tensor_data"]})


async def _live(request: Request, state: AppState) -> Response:
    return JSONResponse({"live": True})


async def _ready(request: Request, state: AppState) -> Response:
    return JSONResponse({"ready": state.models.predictor.ready})


async def _model_ready(request: Request, state: AppState) -> Response:
    predictor = _predictor(request, state)
    return JSONResponse({"name": predictor.bundle.provenance.model, "ready": predictor.ready})


async def _metadata(request: Request, state: AppState) -> Response:
    """Answer with the tensors that the model takes and gives; -1 is any number of pictures or maps."""
    predictor = _predictor(request, state)
    classes = len(predictor.model.classes)
    shapes = {"scores": [-1, classes], "label": [-1], "maps": [-1, -1, -1, -1], "seen_box": [-1, -1, 4]}
    return JSONResponse(
        {
            "name": predictor.bundle.provenance.model,
            "versions": [_version(predictor)],
            "platform": "camera_lucida",
            "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
            "outputs": [
                {"name": name, "datatype": datatype, "shape": shapes.get(name, [-1, -1]),
                 "parameters": {"is": meaning}}
                for name, (datatype, meaning) in OUTPUTS.items()
            ],
            "parameters": {"classes": predictor.model.classes, "fields": list(ExplainForm.model_fields)},
        }
    )  # fmt: skip


async def _infer(request: Request, state: AppState) -> Response:
    predictor, settings, admission = _predictor(request, state), state.settings, state.admission
    admission.check_room()
    with admission.reserve() as reserved:
        body = await multipart.read_body(
            request, most=settings.max_body_bytes, seconds=settings.upload_seconds, count=reserved.add
        )
        length = request.headers.get(HEADER_LENGTH)
        inference = await to_thread.run_sync(
            partial(parse_inference, b"".join(body), length, most_images=settings.most_pictures)
        )
        del body
        form = multipart.validate_form(ExplainForm, inference.fields)
        deadline = form_deadline(form, settings)
        form.check(predictor)
        operation = predict.OPERATION if set(inference.outputs) <= OF_PREDICTION else explain.OPERATION
        work = [partial(_run, state, operation, predictor, data, form) for data in inference.images]
        done = await admission.run(request, deadline, work)
    answers = [item for item in done if isinstance(item, schemas.PredictAnswer | schemas.ExplainAnswer)]
    if len({len(evidence_of(answer)) for answer in answers}) != 1:
        raise DeadlineExceeded("There was no time for the maps of every picture; send fewer at once.")
    about = {
        "model_name": predictor.bundle.provenance.model,
        "model_version": _version(predictor),
        "parameters": {
            "provenance": answers[0].provenance.model_dump(mode="json", exclude={"image_sha256"}),
            "warnings": [answer.warnings for answer in answers],
        },
    }
    content, header_length = encode_answers(answers, inference, about)
    if header_length is None:
        return Response(content, media_type="application/json")
    headers = {HEADER_LENGTH: str(header_length)}
    return Response(content, media_type="application/octet-stream", headers=headers)


def _run(
    state: AppState, operation: Operation, predictor: Predictor, data: bytes, form: Form
) -> Answer | ImageResponse:
    answer = operation.run(predictor, data, form)
    state.observe(predictor, answer, data)
    return answer


def _predictor(request: Request, state: AppState) -> Predictor:
    """Return what answers; raises HTTPError for the name or version of another model."""
    predictor = state.models.predictor
    name, version = predictor.bundle.provenance.model, _version(predictor)
    if request.path_params["name"] != name or request.path_params.get("version", version) != version:
        raise HTTPError(
            HTTPStatus.NOT_FOUND, "no_such_model", f"The model here is {name!r}, version {version!r}."
        )
    return predictor


def _version(predictor: Predictor) -> str:
    provenance = predictor.bundle.provenance
    return provenance.version or provenance.digest[:12]
