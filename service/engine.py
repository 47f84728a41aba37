"""A bundle's answers in plain Python: what the service says, without any HTTP."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import bundle, engines, images
from models.anatomy import Anatomy, anatomy
from models.errors import ExplanationError, UnknownChoice
from models.explain import cautions
from models.explain.activations import BlockActivation, activations
from models.explain.attribution import Attribution
from models.explain.faithfulness import FORWARDS, faithfulness
from models.explain.filters import templates
from models.explain.look import Evidence, look, predict
from models.explain.methods import DEFAULT, METHODS, cost, row_of
from models.explain.scaled import default_method, explain_scaled
from models.explain.smoothing import Smoothing
from models.explain.targets import choose
from models.geometry import Frame
from models.images import Image, Limits
from models.predictions import Prediction, class_index, rank
from models.render.contact_sheet import activation_sheet
from models.render.overlay import Encoding, data_uri, encode, overlay
from service import answers, schemas
from service.clock import Clock
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be explained, and how."""

    target: str | None = None
    """A class by name; the highest score without."""
    against: str | None = None
    """A class that it is held against."""
    top_k: int = 1
    block: str | None = None
    method: str | None = None
    """A method of the table; the first that is not barred without."""
    flip: bool = False
    noise: float = 0.0
    faithfulness: bool = False
    overlay: bool = False

    @property
    def smoothing(self) -> Smoothing:
        """Raises ConfigError for noise out of range."""
        return Smoothing(flip=self.flip, noise=self.noise)


_PLAIN = Request()


@dataclass(frozen=True)
class Looked:
    """One picture, looked at and explained."""

    image: Image
    frame: Frame
    ranking: list[Prediction]
    evidence: Evidence
    maps: list[Attribution]
    full_scale: float | None

    @property
    def x(self) -> Tensor:
        """(3, H, W)."""
        return self.evidence.x[0]

    def score(self, attribution: Attribution) -> float:
        """Of the class that a map explains."""
        return next(item.score for item in self.ranking if item.index == attribution.index)


class Engine:
    """One loaded bundle. Every method may be called from many threads at once; none changes the model."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        """Load and check the bundle and explain its probe once; raises BundleError when anything is off."""
        torch.set_num_threads(settings.torch_threads)
        self.settings = settings
        self.bundle = bundle.load(folder)
        self.limits = Limits(
            max_bytes=settings.max_body_bytes, max_pixels=settings.max_pixels, max_scans=settings.max_scans
        )
        self.runner = engines.prepare(
            settings.engine,
            self.bundle.model,
            probe=self.bundle.probe[0],
            threads=settings.torch_threads,
            precision=settings.precision,
        )
        self.model = self.runner.model
        self.barred = self.bundle.sanity.barred() if self.bundle.sanity is not None else {}
        self.anatomy: Anatomy = anatomy(self.bundle.model)
        self.default_method = default_method(self.barred) or DEFAULT
        if self.default_method not in self.barred:
            self.explain((folder / bundle.PROBE).read_bytes(), Request(overlay=True))
        self.ready = True

    def predict(self, data: bytes) -> schemas.PredictAnswer:
        """Scores of all classes for an encoded picture."""
        clock = Clock()
        image, x, frame = self.prepared(data, clock)
        with clock.part("model"):
            ranking = rank(predict(self.runner, x)[0], self.model.classes, self.model.scoring)
        return schemas.PredictAnswer(
            task=self.model.scoring.task,
            predictions=[answers.score(item) for item in ranking],
            **self.about(image, clock, cautions.of_picture(image, frame)),
        )

    def explain(self, data: bytes, request: Request = _PLAIN) -> schemas.ExplainAnswer:
        """The prediction with evidence for the target asked for, or for the ``top_k`` highest scores.

        Raises UnknownChoice for a class, block or method that is none of the model's, and ExplanationError
        for one that may not be used with it.
        """
        clock = Clock()
        looked = self.looked(data, request, clock)
        with clock.part("render"):
            evidence = [self.evidence(looked, each, overlay=request.overlay) for each in looked.maps]
        if request.faithfulness:
            with clock.part("faithfulness"):
                judged = [
                    faithfulness(self.runner, looked.x, each) if each.status == "ok" else None
                    for each in looked.maps
                ]
            evidence = [
                item.model_copy(update={"faithfulness": answers.faithfulness(found)}) if found else item
                for item, found in zip(evidence, judged, strict=True)
            ]
        return schemas.ExplainAnswer(
            task=self.model.scoring.task,
            predictions=[answers.score(item) for item in looked.ranking],
            evidence=evidence,
            **self.about(looked.image, clock, self.warnings(looked)),
        )

    def heatmap(
        self, data: bytes, request: Request, *, encoding: Encoding = "jpeg"
    ) -> tuple[bytes, Attribution]:
        """The overlay of one target as an encoded picture, and what it shows."""
        looked = self.looked(data, request, Clock())
        shown = looked.maps[0]
        drawn = overlay(
            looked.image,
            looked.frame,
            shown,
            max_side=self.settings.max_overlay_side,
            full_scale=looked.full_scale,
        )
        return encode(drawn, encoding), shown

    def activations(self, data: bytes, *, blocks: list[str], channels: int) -> schemas.ActivationsAnswer:
        """Statistics and strongest channels of the named blocks (all of them when none is named)."""
        clock = Clock()
        image, frame, found = self._activations(data, blocks, channels, clock)
        return schemas.ActivationsAnswer(
            activations=[answers.block(each) for each in found],
            **self.about(image, clock, cautions.of_picture(image, frame)),
        )

    def activation_sheet(self, data: bytes, *, blocks: list[str], channels: int) -> bytes:
        """The strongest channels as a PNG contact sheet."""
        _, _, found = self._activations(data, blocks, channels, Clock())
        return encode(activation_sheet(found, columns=channels), "png")

    def filters(self, block: str, channels: list[int], steps: int) -> list[dict[str, Any]]:
        """Synthesised templates of a few channels, as data URIs; raises UnknownChoice beyond the limits."""
        if not 1 <= len(channels) <= 8 or not 1 <= steps <= 256:
            raise UnknownChoice("request", f"{len(channels)} channels, {steps} steps", ("1 to 8, 1 to 256",))
        return [
            {
                "block": found.block,
                "channel": found.channel,
                "response": found.response,
                "start": found.start,
                "steps": found.steps,
                "picture": data_uri(images.from_array(found.picture).pil),
            }
            for found in templates(self.model, block, channels, steps=steps)
        ]

    def card(self) -> dict[str, Any]:
        """What is served: classes, geometry, blocks, methods, metrics, limits and provenance."""
        manifest, origin = self.bundle.manifest, self.bundle.provenance
        return {
            "model": origin.model,
            "version": origin.version,
            "run_id": origin.run_id,
            "digest": origin.digest,
            "backbone": origin.backbone,
            "engine": self.runner.name,
            "precision": self.runner.precision,
            "classes": self.model.classes,
            "scoring": asdict(self.model.scoring),
            "blocks": list(self.model.block_names),
            "cam_block": self.model.cam_block,
            "default_method": self.default_method,
            "methods": [name for name in METHODS if name not in self.barred],
            "barred_methods": self.barred,
            "sanity": self.bundle.sanity.to_dict() if self.bundle.sanity is not None else None,
            "geometry": self.model.geometry.to_dict(),
            "metrics": manifest["metrics"],
            "dataset": manifest["dataset"],
            "versions": manifest["versions"],
            "limits": {
                "max_body_bytes": self.settings.max_body_bytes,
                "max_pixels": self.settings.max_pixels,
                "max_top_k": self.settings.max_top_k,
            },
        }

    # ------------------------------------------------------------ parts that other answers share

    def prepared(self, data: bytes, clock: Clock) -> tuple[Image, Tensor, Frame]:
        """A decoded picture, as a batch of one, with its Frame."""
        with clock.part("decode"):
            image = images.decode(data, limits=self.limits)
        with clock.part("prepare"):
            x, frame = self.model.geometry.prepare(image)
        return image, x.unsqueeze(0), frame

    def looked(self, data: bytes, request: Request, clock: Clock) -> Looked:
        """Look at a picture once and explain it; names are checked before any work is done for them."""
        self._check(request)
        image, x, frame = self.prepared(data, clock)
        with clock.part("model"):
            evidence = look(self.model, x, block=request.block, engine=self.runner)
            ranking = rank(evidence.logits[0], self.model.classes, self.model.scoring)
        with clock.part("explain"):
            targets = choose(
                self.model.classes,
                ranking,
                name=request.target,
                against=request.against,
                top_k=request.top_k,
            )
            ((maps, full_scale),) = explain_scaled(
                evidence, [targets], method=self.method_of(request), smoothing=request.smoothing
            )
        return Looked(image, frame, ranking, evidence, maps, full_scale)

    def method_of(self, request: Request) -> str:
        """The method asked for, or the bundle's default."""
        return request.method or self.default_method

    def evidence(
        self, looked: Looked, attribution: Attribution, *, overlay: bool = False
    ) -> schemas.Evidence:
        """One map as an answer."""
        return answers.evidence(
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

    def warnings(self, looked: Looked) -> list[str]:
        """What is lost between picture and model, and what is odd about each map."""
        found = cautions.of_picture(looked.image, looked.frame)
        for each in looked.maps:
            found += cautions.of_map(each, looked.score(each), looked.full_scale)
        if looked.maps and self.sanity_note(looked.maps[0].method) is None:
            found.append(
                f"The method {looked.maps[0].method} was not checked against shuffled weights for this model."
            )
        return found

    def about(self, image: Image, clock: Clock, warnings: list[str]) -> dict[str, Any]:
        """The end of every answer about a picture."""
        origin = self.bundle.provenance
        return {
            "image": schemas.ImageSize(width=image.width, height=image.height),
            "provenance": schemas.Provenance(
                model=origin.model,
                version=origin.version,
                run_id=origin.run_id,
                digest=origin.digest,
                backbone=origin.backbone,
                engine=self.runner.name,
                precision=self.runner.precision,
                image_sha256=image.sha256,
            ),
            "warnings": warnings,
            "timing_ms": clock.parts(),
        }

    def _check(self, request: Request) -> None:
        for name in (request.target, request.against):
            if name is not None:
                class_index(name, self.model.classes)
        if not 1 <= request.top_k <= self.settings.max_top_k:
            rule = f"a whole number from 1 to {self.settings.max_top_k}"
            raise UnknownChoice("top_k", request.top_k, (rule,))
        if request.block is not None:
            self.model.index_of(request.block)
        row_of(self.method_of(request))
        self._check_cost(request)
        self.check_allowed(self.method_of(request))

    def check_allowed(self, method: str) -> None:
        """Raise ExplanationError for a method that is barred for this model."""
        if method in self.barred:
            allowed = ", ".join(name for name in METHODS if name not in self.barred) or "none"
            raise ExplanationError(
                f"The method {method} is barred for this model. {self.barred[method]} "
                f"Choose one of: {allowed}."
            )

    def _check_cost(self, request: Request) -> None:
        """Refuse what would take longer than anybody waits, before any work is done."""
        geometry = self.model.geometry
        each = cost(self.method_of(request), request.top_k, geometry.crop_height, geometry.crop_width)
        forwards = each * request.smoothing.variations
        forwards += FORWARDS * request.top_k if request.faithfulness else 0
        if forwards > self.settings.max_forwards:
            raise ExplanationError(
                f"This would take about {forwards:,} forwards; the limit is {self.settings.max_forwards:,}. "
                "Ask for fewer classes, without smoothing or faithfulness, or for a method that reads a "
                "block."
            )

    def _activations(
        self, data: bytes, blocks: list[str], channels: int, clock: Clock
    ) -> tuple[Image, Frame, list[BlockActivation]]:
        if not 1 <= channels <= 32:
            raise UnknownChoice("channels", channels, ("a whole number from 1 to 32",))
        names = blocks or list(self.model.block_names)
        for name in names:
            self.model.index_of(name)
        image, x, frame = self.prepared(data, clock)
        with clock.part("model"):
            return image, frame, activations(self.model, x, blocks=names, channels=channels)

    def _drawn(self, looked: Looked, attribution: Attribution) -> str:
        drawn = overlay(
            looked.image,
            looked.frame,
            attribution,
            max_side=self.settings.max_overlay_side,
            full_scale=looked.full_scale,
        )
        return data_uri(drawn)
