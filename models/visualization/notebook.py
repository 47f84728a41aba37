"""An explanation as a notebook shows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import PIL.Image

from models.images.encode import to_data_uri
from models.networks.predictions import Prediction

_MOST_SCORES = 5


def render_notebook(
    overlays: Iterable[tuple[str, str, PIL.Image.Image]],
    predictions: Sequence[Prediction],
    notes: Iterable[str],
) -> str:
    """Return HTML of overlays, each with the name of what it explains and a caption, scores and notes."""
    figures = "".join(
        f'<figure style="display:inline-block;margin:0 12px 0 0"><img alt="evidence for {escape(name)}" '
        f'src="{to_data_uri(image)}"><figcaption>{escape(caption)}</figcaption></figure>'
        for name, caption, image in overlays
    )
    scores = "".join(
        f"<tr><td>{escape(item.label)}</td><td>{item.score:.3f}</td></tr>"
        for item in predictions[:_MOST_SCORES]
    )
    listed = "".join(f"<li>{escape(text)}</li>" for text in notes)
    return f"<div>{figures}<table>{scores}</table><ul>{listed}</ul></div>"
