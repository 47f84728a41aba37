"""A job's pictures explained into rows: the same decoding, geometry and explanations as in the service.

A picture that cannot be used becomes a row with its error; it never stops the others.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from models.attribution.forward import run_forward
from models.attribution.result import Attribution
from models.attribution.scaling import attribute_scaled
from models.attribution.targets import Target, choose_targets
from models.backends.registry import create_backend
from models.bundle import Bundle
from models.errors import LucidaError
from models.images.decode import Image, read_image
from models.images.encode import encode_image
from models.images.geometry import Frame
from models.metrics.warnings import audit_border, image_warnings, map_warnings
from models.networks.predictions import Prediction, rank_classes
from models.visualization.overlay import draw_overlay, shrink_to_fit
from pipelines.batch.checks import run_job_checks
from pipelines.batch.job import ExplainJob
from pipelines.batch.sinks import ROW_SCHEMA

_ASKED = (
    "faithfulness",
    "faithfulness_percentile",
    "verdict",
    "agreement",
    "shift_spread",
    "shift_correlation",
    "best_stage",
    "hottest_change",
)
"""Columns that stay empty unless they are asked for."""
_OVERLAY_SIDE = 800
_SAFE = re.compile(r"[^A-Za-z0-9._-]+")


def overlay_name(path: str) -> str:
    """A file name for a picture's overlay: readable, safe on any file system, and different for different
    paths.
    """
    stem = _SAFE.sub("_", Path(path).stem)[:60] or "picture"
    return f"{stem}-{hashlib.sha256(path.encode()).hexdigest()[:10]}.jpg"


@dataclass(frozen=True, slots=True)
class _Ready:
    """A picture on its way through a batch; its full pixels are let go as soon as the tensor is made."""

    name: str
    sha256: str
    width: int
    height: int
    seen_box: tuple[float, float, float, float]
    x: torch.Tensor
    shown: Image
    frame: Frame
    """Of the picture as it is shown, at most _OVERLAY_SIDE pixels a side."""
    notes: tuple[str, ...]
    """What is lost between the picture and the model."""


class BatchWorker:
    """One loaded model at work on a job; safe to use from one thread."""

    def __init__(self, job: ExplainJob, bundle: Bundle, *, batch_size: int = 16) -> None:
        self.job, self.batch_size = job, batch_size
        self.engine = create_backend("eager", bundle.model, probe=bundle.probe[0])
        self.model = self.engine.model
        self.barred = bundle.sanity.barred() if bundle.sanity is not None else {}
        known = bundle.sanity.methods.get(job.how.method) if bundle.sanity is not None else None
        self.sanity = known.reason if known is not None else None

    def explain_part(self, files: Sequence[str], overlays: Path) -> list[dict[str, Any]]:
        """Rows for some of the job's files, in their order; overlays are written as JPEG files."""
        rows: dict[str, dict[str, Any]] = {}
        for start in range(0, len(files), self.batch_size):
            for row in self._batch(files[start : start + self.batch_size], overlays):
                rows[row["path"]] = row
        return [rows[name] for name in files]

    def _batch(self, files: Sequence[str], overlays: Path) -> Iterator[dict[str, Any]]:
        ready: list[_Ready] = []
        for name in files:
            try:
                ready.append(self._prepare(name))
            except LucidaError as error:
                yield _error_row(self.job, name, str(error))
        if not ready:
            return
        how = self.job.how
        evidence = run_forward(
            self.model, torch.stack([each.x for each in ready]), block=how.block, engine=self.engine
        )
        rankings: list[list[Prediction]] = []
        for each, logits in zip(ready, evidence.logits, strict=True):
            try:
                rankings.append(rank_classes(logits, self.model.classes, self.model.scoring))
            except LucidaError as error:
                rankings.append([])
                yield _error_row(self.job, each.name, str(error))
        targets = [self._target(ranking) for ranking in rankings]
        scaled = attribute_scaled(
            evidence, [[each] for each in targets], method=how.method, smoothing=how.smoothing
        )
        for each, ranking, ((attribution,), scale) in zip(ready, rankings, scaled, strict=True):
            if ranking:
                file = overlay_name(each.name)
                drawn = draw_overlay(each.shown, each.frame, attribution, full_scale=scale)
                (overlays / file).write_bytes(encode_image(drawn))
                asked = self._asked(each, attribution, overlays / Path(file).stem)
                yield (
                    _row(self.job, each, ranking, attribution, scale, file) | {"sanity": self.sanity} | asked
                )

    def _prepare(self, name: str) -> _Ready:
        image = read_image(self.job.source / name, limits=self.job.limits)
        x, frame = self.model.geometry.prepare(image)
        small, small_frame = shrink_to_fit(image.pil, frame, _OVERLAY_SIDE)
        notes = tuple(image_warnings(image, frame))
        shown = replace(image, pil=small)
        return _Ready(
            name, image.sha256, image.width, image.height, frame.seen_box, x, shown, small_frame, notes
        )

    def _target(self, ranking: list[Prediction]) -> Target:
        """A picture without finite scores is explained for nothing, and has its row already."""
        how = self.job.how
        if not ranking:
            return Target(0, self.model.classes[0])
        return choose_targets(self.model.classes, ranking, name=how.target, against=how.against)[0]

    def _asked(self, each: _Ready, attribution: Attribution, stem: Path) -> dict[str, Any]:
        how = self.job.how
        if not how.checks and not how.sheets:
            return {}
        # The batch let go of the full picture; only these questions need it again.
        image = read_image(self.job.source / each.name, limits=self.job.limits)
        return run_job_checks(
            self.engine,
            image,
            attribution,
            block=self.job.block,
            checks=how.checks,
            sheets=how.sheets,
            barred=self.barred,
            stem=stem,
        )


def _row(
    job: ExplainJob,
    each: _Ready,
    ranking: list[Prediction],
    attribution: Attribution,
    full_scale: float | None,
    file: str,
) -> dict[str, Any]:
    score = next(item.score for item in ranking if item.index == attribution.index)
    return {
        "path": each.name,
        "digest": each.sha256,
        "width": each.width,
        "height": each.height,
        "prediction": ranking[0].label,
        "score": ranking[0].score,
        "accepted": [item.label for item in ranking if item.accepted],
        "scores": [(item.label, item.score) for item in ranking],
        "target": attribution.label,
        "against": attribution.target.against,
        "method": attribution.method,
        "unit": attribution.unit,
        "block": attribution.block,
        "grid_rows": attribution.rows,
        "grid_cols": attribution.cols,
        "grid": attribution.values.ravel().tolist(),
        "seen_box": list(each.seen_box),
        "border_mass": audit_border(attribution).mass,
        **dict.fromkeys(_ASKED),
        "full_scale": full_scale,
        "settings": json.dumps(attribution.settings),
        "warnings": [*each.notes, *map_warnings(attribution, score, full_scale)],
        "status": attribution.status,
        "error": None,
        "overlay": f"overlays/{file}",
        "model_digest": job.model_digest,
    }


def _error_row(job: ExplainJob, name: str, reason: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(ROW_SCHEMA.names)
    return row | {"path": name, "status": "error", "error": reason, "model_digest": job.model_digest}
