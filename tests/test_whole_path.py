"""The README's own commands on real photographs: train, promote, package, a real `bentoml serve`, answers."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import mlflow
import numpy as np
import PIL.Image
import pytest
import torch

from tests.support.methods import FOR_MAPS
from tests.support.serving import BIN, PROJECT, Served, start_service

UNDO = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}


def readme_commands() -> list[list[str]]:
    """The commands of the README's section on one's own pictures, word by word."""
    text = (PROJECT / "README.md").read_text()
    section = text.split("## Your own pictures")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    return [shlex.split(line, comments=True) for line in "".join(blocks).splitlines() if line.strip()]


@dataclass
class World:
    """A working folder after the README's commands were run in it, and the service that they end with."""

    folder: Path
    environment: dict[str, str]
    url: str
    printed: dict[str, str]
    served: Served


def photographs(photos: Path) -> list[Path]:
    """120 of hymenoptera's 397: 35 of each class to train on, 25 to validate."""
    counts = {"train": 35, "val": 25}
    return [
        path
        for split, count in counts.items()
        for name in ("ants", "bees")
        for path in sorted((photos / "hymenoptera" / split / name).glob("*.jpg"))[:count]
    ]


@pytest.fixture(scope="module")
def world(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    for path in photographs(photos):
        place = folder / "my_pictures" / path.relative_to(photos / "hymenoptera")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    environment = os.environ | {
        "BENTOML_HOME": str(folder / "bentoml"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "BENTOML_DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_WAIT_POLICY": "PASSIVE",
        # What is asked here is what the checks say; 400 forwards come near the usual ten seconds on a slow
        # machine, and would be cut. Deadlines have tests of their own.
        "LUCIDA_DEADLINE_MS": "30000",
    }
    printed: dict[str, str] = {}
    served = None
    for words in readme_commands():
        if words[0] == "lucida":
            done = subprocess.run(
                [str(BIN / words[0]), *words[1:]], capture_output=True, text=True, cwd=folder, env=environment
            )
            assert done.returncode == 0, f"{words}: {done.stdout[-1500:]}{done.stderr[-3000:]}"
            printed[words[1]] = done.stdout
        elif words[:2] == ["bentoml", "serve"]:
            served = start_service(folder, folder / "service.log", environment, target=words[2])
            served.wait_ready(120)
    assert served is not None
    yield World(folder, environment, served.url, printed, served)
    served.stop()


def ask(world: World, route: str, data: bytes, /, **fields: str) -> httpx.Response:
    return httpx.post(
        f"{world.url}{route}",
        files={"image": ("p.jpg", data, "image/jpeg")},
        data=fields,
        timeout=60,
        trust_env=False,
    )


@pytest.fixture(scope="module")
def val(photos: Path) -> dict[str, list[bytes]]:
    return {
        name: [path.read_bytes() for path in sorted((photos / "hymenoptera/val" / name).glob("*.jpg"))]
        for name in ("ants", "bees")
    }


def test_the_commands_of_the_readme_are_those_that_ran(world):
    assert {"train", "promote", "package", "explain", "review"} <= set(world.printed)
    assert "champion" in world.printed["promote"]


def test_labels_of_real_photographs_over_http(world, val):
    right = [
        ask(world, "/predict", data).json()["predictions"][0]["label"] == name
        for name in val
        for data in val[name][:30]
    ]
    assert np.mean(right) >= 0.85


def test_every_answer_names_its_model_version_run_and_bundle(world, val):
    answer = ask(world, "/explain", val["bees"][0], overlay="true").json()
    origin = answer["provenance"]
    mlflow.set_tracking_uri(world.environment["MLFLOW_TRACKING_URI"])
    champion = mlflow.MlflowClient().get_model_version_by_alias("my_pictures", "champion")
    assert (origin["model"], origin["version"], origin["run_id"]) == (
        "my_pictures",
        str(champion.version),
        champion.run_id,
    )
    card = httpx.get(f"{world.url}/model", trust_env=False).json()
    assert card["digest"] == origin["digest"]
    assert card["classes"] == ["ants", "bees"]
    run = mlflow.get_run(champion.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["val_accuracy"] == pytest.approx(card["metrics"]["val_accuracy"], abs=1e-6)
    assert run.data.metrics["val_accuracy"] >= 0.90


def test_the_run_has_metrics_pictures_and_a_review_in_mlflow(world):
    mlflow.set_tracking_uri(world.environment["MLFLOW_TRACKING_URI"])
    client = mlflow.MlflowClient()
    run_id = client.get_model_version_by_alias("my_pictures", "champion").run_id
    run = client.get_run(run_id)
    files = {item.path for item in client.list_artifacts(run_id)}
    pictures = {"augmented_samples.png", "confusion_val.png", "reliability_val.png", "history.png"}
    assert pictures | {"config.toml", "environment.txt", "dataset.json", "forensics", "review"} <= files
    reviews = {item.path for item in client.list_artifacts(run_id, "review")}
    assert {"review/review.html", "review/mistakes.png"} <= reviews
    checked = mlflow.artifacts.load_dict(f"runs:/{run_id}/explanations/sanity.json")["methods"]
    assert set(checked) == set(FOR_MAPS)
    assert not checked["grad_cam"]["barred"]
    assert run.data.params["backbone"] == "efficientnet_lite0"
    assert run.inputs.dataset_inputs[0].dataset.digest == run.data.tags["dataset.digest"][:36]
    children = client.search_runs(
        [run.info.experiment_id],
        filter_string=f"tags.`mlflow.parentRunId` = '{run_id}'",
        order_by=["start_time ASC"],
    )
    assert [child.info.run_name for child in children] == ["1 head", "2 top blocks"]
    for first, child in zip((1, 0), children, strict=True):
        # Step 0 is the state that a phase began with; an untrained head's says nothing.
        losses = client.get_metric_history(child.info.run_id, "val_loss")
        assert [point.step for point in losses] == list(range(first, int(child.data.params["epochs"]) + 1))
        assert child.data.params["batch_norm"] == "frozen"


def test_one_picture_in_eight_orientations_gets_one_explanation(world, val, encode):
    upright = PIL.Image.open(io.BytesIO(val["bees"][3])).convert("RGB")
    plain = ask(world, "/explain", encode(upright)).json()
    size = {"width": upright.width, "height": upright.height}
    assert plain["image"] == size | {"view": "whole", "seen_share": 1.0}
    scale = plain["evidence"][0]["grid"]["max"]
    for orientation, applied in UNDO.items():
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        stored = upright.transpose(PIL.Image.Transpose(applied))
        twin = ask(world, "/explain", encode(stored, "PNG", exif=exif)).json()
        assert twin["image"] == plain["image"]
        assert twin["predictions"][0]["label"] == plain["predictions"][0]["label"]
        np.testing.assert_allclose(
            twin["evidence"][0]["grid"]["values"], plain["evidence"][0]["grid"]["values"], atol=0.02 * scale
        )
    for format in ("BMP", "TIFF", "GIF", "WEBP"):
        twin = ask(world, "/explain", encode(upright, format)).json()
        assert twin["predictions"][0]["label"] == plain["predictions"][0]["label"]


def test_the_page_offers_the_models_own_validation_pictures_with_their_labels(world):
    offered = httpx.get(f"{world.url}/samples", trust_env=False).json()
    assert len(offered["samples"]) >= 2
    assert set(offered["labels"]) == set(offered["samples"])
    assert set(offered["labels"].values()) == {"ants", "bees"}
    for name in offered["samples"][:2]:
        data = httpx.get(f"{world.url}/samples/{name}", trust_env=False).content
        assert max(PIL.Image.open(io.BytesIO(data)).size) <= 512
        answer = ask(world, "/predict", data).json()
        assert answer["predictions"][0]["label"] == offered["labels"][name], (
            "the surest right ones come first"
        )


def test_training_said_how_much_of_the_pictures_the_model_sees(world):
    said = " ".join(world.printed["train"].split())
    assert "The model sees the whole of each picture, resized to 224 x 224 pixels." in said


def test_the_heatmap_is_a_picture_of_the_pictures_size(world, val):
    reply = ask(world, "/heatmap", val["ants"][1], target="bees", encoding="png")
    assert reply.headers["content-type"] == "image/png"
    assert reply.headers["x-lucida-label"] == "bees"
    drawn = PIL.Image.open(io.BytesIO(reply.content))
    assert drawn.size == PIL.Image.open(io.BytesIO(val["ants"][1])).size


def test_activations_as_json_and_as_a_picture(world, val):
    found = ask(world, "/activations", val["ants"][1], blocks="stem,top", channels="2").json()["activations"]
    assert [item["block"] for item in found] == ["stem", "top"]
    sheet = ask(world, "/activations", val["ants"][1], blocks="stem", picture="true")
    assert PIL.Image.open(io.BytesIO(sheet.content)).format == "PNG"


def test_checks_of_an_explanation_over_http(world, val):
    bee = val["bees"][0]
    explained = ask(
        world, "/explain", bee, method="hires_cam", against="ants", flip="true", faithfulness="true"
    ).json()
    (found,) = explained["evidence"]
    assert (found["method"], found["against"]) == ("hires_cam", "ants")
    assert found["faithfulness"]["verdict"].startswith("The model reacts")
    assert found["sanity"], "checked when the model was trained"
    trusted = ask(world, "/trust", bee, checks="shifts,agreement").json()
    assert trusted["shifts"]["verdict"]
    assert trusted["agreement"]["verdict"]
    assert trusted["sweep"] is None
    traced = ask(world, "/trace", bee).json()
    assert traced["speaking_for"]
    covered = ask(world, "/whatif", bee, share="0.2", cover="mean").json()
    assert {item["label"] for item in covered["changes"]} == {"ants", "bees"}
    assert ask(world, "/split", bee).json()["kind"] == "residual"
    for route in ("/trust", "/trace", "/split"):
        sheet = ask(world, route, bee, picture="true")
        assert PIL.Image.open(io.BytesIO(sheet.content)).format == "PNG", route
    inside = httpx.get(f"{world.url}/anatomy", trust_env=False).json()
    assert inside["backbone"] == "efficientnet_lite0"
    drawn = httpx.get(f"{world.url}/anatomy?picture=true", trust_env=False)
    assert drawn.headers["content-type"] == "image/png"
    made = httpx.get(
        f"{world.url}/filters?block=stage2.1&channels=3&steps=4", timeout=60, trust_env=False
    ).json()
    assert made["templates"][0]["channel"] == 3


@pytest.mark.parametrize(
    ("route", "fields", "says"),
    [
        ("/explain", {"method": "lime"}, "grad_cam"),
        ("/explain", {"noise": "7"}, "noise is 7"),
        ("/explain", {"noise": "nan"}, "noise"),
        ("/explain", {"against": "wasps"}, "ants, bees"),
        ("/explain", {"target": "ants", "against": "ants"}, "two classes"),
        ("/trust", {"checks": "truth"}, "faithfulness"),
        ("/whatif", {"box": "1,2,3"}, "x0,y0,x1,y1"),
        ("/whatif", {"box": "5,5,5,9"}, "no area"),
        ("/whatif", {"share": "2"}, "less than 1"),
        ("/whatif", {"cover": "black"}, "'blur' or 'mean'"),
        ("/split", {"block": "top"}, "neither branches nor a skip"),
        ("/whatif", {"box": "-20,-20,-10,-10"}, "outside"),
        ("/whatif", {"target": "ants", "against": "ants"}, "two classes"),
        ("/whatif", {"noise": "0.1"}, "target, against, negative, block, method, parameters, flip, box"),
        ("/predict", {"method": "rise"}, "deadline_ms"),
        ("/explain", {"method": "rise", "flip": "true", "noise": "0.1"}, "forwards"),
    ],
    ids=str,
)
def test_bad_options_of_checks_name_the_rule(world, val, route, fields, says):
    reply = ask(world, route, val["bees"][0], **fields)
    assert reply.status_code == 422, reply.text
    assert says in reply.json()["error"]


@pytest.mark.parametrize(
    "query",
    [
        "block=conv9",
        "channels=999999",
        "channels=x",
        "channels=",
        "steps=0",
        "steps=9999999",
        "channels=1,2,3,4,5,6,7,8,9",
    ],
)
def test_bad_filters_name_the_rule(world, query):
    reply = httpx.get(f"{world.url}/filters?{query}", timeout=60, trust_env=False)
    assert reply.status_code == 422
    assert set(reply.json()) == {"error", "kind"}


def raw_form(picture: bytes, name: bytes, text: bytes, charset: bytes = b"") -> dict[str, object]:
    """A form written by hand, whose second field's name tries to close its quotes."""
    body = (
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="p.jpg"\r\n\r\n' + picture + b"\r\n"
        b'--b\r\nContent-Disposition: form-data; name="' + name + b'"\r\n\r\n' + text + b"\r\n--b--\r\n"
    )
    return {"content": body, "headers": {"content-type": b"multipart/form-data; boundary=b" + charset}}


def test_a_url_or_a_path_is_refused_and_never_fetched(world, val, tmp_path):
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.settimeout(1.0)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/bee.jpg"
        for text in (address, f'"{address}"', "file:///etc/hostname", "/etc/hostname"):
            for route in ("/predict", "/explain", "/heatmap", "/activations"):
                for request in (
                    {"files": {"image": ("p.jpg", val["ants"][0]), 'image"; y="': (None, text)}},
                    raw_form(val["ants"][0], b'image\\"; y=\\"', text.encode()),
                    raw_form(val["ants"][0], b"\\ud800", text.encode(), charset=b"; charset=unicode_escape"),
                    {"files": {"image": (None, text)}},
                    {"data": {"image": text}},
                    {"json": {"image": text}},
                    {"files": {"image": ("p.jpg", val["ants"][0])}, "data": {"image": text}},
                ):
                    reply = httpx.post(f"{world.url}{route}", timeout=20, trust_env=False, **request)
                    assert reply.status_code in {400, 415, 422}, (route, request, reply.text)
                    assert set(reply.json()) == {"error", "kind"}
        with pytest.raises(TimeoutError):
            trap.accept()


BAD_BODIES = [
    (b"", "multipart/form-data; boundary=x"),
    (b"--x\r\n", "multipart/form-data; boundary=x"),
    (
        b"--x\r\nContent-Disposition: form-data; name=image\r\n\r\nabc\r\n--x--\r\n",
        "multipart/form-data; boundary=x",
    ),
    (b"garbage", "multipart/form-data"),
    (b"garbage", "multipart/form-data; boundary="),
    (b"\x80\x04.", "application/vnd.bentoml+pickle"),
    (b"{}", "application/json"),
    (b"image=x", "application/x-www-form-urlencoded"),
    (b"\x00" * 100, "image/jpeg"),
    (b"x", ""),
]


@pytest.mark.parametrize("body", range(len(BAD_BODIES)))
def test_malformed_requests_get_one_sentence(world, body):
    content, kind = BAD_BODIES[body]
    for route in ("/predict", "/explain", "/heatmap", "/activations"):
        headers = {"content-type": kind} if kind else {}
        reply = httpx.post(
            f"{world.url}{route}", content=content, headers=headers, timeout=20, trust_env=False
        )
        assert 400 <= reply.status_code < 500, reply.text
        answer = reply.json()
        assert set(answer) == {"error", "kind"}
        assert answer["error"].endswith(".")
        assert "Traceback" not in answer["error"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"target": "wasps"}, "ants, bees"),
        ({"target": "true"}, "ants, bees"),
        ({"block": "layer4"}, "stage7.0"),
        ({"top_k": "0"}, "1 to 20"),
        ({"top_k": "many"}, "top_k"),
        ({"overlay": "perhaps"}, "overlay"),
        ({"topk": "3"}, "top_k"),
    ],
    ids=str,
)
def test_bad_options_name_the_rule(world, val, fields, says):
    reply = ask(world, "/explain", val["ants"][0], **fields)
    assert reply.status_code == 422
    assert says in reply.json()["error"]


def test_bad_pictures_over_http(world, val, encode):
    cases = {
        b"": 400,
        b"no picture": 415,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>": 415,
        val["ants"][0][:500]: 400,
        encode(PIL.Image.new("1", (9000, 9000)), "PNG"): 413,
        os.urandom(21_000_000): 413,
    }
    for data, status in cases.items():
        reply = ask(world, "/explain", data)
        assert reply.status_code == status, (data[:20], reply.text)
        assert set(reply.json()) == {"error", "kind"}
    odd = {
        "cmyk.jpg": encode(PIL.Image.new("CMYK", (50, 40), (10, 200, 90, 0)), "JPEG"),
        "one.png": encode(PIL.Image.new("L", (1, 1)), "PNG"),
        "long.png": encode(PIL.Image.new("RGB", (5000, 1)), "PNG"),
        "alpha.webp": encode(PIL.Image.new("RGBA", (64, 64), (1, 2, 3, 40)), "WEBP"),
    }
    for name, data in odd.items():
        files = {"image": ("x" * 500 + "\0/../" + name, data, "text/html")}
        reply = httpx.post(f"{world.url}/explain", files=files, timeout=60, trust_env=False)
        assert reply.status_code == 200, (name, reply.text)
        json.loads(reply.text, parse_constant=lambda text: pytest.fail(f"{text} in the answer"))


def test_many_clients_at_once_each_get_their_own_answer(world, val):
    pictures = val["ants"][:6] + val["bees"][:6]
    alone = [ask(world, "/explain", data).json() for data in pictures]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: ask(world, "/explain", data).json(), pictures * 4))
    for position, answer in enumerate(together):
        expected = alone[position % len(pictures)]
        assert answer["evidence"] == expected["evidence"]
        assert answer["provenance"] == expected["provenance"]


def test_open_api_names_every_route(world):
    paths = httpx.get(f"{world.url}/docs.json", trust_env=False).json()["paths"]
    assert {"/predict", "/explain", "/heatmap", "/activations"} <= set(paths)
    assert httpx.get(f"{world.url}/livez", trust_env=False).status_code == 200


def test_the_review_was_logged_to_the_run_and_to_no_other(world):
    mlflow.set_tracking_uri(world.environment["MLFLOW_TRACKING_URI"])
    client = mlflow.MlflowClient()
    experiments = [each.experiment_id for each in client.search_experiments()]
    names = sorted(run.info.run_name for run in client.search_runs(experiments))
    assert names[:2] == ["1 head", "2 top blocks"]
    assert len(names) == 3
    assert re.fullmatch(r"my_pictures efficientnet_lite0 default seed 0 .* \d\d:\d\d:\d\d", names[2])


def test_the_batch_and_the_review_of_the_readme_are_there(world):
    page = (world.folder / "review.html").read_text()
    assert page.count("<article") >= 3
    assert (world.folder / "explained/_SUCCESS").exists()
    assert len(list((world.folder / "explained/overlays").glob("*.jpg"))) == 120


def test_the_clone_itself_can_be_served_and_sigterm_ends_it(world, val, tmp_path):
    served = start_service(PROJECT, tmp_path / "log", world.environment)
    try:
        served.wait_ready(120)
        assert served.ask("/predict", val["bees"][0]).json()["provenance"]["model"] == "my_pictures"
    finally:
        assert served.stop() in {0, -signal.SIGTERM, 143}
    with pytest.raises(httpx.TransportError):
        served.get("/livez")


def test_a_broken_bundle_is_never_ready_and_the_log_says_why(world, bundle_folder, tmp_path):
    copy = shutil.copytree(bundle_folder, tmp_path / "broken")
    (copy / "weights.safetensors").write_bytes(b"cut")
    log = tmp_path / "log"
    served = start_service(PROJECT, log, world.environment | {"LUCIDA_BUNDLE": str(copy)})
    try:
        deadline = time.monotonic() + 60
        while "weights.safetensors does not have the digest" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        with pytest.raises(httpx.TransportError):
            served.get("/readyz")
    finally:
        os.killpg(served.process.pid, signal.SIGKILL)
        served.process.wait()


def test_the_bento_pins_exactly_and_carries_its_own_dockerfile(world):
    (bento,) = (world.folder / "bentoml/bentos/my_pictures").glob("*/bento.yaml")
    pins = [
        line.split(";")[0].strip()
        for line in (bento.parent / "env/python/requirements.txt").read_text().splitlines()
        if line and not line.startswith(("#", "-"))
    ]
    assert len(pins) > 60
    assert all("==" in pin for pin in pins)
    assert f"torch=={torch.__version__.split('+')[0]}" in pins
    dockerfile = (bento.parent / "env/docker/Dockerfile").read_text()
    assert "FROM python:3.11-slim" in dockerfile
    assert "OMP_WAIT_POLICY=PASSIVE" in dockerfile
    assert (bento.parent / "src/service/web/index.html").exists(), "the page is shipped"
