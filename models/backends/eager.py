"""The eager backend: torch itself."""

from __future__ import annotations

import torch
from torch import Tensor

from models.backends.base import BackendName, BackendPrecision
from models.networks.transfer_model import TransferModel


class EagerBackend:
    """Torch itself."""

    name: BackendName = "eager"
    precision: BackendPrecision = "fp32"

    def __init__(self, model: TransferModel) -> None:
        self.model = model

    def until(self, block: str, x: Tensor) -> Tensor:
        """Return the block's value, without autograd."""
        with torch.no_grad():
            return self.model.until(block, x)

    def refine_low_margin(self, block: str, x: Tensor, value: Tensor, logits: Tensor) -> Tensor | None:
        """Return None: in fp32 every decision stands."""
        return None

    def execution_info(self, block: str, x: Tensor) -> tuple[BackendName, BackendPrecision]:
        """Return this backend's own name and precision."""
        return self.name, self.precision
