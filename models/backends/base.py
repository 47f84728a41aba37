"""What runs the network: torch itself, or OpenVINO (extra ``fast``) for the blocks that need no gradient.

Both work on a twin of the model with BatchNorm folded. Captum always differentiates torch's own tail of that
twin, so an explanation is of the same network whichever engine ran below it. An engine is used only if its
logits meet those of the model as it was saved.
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args

from torch import Tensor

from models.networks.transfer_model import TransferModel

BackendName = Literal["eager", "openvino"]
BackendPrecision = Literal["fp32", "bf16"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
PRECISIONS: tuple[BackendPrecision, ...] = get_args(BackendPrecision)


class Backend(Protocol):
    """The runner of a model's blocks without autograd; safe to call from many threads."""

    name: BackendName
    precision: BackendPrecision
    model: TransferModel
    """Torch's own twin of what runs, to be differentiated."""

    def until(self, block: str, x: Tensor) -> Tensor:
        """Return the block's value for images (N, 3, H, W), without autograd."""
        ...

    def refine_low_margin(self, block: str, x: Tensor, value: Tensor, logits: Tensor) -> Tensor | None:
        """Return a value to be taken instead, where ``logits`` that followed from ``value`` are too close a
        call for the precision; None where they stand.
        """
        ...

    def execution_info(self, block: str, x: Tensor) -> tuple[BackendName, BackendPrecision]:
        """Return what :meth:`until` computes that with: itself, or torch's twin for what it was not made
        for.
        """
        ...
