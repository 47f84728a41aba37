"""A batch of images to be explained: which, for what, by what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from models.attribution.registry import DEFAULT_METHOD
from models.errors import ExplanationError, UnknownChoice
from models.explainer import Explainer, ExplainOptions
from models.images.decode import Limits
from pipelines.batch.checks import check_job_options
from pipelines.batch.more_targets import check_also
from pipelines.batch.sources import Source, count_left_out, local_files, open_source
from pipelines.batch.store import scheme_of

Overlays = Literal["all", "interesting", "none"]


@dataclass(frozen=True)
class ExplainJob:
    """A job: what is to be explained and how; two jobs with the same key give the same rows."""

    source: Source
    """Where the pictures are, and which."""
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
    also: tuple[str, ...] = ()
    """Further targets of each picture: "truth", "contrast", "top3" …"""
    overlays: Overlays = "all"
    """Whose overlays are written: all, the interesting ones, or none."""
    fiftyone: bool = False
    """Whether the results are written as a dataset of FiftyOne as well."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many images of which hidden or system folder are no part of it."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the pictures."""
        return tuple(item.name for item in self.source.items)

    @property
    def block(self) -> str:
        """Name of the block that is read."""
        return str(self.options.block)

    @property
    def key(self) -> str:
        """Digest of all that decides the rows: model, options, and each image's name, size and time."""
        parts: list[object] = [self.model_digest, self.settings(), str(self.limits), self.source.where]
        for item in self.source.items:
            parts += [item.place, *item.stamp]
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
        if self.also:
            plain["also"] = list(self.also)
        if self.features:
            plain["features"] = True
        if self.overlays != "all":
            plain["overlays"] = self.overlays
        if self.fiftyone:
            plain["fiftyone"] = True
        if options.parameters:
            plain["parameters"] = dict(options.parameters)
        if (self.engine, self.precision) != ("eager", "fp32"):
            plain |= {"engine": self.engine, "precision": self.precision}
        return plain


def plan_job(
    source: Path | str | Source,
    explainer: Explainer,
    options: ExplainOptions | None = None,
    *,
    checks: tuple[str, ...] = (),
    figures: tuple[str, ...] = (),
    features: bool = False,
    also: Sequence[str] = (),
    overlays: str = "all",
    fiftyone: bool = False,
    limits: Limits | None = None,
    out: Path | str | None = None,
) -> ExplainJob:
    """Find the images of a source, by its path or address, and check the options; what lies in the folder
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
    if overlays not in get_args(Overlays):
        raise UnknownChoice("overlays", overlays, get_args(Overlays))
    left_out = {}
    if isinstance(source, Path | str):
        left_out = count_left_out(source)
        inner = Path(out) if out is not None and scheme_of(str(out)) is None else None
        source = open_source(source, out=inner)
    if fiftyone:
        local_files(source)
    assert explainer.provenance is not None
    digest = explainer.provenance.digest
    backend = explainer.backend
    return ExplainJob(
        source, options, checks, figures, digest, limits or Limits(), backend.name, backend.precision,
        features, check_also(also), overlays, fiftyone, left_out,  # type: ignore[arg-type]
    )  # fmt: skip
