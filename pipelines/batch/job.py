"""A batch of pictures to be explained: which, for what, by what."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from models.attribution.registry import DEFAULT_METHOD, get_method
from models.attribution.smoothing import Smoothing
from models.attribution.targets import choose_targets
from models.bundle import Bundle
from models.errors import ExplanationError
from models.images.decode import IMAGE_SUFFIXES, Limits
from models.networks.predictions import class_index
from pipelines.batch.checks import check_job_options
from pipelines.errors import DataError


@dataclass(frozen=True, slots=True)
class How:
    """What is explained in each picture, and by what."""

    target: str | None = None
    """A class in every picture; None explains each picture's own prediction."""
    against: str | None = None
    """A class that it is held against."""
    block: str | None = None
    """None takes the model's Grad-CAM block."""
    method: str = DEFAULT_METHOD
    smoothing: Smoothing = field(default_factory=Smoothing)
    checks: tuple[str, ...] = ()
    """Any of :data:`pipelines.batch.checks.JOB_CHECKS`; some cost hundreds of forwards a picture."""
    sheets: tuple[str, ...] = ()
    """Any of :data:`pipelines.batch.checks.JOB_FIGURES`, written beside the overlays."""


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


def plan_job(
    source: Path, bundle: Bundle, how: How | None = None, *, limits: Limits | None = None
) -> ExplainJob:
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
            if path.suffix.lower() in IMAGE_SUFFIXES
            and path.is_file()
            and path.resolve().is_relative_to(source)
        )
    if not files:
        raise DataError(f"The folder {source} has no pictures ({', '.join(IMAGE_SUFFIXES)}).")
    names = tuple(name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in files)
    if len(set(names)) != len(names) or list(names) != files:
        raise DataError("Some file names are not valid UTF-8; rename them first.")
    return ExplainJob(source, names, how, bundle.provenance.digest, limits or Limits())


def _checked(how: How, bundle: Bundle) -> How:
    """The same with the names of classes and block as the model has them."""
    model = bundle.model
    block = how.block or model.cam_block
    model.index_of(block)
    get_method(how.method)
    barred = bundle.sanity.barred() if bundle.sanity is not None else {}
    if how.method in barred:
        raise ExplanationError(f"The method {how.method} is barred for this model. {barred[how.method]}")
    target, against = (
        None if name is None else model.classes[class_index(name, model.classes)]
        for name in (how.target, how.against)
    )
    if target is not None:
        choose_targets(model.classes, [], name=target, against=against)
    checks, sheets = check_job_options(how.checks, how.sheets)
    if DEFAULT_METHOD in barred and (theirs := {"trace", "split"} & set(sheets)):
        raise ExplanationError(
            f"The sheets {', '.join(sorted(theirs))} show {DEFAULT_METHOD}, which is barred for this model. "
            f"{barred[DEFAULT_METHOD]}"
        )
    return replace(how, target=target, against=against, block=block, checks=checks, sheets=sheets)
