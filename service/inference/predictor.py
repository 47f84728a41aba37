"""A bundle's answers in plain Python: what the service says, without any HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.attribution.forward import ForwardPass, predict_logits, run_forward
from models.attribution.registry import DEFAULT_METHOD, METHODS, get_method
from models.attribution.result import Attribution
from models.attribution.scaling import attribute_scaled, default_method
from models.attribution.targets import choose_targets
from models.backends.base import Backend
from models.backends.registry import create_backend
from models.bundle import PROBE_FILE, load_bundle
from models.errors import DeadlineExceeded, ExplanationError, UnknownChoice
from models.images.decode import DraftSize, Image, Limits, decode_image, image_from_array
from models.images.encode import ImageEncoding, encode_image, to_data_uri
from models.images.geometry import Frame
from models.images.pixel_budget import PixelBudget
from models.introspection.activations import BlockActivation, collect_activations
from models.introspection.feature_visualization import synthesize_templates
from models.metrics.faithfulness import measure_faithfulness
from models.metrics.warnings import image_warnings, map_warnings
from models.networks.predictions import Prediction, class_index, rank_classes
from models.networks.summary import NetworkSummary, summarize_network
from models.visualization.contact_sheet import draw_activation_sheet
from models.visualization.overlay import draw_overlay
from service import schemas
from service.inference.answers import block, evidence, faithfulness_answer, score
from service.inference.atlas import read_atlas
from service.inference.batcher import BatchingBackend
from service.inference.costs import CostModel, measure_forward_seconds
from service.inference.request import Request
from service.inference.timing import Timer
from service.settings import Settings

_PLAIN = Request()
_ENOUGH = 4
"""Times the short side that the model resizes to, from which on a JPEG may be decoded smaller."""


@dataclass(frozen=True)
class ExplainedImage:
    """One picture, looked at and explained."""

    image: Image
    frame: Frame
    ranking: list[Prediction]
    evidence: ForwardPass
    maps: list[Attribution]
    full_scale: float | None
    cut: tuple[str, ...] = ()
    """What there was no time for."""

    @property
    def x(self) -> Tensor:
        """(3, H, W)."""
        return self.evidence.x[0]

    def score(self, attribution: Attribution) -> float:
        """Of the class that a map explains."""
        return next(item.score for item in self.ranking if item.index == attribution.index)


class Engine:
    """One loaded bundle. Every method may be called from many threads at once; none changes the model."""

    def __init__(
        self, folder: Path, settings: Settings, *, observe_batch: Callable[[int], None] | None = None
    ) -> None:
        """Load and check the bundle and explain its probe once; raises BundleError when anything is off."""
        torch.set_num_threads(settings.torch_threads)
        self.settings = settings
        self.bundle = load_bundle(folder)
        self.limits = Limits(
            max_bytes=settings.max_body_bytes, max_pixels=settings.max_pixels, max_scans=settings.max_scans
        )
        self.room = PixelBudget(settings.max_pixels_at_once)
        # As many pixels as overlays show, too.
        self.enough = DraftSize(
            short=_ENOUGH * self.bundle.model.geometry.resize, long=settings.max_overlay_side
        )
        self.runner: Backend = create_backend(
            settings.engine,
            self.bundle.model,
            probe=self.bundle.probe[0],
            threads=settings.torch_threads,
            precision=settings.precision,
        )
        self.model = self.runner.model
        self.costs = CostModel(
            settings, self.model.geometry, measure_forward_seconds(self.runner, self.bundle.probe[0])
        )
        if settings.max_batch > 1:
            self.runner = BatchingBackend(self.runner, most=settings.max_batch, observe=observe_batch)
        try:
            self.barred = self.bundle.sanity.barred() if self.bundle.sanity is not None else {}
            self.anatomy: NetworkSummary = summarize_network(self.bundle.model)
            self.atlas = read_atlas(folder, self.bundle.provenance.digest)
            self.default_method = default_method(self.barred) or DEFAULT_METHOD
            if self.default_method not in self.barred:
                self.explain((folder / PROBE_FILE).read_bytes(), Request(overlay=True))
        except BaseException:
            self.close()
            raise
        self.ready = True

    def close(self) -> None:
        """Let go of the model's own thread; what is under way ends as it would have."""
        if isinstance(self.runner, BatchingBackend):
            self.runner.close()

    def predict(self, data: bytes) -> schemas.PredictAnswer:
        """Scores of all classes for an encoded picture."""
        clock = Timer()
        image, x, frame = self.prepared(data, clock)
        with clock.part("model"):
            ranking = rank_classes(predict_logits(self.runner, x)[0], self.model.classes, self.model.scoring)
        return schemas.PredictAnswer(
            task=self.model.scoring.task,
            predictions=[score(item) for item in ranking],
            **self.about(image, clock, image_warnings(image, frame)),
        )

    def explain(self, data: bytes, request: Request = _PLAIN) -> schemas.ExplainAnswer:
        """The prediction with evidence for the target asked for, or for the ``top_k`` highest scores.

        Raises UnknownChoice for a class, block or method that is none of the model's, and ExplanationError
        for one that may not be used with it.
        """
        clock = Timer()
        looked = self.looked(data, request, clock, partial=True)
        with clock.part("render"):
            evidence = [self.evidence(looked, each, overlay=request.overlay) for each in looked.maps]
        if request.faithfulness:
            with clock.part("faithfulness"):
                evidence, unjudged = self._judged(looked, evidence, request)
            looked = replace(looked, cut=(*looked.cut, *unjudged))
        return schemas.ExplainAnswer(
            task=self.model.scoring.task,
            predictions=[score(item) for item in looked.ranking],
            evidence=evidence,
            **self.about(looked.image, clock, self.warnings(looked), looked.cut),
        )

    def heatmap(
        self, data: bytes, request: Request, *, encoding: ImageEncoding = "jpeg"
    ) -> tuple[bytes, Attribution]:
        """The overlay of one target as an encoded picture, and what it shows."""
        looked = self.looked(data, request, Timer())
        shown = looked.maps[0]
        drawn = draw_overlay(
            looked.image,
            looked.frame,
            shown,
            max_side=self.settings.max_overlay_side,
            full_scale=looked.full_scale,
        )
        return encode_image(drawn, encoding), shown

    def activations(self, data: bytes, *, blocks: list[str], channels: int) -> schemas.ActivationsAnswer:
        """Statistics and strongest channels of the named blocks (all of them when none is named)."""
        clock = Timer()
        image, frame, found = self._activations(data, blocks, channels, clock)
        return schemas.ActivationsAnswer(
            activations=[block(each) for each in found],
            **self.about(image, clock, image_warnings(image, frame)),
        )

    def activation_sheet(self, data: bytes, *, blocks: list[str], channels: int) -> bytes:
        """The strongest channels as a PNG contact sheet."""
        _, _, found = self._activations(data, blocks, channels, Timer())
        return encode_image(draw_activation_sheet(found, columns=channels), "png")

    def filters(
        self, block: str, channels: list[int], steps: int, *, most: int = 8, most_steps: int = 256
    ) -> list[schemas.TemplateAnswer]:
        """Synthesised templates of a few channels, as data URIs; raises UnknownChoice beyond the limits."""
        if not 1 <= len(channels) <= most or not 1 <= steps <= most_steps:
            raise UnknownChoice(
                "request",
                f"{len(channels)} channels, {steps} steps",
                (f"1 to {most} channels, 1 to {most_steps} steps",),
            )
        return [
            schemas.TemplateAnswer(
                block=found.block,
                channel=found.channel,
                response=found.response,
                start=found.start,
                steps=found.steps,
                picture=to_data_uri(image_from_array(found.picture).pil),
            )
            for found in synthesize_templates(self.model, block, channels, steps=steps)
        ]

    # ------------------------------------------------------------ parts that other answers share

    def prepared(self, data: bytes, clock: Timer) -> tuple[Image, Tensor, Frame]:
        """A decoded picture, as a batch of one, with its Frame."""
        with clock.part("decode"):
            image = decode_image(data, limits=self.limits, enough=self.enough, room=self.room)
        with clock.part("prepare"):
            x, frame = self.model.geometry.prepare(image)
        return image, x.unsqueeze(0), frame

    def looked(self, data: bytes, request: Request, clock: Timer, *, partial: bool = False) -> ExplainedImage:
        """Look at a picture once and explain it; names are checked before any work is done for them.

        Where a budget leaves too little time, the costly methods make less effort and smoothing is left
        out; with ``partial`` the maps may be left out altogether. Raises DeadlineExceeded otherwise.
        """
        self.check(request)
        image, x, frame = self.prepared(data, clock)
        with clock.part("model"):
            evidence = run_forward(self.model, x, block=request.block, engine=self.runner)
            ranking = rank_classes(evidence.logits[0], self.model.classes, self.model.scoring)
        with clock.part("explain"):
            targets = choose_targets(
                self.model.classes,
                ranking,
                name=request.target,
                against=request.against,
                top_k=request.top_k,
            )
            method = self.method_of(request)
            cut: list[str] = []
            try:
                effort, smoothing, cut = self.costs.affordable(request, method, len(targets))
                ((maps, full_scale),) = attribute_scaled(
                    evidence, [targets], method=method, smoothing=smoothing, effort=effort
                )
            except DeadlineExceeded:
                if not partial:
                    raise
                maps, full_scale = [], None
                cut = [*cut, f"evidence: there was no time for the map by {method}"]
        return ExplainedImage(image, frame, ranking, evidence, maps, full_scale, tuple(cut))

    def method_of(self, request: Request) -> str:
        """The method asked for, or the bundle's default."""
        return request.method or self.default_method

    def evidence(
        self, looked: ExplainedImage, attribution: Attribution, *, overlay: bool = False
    ) -> schemas.Evidence:
        """One map as an answer."""
        return evidence(
            looked.frame,
            attribution,
            looked.score(attribution),
            full_scale=looked.full_scale,
            sanity=self.sanity_note(attribution.method),
            overlay=self._drawn(looked, attribution) if overlay else None,
        )

    def sanity_note(self, method: str) -> str | None:
        """How a method fared when the weights were shuffled, as far as the bundle knows."""
        known = self.bundle.sanity.methods.get(method) if self.bundle.sanity is not None else None
        return known.reason if known is not None else None

    def warnings(self, looked: ExplainedImage) -> list[str]:
        """What is lost between picture and model, and what is odd about each map."""
        found = image_warnings(looked.image, looked.frame)
        for each in looked.maps:
            found += map_warnings(each, looked.score(each), looked.full_scale)
        if looked.maps and self.sanity_note(looked.maps[0].method) is None:
            found.append(
                f"The method {looked.maps[0].method} was not checked against shuffled weights for this model."
            )
        return found

    def about(
        self, image: Image, clock: Timer, warnings: list[str], cut: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """The end of every answer about a picture."""
        return {
            "image": schemas.ImageSize(width=image.width, height=image.height),
            "provenance": schemas.Provenance(
                **self.origin().model_dump(), image_sha256=image.sha256, reduction=image.reduction
            ),
            "warnings": warnings,
            "cut": list(cut),
            "timing_ms": clock.parts(),
        }

    def origin(self) -> schemas.Origin:
        """What makes the answers of this engine."""
        known = self.bundle.provenance
        return schemas.Origin(
            model=known.model,
            version=known.version,
            run_id=known.run_id,
            digest=known.digest,
            backbone=known.backbone,
            engine=self.runner.name,
            precision=self.runner.precision,
        )

    def check(self, request: Request, *, unlimited: bool = False) -> None:
        """Raise UnknownChoice, ConfigError or ExplanationError for what cannot be asked of this model;
        ``unlimited`` allows any amount of work.
        """
        for name in (request.target, request.against):
            if name is not None:
                class_index(name, self.model.classes)
        if not 1 <= request.top_k <= self.settings.max_top_k:
            rule = f"a whole number from 1 to {self.settings.max_top_k}"
            raise UnknownChoice("top_k", request.top_k, (rule,))
        if request.block is not None:
            self.model.index_of(request.block)
        get_method(self.method_of(request))
        self.costs.check(request, self.method_of(request), unlimited=unlimited)
        self.check_allowed(self.method_of(request))

    def check_allowed(self, method: str) -> None:
        """Raise ExplanationError for a method that is barred for this model."""
        if method in self.barred:
            allowed = ", ".join(name for name in METHODS if name not in self.barred) or "none"
            raise ExplanationError(
                f"The method {method} is barred for this model. {self.barred[method]} "
                f"Choose one of: {allowed}."
            )

    def _judged(
        self, looked: ExplainedImage, evidence: list[schemas.Evidence], request: Request
    ) -> tuple[list[schemas.Evidence], list[str]]:
        """The evidence with the faithfulness of each map, and for which there was no time."""
        judged, cut = list(evidence), list[str]()
        for n, each in enumerate(looked.maps):
            if each.status != "ok":
                continue
            try:
                found = measure_faithfulness(
                    self.runner, looked.x, each, steps=request.steps, random_maps=request.random_maps
                )
            except DeadlineExceeded:
                cut.append(f"faithfulness: the map for {each.label} was not judged")
                continue
            judged[n] = evidence[n].model_copy(update={"faithfulness": faithfulness_answer(found)})
        return judged, cut

    def _activations(
        self, data: bytes, blocks: list[str], channels: int, clock: Timer
    ) -> tuple[Image, Frame, list[BlockActivation]]:
        if not 1 <= channels <= 32:
            raise UnknownChoice("channels", channels, ("a whole number from 1 to 32",))
        names = blocks or list(self.model.block_names)
        for name in names:
            self.model.index_of(name)
        image, x, frame = self.prepared(data, clock)
        with clock.part("model"):
            return image, frame, collect_activations(self.model, x, blocks=names, channels=channels)

    def _drawn(self, looked: ExplainedImage, attribution: Attribution) -> str:
        drawn = draw_overlay(
            looked.image,
            looked.frame,
            attribution,
            max_side=self.settings.max_overlay_side,
            full_scale=looked.full_scale,
        )
        return to_data_uri(drawn)
