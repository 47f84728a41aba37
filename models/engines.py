"""What runs the blocks below the cut: torch itself, or OpenVINO (extra ``fast``), behind one small interface.

Only the part that needs no gradient is handed over; Captum always differentiates torch's own tail, so an
explanation is of the same network whichever engine ran below it. An engine is used only if its logits meet
torch's at the start.
"""

from __future__ import annotations

import threading
import warnings
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from models.errors import BundleError, UnknownChoice, WeightsUnavailable
from models.transfer import TransferModel

EngineName = Literal["eager", "openvino"]
ENGINES: tuple[EngineName, ...] = ("eager", "openvino")

_TOLERANCE = 1e-4
"""Of a logit, absolute and relative: OpenVINO in fp32 was within 2e-5 on every backbone tried."""


class Prefix(Protocol):
    """Runs a picture batch (N, 3, H, W) up to and including ``block``; safe to call from many threads."""

    name: EngineName
    block: str

    def __call__(self, x: Tensor) -> Tensor:
        """The block's output (N, C, rows, cols), without autograd."""
        ...


class EagerPrefix:
    """Torch itself."""

    name: EngineName = "eager"

    def __init__(self, model: TransferModel, block: str) -> None:
        self.model, self.block = model, block

    def __call__(self, x: Tensor) -> Tensor:
        """The block's output, without autograd."""
        with torch.no_grad():
            return self.model.until(self.block, x)


class OpenVinoPrefix:
    """The blocks compiled by OpenVINO in fp32, with one inference request for each calling thread."""

    name: EngineName = "openvino"

    def __init__(self, model: TransferModel, block: str, *, threads: int) -> None:
        """Raises WeightsUnavailable when the extra ``fast`` is not installed."""
        try:
            import openvino
        except ImportError as error:
            raise WeightsUnavailable(
                "The engine openvino needs the extra 'fast': pip install 'camera-lucida[fast]'."
            ) from error
        self.block = block
        geometry = model.geometry
        example = torch.zeros(1, 3, geometry.crop_height, geometry.crop_width)
        with warnings.catch_warnings():
            # SAME padding is computed from the input's size, which the trace fixes at this geometry's.
            warnings.simplefilter("ignore", torch.jit._trace.TracerWarning)
            converted = openvino.convert_model(_Until(model, block).eval(), example_input=example)
        converted.reshape([-1, 3, geometry.crop_height, geometry.crop_width])
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        self._compiled = openvino.Core().compile_model(converted, "CPU", options)
        self._local = threading.local()

    def __call__(self, x: Tensor) -> Tensor:
        """The block's output, copied out of the request's memory."""
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        request = self._local.request
        request.infer({0: np.ascontiguousarray(x.numpy())})
        return torch.from_numpy(request.get_output_tensor(0).data.copy())


class _Until(nn.Module):
    def __init__(self, model: TransferModel, block: str) -> None:
        super().__init__()
        self.model, self.block = model, block

    def forward(self, x: Tensor) -> Tensor:
        return self.model.until(self.block, x)


def prepare(name: str, model: TransferModel, *, probe: Tensor, threads: int = 1) -> Prefix:
    """The engine of that name for the model's Grad-CAM block, checked on a probe batch (N, 3, H, W).

    Raises UnknownChoice, WeightsUnavailable when its package is missing, BundleError when its logits are off.
    """
    if name not in ENGINES:
        raise UnknownChoice("engine", name, ENGINES)
    eager = EagerPrefix(model, model.cam_block)
    if name == "eager":
        return eager
    engine = OpenVinoPrefix(model, model.cam_block, threads=threads)
    with torch.no_grad():
        expected, found = (model.after(model.cam_block, run(probe)) for run in (eager, engine))
    if not torch.allclose(found, expected, atol=_TOLERANCE, rtol=_TOLERANCE):
        worst = float((found - expected).abs().max())
        raise BundleError(f"The engine {name} gives logits that are off by {worst:.3g}; it is not used.")
    return engine
