"""Predict + top-1 Grad-CAM beside the bare forward and beside Captum on the whole model: `make bench`.

All ways run in turn in one process on the same tensors; each figure is the median over the rounds of its time
divided by that of the bare eager forward of the same model in the same round. Cores are noisy: read ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from captum.attr import LayerGradCam

from models.backbones import backbone, imagenet_classes
from models.explain.grad_cam import grad_cam_batch, look
from models.transfer import TransferModel


def ways(model: TransferModel, network: torch.nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """What is timed; the peer hooks the uncut network, as a notebook would."""
    cam = LayerGradCam(network, model.blocks[model.cam_block.replace(".", "_")])

    def bare() -> object:
        with torch.no_grad():
            return network(x)

    def ours() -> object:
        evidence = look(model, x)
        return grad_cam_batch(model, evidence, evidence.logits.argmax(1).tolist())

    def captum() -> object:
        with torch.no_grad():
            top = network(x).argmax(1)
        return cam.attribute(x, target=top)

    return {"bare forward": bare, "Camera Lucida": ours, "Captum on the whole model": captum}


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, medians of {options.rounds} rounds")
    for name, batch in (("efficientnet_lite0", 8), ("resnet18", 8), ("resnet50", 1)):
        torch.manual_seed(0)
        row = backbone(name)
        network = row.network("imagenet" if name == "efficientnet_lite0" else "none")
        model = TransferModel(row, network, classes=imagenet_classes(), keep_classifier=True).eval()
        timed = ways(model, network, torch.randn(batch, 3, 224, 224))
        ratios: dict[str, list[float]] = {label: [] for label in timed}
        for number in range(options.rounds + 1):
            spent = {}
            for label, run in timed.items():
                start = time.perf_counter()
                run()
                spent[label] = time.perf_counter() - start
            if number:  # the first round warms up
                for label, seconds in spent.items():
                    ratios[label].append(seconds / spent["bare forward"])
        shown = ", ".join(f"{label} {statistics.median(values):.2f}" for label, values in ratios.items())
        print(f"{name} b{batch}: {shown}")


if __name__ == "__main__":
    main()
