"""A batch of images to be explained: which, for what, by what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.attribution.registry import DEFAULT_METHOD
from models.errors import ExplanationError
from models.explainer import Explainer, ExplainOptions
from models.images.decode import IMAGE_SUFFIXES, Limits
from pipelines.batch.checks import check_job_options
from pipelines.data.listing import count_system_files, list_images
from pipelines.errors import DataError

_DEFAULT_SAMPLES = ExplainOptions().samples


@dataclass(frozen=True)
class ExplainJob:
    """A job: what is to be explained and how; two jobs with the same key give the same rows."""

    source: Path
    files: tuple[str, ...]
    """Paths within the source, sorted."""
    options: ExplainOptions
    """As :meth:`models.explainer.Explainer.check` fills them in."""
    checks: tuple[str, ...]
    """Any of :data:`pipelines.batch.checks.JOB_CHECKS`; some cost hundreds of forwards for each image."""
    figures: tuple[str, ...]
    """Any of :data:`pipelines.batch.checks.JOB_FIGURES`, written beside the overlays."""
    model_digest: str
    limits: Limits
    engine: str = "eager"
    precision: str = "fp32"
    """What runs the blocks, as :mod:`models.backends` names it."""
    features: bool = False
    """Whether rows keep the features, some kilobytes each."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many images of which hidden or system folder are no part of it."""

    @property
    def block(self) -> str:
        """Name of the block that is read."""
        return str(self.options.block)

    @property
    def key(self) -> str:
        """Digest of all that decides the rows: model, options, and each image's name, size and time."""
        parts: list[object] = [self.model_digest, self.settings(), str(self.limits), str(self.source)]
        for name in self.files:
            path = self.source / name
            # A link that leads nowhere becomes an error row; it has no size but its own.
            status = path.stat() if path.exists() else path.lstat()
            parts += [name, status.st_size, status.st_mtime_ns]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """Return the options as plain values, in the shape of job.json."""
        options = self.options
        smoothing = {"flip": options.flip, "noise": options.noise, "samples": options.samples,
                     "seed": options.seed}  # fmt: skip
        plain: dict[str, Any] = {
            "target": options.target,
            "against": options.against,
            "block": options.block,
            "method": options.method,
            "smoothing": smoothing,
            "checks": list(self.checks),
            "sheets": list(self.figures),
        }
        if self.features:
            plain["features"] = True
        if options.parameters:
            plain["parameters"] = dict(options.parameters)
        if (self.engine, self.precision) != ("eager", "fp32"):
            plain |= {"engine": self.engine, "precision": self.precision}
        return plain


def plan_job(
    source: Path,
    explainer: Explainer,
    options: ExplainOptions | None = None,
    *,
    checks: tuple[str, ...] = (),
    figures: tuple[str, ...] = (),
    features: bool = False,
    limits: Limits | None = None,
    out: Path | None = None,
) -> ExplainJob:
    """Find the images of a folder (or take a single file) and check the options; what lies in the folder
    ``out`` is the job's own and no part of it.

    Raises DataError, UnknownChoice, and ExplanationError for a method that is disabled for this model.
    """
    options = explainer.check(options or ExplainOptions(method=DEFAULT_METHOD))
    checks, figures = check_job_options(checks, figures)
    disabled = explainer.disabled
    if DEFAULT_METHOD in disabled and (theirs := {"trace", "split"} & set(figures)):
        raise ExplanationError(
            f"The sheets {', '.join(sorted(theirs))} show {DEFAULT_METHOD}, which is barred for this model. "
            f"{disabled[DEFAULT_METHOD]}"
        )
    root = source.resolve()
    source, files = _list_images(root, out.resolve() if out is not None else None)
    counts = count_system_files(root) if root.is_dir() else {}
    left_out = {folder.relative_to(source).as_posix(): count for folder, count in counts.items()}
    assert explainer.provenance is not None
    digest = explainer.provenance.digest
    backend = explainer.backend
    return ExplainJob(
        source, files, options, checks, figures, digest, limits or Limits(), backend.name, backend.precision,
        features, left_out,
    )  # fmt: skip


def _list_images(source: Path, out: Path | None) -> tuple[Path, tuple[str, ...]]:
    """Return the folder and the paths within it; raises DataError."""
    if not source.exists():
        raise DataError(f"There is no file or folder {source}.")
    if source.is_file():
        source, files = source.parent, [source.name]
    else:
        files = sorted(
            path.relative_to(source).as_posix()
            for path in list_images(source)
            if out is None or not path.is_relative_to(out)
        )
    if not files:
        raise DataError(f"The folder {source} has no pictures ({', '.join(IMAGE_SUFFIXES)}).")
    names = tuple(name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in files)
    if len(set(names)) != len(names) or list(names) != files:
        raise DataError("Some file names are not valid UTF-8; rename them first.")
    return source, names
