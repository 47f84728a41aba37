"""The client against a real service, and `lucida verify` on what the service says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from service.client import Client, ServiceError


@pytest.fixture
def client(service):
    with Client(service.url) as found:
        yield found


def test_every_operation_has_its_type(client, bee, tmp_path):
    path = tmp_path / "bee.jpg"
    path.write_bytes(bee)
    assert client.predict(path).predictions[0].label == "bee"
    found = client.explain(bee, top_k=2, overlay=True)
    assert [each.label for each in found.evidence] == ["bee", "ant"]
    assert client.explain(bee, target="bee", against="ant", flip=True).evidence[0].against == "ant"
    assert client.heatmap(str(path), encoding="png").startswith(b"\x89PNG")
    assert client.trust(bee, checks=["shifts"]).shifts is not None
    assert client.trace(bee).speaking_for
    assert client.what_if(bee, box=[40, 60, 160, 180]).share > 0
    assert client.split(bee).parts
    assert client.activations(bee, blocks=["stem", "top"]).activations[1].block == "top"
    assert client.filters(channels="1", steps=2).templates[0].channel == 1
    assert client.model()["classes"] == ["ant", "bee", "flamingo"]


def test_the_models_concepts_have_their_types_where_it_has_some(start, complete_folder, client, bee):
    served = start(complete_folder)
    with Client(served.url) as concepts_client:
        listed, shared = concepts_client.all_concepts(), concepts_client.concepts(bee, against="ant")
        job = concepts_client.submit("concepts", [bee], target="ant")
        assert list(concepts_client.watch(job.id))[-1].state == "done"
        (answer,) = concepts_client.result(job.id).answers
    assert [concept.name for concept in listed.concepts] == ["wing", "concept 1", "concept 2", "concept 3"]
    assert all(patch.startswith("data:image/") for concept in listed.concepts for patch in concept.patches)
    assert (shared.label, shared.against, shared.block) == ("bee", "ant", listed.block)
    total = shared.base + sum(concept.share for concept in shared.concepts) + shared.rest
    assert total + shared.residual == pytest.approx(shared.logit, abs=1e-3)
    assert (shared.predicted, answer.predicted) == ("bee", "bee")
    assert {concept.grid.rows for concept in shared.concepts} == {14}
    assert answer.label == "ant"
    for ask in (client.all_concepts, lambda: client.concepts(bee)):
        with pytest.raises(ServiceError, match="packaged without concepts"):
            ask()


def test_many_pictures_at_once(client, bee):
    several = client.explain_many([bee, b"no picture", bee], method="hires_cam")
    assert [getattr(each, "kind", None) for each in several] == [None, "unsupported_format", None]
    assert several[0].evidence == several[2].evidence == client.explain(bee, method="hires_cam").evidence
    assert client.predict_many([bee])[0].predictions[0].label == "bee"
    assert [each.kind for each in client.predict_many([b"no picture"])] == ["unsupported_format"]
    with pytest.raises(ServiceError, match="no field"):
        client.predict_many([bee], colour="red")
    with pytest.raises(ServiceError, match="at most 16"):
        client.predict_many([bee] * 17)


def test_refusals_are_errors_with_their_sentence(client, bee):
    with pytest.raises(ServiceError, match="ant, bee, flamingo") as refused:
        client.explain(bee, target="wasp")
    assert (refused.value.status, refused.value.kind) == (422, "unknown_choice")
    with Client("http://127.0.0.1:1") as nobody, pytest.raises(Exception, match="refused"):
        nobody.model()


def test_a_job_from_end_to_end(client, bee):
    job = client.submit("explain", [bee, bee], method="occlusion")
    *_, last = client.watch(job.id)
    assert (last.state, last.done) == ("done", 2)
    result = client.result(job.id)
    assert result.answers[0].evidence[0].method == "occlusion"
    assert client.submit("filters", []).verb == "filters"
    client.cancel(job.id)
    with pytest.raises(ServiceError) as gone:
        client.job(job.id)
    assert gone.value.kind == "no_such_job"


def test_the_client_needs_neither_torch_nor_bentoml():
    code = (
        "import service.client, sys; print([m for m in ('torch', 'bentoml', 'captum') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


Verified = Callable[[str, str], subprocess.CompletedProcess[str]]


@pytest.fixture
def verified(at_once, bundle_folder, tmp_path, monkeypatch) -> Verified:
    """`lucida verify` of an answer and a picture in the test's own folder."""
    monkeypatch.setenv("COLUMNS", "300")

    def run(answer: str, picture: str) -> subprocess.CompletedProcess[str]:
        words = ("verify", tmp_path / answer, "--image", tmp_path / picture, "--bundle", bundle_folder)
        return at_once(*map(str, words))

    return run


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": "3"},
        {"target": "ant", "against": "bee", "method": "hires_cam", "block": "stage5.2"},
        {"method": "rise", "effort": "quick"},
        {"flip": "true", "noise": "0.05", "method": "layer_cam"},
    ],
    ids=str,
)
def test_an_answer_is_made_again_and_holds(service, verified, bee, tmp_path, options):
    (tmp_path / "bee.jpg").write_bytes(bee)
    (tmp_path / "answer.json").write_text(service.ask("/explain", bee, **options).text)
    done = verified("answer.json", "bee.jpg")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The answer holds." in done.stdout


def test_what_was_altered_does_not_hold(service, verified, bee, photos, tmp_path):
    (tmp_path / "bee.jpg").write_bytes(bee)
    answer = service.ask("/explain", bee).json()

    def after(change) -> subprocess.CompletedProcess[str]:
        altered = json.loads(json.dumps(answer))
        change(altered)
        (tmp_path / "answer.json").write_text(json.dumps(altered))
        return verified("answer.json", "bee.jpg")

    def turned(found) -> None:
        found["evidence"][0]["grid"]["values"].reverse()

    for change, says in (
        (turned, "map for bee by grad_cam at top: does not hold"),
        (lambda found: found["predictions"][0].update(score=0.5), "scores: does not hold"),
        (lambda found: found["provenance"].update(digest="0" * 64), "bundle: does not hold"),
        (lambda found: found["evidence"][0].update(seen_box=[0, 0, 9, 9]), "place of the map"),
    ):
        done = after(change)
        assert done.returncode == 2, done.stdout
        assert says in done.stdout
    other = shutil.copy(sorted((photos / "hymenoptera/val/ants").glob("*.jpg"))[0], tmp_path / "bee.jpg")
    assert other
    assert "picture: does not hold" in after(lambda found: None).stdout


def test_bad_files_are_told(tmp_path, verified):
    (tmp_path / "x.json").write_text("no json")
    (tmp_path / "y.json").write_text("{}")
    for name, says in (
        ("x.json", "not JSON"),
        ("y.json", "no answer about a picture"),
        ("z.json", "no file"),
    ):
        done = verified(name, "x.json")
        assert done.returncode == 1
        assert says in done.stderr


def test_an_answer_about_a_large_jpeg_is_made_again_as_it_was(service, verified, corpus, tmp_path):
    (tmp_path / "large.jpg").write_bytes(corpus.encoded(corpus.scene(4000, 3000), "JPEG", quality=90))
    answer = service.ask("/explain", (tmp_path / "large.jpg").read_bytes(), method="hires_cam")
    assert answer.json()["provenance"]["reduction"] == 2
    assert (answer.json()["image"]["width"], answer.json()["image"]["height"]) == (4000, 3000)
    (tmp_path / "answer.json").write_text(answer.text)
    done = verified("answer.json", "large.jpg")
    assert done.returncode == 0, done.stdout + done.stderr
