"""One forward for a prediction and all its explanations, safe to call from many threads at once.

The blocks up to the cut run without autograd, at the price of a prediction. What follows runs once with it;
each target then costs one backward through that tail. Captum's hook sits on an ``Identity`` made for this
one call: nothing is hooked on the shared model, so two requests never meet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.attribution.targets import Target
from models.backends.base import Backend
from models.backends.eager import EagerBackend
from models.cancellation import check_deadline
from models.errors import ExplanationError
from models.networks.transfer_model import TransferModel


class ForwardPass:
    """A batch of pictures run once: its logits, and the map at a block, from which they can be derived."""

    def __init__(self, engine: Backend, block: str, x: Tensor, value: Tensor) -> None:
        """Run what follows ``block`` on its ``value``, keeping the graph; raises ExplanationError when the
        value is no map.
        """
        self.engine, self.model, self.block, self.x = engine, engine.model, block, x
        layout = self.model.row.layout
        self.map = self.model.as_map(block, value).detach().requires_grad_()
        """The block's output as a map (N, channels, rows, cols), a leaf of autograd."""
        with torch.enable_grad():
            self._logits: Tensor = self.model.after(block, layout.from_map(self.map, value))

    @property
    def logits(self) -> Tensor:
        """(N, classes), without autograd."""
        return self._logits.detach()

    def scores(self, targets: Sequence[Target]) -> Tensor:
        """(N,) of one target for each picture, with autograd; may be derived any number of times."""
        with torch.enable_grad():
            chosen = [target.of(row) for target, row in zip(targets, self._logits, strict=True)]
            return torch.stack(chosen)

    def gradient(self, targets: Sequence[Target]) -> Tensor:
        """Of each picture's target score by its map, (N, channels, rows, cols)."""
        with torch.enable_grad():
            total = self.scores(targets).sum()
        (found,) = torch.autograd.grad(total, self.map, retain_graph=True)
        return found


class ScoreHead(nn.Module):
    """The rest of the network as Captum wants it: a module with a layer to hook, whose forward gives the
    targets' scores. The forward has run already, so each call only hands out its result.
    """

    def __init__(self, evidence: ForwardPass, targets: Sequence[Target]) -> None:
        super().__init__()
        self.cut = nn.Identity()
        self._scores = evidence.scores(targets)

    def forward(self, grid: Tensor) -> Tensor:
        """(N, channels, rows, cols), the evidence's own map, to scores (N,)."""
        self.cut(grid)
        return self._scores


def run_forward(
    model: TransferModel, x: Tensor, *, block: str | None = None, engine: Backend | None = None
) -> ForwardPass:
    """Run pictures (N, 3, H, W) once, ready to be explained at ``block``.

    With an ``engine`` its twin of the model is what runs and is explained; ``model`` itself otherwise.

    Raises UnknownChoice for an unknown block, and ExplanationError for one whose output is no map or a
    picture that is too small for the network.
    """
    check_deadline()
    engine = engine or EagerBackend(model)
    block = block or model.cam_block
    model.index_of(block)
    try:
        value = engine.until(block, x)
    except RuntimeError as error:
        geometry = model.geometry
        if x.shape[-2] < geometry.crop_height or x.shape[-1] < geometry.crop_width:
            raise ExplanationError(
                f"A picture of {x.shape[-1]} x {x.shape[-2]} is too small for {model.row.name}, which was "
                f"made for {geometry.crop_width} x {geometry.crop_height}: {str(error).splitlines()[0]}"
            ) from error
        raise
    evidence = ForwardPass(engine, block, x, value)
    settled = engine.settled(block, x, value, evidence.logits)
    return evidence if settled is None else ForwardPass(engine, block, x, settled)


def predict_logits(engine: Backend, x: Tensor) -> Tensor:
    """Logits (N, classes) of pictures (N, 3, H, W), without autograd."""
    check_deadline()
    model, block = engine.model, engine.model.cam_block
    with torch.no_grad():
        value = engine.until(block, x)
        logits = model.after(block, value)
        settled = engine.settled(block, x, value, logits)
        return logits if settled is None else model.after(block, settled)


def score_function(evidence: ForwardPass, target: Target) -> Callable[[Tensor], Tensor]:
    """(N, 3, H, W) to the target's logit (N,), by the fast engine where no gradient is asked for."""

    def score(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            check_deadline()
            return target.of(evidence.model(x))
        return target.of(predict_logits(evidence.engine, x))

    return score
