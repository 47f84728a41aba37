"""What runs the network: torch itself, or OpenVINO (extra ``fast``) for the blocks that need no gradient.

Both work on a twin of the model with BatchNorm folded. Captum always differentiates torch's own tail of that
twin, so an explanation is of the same network whichever engine ran below it. An engine is used only if its
logits meet those of the model as it was saved.
"""

from __future__ import annotations

import threading
import warnings
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor, nn

from models.errors import BundleError, ConfigError, UnknownChoice, WeightsUnavailable
from models.folding import twin
from models.transfer import TransferModel

EngineName = Literal["eager", "openvino"]
Precision = Literal["fp32", "bf16"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_TOLERANCE: dict[str, float] = {"fp32": 1e-3, "bf16": 8e-2}
"""Of the largest logit of the probe. Trained networks were within 2e-5 after folding and in OpenVINO's fp32,
deep ones with random weights within 2e-4; bfloat16 keeps eight bits."""
_CLOSE = 0.02
"""Of a picture's largest logit, the lead below which bfloat16 does not decide. On 639 photographs it alone
changed 11 answers among the packaged network's 1,000 classes; so it changes 4, and runs 4.5 % again."""


class Engine(Protocol):
    """Runs a model without autograd; safe to call from many threads."""

    name: EngineName
    precision: Precision
    model: TransferModel
    """Torch's own twin of what runs, to be differentiated."""

    def until(self, block: str, x: Tensor) -> Tensor:
        """The block's value for pictures (N, 3, H, W), without autograd."""
        ...

    def settled(self, block: str, x: Tensor, value: Tensor, logits: Tensor) -> Tensor | None:
        """A value to be taken instead, where ``logits`` that followed from ``value`` are too close a call for
        the precision; None where they stand.
        """
        ...

    def ran(self, block: str, x: Tensor) -> tuple[EngineName, Precision]:
        """What :meth:`until` computes that with: itself, or torch's twin for what it was not made for."""
        ...


class EagerEngine:
    """Torch itself."""

    name: EngineName = "eager"
    precision: Precision = "fp32"

    def __init__(self, model: TransferModel) -> None:
        self.model = model

    def until(self, block: str, x: Tensor) -> Tensor:
        """The block's value, without autograd."""
        with torch.no_grad():
            return self.model.until(block, x)

    def settled(self, block: str, x: Tensor, value: Tensor, logits: Tensor) -> Tensor | None:
        """In fp32 every call stands."""
        return None

    def ran(self, block: str, x: Tensor) -> tuple[EngineName, Precision]:
        """Always this."""
        return self.name, self.precision


class OpenVinoEngine:
    """The blocks up to the Grad-CAM block compiled by OpenVINO, with one request for each calling thread.

    Other blocks, and pictures of another size, are asked of torch's twin. In bf16 a close call is decided in
    fp32: a picture whose answer could be another by the rounding alone is run again.
    """

    name: EngineName = "openvino"

    def __init__(self, model: TransferModel, *, threads: int, precision: Precision) -> None:
        """Raises WeightsUnavailable when the extra ``fast`` is not installed, ConfigError when this
        processor does not compute in that precision.
        """
        self.model, self.block, self.precision = model, model.cam_block, precision
        converted = _converted(model, self.block)
        self._exact = _Compiled(converted, threads=threads, precision="fp32")
        self._fast = (
            self._exact if precision == "fp32" else _Compiled(converted, threads=threads, precision=precision)
        )

    def until(self, block: str, x: Tensor) -> Tensor:
        """The block's value for pictures (N, 3, H, W), without autograd."""
        if not self._made_for(block, x):
            with torch.no_grad():
                return self.model.until(block, x)
        return self._fast(x)

    def settled(self, block: str, x: Tensor, value: Tensor, logits: Tensor) -> Tensor | None:
        """In bf16, the value with its close calls run again in fp32."""
        if self._fast is self._exact or not self._made_for(block, x):
            return None
        close = self.model.scoring.margin(logits) < _CLOSE * logits.abs().amax(dim=1)
        if not bool(close.any()):
            return None
        settled = value.clone()
        settled[close] = self._exact(x[close])
        return settled

    def ran(self, block: str, x: Tensor) -> tuple[EngineName, Precision]:
        """OpenVINO at the Grad-CAM block and the model's size, torch in fp32 anywhere else."""
        return (self.name, self.precision) if self._made_for(block, x) else ("eager", "fp32")

    def _made_for(self, block: str, x: Tensor) -> bool:
        geometry = self.model.geometry
        return block == self.block and x.shape[2:] == (geometry.crop_height, geometry.crop_width)


class _Compiled:
    """One compiled network for many threads."""

    def __init__(self, converted: Any, *, threads: int, precision: Precision) -> None:
        import openvino

        wanted = {"fp32": "f32", "bf16": "bf16"}[precision]
        # One request at a time has all the threads; by default they may be split between streams.
        options = {
            "INFERENCE_PRECISION_HINT": wanted,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # Each worker process would pin its threads to the same first core.
            "ENABLE_CPU_PINNING": False,
        }
        self._network = openvino.Core().compile_model(converted, "CPU", options)
        if self._network.get_property("INFERENCE_PRECISION_HINT").to_string() != wanted:
            raise ConfigError(f"This processor does not compute in {precision}; choose fp32.")
        self._local = threading.local()

    def __call__(self, x: Tensor) -> Tensor:
        """The output, copied out of the request's memory."""
        if not hasattr(self._local, "request"):
            self._local.request = self._network.create_infer_request()
        request = self._local.request
        request.infer({0: np.ascontiguousarray(x.numpy())})
        return torch.from_numpy(request.get_output_tensor(0).data.copy())


def _converted(model: TransferModel, block: str) -> Any:
    """OpenVINO's graph of the blocks, for any number of pictures of the model's size."""
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
            _Until(model, block).eval(), example_input=torch.zeros(1, 3, *size)
        )
    converted.reshape([-1, 3, *size])
    return converted


class _Until(nn.Module):
    def __init__(self, model: TransferModel, block: str) -> None:
        super().__init__()
        self.model, self.block = model, block

    def forward(self, x: Tensor) -> Tensor:
        return self.model.until(self.block, x)


def prepare(
    name: str,
    model: TransferModel,
    *,
    probe: Tensor,
    threads: int = 1,
    precision: str = "fp32",
) -> Engine:
    """The engine of that name on a folded twin of the model, checked on a probe batch (N, 3, H, W).

    Raises UnknownChoice, ConfigError for a precision that the engine does not have, WeightsUnavailable when
    its package is missing, and BundleError when its logits are off.
    """
    if name not in ENGINES:
        raise UnknownChoice("engine", name, ENGINES)
    if precision not in PRECISIONS:
        raise UnknownChoice("precision", precision, PRECISIONS)
    folded = twin(model)
    if name == "eager":
        if precision != "fp32":
            raise ConfigError(f"The engine eager computes in fp32, not {precision}; openvino has both.")
        engine: Engine = EagerEngine(folded)
    else:
        engine = OpenVinoEngine(folded, threads=threads, precision="bf16" if precision == "bf16" else "fp32")
    _check(engine, model, probe)
    return engine


def _check(engine: Engine, model: TransferModel, probe: Tensor) -> None:
    with torch.no_grad():
        expected = model(probe)
        found = engine.model.after(model.cam_block, engine.until(model.cam_block, probe))
    allowed = _TOLERANCE[engine.precision] * max(1.0, float(expected.abs().max()))
    worst = float((found - expected).abs().max())
    if not worst <= allowed:
        raise BundleError(
            f"The engine {engine.name} ({engine.precision}) gives logits that are off by {worst:.3g}, more "
            f"than {allowed:.3g}; it is not used."
        )
