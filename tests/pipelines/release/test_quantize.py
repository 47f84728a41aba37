"""int8 blocks are made of pictures, measured on others, kept if they agree, and served."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.backends.quantized import read_quantized
from models.bundle import PROBE_FILE, load_bundle
from models.explainer import Explainer
from pipelines.data.dataset import scan_folder
from pipelines.errors import DataError, RegistryError
from pipelines.release import quantize as quantization
from pipelines.release.quantize import describe_quantization, quantize
from pipelines.release.verify import verify_answer
from tests.support.asking import ask

pytest.importorskip("nncf", reason="needs NNCF: pip install 'camera-lucida[fast,quantise]'")


@pytest.fixture(scope="module")
def data(butterflies):
    whole = scan_folder(butterflies)
    return replace(whole, train=whole.train[:24], val=whole.val[:24], test=())


@pytest.fixture(scope="module")
def quantized_folder(bundle_folder, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8") / "bundle"
    shutil.copytree(bundle_folder, folder)
    bundle = load_bundle(folder)
    with pytest.MonkeyPatch.context() as patch:
        # A few drawn pictures and a head of chance weights: what is held here is the way, not the figure.
        patch.setattr(quantization, "LEAST_AGREEMENT", 0.8)
        quantize(bundle, data).write(folder, bundle.provenance.digest)
    return folder


def test_the_blocks_agree_and_their_figures_lie_beside_the_bundle(quantized_folder, bundle_folder):
    bundle = load_bundle(quantized_folder)
    assert bundle.provenance.digest == load_bundle(bundle_folder).provenance.digest
    figures = read_quantized(quantized_folder, bundle.provenance.digest).figures
    assert figures.images >= 20
    assert figures.calibration_images >= 20
    assert figures.top1_agreement >= 0.9
    assert figures.map_correlation >= 0.9
    assert f"{figures.images} held-out pictures" in describe_quantization(figures)


@pytest.mark.soak
def test_int8_is_quantised_and_close_calls_are_fp32s(quantized_folder):
    bundle = load_bundle(quantized_folder)
    exact, int8 = (Explainer(bundle, "openvino", precision=name).backend for name in ("fp32", "int8"))
    x = torch.cat([bundle.probe[0], bundle.probe[0].flip(3)])
    block = bundle.model.cam_block
    one, other = exact.until(block, x), int8.until(block, x)
    assert not np.allclose(one.numpy(), other.numpy(), atol=1e-4)
    assert np.corrcoef(one.numpy().ravel(), other.numpy().ravel())[0, 1] > 0.9
    even = bundle.model.after(block, one) * 0
    refined = int8.refine_low_margin(block, x, other, even)
    assert np.array_equal(refined.numpy(), one.numpy())


def test_an_answer_in_int8_says_so_and_holds_when_it_is_made_again(quantized_folder, tmp_path):
    from service.inference.model_card import describe_model
    from service.inference.predictor import Predictor
    from service.settings import Settings

    predictor = Predictor(quantized_folder, Settings(engine="openvino", precision="int8"))
    answer = ask(predictor, "explain", (quantized_folder / PROBE_FILE).read_bytes())
    assert (answer.provenance.engine, answer.provenance.precision) == ("openvino", "int8")
    assert describe_model(predictor)["int8"]["images"] >= 20
    findings = verify_answer(
        json.dumps(answer.model_dump(mode="json")),
        quantized_folder / PROBE_FILE,
        load_bundle(quantized_folder),
    )
    assert all(finding.holds for finding in findings), findings


@pytest.mark.soak
def test_blocks_that_agree_too_little_are_not_kept(bundle_folder, quantized_folder, data, monkeypatch):
    blocks = read_quantized(quantized_folder, load_bundle(quantized_folder).provenance.digest)
    monkeypatch.setattr(quantization, "_calibrate", lambda bundle, samples: blocks)
    monkeypatch.setattr(quantization, "LEAST_AGREEMENT", 1.01)
    with pytest.raises(RegistryError, match=r"not kept: on \d+ held-out pictures they agree with fp32 on"):
        quantize(load_bundle(bundle_folder), data)


def test_too_few_pictures_are_refused_before_any_work(bundle_folder, data):
    few = replace(data, train=data.train[:5])
    with pytest.raises(DataError, match=r"has 5 training and \d+ held-out pictures; int8 needs at least 20"):
        quantize(load_bundle(bundle_folder), few)
