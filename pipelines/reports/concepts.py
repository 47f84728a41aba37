"""The concepts of a model as a page and as a bundle's file: what each looks like, and what it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import PIL.Image
import torch

from models.attribution.result import make_attribution
from models.attribution.targets import make_target
from models.devices import to_numpy
from models.explainer import Explainer
from models.images.decode import Image, read_image
from models.images.encode import to_data_uri
from models.images.frame import Frame
from models.introspection.concept_set import ConceptSet
from models.visualization.overlay import draw_overlay
from pipelines.data.dataset import Dataset, Sample
from pipelines.evaluation.concepts import ConceptStudy
from pipelines.reports.html import render_template

_CROP_CELLS = 3
"""Side of a patch: a cell sees its neighbours as well."""
_SIDE = 132


def describe_concepts(
    study: ConceptStudy, explainer: Explainer, data: Dataset, facts: Mapping[str, str]
) -> ConceptSet:
    """Return the study's concepts with figures and patches, as they are kept beside a bundle; ``facts`` say
    where they come from.
    """
    entries = [
        {
            **asdict(measure),
            "patches": [_patch(study.concepts, explainer, data, measure.number, sample)
                        for sample in study.strongest[measure.number]],
        }
        for measure in study.measures
    ]  # fmt: skip
    summary = {
        "fitted": study.fitted, "measured": study.measured, "residual": study.residual,
        "described": study.described, "parts": [asdict(part) for part in study.parts], "facts": dict(facts),
    }  # fmt: skip
    return replace(study.concepts, entries=tuple(entries), summary=summary)


def render_concepts(concepts: ConceptSet) -> str:
    """Render concepts that were described as one HTML file that stands alone."""
    rows = [
        {**entry, "name": concepts.title(number), "classes": _strongest_classes(entry["by_class"])}
        for number, entry in enumerate(concepts.entries)
    ]
    title = f"Concepts of {concepts.summary['facts'].get('model', 'a model')}"
    return render_template(
        "concepts.html.j2", title=title, rows=rows, study=concepts.summary, concepts=concepts,
        facts=concepts.summary["facts"],
    )  # fmt: skip


def _strongest_classes(by_class: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return up to three classes that it speaks for or against most, the largest share first, in size."""
    return sorted(by_class.items(), key=lambda item: -abs(item[1]))[:3]


def _patch(
    concepts: ConceptSet, explainer: Explainer, data: Dataset, number: int, sample: Sample
) -> dict[str, Any]:
    """Return a picture's strongest place, cut out, and the whole picture with the concept's map."""
    model, image = explainer.model, read_image(sample.path)
    prepared = explainer.prepare(image)
    with torch.no_grad():
        value = explainer.backend.until(concepts.block, prepared.x[None])
        codes = to_numpy(concepts.encode(model.as_map(concepts.block, value))[0, number])
    attribution = make_attribution(
        make_target(model.classes, 0), codes, method="concept", block=concepts.block
    )
    where = draw_overlay(image, prepared.frame, attribution, max_side=2 * _SIDE)
    return {
        "picture": sample.name,
        "label": " + ".join(data.classes[index] for index in sample.labels) or "none",
        "strength": float(codes.max() / float(concepts.levels[number])),
        "crop": to_data_uri(_crop(image, prepared.frame, codes)),
        "where": to_data_uri(where),
    }


def _crop(image: Image, frame: Frame, codes: np.ndarray) -> PIL.Image.Image:
    """Return the place of the largest code with its neighbours, square, within the picture."""
    rows, cols = codes.shape
    row, col = divmod(int(codes.argmax()), cols)
    width, height = frame.cell_size(rows, cols)
    side = min(_CROP_CELLS * max(width, height), image.width, image.height)
    left, top, _, _ = frame.seen_box
    x0 = min(max(left + (col + 0.5) * width - side / 2, 0.0), image.width - side)
    y0 = min(max(top + (row + 0.5) * height - side / 2, 0.0), image.height - side)
    box = (round(x0), round(y0), round(x0 + side), round(y0 + side))
    return image.pil.convert("RGB").crop(box).resize((_SIDE, _SIDE), PIL.Image.Resampling.LANCZOS)
