from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from models import bundle, engines
from models.errors import BundleError, UnknownChoice
from models.explain.grad_cam import grad_cam, look
from models.transfer import TransferModel


def batch(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 3, 224, 224, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def openvino(imagenet):
    pytest.importorskip("openvino", reason="the extra 'fast' is not installed")
    return engines.prepare("openvino", imagenet, probe=batch(1, 0))


def test_openvino_gives_torchs_logits_and_maps(imagenet, openvino):
    for n in (1, 3):
        x = batch(n, 7)
        ours, fast = look(imagenet, x), look(imagenet, x, prefix=openvino)
        torch.testing.assert_close(fast.logits, ours.logits, atol=1e-4, rtol=1e-4)
        for item in range(n):
            target = int(ours.logits[item].argmax())
            one, other = (grad_cam(imagenet, each, item, [target])[0].values for each in (ours, fast))
            assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9999


def test_another_block_is_run_by_torch(imagenet, openvino):
    x = batch(1, 8)
    found = look(imagenet, x, block="stage5.2", prefix=openvino)
    assert torch.equal(found.activation, look(imagenet, x, block="stage5.2").activation)


def test_threads_share_one_compiled_network(imagenet, openvino):
    xs = [batch(1, seed) for seed in range(6)]
    alone = [openvino(x) for x in xs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: openvino(xs[i % 6]), range(60)))
    assert all(torch.allclose(value, alone[i % 6], atol=1e-5) for i, value in enumerate(together))


def test_an_engine_whose_logits_are_off_is_refused(imagenet, openvino, monkeypatch):
    monkeypatch.setattr(
        engines.OpenVinoPrefix, "__call__", lambda self, x: imagenet.until(self.block, x) * 1.01
    )
    with pytest.raises(BundleError, match="openvino gives logits that are off by"):
        engines.prepare("openvino", imagenet, probe=batch(1, 0))


def test_the_choices_are_named():
    model = TransferModel.create("resnet18", ["a", "b"], pretraining="none")
    with pytest.raises(UnknownChoice, match="eager, openvino"):
        engines.prepare("tensorrt", model, probe=batch(1, 0))
    assert engines.prepare("eager", model, probe=batch(1, 0)).name == "eager"


def test_the_answer_says_what_ran(bundle_folder, encode):
    pytest.importorskip("openvino", reason="the extra 'fast' is not installed")
    from service.engine import Engine
    from service.settings import Settings

    data = (bundle_folder / bundle.PROBE).read_bytes()
    answers = {name: Engine(bundle_folder, Settings(engine=name)).explain(data) for name in engines.ENGINES}
    assert {name: answer.provenance.engine for name, answer in answers.items()} == {
        "eager": "eager",
        "openvino": "openvino",
    }
    np.testing.assert_allclose(
        answers["eager"].evidence[0].grid.values, answers["openvino"].evidence[0].grid.values, atol=1e-4
    )
