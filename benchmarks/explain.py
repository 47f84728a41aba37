"""Prediction and Grad-CAM beside the bare forward, Captum and pytorch-grad-cam: `make bench`.

All ways run in turn in one process on the same tensors; each figure is the median over the rounds of its time
divided by that of the bare eager forward of the same model in the same round. Cores are noisy: read ratios.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO

import openvino
import torch
from captum.attr import LayerGradCam
from pytorch_grad_cam import GradCAM

from models.attribution.forward import run_forward
from models.attribution.registry import attribute, attribute_each
from models.backends.base import Backend
from models.backends.eager import EagerBackend
from models.backends.openvino import OpenVinoBackend, convert_blocks
from models.backends.quantized import QuantizedBlocks
from models.backends.registry import create_backend
from models.networks.batchnorm_folding import inference_copy
from models.networks.registry import get_backbone, imagenet_classes
from models.networks.transfer_model import TransferModel
from pipelines.release.quantize import serialized

BARS = {
    ("resnet18", "eager"): 0.85,
    ("resnet18", "openvino fp32"): 0.72,
    ("resnet18", "openvino bf16"): 0.42,
    ("resnet50", "openvino fp32"): 0.45,
    ("resnet50", "openvino bf16"): 0.25,
    ("efficientnet_lite0", "openvino fp32"): 0.35,
    ("efficientnet_lite0", "openvino bf16"): 0.22,
}
Way = Callable[[], object]


def models_of(name: str) -> tuple[torch.nn.Module, TransferModel]:
    """Return the uncut network as torch builds it, and the same weights as our model."""
    torch.manual_seed(0)
    row = get_backbone(name)
    network = row.network("imagenet" if name == "efficientnet_lite0" else "none")
    return network, TransferModel(
        row, row.network("none"), classes=imagenet_classes(), keep_classifier=True
    ).eval()


def ours(backend: Backend, x: torch.Tensor, *, block: str | None = None, classes: int = 1) -> Way:
    """Prediction and the maps of the highest classes."""

    def run() -> object:
        forward = run_forward(backend.model, x, backend=backend, block=block)
        if classes == 1:
            return attribute_each(forward, forward.logits.argmax(1).tolist())
        return attribute(forward, forward.logits.topk(classes).indices.tolist())

    return run


def bare(network: torch.nn.Module, x: torch.Tensor) -> Way:
    """Run a forward without autograd."""

    def run() -> object:
        with torch.no_grad():
            return network(x)

    return run


def captum(network: torch.nn.Module, layer: torch.nn.Module, x: torch.Tensor) -> Way:
    """As its tutorial does: predict, then attribute to the layer of the whole network."""
    cam = LayerGradCam(network, layer)

    def run() -> object:
        with torch.no_grad():
            top = network(x).argmax(1)
        return cam.attribute(x, target=top)

    return run


def pytorch_grad_cam(network: torch.nn.Module, layer: torch.nn.Module, x: torch.Tensor) -> Way:
    """Predict, then its GradCAM, which takes the highest class by itself."""
    cam = GradCAM(model=network, target_layers=[layer])

    def run() -> object:
        with torch.no_grad():
            network(x)
        return cam(input_tensor=x, targets=None)

    return run


def layer_of(network: torch.nn.Module, name: str) -> torch.nn.Module:
    """Return the layer of the uncut network that Grad-CAM reads."""
    features = {"efficientnet_lite0": "features.8", "resnet18": "layer4.1", "resnet50": "layer4.2"}
    return network.get_submodule(features[name])


def medians(timed: dict[str, Way], rounds: int, beside: str) -> dict[str, float]:
    """Of each way, the median ratio to ``beside``; the first round warms up."""
    ratios: dict[str, list[float]] = {label: [] for label in timed}
    for number in range(rounds + 1):
        spent = {}
        for label, run in timed.items():
            gc.collect()
            start = time.perf_counter()
            run()
            spent[label] = time.perf_counter() - start
        if number:
            for label, seconds in spent.items():
                ratios[label].append(seconds / spent[beside])
    return {label: statistics.median(values) for label, values in ratios.items()}


def show(title: str, found: dict[str, float], model: str = "") -> None:
    """Print a line for each way, with the bar that it has to meet where there is one."""
    print(f"\n{title}")
    for label, ratio in found.items():
        bar = BARS.get((model, label))
        print(f"  {label:36} {ratio:5.2f}" + (f"   bar {bar}" if bar else ""), flush=True)


def whole(name: str, batch: int, options: argparse.Namespace) -> None:
    """Predict + top-1 map at the Grad-CAM block."""
    network, model = models_of(name)
    model.load_state_dict(same_weights(network, model))
    x = torch.randn(batch, 3, 224, 224)
    layer = layer_of(network, name)
    folded = inference_copy(model)
    prepared: dict[str, Backend] = {"eager": EagerBackend(folded)}
    for precision in ("fp32", "bf16", "int8"):
        prepared[f"openvino {precision}"] = OpenVinoBackend(
            folded, threads=options.threads, precision=precision,
            quantized=quantized(convert_blocks(folded, folded.cam_block)) if precision == "int8" else None,
        )  # fmt: skip
    timed = {"bare forward": bare(network, x)}
    timed |= {label: ours(backend, x) for label, backend in prepared.items()}
    timed |= {
        "Captum on the whole model": captum(network, layer, x),
        "pytorch-grad-cam": pytorch_grad_cam(network, layer, x),
    }
    title = f"{name} b{batch}: predict + top-1 map, ratio to the bare forward"
    show(title, medians(timed, options.rounds, "bare forward"), name)
    for precision in ("fp32", "bf16", "int8"):
        label = f"openvino {precision}"
        alone = {"whole network, no map": bare_openvino(network, x, precision, options.threads)}
        alone[label] = ours(prepared[label], x)
        beside = next(iter(alone))
        show(
            f"{name} b{batch}: {label} : its own bare forward (goal 1.10)",
            medians(alone, options.rounds, beside),
        )


def bare_openvino(network: torch.nn.Module, x: torch.Tensor, precision: str, threads: int) -> Way:
    """Run the whole network in OpenVINO, without a map."""
    graph = openvino.convert_model(network, example_input=x)
    if precision == "int8":
        graph = quantized(graph).read()
    hint = "bf16" if precision == "bf16" else "f32"
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()
    values = x.numpy()
    return lambda: request.infer({0: values})


def quantized(graph: object) -> QuantizedBlocks:
    """Quantise a graph by random pictures, which decide nothing about its speed."""
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    pictures = [torch.randn(1, 3, 224, 224).numpy() for _ in range(20)]
    with redirect_stdout(StringIO()):
        return serialized(nncf.quantize(graph, nncf.Dataset(pictures), subset_size=len(pictures)))


def same_weights(network: torch.nn.Module, model: TransferModel) -> dict[str, torch.Tensor]:
    """Return the network's weights under the names of the cut model."""
    cut = TransferModel(model.backbone, network, classes=model.classes, keep_classifier=True)
    state = {key: value.clone() for key, value in cut.state_dict().items()}
    # Building the cut model turned the network channels last; the peer runs it as torch builds it.
    network.to(memory_format=torch.contiguous_format)
    return state


def deep_and_several(options: argparse.Namespace) -> None:
    """resnet18: five classes beside one, and a deep cut beside Captum."""
    network, model = models_of("resnet18")
    model.load_state_dict(same_weights(network, model))
    x = torch.randn(8, 3, 224, 224)
    backend = create_backend("eager", model, probe=x[:1], threads=options.threads)
    timed = {"one class": ours(backend, x), "five classes": ours(backend, x, classes=5)}
    show("resnet18 b8: five classes : one (bar 1.10)", medians(timed, options.rounds, "one class"))
    timed = {
        "Captum on the whole model, layer2": captum(network, network.get_submodule("layer2.1"), x),
        "eager, layer2.1": ours(backend, x, block="layer2.1"),
    }
    show("resnet18 b8: a deep cut : Captum (bar 0.45)", medians(timed, options.rounds, next(iter(timed))))


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, medians of {options.rounds} rounds")
    for name, batch in (("efficientnet_lite0", 8), ("resnet18", 8), ("resnet50", 1)):
        whole(name, batch, options)
    deep_and_several(options)


if __name__ == "__main__":
    main()
