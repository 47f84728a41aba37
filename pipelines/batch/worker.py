"""A job's images explained into results: the same decoding, geometry and explanations as in the service.

An image that cannot be used becomes a result with its error; it never stops the others.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image

from models.errors import LucidaError, UnreadableImage
from models.explainer import Explainer, Explanation, PreparedImage
from models.images.decode import Image, decode_image
from models.metrics.warnings import audit_border, crop_warning
from models.observer import UNUSUAL_PERCENTILE, Observer
from models.visualization.overlay import shrink_to_fit
from pipelines.batch.checks import CHECK_COLUMNS, run_job_checks
from pipelines.batch.index_page import true_class
from pipelines.batch.job import ExplainJob
from pipelines.batch.more_targets import explain_also
from pipelines.batch.sinks import OBSERVED_COLUMNS, ROW_SCHEMA, ImageResult, overlay_name
from pipelines.batch.sources import SourceItem
from pipelines.errors import StoreUnavailable

_OVERLAY_SIDE = 800
_UNSURE, _MUCH_AT_BORDER = 0.6, 0.6
"""Scores below and evidence at the border above which a picture is interesting."""
_MOST_UNANSWERED = 8
"""Pictures in a row that their store did not give, after which it is taken to be away."""


class BatchWorker:
    """A model at work on a job; safe to use from one thread."""

    def __init__(self, job: ExplainJob, explainer: Explainer, *, batch_size: int = 16) -> None:
        self.job, self.explainer, self.batch_size = job, explainer, batch_size
        self._observer = Observer(explainer)
        self._unanswered = 0
        self._classes = {unicodedata.normalize("NFC", name): name for name in explainer.model.classes}

    def explain_items(
        self, items: Sequence[SourceItem], *, begun: Callable[[str], object] = lambda name: None
    ) -> Iterator[ImageResult]:
        """Yield a result for each of the job's pictures, in their order; ``begun`` is told each name before
        the picture is read. Raises StoreUnavailable when the pictures' store is gone for good.
        """
        for start in range(0, len(items), self.batch_size):
            batch = items[start : start + self.batch_size]
            results = {result.name: result for result in self._explain_batch(batch, begun)}
            yield from (results[item.name] for item in batch)

    def failed(self, item: SourceItem, reason: str) -> ImageResult:
        """Return the result of a picture that cannot be read, whose reason is known already."""
        return self._error_result(item, UnreadableImage(reason))

    def _explain_batch(
        self, items: Sequence[SourceItem], begun: Callable[[str], object]
    ) -> Iterator[ImageResult]:
        prepared: dict[SourceItem, PreparedImage] = {}
        for item in items:
            begun(item.name)
            try:
                prepared[item] = self._prepare(item)
            except LucidaError as error:
                self._count_unanswered(error)
                yield self._error_result(item, error)
            else:
                self._unanswered = 0
        if not prepared:
            return
        explanations = self.explainer.explain_batch(list(prepared.values()), self.job.options)
        also = self._explain_also(prepared, explanations)
        for place, (item, explanation) in enumerate(zip(prepared, explanations, strict=True)):
            if isinstance(explanation, LucidaError):
                yield self._error_result(item, explanation)
            else:
                result = self._result(item, explanation, place)
                yield replace(result, row=result.row | {"also": also.get(item)})

    def _count_unanswered(self, error: LucidaError) -> None:
        """Raise what a store says that has given nothing for a while: each picture that is left would become
        a row with the same error.
        """
        if not isinstance(error, StoreUnavailable):
            self._unanswered = 0
            return
        self._unanswered += 1
        if self._unanswered >= _MOST_UNANSWERED:
            raise StoreUnavailable(
                f"{_MOST_UNANSWERED} pictures in a row could not be fetched. {error} What is done is kept; "
                "the same command goes on from there."
            )

    def _explain_also(
        self, prepared: Mapping[SourceItem, PreparedImage], results: Sequence[Explanation | LucidaError]
    ) -> dict[SourceItem, list[dict[str, Any]]]:
        """Return the further targets of the pictures that were explained, by picture."""
        if not self.job.also:
            return {}
        explained = {
            item: result
            for item, result in zip(prepared, results, strict=True)
            if isinstance(result, Explanation)
        }
        rows = explain_also(
            self.explainer, [prepared[item] for item in explained], list(explained.values()),
            [item.truth or true_class(item.name, self._classes) for item in explained], self.job.also,
            self.job.options,
        )  # fmt: skip
        return dict(zip(explained, rows, strict=True))

    def _prepare(self, item: SourceItem) -> PreparedImage:
        """Read an image; its full pixels are freed as soon as its tensor is made."""
        image = self._read(item)
        prepared = self.explainer.prepare(image)
        small, _ = shrink_to_fit(image.pil, prepared.frame, _OVERLAY_SIDE)
        size = (image.width, image.height)
        return replace(prepared, image=replace(image, pil=small, full_size=size))

    def _read(self, item: SourceItem) -> Image:
        return decode_image(self.job.source.read(item, self.job.limits), limits=self.job.limits)

    def _result(self, item: SourceItem, explanation: Explanation, place: int) -> ImageResult:
        job = self.job
        columns: dict[str, Any] = {}
        figures: dict[str, PIL.Image.Image] = {}
        if job.checks or job.figures:
            # The batch freed the full image; only these checks need it again.
            full = self.explainer.explain(self._read(item), job.options)
            columns, figures = run_job_checks(self.explainer, full, checks=job.checks, figures=job.figures)
        row = self._row(item, explanation) | self._observed(explanation, place) | columns
        if not _shows_overlay(job, row):
            return ImageResult(item.name, row | {"overlay": None}, None, figures)
        return ImageResult(item.name, row, explanation.overlay(max_side=_OVERLAY_SIDE), figures)

    def _observed(self, explanation: Explanation, place: int) -> dict[str, Any]:
        observation = self._observer.observe_explanation(explanation, place)
        novelty = self._observer.novelty(observation)
        figures = {name: observation.figures.get(name) for name in OBSERVED_COLUMNS}
        percentile = novelty.percentile if novelty is not None else None
        own = observation.features if self.job.features else None
        return figures | {
            "novelty_percentile": percentile,
            "map_empty": observation.empty,
            "features": None if own is None else own.astype(np.float32),
        }

    def _row(self, item: SourceItem, explanation: Explanation) -> dict[str, Any]:
        image, attribution = explanation.image, explanation.attributions[0]
        top = explanation.predictions[0]
        return {
            "path": item.name,
            "truth": item.truth,
            "extra": item.extra,
            "digest": image.sha256,
            "width": image.width,
            "height": image.height,
            "prediction": top.label,
            "score": top.score,
            "accepted": [item.label for item in explanation.predictions if item.accepted],
            "scores": [(item.label, item.score) for item in explanation.predictions],
            "target": attribution.label,
            "against": attribution.target.against,
            "method": attribution.method,
            "unit": attribution.unit,
            "block": attribution.block,
            "grid_rows": attribution.rows,
            "grid_cols": attribution.cols,
            "grid": attribution.values.ravel().tolist(),
            "seen_box": list(explanation.frame.seen_box),
            "seen_share": explanation.frame.seen_share,
            "border_mass": audit_border(attribution).mass,
            **dict.fromkeys(CHECK_COLUMNS),
            "full_scale": explanation.full_scale,
            "settings": json.dumps(attribution.settings),
            "sanity": self.explainer.randomization_note(attribution.method),
            # The page says once, for all of them, how much of the pictures is cropped away.
            "warnings": [text for text in explanation.warnings if text != crop_warning(explanation.frame)],
            "status": attribution.status,
            "error": None,
            "overlay": f"overlays/{overlay_name(item.name)}",
            "model_digest": self.job.model_digest,
        }

    def _error_result(self, item: SourceItem, error: LucidaError) -> ImageResult:
        row: dict[str, Any] = dict.fromkeys(ROW_SCHEMA.names)
        row |= {"path": item.name, "truth": item.truth, "extra": item.extra}
        row |= {"status": "error", "error": str(error), "model_digest": self.job.model_digest}
        return ImageResult(item.name, row)


def _shows_overlay(job: ExplainJob, row: Mapping[str, Any]) -> bool:
    """Return whether a picture's overlay is written: of the interesting ones, those that a person would look
    at first: wrong, unsure, unusual, with evidence at the border or none.
    """
    if job.overlays != "interesting":
        return job.overlays == "all"
    percentile = row["novelty_percentile"]
    return (
        (row["truth"] is not None and row["truth"] != row["prediction"])
        or row["score"] < _UNSURE
        or row["status"] != "ok"
        or row["border_mass"] > _MUCH_AT_BORDER
        or (percentile is not None and percentile >= UNUSUAL_PERCENTILE)
    )
