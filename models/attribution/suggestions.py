"""A way on from an empty map: other questions about the same image whose maps show something.

An empty map is an answer (nothing at this block speaks for the class), but a reader is left alone with it.
So the neighbouring questions are tried, the nearest first: the class against the runner-up, another method at
the same block, a lower block, and what speaks against the class.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from models.attribution.forward import ForwardPass, run_forward
from models.attribution.registry import METHODS, attribute_each
from models.attribution.result import Attribution
from models.attribution.targets import Target, make_target
from models.cancellation import check_deadline
from models.errors import DeadlineExceeded, ExplanationError

_FINE_METHODS = ("hires_cam", "layer_cam")
"""For lower blocks, where Grad-CAM's mean over the positions says little."""
_MOST_BLOCKS = 6


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Another question about an image, which was tried and has a map to show."""

    reason: str
    """What it shows, as a sentence."""
    attribution: Attribution

    @property
    def options(self) -> dict[str, str]:
        """The question as options by name, as REST, the command line and ExplainOptions take them."""
        item = self.attribution
        options = {"target": item.label, "method": item.method}
        if METHODS[item.method].reads_block:
            options["block"] = item.block
        if item.target.against is not None:
            options["against"] = item.target.against
        return options | ({"negative": "true"} if item.target.negative else {})


def find_suggestions(
    forward: ForwardPass, attribution: Attribution, *, disabled: Container[str]
) -> tuple[Suggestion, ...]:
    """Return the first question of each kind whose map has positive evidence, for the one image of a pass.

    ``disabled`` methods are not asked. Where the deadline of the work passes, what was found so far is
    returned; nothing for a map that is not empty.
    """
    suggestions: list[Suggestion] = []
    if attribution.status == "ok":
        return ()
    with suppress(DeadlineExceeded):
        for kind in (_contrast, _other_methods, _lower_blocks, _negative):
            for reason, ask in kind(forward, attribution, disabled):
                if (answer := _answer(ask)) is not None:
                    suggestions.append(Suggestion(reason, answer))
                    break
    return tuple(suggestions)


_Question = tuple[str, Callable[[], Attribution]]


def _answer(ask: Callable[[], Attribution]) -> Attribution | None:
    try:
        attribution = ask()
    except ExplanationError:
        return None
    return attribution if attribution.status == "ok" else None


def _ask(forward: ForwardPass, target: Target, method: str) -> Attribution:
    check_deadline()
    parameters = METHODS[method].parameters.from_names({}, quick=True)
    (attribution,) = attribute_each(forward, [target], method=method, parameters=parameters)
    return attribution


def _ask_at(forward: ForwardPass, block: str, target: Target, method: str) -> Attribution:
    lower = run_forward(forward.model, forward.x, block=block, backend=forward.backend)
    return _ask(lower, target, method)


def _contrast(
    forward: ForwardPass, attribution: Attribution, disabled: Container[str]
) -> Iterator[_Question]:
    own, classes = attribution.target, forward.model.classes
    if own.against is not None or own.negative:
        return
    ranking = forward.logits[0].argsort(descending=True, stable=True).tolist()
    other = next(index for index in ranking if index != own.index)
    name = "runner-up" if ranking[0] == own.index else "highest score"
    target = make_target(classes, own.index, other)
    yield (
        f"What speaks for {own.label} rather than {classes[other]}, the {name}.",
        lambda: _ask(forward, target, attribution.method),
    )


def _other_methods(
    forward: ForwardPass, attribution: Attribution, disabled: Container[str]
) -> Iterator[_Question]:
    if METHODS[attribution.method].usual_block != "grad_cam":
        # The others are no good where it reads.
        forward = run_forward(forward.model, forward.x, backend=forward.backend)
    for name, row in METHODS.items():
        if row.grid == "block" and name not in disabled and name != attribution.method:
            yield (
                f"What speaks for {attribution.target.name} by {row.title} at {forward.block}.",
                partial(_ask, forward, attribution.target, name),
            )


def _lower_blocks(
    forward: ForwardPass, attribution: Attribution, disabled: Container[str]
) -> Iterator[_Question]:
    method = next((name for name in (*_FINE_METHODS, *METHODS) if name not in disabled), None)
    if method is None or not METHODS[method].reads_block:
        return
    model = forward.model
    lower = model.block_names[: model.index_of(forward.block)]
    below = [name for name in lower if name in model.blocks_with_map]
    for block in below[::-1][:_MOST_BLOCKS]:
        yield (
            f"What speaks for {attribution.target.name} at the lower block {block}, by "
            f"{METHODS[method].title}.",
            partial(_ask_at, forward, block, attribution.target, method),
        )


def _negative(
    forward: ForwardPass, attribution: Attribution, disabled: Container[str]
) -> Iterator[_Question]:
    own = attribution.target
    if own.against is None and not own.negative:
        target = make_target(forward.model.classes, own.index, negative=True)
        yield (
            f"What speaks against {own.label}.",
            partial(_ask, forward, target, attribution.method),
        )
