"""The eager backend: torch itself, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from models.backends.base import BackendName, BackendPrecision, refine_close_calls
from models.devices import autocast_bf16, run_in_parts, supports_bf16
from models.errors import EngineUnavailable
from models.networks.transfer_model import TransferModel


class EagerBackend:
    """Torch itself; in bf16 by autocast, on CUDA devices that have it."""

    name: BackendName = "eager"

    def __init__(self, model: TransferModel, precision: BackendPrecision = "fp32") -> None:
        """Run the model where it lies; raises EngineUnavailable for a precision that torch lacks there."""
        if precision == "int8" or (precision == "bf16" and not supports_bf16(model.device)):
            raise EngineUnavailable(
                f"The engine {self.name} on {model.device} computes in fp32, not {precision}; openvino may."
            )
        self.model = model
        self.precision: BackendPrecision = precision

    def until(self, block: str, x: Tensor) -> Tensor:
        """Return the block's value, without autograd; in halves where the device's memory is too small."""
        with autocast_bf16(self.model.device, enabled=self.precision == "bf16"):
            return self._run(block, x).float()

    def refine_low_margin(self, block: str, x: Tensor, value: Tensor, logits: Tensor) -> Tensor | None:
        """Return, in bf16, the value with its low-margin images run again in fp32."""
        if self.precision == "fp32":
            return None
        return refine_close_calls(self.model, lambda close: self._run(block, close), x, value, logits)

    def execution_info(self, block: str, x: Tensor) -> tuple[BackendName, BackendPrecision]:
        """Return this backend's own name and precision."""
        return self.name, self.precision

    def _run(self, block: str, x: Tensor) -> Tensor:
        with torch.no_grad():
            return run_in_parts(lambda part: self.model.until(block, part), x)
