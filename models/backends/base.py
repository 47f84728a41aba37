"""What runs the network: torch itself, or for the blocks that need no gradient torch.compile or OpenVINO
(extra ``fast``).

All work on a twin of the model with BatchNorm folded. Captum always differentiates torch's own tail of that
twin, so an explanation is of the same network whichever engine ran below it. An engine is used only if its
logits meet those of the model as it was saved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, get_args

from torch import Tensor

from models.networks.transfer_model import TransferModel

BackendName = Literal["eager", "compile", "openvino"]
BackendPrecision = Literal["fp32", "bf16", "int8"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
PRECISIONS: tuple[BackendPrecision, ...] = get_args(BackendPrecision)
"""From the most exact to the least."""

_LOW_MARGIN = 0.02
"""Of an image's largest logit, the lead below which bf16 and int8 do not decide. On 639 photographs bf16
alone changed 11 answers among the packaged network's 1,000 classes; so it changes 4, and runs 4.5 % again."""


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


def refine_close_calls(
    model: TransferModel, exact: Callable[[Tensor], Tensor], x: Tensor, value: Tensor, logits: Tensor
) -> Tensor | None:
    """Return ``value`` with the images whose answer could be another by rounding alone run again by
    ``exact``, which takes images to the block's value; None where there are none.
    """
    close = model.scoring.margin(logits) <= _LOW_MARGIN * logits.abs().amax(dim=1)
    if not bool(close.any()):
        return None
    refined = value.clone()
    refined[close] = exact(x[close])
    return refined
