"""Whether a method's maps depend on what the model has learnt (Adebayo et al. 2018), and on the class.

The weights are shuffled from the head downwards, and the same images are explained after each step. A map
that stays as it was does not show the model but the image; the method is then barred for that model.
A map that stays when only the head is shuffled, and when another class is asked for, is of what the network
responds to, whatever the class; such a method is not asked about a class of one's choice.

Shuffling within each tensor, rather than drawing anew, keeps the sizes of the signals, so that the shuffled
network is no dead one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from models.attribution.allowed import usable_methods
from models.attribution.forward import ForwardPass, run_forward
from models.attribution.measured import maps_of
from models.attribution.registry import METHODS
from models.attribution.targets import make_target
from models.devices import to_numpy
from models.errors import ExplanationError
from models.method_checks import MethodCheck, RandomizationCheck
from models.metrics.agreement import rank_correlation
from models.metrics.layer_sweep import forward_for
from models.networks.batchnorm_folding import inference_copy
from models.networks.transfer_model import HEAD, TransferModel
from models.progress import Progress, no_progress

DISABLED_FROM = 0.5
"""Rank correlation with the trained model's maps when all weights are shuffled."""
_REPEATS = 2
_COSTLY_IMAGES = 2
"""For methods that take many forwards an image."""
_CHEAPER = {"integrated_gradients": {"most_steps": 16}}
"""Whether a map changes can be seen before its shares add up; a shuffled network's hardly ever do."""


def shuffle_weights(model: TransferModel, start: str, *, seed: int) -> TransferModel:
    """Return a copy with the weights of the head and of every block from ``start`` upwards shuffled within
    each tensor.
    """
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    first = len(model.block_names) if start == HEAD else model.index_of(start)
    parts = [copied.classifier, *(copied.block(name) for name in model.block_names[first:])]
    for part in parts:
        for weights in part.parameters():
            order = torch.randperm(weights.numel(), generator=generator)
            weights.copy_(weights.flatten()[order].view_as(weights))
    return copied


def check_randomization(
    model: TransferModel,
    x: Tensor,
    *,
    methods: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> RandomizationCheck:
    """Check methods on some images (N, 3, H, W), each explained for the class that the model predicts.

    Methods that read a block are asked after each step of two shufflings, those that cost many forwards
    after the first and the last step of one, on two images; all of them for another class as well, by the
    trained model. Methods that do not apply to the network are left out.
    """
    methods = usable_methods(model) if methods is None else methods
    count = len(model.block_names)
    starts = [HEAD, *(model.block_names[count * share // 4] for share in (3, 2, 1)), model.block_names[0]]
    checks: dict[str, MethodCheck] = {}
    trained = run_forward(inference_copy(model), x)
    targets = trained.logits.argmax(1).tolist()
    turns = [(start, turn) for start in starts for turn in range(_REPEATS)]
    plan = {
        (start, turn): [
            name for name in methods if _is_checked_at(name, start in (starts[0], starts[-1]), turn)
        ]
        for start, turn in turns
    }
    done, total = 0, len(methods) + sum(map(len, plan.values()))

    def explain(name: str, forward: ForwardPass, *classes: Sequence[int]) -> list[list[np.ndarray]]:
        nonlocal done
        maps = _maps(name, forward, classes)
        done += 1
        progress("sanity of the methods", done, total)
        return maps

    others = _other_classes(trained)
    # Both at once: where a class costs no forward of its own, the second is free.
    own = {name: explain(name, trained, targets, *([others] if others else [])) for name in methods}
    before = {name: maps[0] for name, maps in own.items() if maps}
    alike: dict[str, dict[str, list[float]]] = {name: {} for name in before}
    total = len(methods) + sum(name in alike for names in plan.values() for name in names)
    for (start, turn), names in plan.items():
        able = [name for name in names if name in alike]
        if able:
            other = run_forward(inference_copy(shuffle_weights(model, start, seed=seed + turn)), x)
        for name in able:
            for maps in explain(name, other, targets):
                alike[name].setdefault(start, []).extend(_similarities(before[name], maps))
    for name, steps in alike.items():
        apart = [value for maps in own[name][1:] for value in _similarities(before[name], maps)]
        checks[name] = _verdict({start: values for start, values in steps.items() if values}, apart)
    return RandomizationCheck(checks, len(x), seed)


def _is_checked_at(name: str, at_an_end: bool, turn: int) -> bool:
    return METHODS[name].grid == "block" or (at_an_end and turn == 0)


def _maps(name: str, forward: ForwardPass, classes: Sequence[Sequence[int]]) -> list[list[np.ndarray]]:
    """Return the images' maps for each row of classes; none where the method does not apply to the
    network.
    """
    method = METHODS[name]
    if method.grid == "input":
        forward = run_forward(forward.model, forward.x[:_COSTLY_IMAGES])
    forward = forward_for(method, forward)
    rows = [[make_target(forward.model.classes, index) for index in row[: len(forward.x)]] for row in classes]
    try:
        parameters = method.parameters.from_names(_CHEAPER.get(name, {}), quick=True)
        results = method.run(forward, rows, parameters)
    except ExplanationError:
        return []
    return [[to_numpy(values) for values in maps_of(result)] for result in results]


def _other_classes(trained: ForwardPass) -> list[int]:
    """Return for each image the class in the middle of its ranking; empty where there is one class only."""
    ranking = trained.logits.argsort(1, descending=True)
    return ranking[:, ranking.shape[1] // 2].tolist() if ranking.shape[1] > 1 else []


def _similarities(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> list[float]:
    """Return the similarity of each pair of maps, 0 for an inverted one: only whether it changed matters. A
    map that is empty or not finite says nothing about that, and is left out.
    """
    pairs = [
        (a, b)
        for a, b in zip(before, after, strict=True)
        if np.isfinite(a).all() and np.isfinite(b).all() and a.any() and b.any()
    ]
    return [max(rank_correlation(a, b), 0.0) for a, b in pairs]


def _verdict(alike: Mapping[str, Sequence[float]], apart: Sequence[float]) -> MethodCheck:
    similarity = {start: float(np.mean(values)) for start, values in alike.items()}
    if not similarity:
        return MethodCheck({}, False, "It could not be checked: its maps came out empty.")
    other = float(np.mean(apart)) if apart else None
    last = list(similarity.values())[-1]
    disabled = last >= DISABLED_FROM
    change = "hardly change" if disabled else "change"
    reason = f"Its maps {change} when every weight is shuffled (rank correlation {last:.2f})"
    if disabled:
        return MethodCheck(similarity, True, f"{reason}: it shows the picture, not the model.", other)
    check = MethodCheck(similarity, False, f"{reason}.", other)
    if not check.class_blind:
        return check
    for_other = f", nor when another class is asked for ({other:.2f})" if other is not None else ""
    return replace(
        check,
        reason=f"{reason}, but hardly when only the head's are ({similarity[HEAD]:.2f}){for_other}: it shows "
        "what the network responds to, and not which class it is.",
    )
