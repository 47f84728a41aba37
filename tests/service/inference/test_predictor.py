"""The predictor in this process: names, orientations, warnings, threads."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import PIL.Image
import pytest

from models.attribution.parameters import RiseParameters
from models.cancellation import Deadline, deadline_scope
from models.errors import BundleError, UnknownChoice
from service.inference.model_card import describe_model
from service.inference.predictor import Predictor
from service.settings import Settings
from tests.support.asking import ask


@pytest.fixture(scope="module")
def predictor(bundle_folder) -> Iterator[Predictor]:
    with closing(Predictor(bundle_folder, Settings())) as made:
        yield made


@pytest.fixture(scope="module")
def bee(photos) -> bytes:
    return sorted((photos / "hymenoptera/val/bees").glob("*.jpg"))[0].read_bytes()


def test_the_fixed_fields_of_an_explanation(predictor, bee):
    answer = json.loads(ask(predictor, "explain", bee, top_k=2, overlay=True).model_dump_json())
    assert {"predictions", "image", "evidence", "provenance", "warnings", "timing_ms"} <= set(answer)
    width, height = PIL.Image.open(io.BytesIO(bee)).size
    assert {key: answer["image"][key] for key in ("width", "height", "view")} == {
        "width": width,
        "height": height,
        "view": "crop",
    }
    assert 0.4 < answer["image"]["seen_share"] < 0.8
    assert answer["predictions"][0]["label"] == "bee"
    assert sum(item["score"] for item in answer["predictions"]) == pytest.approx(1)
    assert len(answer["evidence"]) == 2
    first = answer["evidence"][0]
    assert (first["label"], first["method"], first["block"], first["status"]) == (
        "bee",
        "grad_cam",
        "top",
        "ok",
    )
    values = np.array(first["grid"]["values"])
    assert values.shape == (first["grid"]["rows"], first["grid"]["cols"]) == (7, 7)
    assert values.max() == pytest.approx(first["grid"]["max"])
    assert values.min() == pytest.approx(first["grid"]["min"])
    x0, y0, x1, y1 = first["seen_box"]
    assert first["cell_px"] == pytest.approx([(x1 - x0) / 7, (y1 - y0) / 7], abs=0.01)
    drawn = PIL.Image.open(io.BytesIO(base64.b64decode(first["overlay"].split(",")[1])))
    assert drawn.size == (width, height)
    assert set(answer["provenance"]) >= {"model", "version", "run_id", "digest"}
    assert answer["timing_ms"]["total"] >= answer["timing_ms"]["model"] > 0


def test_the_same_picture_gives_the_same_answer(predictor, bee):
    def answer() -> dict:
        return ask(predictor, "explain", bee, overlay=True).model_dump(exclude={"timing_ms"})

    assert answer() == answer()
    assert answer()["evidence"][0]["label"] == ask(predictor, "predict", bee).predictions[0].label


def test_eight_orientations_give_the_same_map(predictor, bee, encode):
    upright = PIL.Image.open(io.BytesIO(bee)).convert("RGB")
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    plain = ask(predictor, "explain", encode(upright)).evidence[0]
    for orientation, applied in undo.items():
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        stored = encode(upright.transpose(PIL.Image.Transpose(applied)), "PNG", exif=exif)
        turned = ask(predictor, "explain", stored).evidence[0]
        assert turned.label == plain.label
        np.testing.assert_allclose(turned.grid.values, plain.grid.values, atol=0.02 * plain.grid.max)


@pytest.mark.parametrize("budget", [True, False])
def test_only_a_budget_that_was_asked_for_makes_an_answer_cheaper(predictor, bee, budget):
    seconds = 2 * RiseParameters.QUICK["masks"] * predictor.costs.forward_seconds
    with deadline_scope(Deadline(seconds, budget=budget)):
        cut = ask(predictor, "explain", bee, method="rise", flip=True).cut
    cut = [text.split(":")[0] for text in cut]
    if budget:  # on a machine that grew slower meanwhile, the evidence may be cut short as well
        assert cut[:2] == ["smoothing", "effort"]
    else:
        assert cut == ["evidence"]


def test_a_class_by_name_a_block_by_name(predictor, bee):
    answer = ask(predictor, "explain", bee, target="flamingo", block="stage5.2")
    assert [(item.label, item.block) for item in answer.evidence] == [("flamingo", "stage5.2")]
    assert (answer.evidence[0].grid.rows, answer.evidence[0].grid.cols) == (14, 14)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"target": "wasp"}, "ant, bee, flamingo"),
        ({"block": "layer4"}, "stage7.0"),
        ({"top_k": 0}, "1 to 20"),
        ({"top_k": 99}, "1 to 20"),
        ({"against": "wasp"}, "ant, bee, flamingo"),
        ({"method": "lime"}, "grad_cam, hires_cam"),
    ],
)
def test_unknown_names_are_refused_with_the_choices(predictor, bee, options, names):
    with pytest.raises(UnknownChoice, match=names):
        ask(predictor, "explain", bee, **options)


def test_warnings_say_what_a_reader_should_know(predictor, encode):
    wide = ask(predictor, "explain", encode(np.full((40, 400, 3), 120, np.uint8)))
    assert any("cropped away" in text for text in wide.warnings)
    tiny = ask(predictor, "explain", encode(np.full((1, 1, 3), 120, np.uint8)))
    assert any("small" in text for text in tiny.warnings)
    for answer in (wide, tiny):
        for item in answer.evidence:
            assert item.status == "ok" or any(item.label in text for text in answer.warnings)


def test_threads_share_one_predictor(predictor, bee):
    alone = [
        ask(predictor, "explain", bee, target=name).evidence[0].grid.values
        for name in ("ant", "bee", "flamingo")
    ]
    with ThreadPoolExecutor(8) as pool:
        names = ["ant", "bee", "flamingo"] * 16
        together = list(
            pool.map(lambda name: ask(predictor, "explain", bee, target=name).evidence[0].grid.values, names)
        )
    assert all(values == alone[i % 3] for i, values in enumerate(together))


def test_activations_and_their_sheet(predictor, bee):
    answer = ask(predictor, "activations", bee, blocks="stem,top", channels=3)
    assert [(item.block, item.shape) for item in answer.activations] == [
        ("stem", [32, 112, 112]),
        ("top", [1280, 7, 7]),
    ]
    drawn = ask(predictor, "activations", bee, blocks="stem,top", channels=3, picture=True)
    sheet = PIL.Image.open(io.BytesIO(drawn.data))
    assert sheet.format == "PNG"
    assert sheet.width > 500
    assert len(ask(predictor, "activations", bee, blocks="", channels=1).activations) == 18


def test_the_card_is_json_and_says_what_is_served(predictor):
    said = json.loads(json.dumps(describe_model(predictor)))
    assert said["classes"] == ["ant", "bee", "flamingo"]
    assert said["cam_block"] in said["blocks"]


def test_a_broken_bundle_never_becomes_a_predictor(bundle_folder, tmp_path):
    import shutil

    copy = shutil.copytree(bundle_folder, tmp_path / "copy")
    (copy / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(BundleError, match="weights"):
        Predictor(copy, Settings())


def test_the_service_needs_no_tracker_and_no_torch_to_import():
    script = (
        "import sys, service.app\n"
        "print(sorted({'mlflow', 'pipelines', 'ray', 'torch', 'captum'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    script = (
        "import sys, service.inference.predictor\n"
        "print(sorted({'mlflow', 'pipelines', 'bentoml'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
