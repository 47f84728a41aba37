"""A network computes on its device, all else on the host: no tensor of one meets one of the other."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from models.attribution.targets import make_target
from models.backends.eager import EagerBackend
from models.backends.registry import create_backend
from models.bundle import load_bundle, save_bundle
from models.devices import (
    available_devices,
    describe_device,
    is_device_name,
    resolve_device,
    run_in_parts,
    to_device,
    to_host,
    to_numpy,
)
from models.errors import ConfigError, EngineUnavailable, OutOfDeviceMemory
from models.explainer import Explainer, ExplainOptions
from models.introspection.activations import collect_activations
from models.introspection.decomposition import decompose
from models.introspection.feature_visualization import synthesize_templates
from models.introspection.gradcam_trace import trace_grad_cam
from models.metrics.audit import run_audit
from models.metrics.randomization import check_randomization
from models.networks.transfer_model import TransferModel
from tests.conftest import PROJECT
from tests.support.methods import FOR_MAPS
from tests.support.remote_device import REMOTE, RemoteTensor, remote_device, send

CLASSES = ["ant", "bee", "wasp"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = TransferModel.create("resnet18", CLASSES, pretraining="none")
    model.geometry = replace(model.geometry, resize=64, crop_height=64, crop_width=64)
    return model


@pytest.fixture(scope="module")
def remote(model):
    return send(copy.deepcopy(model))


@pytest.fixture(scope="module")
def image():
    from models import image_from_array

    return image_from_array(np.random.default_rng(0).integers(0, 256, (240, 300, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def x(model, image):
    return model.geometry.prepare(image)[0]


# ---------------------------------------------------------------- the pretended device itself


def test_the_pretended_device_refuses_what_a_real_one_refuses(remote, x):
    with remote_device():
        far = to_device(x, REMOTE)
        assert isinstance(far, RemoteTensor)
        with pytest.raises(RuntimeError, match="same device"):
            far + torch.ones_like(x)
        with pytest.raises(RuntimeError, match="same device"):
            remote.blocks["stem"](x[None])
        with pytest.raises((RuntimeError, TypeError)):
            far.numpy()
        assert torch.equal(to_host(far + 1.0), x + 1.0)


# ---------------------------------------------------------------- the same answers there


@pytest.mark.parametrize("name", FOR_MAPS)
def test_every_method_gives_the_same_map_on_a_device(model, remote, image, name):
    options = ExplainOptions(method=name, quick=True, top_k=2)
    here = Explainer(model).explain(image, options)
    with remote_device():
        there = Explainer(remote).explain(image, options)
    for one, other in zip(here.attributions, there.attributions, strict=True):
        assert np.array_equal(one.values, other.values)
    assert here.predictions == there.predictions


def test_checks_and_views_of_the_inside_work_on_a_device(model, remote, image, x):
    target = make_target(CLASSES, 0)
    with remote_device():
        explainer = Explainer(remote)
        explanation = explainer.explain(image, ExplainOptions(flip=True, noise=0.1, samples=2))
        audit = run_audit(image, explanation.forward, explanation.attributions[0], disabled={}, quick=True)
        explainer.suggest(explanation)
        trace = trace_grad_cam(explanation.forward, 0, target)
        parts = decompose(remote, x, target, "layer4.1")
        inside = collect_activations(remote, x[None], blocks=remote.block_names)
        templates = synthesize_templates(remote, "layer1.0", [0, 1], steps=2, side=64)
        check = check_randomization(remote, x[None], methods=("grad_cam", "guided_grad_cam"))
    assert audit.faithfulness is not None
    assert len(templates) == 2
    assert set(check.methods) == {"grad_cam", "guided_grad_cam"}
    traced_here = trace_grad_cam(Explainer(model).explain(image).forward, 0, target)
    assert np.array_equal(trace.weights, traced_here.weights)
    assert len(parts.parts) == 2
    here = collect_activations(model, x[None], blocks=model.block_names)
    assert [item.mean for item in inside] == [item.mean for item in here]


def test_a_bundle_is_the_same_from_any_device_and_loads_onto_any(model, remote, tmp_path):
    here = save_bundle(model, tmp_path / "here", name="m")
    with remote_device():
        there = save_bundle(remote, tmp_path / "there", name="m")
        loaded = load_bundle(tmp_path / "here", device=torch.device("cpu"))
    assert here == there
    assert loaded.model.device == torch.device("cpu")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny", "vit_b_16"])
def test_a_forward_on_fake_cuda_tensors_mixes_no_devices(name):
    model = TransferModel.create(name, CLASSES, pretraining="none")
    with FakeTensorMode(), torch.no_grad():
        send(model, lambda value: torch.empty(value.shape, dtype=value.dtype, device="cuda"))
        for block, value in model.walk(torch.zeros(2, 3, 224, 224, device="cuda")):
            assert value.device.type == "cuda", block
        assert model(torch.zeros(2, 3, 224, 224, device="cuda")).shape == (2, 3)


@pytest.mark.parametrize("device", [name for name in available_devices() if name != "cpu"])
def test_logits_and_maps_on_each_device_that_is_here(model, image, device):
    there = copy.deepcopy(model).to(resolve_device(device))
    for name in FOR_MAPS:
        options = ExplainOptions(method=name, quick=True)
        one, other = (Explainer(item).explain(image, options) for item in (model, there))
        assert one.predictions[0].label == other.predictions[0].label
        values = one.attributions[0].values
        assert np.abs(values - other.attributions[0].values).max() < 0.01 * np.abs(values).max()


# ---------------------------------------------------------------- names, memory


def test_auto_is_the_fastest_device_that_is_here():
    assert available_devices()[-1] == "cpu"
    assert str(resolve_device("auto")) == available_devices()[0]
    assert str(resolve_device("cpu")) == "cpu"
    assert describe_device(resolve_device("cpu")) == "cpu"


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "cuda:x", "CPU"])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(name):
    with pytest.raises(ConfigError, match=r"auto, cpu, cuda, cuda:N or mps, and this machine has .*cpu"):
        resolve_device(name)


def test_names_of_devices_are_known_by_their_form():
    assert all(map(is_device_name, ("auto", "cpu", "cuda", "cuda:0", "cuda:12", "mps")))
    assert not any(map(is_device_name, ("", "gpu", "cuda:", "cuda:-1", "cpu ", "cuda:0\n")))


class SmallMemory:
    """A function that has room for so many images at once."""

    def __init__(self, room: int) -> None:
        self.room, self.sizes = room, []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.sizes.append(len(x))
        return x * 2


def test_a_batch_that_is_too_large_runs_in_halves():
    run = SmallMemory(3)
    x = torch.randn(13, 2)
    assert torch.equal(run_in_parts(run, x), x * 2)
    assert max(run.sizes) <= 3
    assert sum(run.sizes) == 13


def test_one_image_that_is_too_large_is_said():
    with pytest.raises(OutOfDeviceMemory, match=r"too little memory for 1 picture at once; choose a smaller"):
        run_in_parts(SmallMemory(0), torch.randn(4, 2))


def test_an_error_that_is_none_of_memory_is_passed_on():
    def run(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        run_in_parts(run, torch.randn(4, 2))


def test_a_batch_of_explanations_that_is_too_large_is_explained_in_halves(model, image, monkeypatch):
    explainer = Explainer(model)
    images = [explainer.prepare(image)] * 5
    expected = explainer.explain_batch(images)
    after = TransferModel.after

    def small(self: TransferModel, block: str, activation: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and len(activation) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return after(self, block, activation)

    monkeypatch.setattr(TransferModel, "after", small)
    in_halves = explainer.explain_batch(images)
    assert len(in_halves) == 5
    for one, other in zip(expected, in_halves, strict=True):
        assert np.allclose(one.attributions[0].values, other.attributions[0].values, atol=1e-6)


def test_engines_that_a_device_does_not_have_are_refused(model, x):
    with pytest.raises(EngineUnavailable, match=r"eager on cpu computes in fp32, not bf16"):
        EagerBackend(model, "bf16")
    with pytest.raises(EngineUnavailable, match=r"eager on cpu computes in fp32, not int8"):
        create_backend("eager", model, probe=x[None], precision="int8")


# ---------------------------------------------------------------- one place knows devices

_DEVICE_CALLS = re.compile(
    r"\.cuda\(|\.cpu\(\)|\.to\(\s*['\"](cpu|cuda|mps)|torch\.cuda|torch\.backends\.(cuda|cudnn|mps)"
    r"|torch\.mps|autocast\(\s*['\"]|pin_memory|non_blocking"
)
_HOST_ARRAYS = {
    "models/devices.py",
    "models/backends/openvino.py",
    "models/introspection/feature_visualization.py",
    "models/metrics/agreement.py",
    "pipelines/evaluation/plots.py",
    "pipelines/training/feature_cache.py",
    "pipelines/training/linear_probe.py",
}
"""Files that turn tensors into arrays which have never been on a device."""


def product_files():
    return [path for room in ("models", "pipelines", "service") for path in (PROJECT / room).rglob("*.py")]


def test_only_one_module_moves_tensors_between_devices():
    odd = [
        f"{path.relative_to(PROJECT)}: {match.group()}"
        for path in product_files()
        if path != PROJECT / "models/devices.py"
        for match in _DEVICE_CALLS.finditer(path.read_text())
    ]
    assert odd == []


def test_what_a_network_gave_becomes_an_array_in_one_place():
    for path in product_files():
        name = str(path.relative_to(PROJECT))
        calls = re.findall(r"[^\n]*\.numpy\(\)[^\n]*", path.read_text())
        odd = [line for line in calls if "to_host(" not in line]
        assert not odd or name in _HOST_ARRAYS, (name, odd)
    assert to_numpy(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float32
