"""The OpenVINO backend (extra ``fast``): the blocks up to the Grad-CAM block, compiled."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.backends.base import BackendName, BackendPrecision, refine_close_calls
from models.backends.quantized import QuantizedBlocks
from models.devices import CPU
from models.errors import EngineUnavailable
from models.networks.transfer_model import TransferModel


class OpenVinoBackend:
    """The blocks up to the Grad-CAM block compiled by OpenVINO, with one request for each calling thread.

    Other blocks, and images of another size, are asked of torch's twin. In bf16 and int8 a close call is
    decided in fp32: an image whose answer could be another by the rounding alone is run again.
    """

    name: BackendName = "openvino"

    def __init__(
        self,
        model: TransferModel,
        *,
        threads: int,
        precision: BackendPrecision,
        quantized: QuantizedBlocks | None = None,
        graph: Any = None,
    ) -> None:
        """Compile the blocks; int8 takes them as :mod:`models.backends.quantized` keeps them. ``graph`` is
        what :func:`convert_blocks` gave for this model, where that was done before.

        Raises EngineUnavailable when the extra ``fast`` is not installed, and for a precision that this
        processor does not compute in or a device other than the processor.
        """
        if model.device != CPU:
            raise EngineUnavailable(f"The engine openvino runs on the device cpu, not on {model.device}.")
        if precision == "int8" and quantized is None:
            raise EngineUnavailable(
                "This bundle holds no int8 blocks; lucida package --quantise DATA makes them."
            )
        self.model, self.block, self.precision = model, model.cam_block, precision
        converted = graph if graph is not None else convert_blocks(model, self.block)
        self.graph = converted
        self._exact = self._fast = _CompiledNetwork(converted, threads=threads, hint="f32")
        if precision == "bf16":
            self._fast = _CompiledNetwork(converted, threads=threads, hint="bf16")
        elif quantized is not None and precision == "int8":
            self._fast = _CompiledNetwork(quantized.read(), threads=threads, hint="f32")

    def until(self, block: str, x: Tensor) -> Tensor:
        """Return the block's value for images (N, 3, H, W), without autograd."""
        if not self._made_for(block, x):
            with torch.no_grad():
                return self.model.until(block, x)
        return self._fast(x)

    def refine_low_margin(self, block: str, x: Tensor, value: Tensor, logits: Tensor) -> Tensor | None:
        """Return, in bf16 and int8, the value with its low-margin images run again in fp32."""
        if self._fast is self._exact or not self._made_for(block, x):
            return None
        return refine_close_calls(self.model, self._exact, x, value, logits)

    def execution_info(self, block: str, x: Tensor) -> tuple[BackendName, BackendPrecision]:
        """Return OpenVINO at the Grad-CAM block and the model's size, torch in fp32 anywhere else."""
        return (self.name, self.precision) if self._made_for(block, x) else ("eager", "fp32")

    def _made_for(self, block: str, x: Tensor) -> bool:
        geometry = self.model.geometry
        return block == self.block and x.shape[2:] == (geometry.crop_height, geometry.crop_width)


class _CompiledNetwork:
    """A compiled network for many threads."""

    def __init__(self, converted: Any, *, threads: int, hint: str) -> None:
        import openvino

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
            raise EngineUnavailable(f"This processor does not compute in {hint}; choose fp32.")
        self._local = threading.local()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the output, copied out of the request's memory."""
        if not hasattr(self._local, "request"):
            self._local.request = self._network.create_infer_request()
        request = self._local.request
        request.infer({0: np.ascontiguousarray(x.numpy())})
        return torch.from_numpy(request.get_output_tensor(0).data.copy())


def convert_blocks(model: TransferModel, block: str) -> Any:
    """Return OpenVINO's graph of the blocks up to one, for any number of images of the model's size.

    Raises EngineUnavailable when the extra ``fast`` is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise EngineUnavailable(
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


def save_graph(graph: Any, folder: Path) -> Path:
    """Write a graph of :func:`convert_blocks` into a folder, its weights in full precision, so that other
    processes need not convert the model again; return the file for :func:`read_graph`.
    """
    import openvino

    openvino.save_model(graph, folder / "blocks.xml", compress_to_fp16=False)
    return folder / "blocks.xml"


def read_graph(path: Path) -> Any:
    """Return a graph that :func:`save_graph` wrote; processes that read it share its weights in memory."""
    import openvino

    return openvino.Core().read_model(path)


class _BlocksUpTo(nn.Module):
    def __init__(self, model: TransferModel, block: str) -> None:
        super().__init__()
        self.model, self.block = model, block

    def forward(self, x: Tensor) -> Tensor:
        return self.model.until(self.block, x)
