"""OpenVINO gives torch's logits and maps, and a backend that does not is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from models.attribution.forward import predict_logits, run_forward
from models.attribution.registry import attribute_each
from models.backends.eager import EagerBackend
from models.backends.openvino import OpenVinoBackend
from models.backends.registry import choose_backend, create_backend
from models.bundle import PROBE_FILE
from models.errors import BundleError, EngineUnavailable, UnknownChoice
from models.images.decode import read_image
from models.networks.transfer_model import TransferModel


@pytest.fixture(scope="module")
def openvino(imagenet, random_batch):
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'camera-lucida[fast]'")
    return create_backend("openvino", imagenet, probe=random_batch(1, 0))


@pytest.fixture(scope="module")
def bfloat16(imagenet, random_batch):
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'camera-lucida[fast]'")
    try:
        return create_backend("openvino", imagenet, probe=random_batch(1, 0), precision="bf16")
    except EngineUnavailable as error:
        pytest.skip(str(error))


def test_openvino_gives_torchs_logits_and_maps(imagenet, openvino, random_batch):
    for n in (1, 3):
        x = random_batch(n, 7)
        ours, fast = run_forward(imagenet, x), run_forward(imagenet, x, backend=openvino)
        torch.testing.assert_close(fast.logits, ours.logits, atol=1e-4, rtol=1e-4)
        targets = ours.logits.argmax(1).tolist()
        for one, other in zip(attribute_each(ours, targets), attribute_each(fast, targets), strict=True):
            assert np.corrcoef(one.values.ravel(), other.values.ravel())[0, 1] > 0.9999
            assert other.settings["engine"] == "openvino"


@pytest.mark.soak
def test_bfloat16_agrees_on_real_photographs(imagenet, bfloat16, photos):
    paths = sorted((photos / "caltech_animals").glob("*/*/*.jpg")) + sorted(
        (photos / "hymenoptera/val").glob("*/*.jpg")
    )
    exact = create_backend("eager", imagenet, probe=torch.zeros(1, 3, 224, 224))
    agree, correlations = [], []
    for start in range(0, len(paths), 16):
        x = torch.stack(
            [imagenet.geometry.prepare(read_image(path))[0] for path in paths[start : start + 16]]
        )
        one, other = run_forward(imagenet, x, backend=exact), run_forward(imagenet, x, backend=bfloat16)
        targets = one.logits.argmax(1)
        agree += (targets == other.logits.argmax(1)).tolist()
        pairs = zip(
            attribute_each(one, targets.tolist()), attribute_each(other, targets.tolist()), strict=True
        )
        correlations += [np.corrcoef(a.values.ravel(), b.values.ravel())[0, 1] for a, b in pairs]
    print(f"bf16, {len(agree)} photographs: top-1 {np.mean(agree):.4f}, maps {np.mean(correlations):.4f}")
    assert np.mean(agree) >= 0.99
    assert np.mean(correlations) >= 0.99


def test_another_block_or_size_is_run_by_torch(imagenet, openvino, random_batch):
    x = random_batch(1, 8)
    found = run_forward(imagenet, x, block="stage5.2", backend=openvino)
    assert torch.equal(found.map, run_forward(openvino.model, x, block="stage5.2").map)
    wide = torch.randn(1, 3, 224, 320)
    assert run_forward(imagenet, wide, backend=openvino).map.shape == (1, 1280, 7, 10)


def test_threads_share_one_compiled_network(imagenet, openvino, random_batch):
    xs = [random_batch(1, seed) for seed in range(6)]
    alone = [predict_logits(openvino, x) for x in xs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: predict_logits(openvino, xs[i % 6]), range(60)))
    assert all(torch.allclose(value, alone[i % 6], atol=1e-5) for i, value in enumerate(together))


def test_a_backend_whose_logits_are_off_is_refused(imagenet, openvino, random_batch, monkeypatch):
    monkeypatch.setattr(OpenVinoBackend, "until", lambda self, block, x: imagenet.until(block, x) * 1.01)
    with pytest.raises(BundleError, match=r"openvino \(fp32\) gives logits that are off by"):
        create_backend("openvino", imagenet, probe=random_batch(1, 0))


def test_a_backend_that_gives_no_numbers_is_refused(imagenet, random_batch, monkeypatch):
    monkeypatch.setattr(EagerBackend, "until", lambda self, block, x: imagenet.until(block, x) * float("nan"))
    with pytest.raises(BundleError, match="off by nan"):
        create_backend("eager", imagenet, probe=random_batch(1, 0))


def test_the_choices_are_named(random_batch):
    model = TransferModel.create("resnet18", ["a", "b"], pretraining="none")
    with pytest.raises(UnknownChoice, match="auto, eager, compile, openvino"):
        create_backend("tensorrt", model, probe=random_batch(1, 0))
    with pytest.raises(UnknownChoice, match="auto, fp32, bf16, int8"):
        create_backend("eager", model, probe=random_batch(1, 0), precision="int4")
    with pytest.raises(EngineUnavailable, match="eager on cpu computes in fp32, not bf16"):
        create_backend("eager", model, probe=random_batch(1, 0), precision="bf16")
    assert create_backend("eager", model, probe=random_batch(1, 0)).name == "eager"


def test_auto_takes_the_fastest_engine_whose_logits_agree(imagenet, random_batch):
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'camera-lucida[fast]'")
    probe = random_batch(1, 0)
    backend, trials = choose_backend(imagenet, probe=probe, precision="fp32")
    times = {trial.name: trial.milliseconds for trial in trials if trial.precision == "fp32"}
    assert times.keys() == {"eager", "openvino"}
    assert backend.name == min(times, key=lambda name: times[name])
    assert backend.precision == "fp32"
    assert predict_logits(backend, probe).argmax() == imagenet(probe).argmax()


def test_an_engine_whose_logits_are_off_is_passed_over_with_its_reason(imagenet, random_batch, monkeypatch):
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'camera-lucida[fast]'")
    monkeypatch.setattr(OpenVinoBackend, "until", lambda self, block, x: imagenet.until(block, x) * 1.5)
    backend, trials = choose_backend(imagenet, probe=random_batch(1, 0))
    assert (backend.name, backend.precision) == ("eager", "fp32")
    refusals = [trial.refusal for trial in trials if trial.name == "openvino"]
    assert refusals
    assert all("off by" in text or "does not compute" in text for text in refusals)


def test_a_precision_that_no_engine_has_is_refused_with_what_was_tried(random_batch):
    model = TransferModel.create("resnet18", ["a", "b"], pretraining="none")
    with pytest.raises(EngineUnavailable, match=r"No engine computes in int8 here: none was tried"):
        choose_backend(model, probe=random_batch(1, 0), precision="int8")
    with pytest.raises(UnknownChoice, match="auto, fp32, bf16, int8"):
        choose_backend(model, probe=random_batch(1, 0), precision="half")
    with pytest.raises(EngineUnavailable, match="lucida package --quantise"):
        create_backend("openvino", model, probe=random_batch(1, 0), precision="int8")


@pytest.mark.soak
def test_torch_compile_gives_torchs_logits_and_maps(random_batch):
    torch.manual_seed(0)
    model = TransferModel.create("resnet18", ["a", "b", "c"], pretraining="none")
    compiled = create_backend("compile", model, probe=random_batch(1, 0))
    for n in (1, 3):
        x = random_batch(n, 7)
        ours, fast = run_forward(model, x), run_forward(model, x, backend=compiled)
        torch.testing.assert_close(fast.logits, ours.logits, atol=1e-4, rtol=1e-4)
        targets = ours.logits.argmax(1).tolist()
        for one, other in zip(attribute_each(ours, targets), attribute_each(fast, targets), strict=True):
            assert np.abs(one.values - other.values).max() < 1e-4 * np.abs(one.values).max()
            assert other.settings["engine"] == "compile"
    # Another size is torch's own.
    assert run_forward(model, torch.randn(1, 3, 224, 320), backend=compiled).map.shape == (1, 512, 7, 10)


def test_the_inference_copy_leaves_the_model_as_it_was(random_batch):
    model = TransferModel.create("resnet18", ["a", "b"], pretraining="none")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    backend = create_backend("eager", model, probe=random_batch(1, 0))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in backend.model.modules())
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_answer_says_what_ran(bundle_folder):
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'camera-lucida[fast]'")
    from service.inference.predictor import Predictor
    from service.settings import Settings
    from tests.support.asking import ask

    data = (bundle_folder / PROBE_FILE).read_bytes()
    answers = {
        name: ask(Predictor(bundle_folder, Settings(engine=name)), "explain", data)
        for name in ("eager", "openvino")
    }
    assert {name: answer.provenance.engine for name, answer in answers.items()} == {
        "eager": "eager",
        "openvino": "openvino",
    }
    np.testing.assert_allclose(
        answers["eager"].evidence[0].grid.values, answers["openvino"].evidence[0].grid.values, atol=1e-4
    )
