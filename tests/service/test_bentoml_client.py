"""BentoML's own client against the service: what its users expect to work."""

from __future__ import annotations

from pathlib import Path

import bentoml
import httpx
import PIL.Image
import pytest


@pytest.fixture(scope="module")
def bee_file(photos) -> Path:
    return sorted((photos / "hymenoptera/val/bees").glob("*.jpg"))[0]


@pytest.fixture(scope="module")
def client(service):
    with bentoml.SyncHTTPClient(service.url) as client:
        yield client


def test_each_operation_is_a_method(client, bee_file, service):
    predicted = client.predict(image=bee_file)
    assert predicted == service.ask("/predict", bee_file.read_bytes()).json() | {
        "timing_ms": predicted["timing_ms"]
    }
    assert client.activations(image=bee_file, blocks="top")["activations"]
    assert client.split(image=bee_file)["parts"]


def test_texts_numbers_and_switches_reach_their_fields(client, bee_file):
    answer = client.explain(
        image=bee_file, target="bee", against="ant", method="hires_cam", flip=True, overlay=False
    )
    (evidence,) = answer["evidence"]
    assert (evidence["label"], evidence["against"], evidence["method"]) == ("bee", "ant", "hires_cam")
    assert evidence["settings"]["flip"] is True
    assert evidence.get("overlay") is None
    assert len(client.explain(image=bee_file, top_k=2)["evidence"]) == 2


def test_a_heatmap_is_a_picture_of_the_pictures_size(client, bee_file):
    with PIL.Image.open(bee_file) as image:
        assert client.heatmap(image=bee_file, encoding="png").size == image.size


def test_several_pictures_and_a_refusal(client, bee_file):
    assert len(client.predict(image=[bee_file, bee_file])["answers"]) == 2
    with pytest.raises(bentoml.exceptions.BentoMLException, match="giraffe"):
        client.explain(image=bee_file, target="giraffe")


def test_a_text_keeps_its_quotes_where_it_is_not_bentomls_client_that_sends_it(service, bee_file):
    fields = {"target": '"bee"'}
    refused = httpx.post(
        f"{service.url}/explain", files={"image": bee_file.read_bytes()}, data=fields, trust_env=False
    )
    assert (refused.status_code, refused.json()["kind"]) == (422, "unknown_choice")
