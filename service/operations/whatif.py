"""/whatif: every score with a part of the image covered."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from models.errors import UnknownChoice
from models.explainer import Explanation
from models.images.encode import to_data_uri
from models.images.frame import Frame
from models.introspection.cover_test import (
    CoverTest,
    limit_size,
    mask_from_box,
    mask_from_map,
    run_cover_test,
)
from service import schemas
from service.inference.predictor import Predictor
from service.inference.timing import Timer
from service.operations.form import (
    Against,
    Block,
    ExplainFields,
    Flip,
    FormBool,
    Method,
    MethodParameters,
    Negative,
    Target,
)
from service.operations.operation import Operation

_COVERED_SIDE = 800


class WhatIfForm(ExplainFields):
    """Fields: the part to cover."""

    target: Target = None
    against: Against = None
    negative: Negative = False
    block: Block = None
    method: Method = None
    parameters: MethodParameters = ""
    flip: Flip = False
    box: str = Field(
        "",
        description="x0,y0,x1,y1 in pixels of the upright picture; the hottest part by default.",
        json_schema_extra={"examples": ["40,60,160,180"]},
    )
    share: float = Field(
        0.15,
        gt=0,
        lt=1,
        description="Of the map, the hottest part to cover, where there is no box.",
    )
    cover: Literal["blur", "mean"] = Field("blur", description="What it is covered by.")
    overlay: FormBool = Field(False, description="Send the covered picture.")


def _what_if(predictor: Predictor, data: bytes, form: WhatIfForm) -> schemas.WhatIfAnswer:
    timer = Timer()
    explanation = predictor.explain(data, form.options(), timer)
    with timer.part("what if"):
        image, scale = limit_size(explanation.image)
        frame = predictor.model.geometry.frame(image.width, image.height)
        mask, instead = _mask(predictor, form, explanation, frame, scale)
        result = run_cover_test(predictor.backend, image, mask, cover=form.cover)
    return schemas.WhatIfAnswer(
        changes=[schemas.Change.model_validate(item) for item in result.changes],
        cover=result.cover,
        share=result.share,
        covered=_thumbnail(result) if form.overlay else None,
        **predictor.about_explanation(explanation, timer, warnings=instead),
    )


def _mask(
    predictor: Predictor, form: WhatIfForm, explanation: Explanation, frame: Frame, scale: float
) -> tuple[np.ndarray, list[str]]:
    """Return what to cover, and what a reader must know: an empty map gives way to the one suggested."""
    if form.box:
        x0, y0, x1, y1 = (edge * scale for edge in _parse_box(form.box))
        return mask_from_box(frame, (x0, y0, x1, y1)), []
    attribution = explanation.attributions[0]
    suggestions = predictor.explainer.suggest(explanation)
    if not suggestions:
        return mask_from_map(frame, attribution, share=form.share), []
    instead = f"The map for {attribution.target.name} is empty; covered is the hottest part of another: "
    return mask_from_map(frame, suggestions[0].attribution, share=form.share), [
        instead + suggestions[0].reason
    ]


def _parse_box(text: str) -> tuple[float, float, float, float]:
    """Read "x0,y0,x1,y1" as numbers; raises UnknownChoice."""
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UnknownChoice("box", text, ("x0,y0,x1,y1 in pixels of the picture",)) from error
    return x0, y0, x1, y1


def _thumbnail(result: CoverTest) -> str:
    small = result.covered.pil.copy()
    small.thumbnail((_COVERED_SIDE, _COVERED_SIDE))
    return to_data_uri(small)


OPERATION = Operation(
    name="whatif", form=WhatIfForm, run=_what_if, answer=schemas.WhatIfAnswer,
    summary="The change of every score when a box, or the hottest part of the map, is covered.",
)  # fmt: skip
