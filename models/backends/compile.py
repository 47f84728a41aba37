"""The compile backend: the blocks up to the Grad-CAM block, compiled by torch.compile."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from models.backends.base import BackendName, BackendPrecision
from models.backends.eager import EagerBackend
from models.devices import run_in_parts
from models.errors import EngineUnavailable
from models.networks.transfer_model import TransferModel


class CompileBackend(EagerBackend):
    """The blocks up to the Grad-CAM block as one compiled function, for batches of any size; torch itself for
    other blocks and images of another size.
    """

    name: BackendName = "compile"

    def __init__(self, model: TransferModel, precision: BackendPrecision = "fp32") -> None:
        """Compile for images of the model's size; raises EngineUnavailable where there is no compiler."""
        super().__init__(model, precision)
        self._compiled = torch.compile(lambda x: model.until(model.cam_block, x), dynamic=True)
        # Two threads must not compile the same graph at once.
        self._lock = threading.Lock()
        geometry = model.geometry
        try:
            for batch in (1, 2):
                self.until(model.cam_block, torch.zeros(batch, 3, geometry.crop_height, geometry.crop_width))
        except Exception as error:  # the compiler's own, of many kinds
            raise EngineUnavailable(
                "The engine compile needs what torch.compile needs, a C++ compiler or Triton: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error

    def execution_info(self, block: str, x: Tensor) -> tuple[BackendName, BackendPrecision]:
        """Return torch.compile at the Grad-CAM block and the model's size, torch itself anywhere else."""
        return (self.name if self._made_for(block, x) else "eager"), self.precision

    def _run(self, block: str, x: Tensor) -> Tensor:
        if not self._made_for(block, x):
            return super()._run(block, x)
        with torch.no_grad(), self._lock:
            return run_in_parts(self._compiled, x)

    def _made_for(self, block: str, x: Tensor) -> bool:
        geometry = self.model.geometry
        return block == self.model.cam_block and x.shape[2:] == (geometry.crop_height, geometry.crop_width)
