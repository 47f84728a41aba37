"""Which concepts a prediction rests on: each one's share of the logit, and what the model says without it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from models.attribution.forward import BATCH_SIZE
from models.attribution.path_integral import integrate_gradient
from models.attribution.targets import Target
from models.backends.base import Backend
from models.cancellation import check_deadline
from models.devices import memory_errors, to_host, to_numpy
from models.introspection.concept_set import ConceptSet
from models.networks.transfer_model import TransferModel

PRESENT_FROM = 5 / 3
"""Of a cell's level: half the largest code that is usual where there is most of a concept."""
_STEPS, _MOST_STEPS = 2, 64
"""Of the integral; above a last block there is nothing but a mean and a linear layer, and 2 are exact."""


@dataclass(frozen=True, slots=True)
class ConceptShare:
    """The part that one concept has in one prediction."""

    number: int
    name: str
    """Its name, or its number as words."""
    share: float
    """Of the logit: how much of its rise over the mean features' runs through this concept."""
    score_without: float
    """The target's score when the concept is taken out of the block's features."""
    label_without: str
    """The class that is predicted then."""
    strength: float
    """Its largest code, as a multiple of the level from which on a cell counts as having it."""
    codes: np.ndarray = field(repr=False)
    """(rows, cols), 0 or more: how much of it is where."""

    @property
    def present(self) -> bool:
        """Whether the image has the concept: more than stray cells that just count as having it."""
        return self.strength >= PRESENT_FROM


@dataclass(frozen=True, slots=True)
class ConceptExplanation:
    """One prediction by the concepts of a block: base, shares, rest and residual add up to the logit."""

    target: Target
    block: str
    logit: float
    score: float
    label: str
    """The class that is predicted."""
    base: float
    """The target's logit for the mean features at every place."""
    shares: tuple[ConceptShare, ...]
    """Those of all concepts, the largest first, in size."""
    rest: float
    """What runs through features that no concept describes."""
    residual: float
    """What the integral misses of the logit's rise over the base; mostly below 5 % of it."""


def explain_by_concepts(
    backend: Backend, x: Tensor, target: Target, concepts: ConceptSet
) -> ConceptExplanation:
    """Share the target's logit for one image (3, H, W) out to the concepts, and measure each one's absence.

    The shares are the integral of the gradient along the line from the mean features to the image's
    (Sundararajan et al. 2017), so that with base and rest they add up to the logit, but for the residual;
    each is of its concept's code times its direction. Tokens that belong to no place, such as a class
    token, stay the image's own throughout. Raises ExplanationError for a block that passes no map on,
    UnknownChoice for a block that the model does not have.
    """
    model, block = backend.model, concepts.block
    with torch.no_grad():
        value = to_host(backend.until(block, x[None]))
        features = model.as_map(block, value).float()
    codes = concepts.encode(features)[0]
    mean = concepts.mean.float()[:, None, None]
    parts = torch.einsum("khw,kc->kchw", codes.float(), concepts.directions.float())
    above = features[0] - mean
    layout = model.layout(block)

    def logits(maps: Tensor) -> Tensor:
        check_deadline()
        whole = layout.from_map(maps, value.expand(len(maps), *value.shape[1:]))
        with memory_errors(1, "find concepts of a higher block"):
            return to_host(model.after(block, whole))

    taken_apart = torch.cat([parts, (above - parts.sum(0))[None]])
    integral = integrate_gradient(
        lambda maps: target.of(logits(maps + mean)), above, steps=_STEPS, most_steps=_MOST_STEPS,
        parts=taken_apart,
    )  # fmt: skip
    *shares, rest = integral.shares.double().sum((1, 2)).tolist()
    with torch.no_grad():
        without = torch.cat([logits(part) for part in torch.split(features - parts, BATCH_SIZE)])
        whole = logits(features)
    logit = float(target.of(whole[0]))
    listed = [
        _describe(k, share, codes[k], without[k], target, model, concepts) for k, share in enumerate(shares)
    ]
    return ConceptExplanation(
        target=target,
        block=block,
        logit=logit,
        score=float(model.scoring.scores(whole)[0, target.index]),
        label=model.classes[int(whole[0].argmax())],
        base=logit - integral.rise,
        shares=tuple(sorted(listed, key=lambda item: -abs(item.share))),
        rest=rest,
        residual=integral.rise - sum(shares) - rest,
    )


def _describe(
    number: int, share: float, codes: Tensor, without: Tensor, target: Target, model: TransferModel,
    concepts: ConceptSet,
) -> ConceptShare:  # fmt: skip
    """Return a concept's share with its codes (rows, cols) and the logits (classes,) without it."""
    return ConceptShare(
        number=number,
        name=concepts.title(number),
        share=share,
        score_without=float(model.scoring.scores(without)[target.index]),
        label_without=model.classes[int(without.argmax())],
        strength=float(codes.max() / concepts.levels[number].clamp(min=1e-12)),
        codes=to_numpy(codes.float()),
    )
