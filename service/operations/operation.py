"""What an operation is: a form of text fields, a handler, and what it answers with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from models.reference import Observation
from service.inference.predictor import Predictor
from service.operations.form import Form
from service.schemas import Answer


@dataclass(frozen=True, slots=True)
class ImageResponse:
    """An encoded image as an answer."""

    data: bytes = field(repr=False)
    media_type: str
    headers: dict[str, str] = field(default_factory=dict)
    observation: Observation | None = None
    """Figures of the image, for the service's own watch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A question that can be asked about an image; routes, jobs and OpenAPI are made from it."""

    name: str
    summary: str
    form: type[Form]
    run: Callable[[Predictor, bytes, Any], Answer | ImageResponse]
    """(predictor, encoded image, form) to the answer."""
    answer: type[Answer] | None
    """Shape of its JSON; None for an operation that only draws."""
    image_types: tuple[str, ...] = ()
    """Media types of the images that it answers with."""
    headers: tuple[str, ...] = ()
    """Headers of those images."""
    failures: tuple[str, ...] = ()
    """Statuses of failures beside those of every operation."""
    several: bool = False
    """Whether one request may hold several images."""
    takes_image: bool = True
    route: bool = True
    """Whether it has a route of its own; any with a JSON answer can be a job."""

    @property
    def path(self) -> str:
        """Path of the route."""
        return f"/{self.name}"
