"""The OpenVINO backend (extra ``fast``): the blocks up to the Grad-CAM block, compiled."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.backends.base import BackendName, BackendPrecision
from models.errors import ConfigError, WeightsUnavailable
from models.networks.transfer_model import TransferModel

_LOW_MARGIN = 0.02
"""Of an image's largest logit, the lead below which bfloat16 does not decide. On 639 photographs it alone
changed 11 answers among the packaged network's 1,000 classes; so it changes 4, and runs 4.5 % again."""


class OpenVinoBackend:
    """The blocks up to the Grad-CAM block compiled by OpenVINO, with one request for each calling thread.

    Other blocks, and images of another size, are asked of torch's twin. In bf16 a close call is decided in
    fp32: an image whose answer could be another by the rounding alone is run again.
    """

    name: BackendName = "openvino"

    def __init__(self, model: TransferModel, *, threads: int, precision: BackendPrecision) -> None:
        """Compile the blocks; raises WeightsUnavailable when the extra ``fast`` is not installed, ConfigError
        when this processor does not compute in that precision.
        """
        self.model, self.block, self.precision = model, model.cam_block, precision
        converted = _convert_blocks(model, self.block)
        self._exact = _CompiledNetwork(converted, threads=threads, precision="fp32")
        self._fast = (
            self._exact
            if precision == "fp32"
            else _CompiledNetwork(converted, threads=threads, precision=precision)
        )

    def until(self, block: str, x: Tensor) -> Tensor:
        """Return the block's value for images (N, 3, H, W), without autograd."""
        if not self._made_for(block, x):
            with torch.no_grad():
                return self.model.until(block, x)
        return self._fast(x)

    def refine_low_margin(self, block: str, x: Tensor, value: Tensor, logits: Tensor) -> Tensor | None:
        """Return, in bf16, the value with its low-margin images run again in fp32."""
        if self._fast is self._exact or not self._made_for(block, x):
            return None
        close = self.model.scoring.margin(logits) < _LOW_MARGIN * logits.abs().amax(dim=1)
        if not bool(close.any()):
            return None
        refined = value.clone()
        refined[close] = self._exact(x[close])
        return refined

    def execution_info(self, block: str, x: Tensor) -> tuple[BackendName, BackendPrecision]:
        """Return OpenVINO at the Grad-CAM block and the model's size, torch in fp32 anywhere else."""
        return (self.name, self.precision) if self._made_for(block, x) else ("eager", "fp32")

    def _made_for(self, block: str, x: Tensor) -> bool:
        geometry = self.model.geometry
        return block == self.block and x.shape[2:] == (geometry.crop_height, geometry.crop_width)


class _CompiledNetwork:
    """A compiled network for many threads."""

    def __init__(self, converted: Any, *, threads: int, precision: BackendPrecision) -> None:
        import openvino

        hint = {"fp32": "f32", "bf16": "bf16"}[precision]
        # One request at a time has all the threads; by default they may be split between streams.
        options = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # Each worker process would pin its threads to the same first core.
            "ENABLE_CPU_PINNING": False,
        }
        self._network = openvino.Core().compile_model(converted, "CPU", options)
        if self._network.get_property("INFERENCE_PRECISION_HINT").to_string() != hint:
            raise ConfigError(f"This processor does not compute in {precision}; choose fp32.")
        self._local = threading.local()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the output, copied out of the request's memory."""
        if not hasattr(self._local, "request"):
            self._local.request = self._network.create_infer_request()
        request = self._local.request
        request.infer({0: np.ascontiguousarray(x.numpy())})
        return torch.from_numpy(request.get_output_tensor(0).data.copy())


def _convert_blocks(model: TransferModel, block: str) -> Any:
    """Return OpenVINO's graph of the blocks, for any number of images of the model's size."""
    try:
        import openvino
    except ImportError as error:
        raise WeightsUnavailable(
            "The engine openvino needs the extra 'fast': pip install 'camera-lucida[fast]'."
        ) from error
    size = (model.geometry.crop_height, model.geometry.crop_width)
    with warnings.catch_warnings():
        # SAME padding is computed from the input's size, which the trace fixes at this geometry's.
        warnings.simplefilter("ignore", torch.jit._trace.TracerWarning)
        converted = openvino.convert_model(
            _BlocksUpTo(model, block).eval(), example_input=torch.zeros(1, 3, *size)
        )
    converted.reshape([-1, 3, *size])
    return converted


class _BlocksUpTo(nn.Module):
    def __init__(self, model: TransferModel, block: str) -> None:
        super().__init__()
        self.model, self.block = model, block

    def forward(self, x: Tensor) -> Tensor:
        return self.model.until(self.block, x)
