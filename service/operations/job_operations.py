"""What can be asked as a job: the verbs whose answers are JSON, and templates of many channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from pydantic import Field

from service import schemas
from service.inference.doubts import Doubts
from service.operations.forms import Block, Form
from service.operations.registry import OPERATIONS


@dataclass(frozen=True, slots=True)
class JobOperation:
    """One row."""

    name: str
    form: type[Form]
    run: Callable[[Doubts, bytes, Any], schemas.Answer]
    summary: str
    pictures: bool = True
    """Whether it is about pictures."""


class FiltersForm(Form):
    """Which templates are made."""

    block: Block = None
    channels: str = Field("0", description="Numbers with commas between, 64 at most.")
    steps: int = Field(160, ge=1, le=1024)


def _filters(doubts: Doubts, data: bytes, form: FiltersForm) -> schemas.Answer:
    engine = doubts.engine
    made = engine.filters(
        form.block or engine.model.cam_block,
        schemas.numbers(form.channels),
        form.steps,
        most=64,
        most_steps=1024,
    )
    return schemas.FiltersAnswer(templates=made, provenance=engine.origin())


def _json(name: str) -> JobOperation:
    verb = OPERATIONS[name]

    def run(doubts: Doubts, data: bytes, form: Any) -> schemas.Answer:
        if getattr(form, "picture", False):
            form = form.model_copy(update={"picture": False})
        return cast(schemas.Answer, verb.run(doubts, data, form))

    return JobOperation(name, verb.form, run, verb.summary)


JOB_OPERATIONS: dict[str, JobOperation] = {
    verb.name: verb
    for verb in (
        *(_json(name) for name, verb in OPERATIONS.items() if verb.answer is not None),
        JobOperation(
            "filters", FiltersForm, _filters, "What channels look for, made on the spot.", pictures=False
        ),
    )
}
