"""The Open Inference Protocol: a real client asks for scores and maps, and everything odd is a sentence."""

from __future__ import annotations

import base64
import json

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from models.bundle import PROBE_FILE
from service.api.inference_messages import HEADER_LENGTH, parse_inference
from service.errors import HTTPError


@pytest.fixture(scope="module")
def client(service):
    with triton.InferenceServerClient(service.url.removeprefix("http://")) as client:
        yield client


@pytest.fixture(scope="module")
def picture(bundle_folder):
    return (bundle_folder / PROBE_FILE).read_bytes()


@pytest.fixture(scope="module")
def name(service):
    return service.get("/model").json()["model"]


def ask(client, name, pictures, outputs=None, parameters=None):
    tensor = triton.InferInput("image", [len(pictures)], "BYTES")
    tensor.set_data_from_numpy(np.array(pictures, dtype=object))
    wanted = None if outputs is None else [triton.InferRequestedOutput(item) for item in outputs]
    return client.infer(name, [tensor], outputs=wanted, parameters=parameters, request_id="mine")


def test_the_client_is_told_what_there_is(client, name):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name)
    metadata = client.get_model_metadata(name)
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert {item["name"] for item in metadata["outputs"]} >= {"scores", "label", "maps"}
    assert metadata["parameters"]["classes"] == ["ant", "bee", "flamingo"]
    assert client.get_server_metadata()["name"] == "camera-lucida"
    assert client.get_model_metadata(name, model_version=metadata["versions"][0])["name"] == name


def test_pictures_as_binary_data_give_the_answers_of_explain(client, name, service, picture, encode):
    other = encode(np.full((80, 120, 3), (200, 40, 40), np.uint8))
    result = ask(client, name, [picture, other], parameters={"top_k": 2, "method": "hires_cam"})
    assert result.get_response()["id"] == "mine"
    maps, scores = result.as_numpy("maps"), result.as_numpy("scores")
    assert maps.shape == (2, 2, 7, 7)
    assert scores.shape == (2, 3)
    for n, data in enumerate((picture, other)):
        answer = service.ask("/explain", data, top_k="2", method="hires_cam").json()
        by_index = {item["index"]: item["score"] for item in answer["predictions"]}
        assert np.allclose(scores[n], [by_index[k] for k in range(3)], atol=1e-6)
        for k, item in enumerate(answer["evidence"]):
            assert np.allclose(maps[n, k], item["grid"]["values"], atol=1e-5)
            assert result.as_numpy("explained")[n, k].decode() == item["label"]
            assert np.allclose(result.as_numpy("seen_box")[n, k], item["seen_box"], atol=0.01)
    assert result.as_numpy("status").shape == (2, 2)
    provenance = result.get_response()["parameters"]["provenance"]
    assert provenance["digest"] == answer["provenance"]["digest"]


def test_outputs_come_as_json_or_as_binary_data_with_the_same_values(client, name, picture):
    tensor = triton.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([picture], dtype=object))
    results = [
        client.infer(
            name, [tensor],
            outputs=[triton.InferRequestedOutput(item, binary_data=binary) for item in ("maps", "label")],
        )
        for binary in (True, False)
    ]  # fmt: skip
    maps, labels = ([result.as_numpy(item) for result in results] for item in ("maps", "label"))
    assert maps[0].dtype == maps[1].dtype == np.float32
    assert np.array_equal(*maps)
    assert labels[0][0].decode() == labels[1][0]
    sizes = [result.get_output("maps").get("parameters") for result in results]
    assert sizes == [{"binary_data_size": 4 * 49}, None]


def test_only_the_outputs_that_were_asked_for_come(client, name, picture):
    response = ask(client, name, [picture], outputs=["label", "scores"]).get_response()
    assert [item["name"] for item in response["outputs"]] == ["label", "scores"]


def test_a_picture_as_base64_in_json(service, name, picture):
    body = {
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(picture).decode()]}
        ],
        "parameters": {"target": "bee", "flip": True},
    }
    answer = httpx.post(f"{service.url}/v2/models/{name}/infer", json=body, trust_env=False).json()
    outputs = {item["name"]: item for item in answer["outputs"]}
    assert outputs["explained"]["data"] == ["bee"]
    assert outputs["maps"]["shape"] == [1, 1, 7, 7]
    assert len(outputs["maps"]["data"]) == 49


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"target": "wasp"}, "ant, bee, flamingo"),
        ({"topk": 2}, "no field 'topk'"),
        ({"top_k": 0}, "1 to"),
    ],
)
def test_wrong_parameters_are_refused_with_the_choices(client, name, picture, parameters, sentence):
    with pytest.raises(triton.InferenceServerException, match=sentence):
        ask(client, name, [picture], parameters=parameters)


def test_another_model_or_version_is_not_here(client, service, name):
    with pytest.raises(triton.InferenceServerException, match=f"The model here is '{name}'"):
        client.get_model_metadata("other")
    assert service.get(f"/v2/models/{name}/versions/99").status_code == 404


def test_a_picture_that_cannot_be_read_is_a_4xx(service, client, name):
    with pytest.raises(triton.InferenceServerException, match="format"):
        ask(client, name, [b"no picture"])


TENSOR = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGFsbG8="]}


def request(**changes):
    return json.dumps({"inputs": [TENSOR | changes]}).encode()


def test_a_request_is_taken_apart():
    body = json.dumps({"id": "a", "inputs": [TENSOR], "parameters": {"flip": True, "top_k": 2}}).encode()
    inference = parse_inference(body, None, most_images=16)
    assert inference.images == [b"hallo"]
    assert inference.fields == {"flip": "true", "top_k": "2"}
    assert (inference.id, next(iter(inference.outputs))) == ("a", "scores")


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"", None),
        (b"[]", None),
        (b"{}", None),
        (b'{"inputs": 3}', None),
        (b"[" * 100_000, None),
        (b'{"inputs": [' + b"[" * 100_000, None),
        (json.dumps({"inputs": []}).encode(), None),
        (json.dumps({"inputs": [TENSOR, TENSOR]}).encode(), None),
        (request(name="x"), None),
        (request(datatype="FP32"), None),
        (request(shape=[2]), None),
        (request(shape="1"), None),
        (request(data=["http://localhost/a.jpg"]), None),
        (request(data=[[1, 2]]), None),
        (request(data=None), None),
        (request(data=["aGFsbG8="] * 17, shape=[17]), None),
        (json.dumps({"inputs": [TENSOR], "id": 3}).encode(), None),
        (json.dumps({"inputs": [TENSOR], "parameters": [1]}).encode(), None),
        (json.dumps({"inputs": [TENSOR], "parameters": {"target": {}}}).encode(), None),
        (json.dumps({"inputs": [TENSOR], "outputs": [{"name": "x"}]}).encode(), None),
        (json.dumps({"inputs": [TENSOR], "outputs": 3}).encode(), None),
        (json.dumps({"inputs": [TENSOR], "outputs": ["maps"] * 2 + [{}]}).encode(), None),
        (request(), "-1"),
        (request(), "99999999999999999999"),
        (request(), "1e3"),
        (request(), "5"),
        (request(parameters={"binary_data_size": 4}, data=None) + b"\xff\xff\xff\xff", "auto"),
        (request(parameters={"binary_data_size": 99}, data=None) + b"\x00", "auto"),
        (request(parameters={"binary_data_size": 2}, data=None) + b"\x00\x00", "auto"),
    ],
)
def test_what_is_no_request_is_a_sentence(body, length):
    if length == "auto":
        length = str(body.rindex(b"}") + 1)
    with pytest.raises(HTTPError) as refusal:
        parse_inference(body, length, most_images=16)
    assert refusal.value.status == 400
    assert refusal.value.message.endswith(".")


def test_a_request_that_is_too_long_or_no_request_is_refused_by_the_route(service, name):
    url = f"{service.url}/v2/models/{name}/infer"
    headers = {HEADER_LENGTH: "12"}
    assert httpx.post(url, content=b"x", headers=headers, trust_env=False).status_code == 400
    assert httpx.post(url, content=bytes(20_000_001), trust_env=False).status_code == 413
    assert httpx.get(url, trust_env=False).status_code == 405
