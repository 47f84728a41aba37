"""The OpenAPI 3.1 document, made from the same tables that the routes are made from."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from service import schemas
from service.operations.form import Form
from service.operations.operation import Operation
from service.operations.registry import JOB_OPERATIONS, ROUTED
from service.settings import Settings

_ERRORS = {
    "400": "The form or the picture cannot be read.",
    "401": "Where the service has API keys: there is none, or it is not known.",
    "408": "The request did not come in time.",
    "413": "Too many bytes, pixels or scans.",
    "415": "Not a form, or not a picture in a supported format.",
    "422": "A field is missing, unknown, of the wrong type, or none of the choices.",
    "429": "Too many requests with this key, or too many jobs; Retry-After says when to come again.",
    "503": "Too much to do at the moment; Retry-After says when to come again.",
    "504": "The deadline came before there was anything to answer.",
}
_JOB_ERRORS = {
    "404": "There is none: no such job, or the model has no reference, no card or no concepts.",
    "507": "There is no room for another job.",
}
_READ_ERRORS = ("401", "429")
_IMAGE = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}


def build_openapi(settings: Settings, *, version: str, card: dict[str, Any]) -> dict[str, Any]:
    """Build the OpenAPI document of the service as it is set up, with the choices of the model that it
    serves.
    """
    shapes: list[type[Any]] = [
        schemas.ErrorAnswer, schemas.SeveralAnswers, schemas.JobAnswer, schemas.JobsAnswer,
        schemas.JobResult, schemas.ConceptsAnswer,
        *(operation.answer for operation in ROUTED.values() if operation.answer is not None),
    ]  # fmt: skip
    _, defined = models_json_schema(
        [(shape, "serialization") for shape in shapes], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = _reads(card)
    for operation in ROUTED.values():
        paths.setdefault(operation.path, {})["post"] = _operation(operation, settings, card)
    if settings.max_jobs:
        paths |= _jobs(settings, card)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Camera Lucida",
            "version": version,
            "description": "Predictions of an image classifier, each with the evidence for it.",
        },
        "paths": paths,
        "components": {"schemas": defined["$defs"]},
    }
    if settings.root_path:
        document["servers"] = [{"url": settings.root_path}]
    if settings.api_keys:
        document["components"]["securitySchemes"] = {
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            "bearer": {"type": "http", "scheme": "bearer"},
        }
        document["security"] = [{"key": []}, {"bearer": []}]
    return document


def build_schema(settings: Settings, card: dict[str, Any]) -> dict[str, Any]:
    """Build the table of routes that BentoML's own clients read: each operation becomes a method of theirs.

    They send a field as a file where its type is "file", and every other one as a JSON text.
    """
    image = {"type": "file", "format": "image"}
    routes = []
    for operation in ROUTED.values():
        several = operation.several and settings.most_pictures > 1
        picture = {**image, "pil": True}
        inputs = {"image": {"type": "array", "items": image} if several else image}
        routes.append(
            {
                "name": operation.name,
                "route": operation.path,
                "doc": operation.summary,
                "batchable": False,
                "input": {
                    "type": "object",
                    "properties": inputs | _fields(operation.form, settings, card),
                    "required": ["image"],
                },
                "output": picture if operation.answer is None else {"type": "object"},
            }
        )
    return {"name": "camera_lucida", "type": "service", "routes": routes}


def _operation(operation: Operation, settings: Settings, card: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {
        kind: {"schema": {"type": "string", "format": "binary"}} for kind in operation.image_types
    }
    if operation.answer is not None:
        shape = _ref(operation.answer)
        content["application/json"] = {
            "schema": {"anyOf": [shape, _ref(schemas.SeveralAnswers)]} if operation.several else shape
        }
    answered: dict[str, Any] = {"description": "The answer.", "content": content}
    if operation.headers:
        answered["headers"] = {name: {"schema": {"type": "string"}} for name in operation.headers}
    return {
        "operationId": operation.name,
        "summary": operation.summary,
        "requestBody": _body(
            _fields(operation.form, settings, card), settings.most_pictures if operation.several else 1
        ),
        "responses": {"200": answered, **_failures((*_ERRORS, *operation.failures))},
    }


def _fields(form: type[Form], settings: Settings, card: dict[str, Any]) -> dict[str, Any]:
    """Return the text fields as JSON schema, with the choices that this model has."""
    defined = form.model_json_schema()["properties"]
    fields = {name: _plain(field) for name, field in defined.items()}
    choices = {"block": card["blocks"], "method": card["methods"], "target": card["classes"],
               "against": card["classes"]}  # fmt: skip
    for name, values in choices.items():
        if name in fields:
            fields[name]["enum"] = list(values)
    if "top_k" in fields:
        fields["top_k"]["maximum"] = settings.max_top_k
    for name, values in (("checks", list(schemas.CHECKS)), ("blocks", card["blocks"])):
        if name in fields:
            fields[name]["examples"] = [",".join(values[:2])]
    return fields


def _plain(field: dict[str, Any]) -> dict[str, Any]:
    """Remove null, which a form cannot send: a field that is not given is left out."""
    document = {name: value for name, value in field.items() if name not in {"title", "anyOf", "default"}}
    for option in field.get("anyOf", ()):
        if option.get("type") != "null":
            document |= option
    if field.get("default") not in (None, ""):
        document["default"] = field["default"]
    return document


def _body(fields: dict[str, Any], most: int) -> dict[str, Any]:
    image: dict[str, Any] = {**_IMAGE, "description": "The picture: JPEG, PNG, WebP, GIF, BMP or TIFF."}
    if most > 1:
        image = {
            "type": "array",
            "items": _IMAGE,
            "minItems": 1,
            "maxItems": most,
            "description": "One picture, or several: the field once for each.",
        }
    shape = {
        "type": "object",
        "properties": {"image": image, **fields} if most else fields,
        "required": ["image"] if most else [],
        "additionalProperties": False,
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": shape}}}


def _list_of_concepts() -> dict[str, Any]:
    listed = {"application/json": {"schema": _ref(schemas.ConceptsAnswer)}}
    what = "The model's concepts, where it was packaged with some."
    return _get("all_concepts", what, listed, [], ("404",))


def _reads(card: dict[str, Any]) -> dict[str, Any]:
    image = {
        "name": "picture",
        "in": "query",
        "description": "Answer with a PNG instead of JSON.",
        "schema": {"type": "boolean"},
    }
    png = {"image/png": {"schema": {"type": "string", "format": "binary"}}}
    thing = {"application/json": {"schema": {"type": "object"}}}
    filters = [
        {"name": "block", "in": "query", "schema": {"type": "string", "enum": list(card["blocks"])}},
        {
            "name": "channels", "in": "query", "description": "Numbers with commas between, 8 at most.",
            "schema": {"type": "string", "examples": ["0", "1,2"]},
        },
        {"name": "steps", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 256}},
    ]  # fmt: skip
    return {
        "/model": {"get": _get("model", "What is served: the model's card.", thing)},
        "/anatomy": {
            "get": _get(
                "anatomy", "Blocks and layers, shapes and receptive fields.", thing | png, [image], ("422",)
            )
        },
        "/card": {
            "get": _get(
                "card",
                "The model card that was packaged with the model.",
                {kind: {"schema": {"type": "string"}} for kind in ("text/html", "text/markdown")},
                [
                    {
                        "name": "format",
                        "in": "query",
                        "schema": {"type": "string", "enum": ["html", "markdown"], "default": "html"},
                    }
                ],
                ("404", "422"),
            )
        },
        "/concepts": {"get": _list_of_concepts()},
        "/drift": {
            "get": _get(
                "drift",
                "What was asked in the last hour and day, beside the model's validation pictures.",
                thing,
                [],
                ("404",),
            )
        },
        "/filters": {
            "get": _get(
                "filters",
                "What channels look for: the bundle's atlas, or made on the spot.",
                thing,
                filters,
                ("422", "503", "504"),
            )
        },
    }


def _jobs(settings: Settings, card: dict[str, Any]) -> dict[str, Any]:
    named = [{"name": "job", "in": "path", "required": True, "schema": {"type": "string"}}]
    job = {"application/json": {"schema": _ref(schemas.JobAnswer)}}
    gone = ("404",)
    submitted: dict[str, Any] = {}
    for operation in JOB_OPERATIONS.values():
        fields = _fields(operation.form, settings, card)
        fields.pop("picture", None)
        submitted[f"/jobs/{operation.name}"] = {
            "post": {
                "operationId": f"submit_{operation.name}",
                "summary": f"In the background: {operation.summary}",
                "requestBody": _body(fields, settings.max_job_pictures if operation.takes_image else 0),
                "responses": {
                    "202": {"description": "Accepted.", "content": job},
                    **_failures((*_ERRORS, "507", *operation.failures)),
                },
            }
        }
    return {
        **submitted,
        "/jobs": {
            "get": _get(
                "list_jobs",
                "The jobs of this key, latest first.",
                {"application/json": {"schema": _ref(schemas.JobsAnswer)}},
            ),
        },
        "/jobs/{job}": {
            "get": _get("job", "Its status and progress.", job, named, gone),
            "delete": _get("cancel_job", "Cancel it, or forget it once it has ended.", job, named, gone),
        },
        "/jobs/{job}/result": {
            "get": _get(
                "job_result",
                "What it has found so far, picture by picture.",
                {"application/json": {"schema": _ref(schemas.JobResult)}},
                named,
                gone,
            )
        },
    }


def _get(
    name: str,
    summary: str,
    content: dict[str, Any],
    parameters: list[dict[str, Any]] | None = None,
    failures: tuple[str, ...] = (),
) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "parameters": parameters or [],
        "responses": {
            "200": {"description": "The answer.", "content": content},
            **_failures((*_READ_ERRORS, *failures)),
        },
    }


def _failures(codes: tuple[str, ...]) -> dict[str, Any]:
    shape = {"application/json": {"schema": _ref(schemas.ErrorAnswer)}}
    return {code: {"description": (_ERRORS | _JOB_ERRORS)[code], "content": shape} for code in codes}


def _ref(shape: type[Any]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{shape.__name__}"}
