"""A batch of pictures explained into rows: the same decoding, geometry and Grad-CAM as in the service.

A picture that cannot be used becomes a row with its error; it never stops the others.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from models import engines, images
from models.bundle import Bundle
from models.errors import DataError, ExplanationError, LucidaError
from models.explain import cautions
from models.explain.attribution import Attribution
from models.explain.look import look
from models.explain.methods import DEFAULT, explain_each, row_of
from models.explain.smoothing import Smoothing, explain_smoothly
from models.explain.targets import Target, choose
from models.geometry import Frame
from models.images import Image, Limits
from models.predictions import Prediction, class_index, rank
from models.render.overlay import encode, fit, overlay
from pipelines.explain_job import questions

SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("digest", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("prediction", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("accepted", pa.list_(pa.string())),
        pa.field("scores", pa.map_(pa.string(), pa.float64())),
        pa.field("target", pa.string()),
        pa.field("against", pa.string()),
        pa.field("method", pa.string()),
        pa.field("unit", pa.string()),
        pa.field("block", pa.string()),
        pa.field("grid_rows", pa.int32()),
        pa.field("grid_cols", pa.int32()),
        pa.field("grid", pa.list_(pa.float32())),
        pa.field("seen_box", pa.list_(pa.float64())),
        pa.field("border_mass", pa.float64()),
        pa.field("faithfulness", pa.float64()),
        pa.field("faithfulness_percentile", pa.float64()),
        pa.field("verdict", pa.string()),
        pa.field("agreement", pa.float64()),
        pa.field("shift_spread", pa.float64()),
        pa.field("shift_correlation", pa.float64()),
        pa.field("best_stage", pa.string()),
        pa.field("hottest_change", pa.float64()),
        pa.field("warnings", pa.list_(pa.string())),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("overlay", pa.string()),
        pa.field("model_digest", pa.string(), nullable=False),
    ]
)
"""One row a picture. ``grid`` holds the signed map row by row; ``status`` is an attribution's, or "error"."""

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


@dataclass(frozen=True, slots=True)
class How:
    """What is explained in each picture, and by what."""

    target: str | None = None
    """A class in every picture; None explains each picture's own prediction."""
    against: str | None = None
    """A class that it is held against."""
    block: str | None = None
    """None takes the model's Grad-CAM block."""
    method: str = DEFAULT
    smoothing: Smoothing = field(default_factory=Smoothing)
    checks: tuple[str, ...] = ()
    """Any of :data:`pipelines.explain_job.questions.CHECKS`; some cost hundreds of forwards a picture."""
    sheets: tuple[str, ...] = ()
    """Any of :data:`pipelines.explain_job.questions.SHEETS`, written beside the overlays."""


@dataclass(frozen=True)
class ExplainJob:
    """What is to be explained and how; two jobs with the same key give the same rows."""

    source: Path
    files: tuple[str, ...]
    """Paths within the source, sorted."""
    how: How
    model_digest: str
    limits: Limits

    @property
    def target(self) -> str | None:
        """As in ``how``."""
        return self.how.target

    @property
    def block(self) -> str:
        """The block's name."""
        return str(self.how.block)

    @property
    def key(self) -> str:
        """Digest of all that decides the rows: model, options, and each picture's name, size and time."""
        parts: list[object] = [self.model_digest, asdict(self.how), str(self.limits), str(self.source)]
        for name in self.files:
            status = (self.source / name).stat()
            parts += [name, status.st_size, status.st_mtime_ns]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def plan(source: Path, bundle: Bundle, how: How | None = None, *, limits: Limits | None = None) -> ExplainJob:
    """Find the pictures of a folder (or take a single file) and check the options.

    Raises DataError, UnknownChoice, and ExplanationError for a method that is barred for this model.
    """
    how = _checked(how or How(), bundle)
    source = source.resolve()
    if not source.exists():
        raise DataError(f"There is no file or folder {source}.")
    if source.is_file():
        source, files = source.parent, [source.name]
    else:
        files = sorted(
            path.relative_to(source).as_posix()
            for path in source.rglob("*")
            if path.suffix.lower() in images.SUFFIXES
            and path.is_file()
            and path.resolve().is_relative_to(source)
        )
    if not files:
        raise DataError(f"The folder {source} has no pictures ({', '.join(images.SUFFIXES)}).")
    names = tuple(name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in files)
    if len(set(names)) != len(names) or list(names) != files:
        raise DataError("Some file names are not valid UTF-8; rename them first.")
    return ExplainJob(source, names, how, bundle.provenance.digest, limits or Limits())


def _checked(how: How, bundle: Bundle) -> How:
    """The same with the names of classes and block as the model has them."""
    model = bundle.model
    block = how.block or model.cam_block
    model.index_of(block)
    row_of(how.method)
    barred = bundle.sanity.barred() if bundle.sanity is not None else {}
    if how.method in barred:
        raise ExplanationError(f"The method {how.method} is barred for this model. {barred[how.method]}")
    target, against = (
        None if name is None else model.classes[class_index(name, model.classes)]
        for name in (how.target, how.against)
    )
    if target is not None:
        choose(model.classes, [], name=target, against=against)
    checks, sheets = questions.checked(how.checks, how.sheets)
    return replace(how, target=target, against=against, block=block, checks=checks, sheets=sheets)


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


class Explainer:
    """One loaded model at work on a job; safe to use from one thread."""

    def __init__(self, job: ExplainJob, bundle: Bundle, *, batch_size: int = 16) -> None:
        self.job, self.batch_size = job, batch_size
        self.engine = engines.prepare("eager", bundle.model, probe=bundle.probe[0])
        self.model = self.engine.model
        self.barred = bundle.sanity.barred() if bundle.sanity is not None else {}

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
        evidence = look(
            self.model, torch.stack([each.x for each in ready]), block=how.block, engine=self.engine
        )
        rankings: list[list[Prediction]] = []
        for each, logits in zip(ready, evidence.logits, strict=True):
            try:
                rankings.append(rank(logits, self.model.classes, self.model.scoring))
            except LucidaError as error:
                rankings.append([])
                yield _error_row(self.job, each.name, str(error))
        targets = [self._target(ranking) for ranking in rankings]
        if how.smoothing.on:
            found = explain_smoothly(evidence, [[each] for each in targets], how.smoothing, method=how.method)
            maps = [of_one[0] for of_one in found]
        else:
            maps = explain_each(evidence, targets, method=how.method)
        for each, ranking, attribution in zip(ready, rankings, maps, strict=True):
            if ranking:
                file = overlay_name(each.name)
                (overlays / file).write_bytes(encode(overlay(each.shown, each.frame, attribution)))
                asked = self._asked(each, attribution, overlays / Path(file).stem)
                yield _row(self.job, each, ranking, attribution, file) | asked

    def _prepare(self, name: str) -> _Ready:
        image = images.read(self.job.source / name, limits=self.job.limits)
        x, frame = self.model.geometry.prepare(image)
        small, small_frame = fit(image.pil, frame, _OVERLAY_SIDE)
        notes = tuple(cautions.of_picture(image, frame))
        shown = replace(image, pil=small)
        return _Ready(
            name, image.sha256, image.width, image.height, frame.seen_box, x, shown, small_frame, notes
        )

    def _target(self, ranking: list[Prediction]) -> Target:
        """A picture without finite scores is explained for nothing, and has its row already."""
        how = self.job.how
        if not ranking:
            return Target(0, self.model.classes[0])
        return choose(self.model.classes, ranking, name=how.target, against=how.against)[0]

    def _asked(self, each: _Ready, attribution: Attribution, stem: Path) -> dict[str, Any]:
        how = self.job.how
        if not how.checks and not how.sheets:
            return {}
        # The batch let go of the full picture; only these questions need it again.
        image = images.read(self.job.source / each.name, limits=self.job.limits)
        return questions.ask(
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
        "border_mass": cautions.border_audit(attribution).mass,
        **dict.fromkeys(_ASKED),
        "warnings": [*each.notes, *cautions.of_map(attribution, score)],
        "status": attribution.status,
        "error": None,
        "overlay": f"overlays/{file}",
        "model_digest": job.model_digest,
    }


def _error_row(job: ExplainJob, name: str, reason: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    return row | {"path": name, "status": "error", "error": reason, "model_digest": job.model_digest}
