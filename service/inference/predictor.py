"""Answers questions about images by one loaded bundle, in plain Python, without any HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from models.backends.base import Backend
from models.bundle import load_bundle, read_digest, read_probe_file
from models.devices import describe_device, resolve_device
from models.errors import BundleError, UnknownChoice
from models.explainer import Explainer, ExplainOptions, Explanation, PreparedImage
from models.images.decode import DraftSize, Image, Limits, decode_image
from models.images.pixel_budget import PixelBudget
from models.introspection.concept_set import ConceptSet, read_concepts
from models.networks.predictions import Prediction
from models.networks.summary import NetworkSummary, summarize_network
from models.observer import Novelty, Observer
from models.reference import Observation
from models.signature import check_signature, read_public_key
from service import schemas
from service.inference.atlas import read_atlas
from service.inference.batcher import BatchingBackend
from service.inference.costs import CostModel, measure_forward_seconds
from service.inference.engine_choice import choose_engine
from service.inference.stored_card import read_card
from service.inference.timing import Timer
from service.settings import Settings

_DRAFT_FACTOR = 4
"""Multiple of the short side that the model resizes to, from which on a JPEG may be decoded smaller."""


class Predictor:
    """A loaded bundle that answers; every method may be called from many threads at once."""

    def __init__(
        self, folder: Path, settings: Settings, *, observe_batch: Callable[[int], None] | None = None
    ) -> None:
        """Load and check the bundle and explain its probe once; raises BundleError when anything is off."""
        torch.set_num_threads(settings.torch_threads)
        self.settings = settings
        if settings.public_key is not None:
            # Before a program of the bundle's is taken apart.
            check_signature(folder, read_digest(folder), read_public_key(settings.public_key))
        self.bundle = load_bundle(
            folder, device=resolve_device(settings.device), allow_exported=settings.allow_exported
        )
        self._limits = Limits(
            max_bytes=settings.max_body_bytes, max_pixels=settings.max_pixels, max_scans=settings.max_scans
        )
        self._pixels = PixelBudget(settings.max_pixels_at_once)
        # As many pixels as overlays show, too.
        self._draft = DraftSize(
            short=_DRAFT_FACTOR * self.bundle.model.geometry.resize, long=settings.max_overlay_side
        )
        probe = self.bundle.probe[0]
        chosen = choose_engine(self.bundle, settings)
        self.backend: Backend = chosen.backend
        self._engine_trials, self.int8 = chosen.trials, chosen.int8
        self.model = self.backend.model
        self.costs = CostModel(settings, self.model.geometry, measure_forward_seconds(self.backend, probe))
        if settings.max_batch > 1:
            self.backend = BatchingBackend(self.backend, most=settings.max_batch, observe=observe_batch)
        try:
            self.explainer = Explainer(self.bundle, self.backend)
            self.observer = Observer(self.explainer) if self.bundle.reference is not None else None
            self.summary: NetworkSummary = summarize_network(self.bundle.model)
            self.atlas = read_atlas(folder, self.bundle.provenance.digest)
            self.concepts = self._read_concepts(folder)
            self.card = read_card(folder, self.bundle.provenance.digest)
            if self.explainer.default_method not in self.explainer.disabled:
                self.explain(read_probe_file(folder), ExplainOptions()).overlay()
        except BaseException:
            self.close()
            raise
        self.ready = True

    def _read_concepts(self, folder: Path) -> ConceptSet | None:
        """Return the concepts beside the bundle; raises BundleError for those of another one."""
        concepts = read_concepts(folder, self.bundle.provenance.digest)
        if concepts is not None and concepts.block not in self.model.blocks_with_map:
            raise BundleError(f"The concepts are of the block {concepts.block!r}, which the model has not.")
        return concepts

    def close(self) -> None:
        """End the model's own thread; what is under way ends as it would have."""
        if isinstance(self.backend, BatchingBackend):
            self.backend.close()

    def read(self, data: bytes, timer: Timer) -> PreparedImage:
        """Decode an encoded image and prepare it for the model."""
        with timer.part("decode"):
            image = decode_image(data, limits=self._limits, draft=self._draft, budget=self._pixels)
        with timer.part("prepare"):
            return self.explainer.prepare(image)

    def predict(self, image: PreparedImage, timer: Timer) -> tuple[list[Prediction], Observation | None]:
        """Return all classes of an image, highest score first, and its figures where they are watched."""
        with timer.part("model"):
            if self.observer is None:
                return self.explainer.predict([image])[0], None
            return self.observer.predict(image)

    def observe(self, explanation: Explanation) -> Observation | None:
        """Return the figures of an explained image; None where they are not watched."""
        return self.observer.observe_explanation(explanation) if self.observer is not None else None

    def novelty(self, observation: Observation | None) -> Novelty | None:
        """Return how unusual an observed image is; None where there is nothing to hold it against."""
        if observation is None or self.observer is None or not self.settings.novelty:
            return None
        return self.observer.novelty(observation)

    def explain(
        self, data: bytes, options: ExplainOptions, timer: Timer | None = None, *, partial: bool = False
    ) -> Explanation:
        """Decode and explain an image; names are checked before any work is done for them.

        Where a budget leaves too little time, costly methods take fewer steps and smoothing is left out;
        with ``partial`` the maps may be left out altogether. Raises DeadlineExceeded otherwise.
        """
        timer = timer or Timer()
        options = self.check(options)
        image = self.read(data, timer)
        return self.explainer.explain(
            image, options, reduce=self.costs.reduce, partial=partial, stage=timer.part
        )

    def check(
        self, options: ExplainOptions, *, extra_forwards: int = 0, unlimited: bool = False
    ) -> ExplainOptions:
        """Return the options as the model has them.

        Raises UnknownChoice, ConfigError or ExplanationError for what cannot be asked of this model;
        ``unlimited`` allows any amount of work.
        """
        if not 1 <= options.top_k <= self.settings.max_top_k:
            rule = f"a whole number from 1 to {self.settings.max_top_k}"
            raise UnknownChoice("top_k", options.top_k, (rule,))
        options = self.explainer.check(options)
        if not unlimited:
            self.costs.check(options, extra_forwards)
        return options

    def about(
        self, image: Image, timer: Timer, warnings: Sequence[str], skipped: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return the fields with which every answer about an image ends."""
        geometry = self.model.geometry
        seen_share = round(geometry.frame(image.width, image.height).seen_share, 4)
        return {
            "image": schemas.ImageSize(
                width=image.width, height=image.height, view=geometry.view, seen_share=seen_share
            ),
            "provenance": schemas.Provenance(
                **self.origin().model_dump(), image_sha256=image.sha256, reduction=image.reduction
            ),
            "warnings": list(warnings),
            "cut": list(skipped),
            "timing_ms": timer.parts(),
        }

    def about_explanation(
        self,
        explanation: Explanation,
        timer: Timer,
        skipped: Sequence[str] = (),
        *,
        warnings: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Return the same for an explained image, with what is odd about each map and further warnings."""
        warnings = [*explanation.warnings, *warnings]
        if explanation.attributions:
            method = explanation.attributions[0].method
            if self.explainer.randomization_note(method) is None:
                warnings.append(
                    f"The method {method} was not checked against shuffled weights for this model."
                )
        return self.about(explanation.image, timer, warnings, (*explanation.skipped, *skipped))

    def origin(self) -> schemas.Origin:
        """Return what makes the answers of this predictor."""
        provenance = self.bundle.provenance
        return schemas.Origin(
            model=provenance.model,
            version=provenance.version,
            run_id=provenance.run_id,
            digest=provenance.digest,
            backbone=provenance.backbone,
            engine=self.backend.name,
            precision=self.backend.precision,
            device=describe_device(self.model.device),
            engine_trials=self._engine_trials,
        )
