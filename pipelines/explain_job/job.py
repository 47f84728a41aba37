"""A batch of pictures explained into rows: the same decoding, geometry and Grad-CAM as in the service.

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

import pyarrow as pa
import torch

from models import images
from models.bundle import Bundle
from models.errors import DataError, LucidaError
from models.explain.attribution import Attribution
from models.explain.look import look
from models.explain.methods import explain_each
from models.geometry import Frame
from models.images import Image, Limits
from models.predictions import Prediction, class_index, rank
from models.render.overlay import encode, fit, overlay

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
        pa.field("block", pa.string()),
        pa.field("grid_rows", pa.int32()),
        pa.field("grid_cols", pa.int32()),
        pa.field("grid", pa.list_(pa.float32())),
        pa.field("seen_box", pa.list_(pa.float64())),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("overlay", pa.string()),
        pa.field("model_digest", pa.string(), nullable=False),
    ]
)
"""One row a picture. ``grid`` holds the signed map row by row; ``status`` is an attribution's, or "error"."""

_OVERLAY_SIDE = 800
_SAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class ExplainJob:
    """What is to be explained and how; two jobs with the same key give the same rows."""

    source: Path
    files: tuple[str, ...]
    """Paths within the source, sorted."""
    target: str | None
    """Class to explain in every picture; None explains each picture's own prediction."""
    block: str
    model_digest: str
    limits: Limits

    @property
    def key(self) -> str:
        """Digest of all that decides the rows: model, options, and each picture's name, size and time."""
        parts: list[object] = [self.model_digest, self.target, self.block, str(self.limits), str(self.source)]
        for name in self.files:
            status = (self.source / name).stat()
            parts += [name, status.st_size, status.st_mtime_ns]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def plan(
    source: Path, bundle: Bundle, *, target: str | None, block: str | None, limits: Limits | None = None
) -> ExplainJob:
    """Find the pictures of a folder (or take a single file) and check the options; raises DataError,
    UnknownChoice.
    """
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
    block = block or bundle.model.cam_block
    bundle.model.index_of(block)
    if target is not None:
        target = bundle.model.classes[class_index(target, bundle.model.classes)]
    names = tuple(name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in files)
    if len(set(names)) != len(names) or list(names) != files:
        raise DataError("Some file names are not valid UTF-8; rename them first.")
    return ExplainJob(source, names, target, block, bundle.provenance.digest, limits or Limits())


def explain_part(
    job: ExplainJob, bundle: Bundle, files: Sequence[str], overlays: Path, *, batch_size: int = 16
) -> list[dict[str, Any]]:
    """Rows for some of the job's files, in their order; overlays are written as JPEG files."""
    rows: dict[str, dict[str, Any]] = {}
    for start in range(0, len(files), batch_size):
        for row in _explain_batch(job, bundle, files[start : start + batch_size], overlays):
            rows[row["path"]] = row
    return [rows[name] for name in files]


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


def _explain_batch(
    job: ExplainJob, bundle: Bundle, files: Sequence[str], overlays: Path
) -> Iterator[dict[str, Any]]:
    model = bundle.model
    ready: list[_Ready] = []
    for name in files:
        try:
            ready.append(_prepare(job, bundle, name))
        except LucidaError as error:
            yield _error_row(job, name, str(error))
    if not ready:
        return
    evidence = look(model, torch.stack([each.x for each in ready]), block=job.block)
    rankings: list[list[Prediction]] = []
    for each, logits in zip(ready, evidence.logits, strict=True):
        try:
            rankings.append(rank(logits, model.classes, model.scoring))
        except LucidaError as error:
            rankings.append([])
            yield _error_row(job, each.name, str(error))
    fixed = model.classes.index(job.target) if job.target is not None else None
    targets = [fixed if fixed is not None else (ranking[0].index if ranking else 0) for ranking in rankings]
    maps = explain_each(evidence, targets)
    for each, ranking, attribution in zip(ready, rankings, maps, strict=True):
        if ranking:
            file = overlay_name(each.name)
            (overlays / file).write_bytes(encode(overlay(each.shown, each.frame, attribution)))
            yield _row(job, each, ranking, attribution, file)


def _prepare(job: ExplainJob, bundle: Bundle, name: str) -> _Ready:
    image = images.read(job.source / name, limits=job.limits)
    x, frame = bundle.model.geometry.prepare(image)
    small, small_frame = fit(image.pil, frame, _OVERLAY_SIDE)
    shown = replace(image, pil=small)
    return _Ready(name, image.sha256, image.width, image.height, frame.seen_box, x, shown, small_frame)


def _row(
    job: ExplainJob, each: _Ready, ranking: list[Prediction], attribution: Attribution, file: str
) -> dict[str, Any]:
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
        "block": attribution.block,
        "grid_rows": attribution.rows,
        "grid_cols": attribution.cols,
        "grid": attribution.values.ravel().tolist(),
        "seen_box": list(each.seen_box),
        "status": attribution.status,
        "error": None,
        "overlay": f"overlays/{file}",
        "model_digest": job.model_digest,
    }


def _error_row(job: ExplainJob, name: str, reason: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    return row | {"path": name, "status": "error", "error": reason, "model_digest": job.model_digest}
