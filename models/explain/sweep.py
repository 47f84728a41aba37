"""One picture explained at each stage of the network: edges at first, parts at last (topic of depth)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.engines import Engine
from models.explain.attribution import Attribution
from models.explain.faithfulness import Faithfulness, faithfulness
from models.explain.look import look
from models.explain.methods import DEFAULT, explain_each
from models.explain.targets import Target
from models.transfer import TransferModel


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage's map."""

    attribution: Attribution
    faithfulness: Faithfulness | None
    """None where there is no map to judge."""


def stage_ends(model: TransferModel, x: Tensor) -> list[str]:
    """The last block of each spatial size, from the input up; of one size throughout, every third block."""
    sizes: dict[str, tuple[int, ...]] = {}
    with torch.no_grad():
        for name, value in model.walk(x[:1]):
            if name in model.block_names:
                sizes[name] = tuple(model.as_map(name, value).shape[2:])
    names = list(sizes)
    ends = [a for a, b in zip(names, [*names[1:], ""], strict=True) if sizes[a] != sizes.get(b)]
    if len(ends) < 3:
        ends = names[::-3][::-1]
    return sorted({*ends, model.cam_block} - _after(model), key=model.index_of)


def _after(model: TransferModel) -> set[str]:
    """Blocks above the Grad-CAM block, which was chosen as the last that has something to say."""
    return set(model.block_names[model.index_of(model.cam_block) + 1 :])


def layer_sweep(
    engine: Engine,
    x: Tensor,
    target: Target,
    *,
    method: str = DEFAULT,
    steps: int = 8,
    random_maps: int = 9,
) -> list[Stage]:
    """Explain one picture (3, H, W) at the end of each stage, each map with its faithfulness."""
    stages = []
    for block in stage_ends(engine.model, x[None]):
        found = explain_each(
            look(engine.model, x[None], block=block, engine=engine), [target], method=method
        )[0]
        judged = (
            faithfulness(engine, x, found, steps=steps, random_maps=random_maps)
            if found.status == "ok"
            else None
        )
        stages.append(Stage(found, judged))
    return stages
