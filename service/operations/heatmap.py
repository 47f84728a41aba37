"""/heatmap: the image with the map over it."""

from __future__ import annotations

from typing import Literal
from urllib.parse import quote

from models.images.encode import encode_image
from service.inference.predictor import Predictor
from service.operations.form import (
    Against,
    Block,
    ExplainFields,
    Fade,
    Flip,
    Method,
    MethodParameters,
    Negative,
    Noise,
    Target,
)
from service.operations.operation import ImageResponse, Operation


class HeatmapForm(ExplainFields):
    """Fields: the map to draw."""

    target: Target = None
    against: Against = None
    negative: Negative = False
    block: Block = None
    method: Method = None
    parameters: MethodParameters = ""
    flip: Flip = False
    noise: Noise = 0.0
    fade: Fade = 0.0
    encoding: Literal["jpeg", "png"] = "jpeg"


def _heatmap(predictor: Predictor, data: bytes, form: HeatmapForm) -> ImageResponse:
    explanation = predictor.explain(data, form.options())
    attribution = explanation.attributions[0]
    side = predictor.settings.max_overlay_side
    overlay = explanation.overlay(attribution, max_side=side, fade=form.fade)
    headers = {
        "X-Lucida-Status": attribution.status,
        "X-Lucida-Label": quote(attribution.target.name),
        "X-Lucida-Fade": f"{form.fade:g}",
    }
    drawn_overlay = encode_image(overlay, form.encoding)
    return ImageResponse(drawn_overlay, f"image/{form.encoding}", headers, predictor.observe(explanation))


OPERATION = Operation(
    name="heatmap", form=HeatmapForm, run=_heatmap, answer=None, image_types=("image/jpeg", "image/png"),
    headers=("X-Lucida-Status", "X-Lucida-Label", "X-Lucida-Fade"),
    summary="The picture with the map over it, at its own size.",
)  # fmt: skip
