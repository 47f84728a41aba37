"""Requests and responses of the Open Inference Protocol (version 2) over REST, taken apart and put together.

Encoded pictures come as one BYTES tensor ``image``: as binary data behind the JSON (the protocol's binary
extension, which clients use by default), or in the JSON as base64. Outputs go back in either way.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from service.errors import HTTPError
from service.schemas import Evidence, ExplainAnswer, PredictAnswer

HEADER_LENGTH = "inference-header-content-length"
INPUT = "image"
OUTPUTS = {
    "scores": ("FP32", "a score for each class of the model"),
    "label": ("BYTES", "the class with the highest score"),
    "explained": ("BYTES", "the class that each map is for"),
    "maps": ("FP32", "signed evidence, rows from the top"),
    "seen_box": ("FP32", "x0, y0, x1, y1 of what the maps tile, in pixels of the picture"),
    "status": ("BYTES", "ok, no_positive_evidence, no_gradient or not_finite"),
}
"""Datatype and meaning of each output."""
OF_PREDICTION = {"scores", "label"}
"""Outputs for which nothing need be explained."""
_MOST_HEADER = 64_000
"""Bytes of JSON before binary data."""


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A request of the protocol, taken apart."""

    id: str | None
    images: list[bytes]
    fields: dict[str, str]
    """The parameters, as a form has them."""
    outputs: dict[str, bool]
    """Names of what is asked for, and whether each is to be binary data."""


def parse_inference(body: bytes, header_length: str | None, *, most_images: int) -> InferenceRequest:
    """Take a request apart; ``header_length`` is the length of the JSON before binary data, if there is any.

    Raises HTTPError, whose message says what the protocol asks for.
    """
    end = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit()) or len(header_length) > 9:
            raise _bad(f"The header {HEADER_LENGTH} must be the length of the JSON in bytes.")
        end = int(header_length)
        if not 0 < end <= min(len(body), _MOST_HEADER):
            raise _bad(f"The header {HEADER_LENGTH} is {end}, more than {_MOST_HEADER} or than the body.")
    try:
        content = json.loads(body[:end])
    except (ValueError, RecursionError) as error:
        raise _bad("The body must be the JSON of an inference request.") from error
    if not isinstance(content, dict) or not isinstance(content.get("inputs"), list):
        raise _bad("The body must be an inference request with a list 'inputs'.")
    tensors = [item for item in content["inputs"] if isinstance(item, dict) and item.get("name") == INPUT]
    if len(tensors) != 1 or len(content["inputs"]) != 1 or tensors[0].get("datatype") != "BYTES":
        raise _bad(f"There must be one input, named {INPUT!r}, of the datatype BYTES.")
    images = _images(tensors[0], body[end:], header_length is not None)
    if not 1 <= len(images) <= most_images:
        raise _bad(f"There are {len(images)} pictures; a request takes 1 to {most_images}.")
    identifier = content.get("id")
    if identifier is not None and (not isinstance(identifier, str) or len(identifier) > 200):
        raise _bad("The 'id' must be a text of at most 200 characters.")
    return InferenceRequest(identifier, images, _fields(content.get("parameters")), _outputs(content))


def _images(tensor: dict[str, Any], rest: bytes, binary: bool) -> list[bytes]:
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if binary and size is not None:
        if size != len(rest):
            raise _bad(f"binary_data_size is {str(size)[:20]}; {len(rest)} bytes follow the JSON.")
        images = _elements(rest)
    else:
        data = tensor.get("data")
        if not isinstance(data, list) or not all(isinstance(item, str) for item in data):
            raise _bad("Without binary data, 'data' must be a list of base64 texts, one for each picture.")
        try:
            images = [base64.b64decode(item, validate=True) for item in data]
        except (binascii.Error, ValueError) as error:
            raise _bad("A picture in 'data' is not base64; nothing is fetched from an address.") from error
    shape = tensor.get("shape")
    if shape not in ([len(images)], [len(images), 1]):
        raise _bad(f"The shape is {str(shape)[:60]}; {len(images)} pictures have the shape [{len(images)}].")
    return images


def _elements(data: bytes) -> list[bytes]:
    """Return the elements of a BYTES tensor: each its length in four bytes, little-endian, then itself."""
    elements, start = [], 0
    while start < len(data):
        stop = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if start + 4 > len(data) or stop > len(data):
            raise _bad("An element of the binary data is longer than what is left of it.")
        elements.append(data[start + 4 : stop])
        start = stop
    return elements


def _fields(parameters: object) -> dict[str, str]:
    """Return the request's parameters as a form's texts, but for those of the protocol itself."""
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise _bad("'parameters' must be a table of the fields of /explain.")
    texts = {}
    for name, value in parameters.items():
        if name in {"binary_data_output", "sequence_id", "priority", "timeout"}:
            continue
        if not isinstance(value, str | int | float | bool):
            raise _bad(f"The parameter {name[:60]!r} must be a text, a number, true or false.")
        texts[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return texts


def _outputs(content: dict[str, Any]) -> dict[str, bool]:
    """Return the outputs that are asked for, and whether each is to be binary data."""
    parameters = content.get("parameters")
    binary = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    requested = content.get("outputs")
    if requested is None or requested == []:
        return dict.fromkeys(OUTPUTS, binary)
    if not isinstance(requested, list) or not all(isinstance(item, dict) for item in requested):
        raise _bad("'outputs' must be a list of tables, each with a 'name'.")
    outputs = {}
    for item in requested:
        name, own = item.get("name"), item.get("parameters")
        if not isinstance(name, str) or name not in OUTPUTS:
            raise _bad(f"There is no output {str(name)[:60]!r}; choose from: {', '.join(OUTPUTS)}.")
        outputs[name] = own.get("binary_data", binary) is True if isinstance(own, dict) else binary
    return outputs


def encode_answers(
    answers: Sequence[PredictAnswer | ExplainAnswer], inference: InferenceRequest, about: dict[str, Any]
) -> tuple[bytes, int | None]:
    """Return the body of a response, and the length of the JSON in it where binary data follow.

    ``about`` are the fields beside the outputs. Every answer has as many maps.
    """
    tensors, blobs = [], list[bytes]()
    for name, binary in inference.outputs.items():
        tensor = _tensor(name, answers)
        if binary:
            values = tensor.pop("data")
            blobs.append(_floats(values) if tensor["datatype"] == "FP32" else _texts(values))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        tensors.append(tensor)
    content = {**({} if inference.id is None else {"id": inference.id}), **about, "outputs": tensors}
    head = json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    return b"".join([head, *blobs]), len(head) if blobs else None


def _floats(values: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def _texts(values: Sequence[str]) -> bytes:
    encoded = [value.encode() for value in values]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)


def evidence_of(answer: PredictAnswer | ExplainAnswer) -> list[Evidence]:
    """Return the maps of an answer; none for a prediction alone."""
    return answer.evidence if isinstance(answer, ExplainAnswer) else []


def _tensor(name: str, answers: Sequence[PredictAnswer | ExplainAnswer]) -> dict[str, Any]:
    """Return an output as the protocol has it: its values in one flat list, row by row."""
    count, maps = len(answers), len(evidence_of(answers[0]))
    shape, values = [count, maps], list[Any]()
    if name == "scores":
        shape = [count, len(answers[0].predictions)]
        for answer in answers:
            by_index = {item.index: item.score for item in answer.predictions}
            values += [by_index[index] for index in range(len(by_index))]
    elif name == "label":
        shape, values = [count], [answer.predictions[0].label for answer in answers]
    else:
        evidence = [item for answer in answers for item in evidence_of(answer)]
        if name == "maps":
            grid = evidence[0].grid if evidence else None
            shape = [count, maps, *((grid.rows, grid.cols) if grid is not None else (0, 0))]
            values = [value for item in evidence for row in item.grid.values for value in row]
        elif name == "seen_box":
            shape, values = [count, maps, 4], [edge for item in evidence for edge in item.seen_box]
        else:
            values = [item.label if name == "explained" else item.status for item in evidence]
    return {"name": name, "datatype": OUTPUTS[name][0], "shape": shape, "data": values}


def _bad(message: str) -> HTTPError:
    return HTTPError(HTTPStatus.BAD_REQUEST, "bad_inference_request", message)
