"""A bundle's answers in plain Python: what the service says, without any HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from models import bundle, engines, images
from models.errors import UnknownChoice
from models.explain.activations import BlockActivation, activations
from models.explain.attribution import MEANINGS, Attribution
from models.explain.look import look, predict
from models.explain.methods import METHODS, explain
from models.geometry import Frame
from models.images import Image, Limits
from models.predictions import Prediction, class_index, rank
from models.render.contact_sheet import activation_sheet
from models.render.overlay import Encoding, data_uri, encode, overlay
from service import schemas
from service.settings import Settings

_UNSEEN_SHARE_WARNED = 0.25


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
        self.explain((folder / bundle.PROBE).read_bytes(), overlay=True)
        self.ready = True

    def predict(self, data: bytes) -> schemas.PredictAnswer:
        """Scores of all classes for an encoded picture."""
        clock = _Clock()
        image, x, frame = self._prepare(data, clock)
        with clock.part("model"):
            ranking = rank(predict(self.runner, x)[0], self.model.classes, self.model.scoring)
        return schemas.PredictAnswer(
            task=self.model.scoring.task,
            predictions=[_score(item) for item in ranking],
            image=schemas.ImageSize(width=image.width, height=image.height),
            provenance=self._provenance(image),
            warnings=_warnings(image, frame),
            timing_ms=clock.parts(),
        )

    def explain(
        self,
        data: bytes,
        *,
        target: str | None = None,
        top_k: int = 1,
        block: str | None = None,
        overlay: bool = False,
    ) -> schemas.ExplainAnswer:
        """The prediction with evidence for the class ``target``, or for the ``top_k`` highest scores.

        Raises UnknownChoice for a class or block that the model does not have.
        """
        clock = _Clock()
        image, frame, ranking, maps = self._maps(data, clock, target=target, top_k=top_k, block=block)
        with clock.part("render"):
            scores = {item.index: item.score for item in ranking}
            evidence = [
                self._evidence(image, frame, each, scores[each.index], overlay=overlay) for each in maps
            ]
        return schemas.ExplainAnswer(
            task=self.model.scoring.task,
            predictions=[_score(item) for item in ranking],
            image=schemas.ImageSize(width=image.width, height=image.height),
            evidence=evidence,
            provenance=self._provenance(image),
            warnings=_warnings(image, frame, maps),
            timing_ms=clock.parts(),
        )

    def heatmap(
        self, data: bytes, *, target: str | None = None, block: str | None = None, encoding: Encoding = "jpeg"
    ) -> tuple[bytes, Attribution]:
        """The overlay of one class as an encoded picture, and what it shows."""
        image, frame, _, maps = self._maps(data, _Clock(), target=target, top_k=1, block=block)
        drawn = overlay(image, frame, maps[0], max_side=self.settings.max_overlay_side)
        return encode(drawn, encoding), maps[0]

    def activations(self, data: bytes, *, blocks: list[str], channels: int) -> schemas.ActivationsAnswer:
        """Statistics and strongest channels of the named blocks (all of them when none is named)."""
        clock = _Clock()
        image, frame, found = self._activations(data, blocks, channels, clock)
        return schemas.ActivationsAnswer(
            activations=[_block(each) for each in found],
            image=schemas.ImageSize(width=image.width, height=image.height),
            provenance=self._provenance(image),
            warnings=_warnings(image, frame),
            timing_ms=clock.parts(),
        )

    def activation_sheet(self, data: bytes, *, blocks: list[str], channels: int) -> bytes:
        """The strongest channels as a PNG contact sheet."""
        _, _, found = self._activations(data, blocks, channels, _Clock())
        return encode(activation_sheet(found, columns=channels), "png")

    def card(self) -> dict[str, Any]:
        """What is served: classes, geometry, blocks, metrics, limits and provenance."""
        manifest, origin = self.bundle.manifest, self.bundle.provenance
        return {
            "model": origin.model,
            "version": origin.version,
            "run_id": origin.run_id,
            "digest": origin.digest,
            "backbone": origin.backbone,
            "engine": self.runner.name,
            "classes": self.model.classes,
            "scoring": asdict(self.model.scoring),
            "blocks": list(self.model.block_names),
            "cam_block": self.model.cam_block,
            "methods": list(METHODS),
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

    # ------------------------------------------------------------ parts

    def _prepare(self, data: bytes, clock: _Clock) -> tuple[Image, torch.Tensor, Frame]:
        with clock.part("decode"):
            image = images.decode(data, limits=self.limits)
        with clock.part("prepare"):
            x, frame = self.model.geometry.prepare(image)
        return image, x.unsqueeze(0), frame

    def _maps(
        self, data: bytes, clock: _Clock, *, target: str | None, top_k: int, block: str | None
    ) -> tuple[Image, Frame, list[Prediction], list[Attribution]]:
        # Names are checked before any work is done for them.
        wanted = None if target is None else class_index(target, self.model.classes)
        if not 1 <= top_k <= self.settings.max_top_k:
            raise UnknownChoice("top_k", top_k, (f"a whole number from 1 to {self.settings.max_top_k}",))
        if block is not None:
            self.model.index_of(block)
        image, x, frame = self._prepare(data, clock)
        with clock.part("model"):
            evidence = look(self.model, x, block=block, engine=self.runner)
            ranking = rank(evidence.logits[0], self.model.classes, self.model.scoring)
        with clock.part("explain"):
            chosen = [item.index for item in ranking[:top_k]] if wanted is None else [wanted]
            maps = explain(evidence, [chosen])[0]
        return image, frame, ranking, maps

    def _activations(
        self, data: bytes, blocks: list[str], channels: int, clock: _Clock
    ) -> tuple[Image, Frame, list[BlockActivation]]:
        if not 1 <= channels <= 32:
            raise UnknownChoice("channels", channels, ("a whole number from 1 to 32",))
        names = blocks or list(self.model.block_names)
        for name in names:
            self.model.index_of(name)
        image, x, frame = self._prepare(data, clock)
        with clock.part("model"):
            return image, frame, activations(self.model, x, blocks=names, channels=channels)

    def _evidence(
        self, image: Image, frame: Frame, attribution: Attribution, score: float, *, overlay: bool
    ) -> schemas.Evidence:
        cell_width, cell_height = frame.cell_size(attribution.rows, attribution.cols)
        x0, y0, x1, y1 = frame.seen_box
        return schemas.Evidence(
            label=attribution.label,
            index=attribution.index,
            score=score,
            method=attribution.method,
            block=attribution.block,
            status=attribution.status,
            grid=schemas.Grid(
                rows=attribution.rows,
                cols=attribution.cols,
                values=attribution.values.tolist(),
                min=attribution.minimum,
                max=attribution.maximum,
            ),
            cell_px=(round(cell_width, 3), round(cell_height, 3)),
            seen_box=(round(x0, 3), round(y0, 3), round(x1, 3), round(y1, 3)),
            overlay=self._data_uri(image, frame, attribution) if overlay else None,
        )

    def _data_uri(self, image: Image, frame: Frame, attribution: Attribution) -> str:
        drawn = overlay(image, frame, attribution, max_side=self.settings.max_overlay_side)
        return data_uri(drawn)

    def _provenance(self, image: Image) -> schemas.Provenance:
        origin = self.bundle.provenance
        return schemas.Provenance(
            model=origin.model,
            version=origin.version,
            run_id=origin.run_id,
            digest=origin.digest,
            backbone=origin.backbone,
            engine=self.runner.name,
            image_sha256=image.sha256,
        )


class _Clock:
    """Milliseconds of the parts of one request."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._parts: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._parts[name] = self._parts.get(name, 0.0) + (time.perf_counter() - start) * 1000

    def parts(self) -> dict[str, float]:
        """Rounded, with the total so far."""
        total = (time.perf_counter() - self._start) * 1000
        return {name: round(value, 2) for name, value in {**self._parts, "total": total}.items()}


def _score(item: Prediction) -> schemas.Score:
    return schemas.Score(label=item.label, index=item.index, score=item.score, accepted=item.accepted)


def _block(each: BlockActivation) -> schemas.BlockAnswer:
    return schemas.BlockAnswer(
        block=each.block,
        shape=list(each.shape),
        mean=each.mean,
        std=each.std,
        min=each.minimum,
        max=each.maximum,
        zero_share=each.zero_share,
        strongest=[schemas.ChannelAnswer(index=c.index, mean=c.mean, max=c.maximum) for c in each.strongest],
    )


def _warnings(image: Image, frame: Frame, maps: list[Attribution] | None = None) -> list[str]:
    """What a reader should know before trusting the answer."""
    found = list(image.notes)
    x0, y0, x1, y1 = frame.seen_box
    unseen = 1.0 - (x1 - x0) * (y1 - y0) / (image.width * image.height)
    if unseen > _UNSEEN_SHARE_WARNED:
        found.append(
            f"The model saw only the middle of the picture: {unseen:.0%} of its area was cropped away."
        )
    if min(x1 - x0, y1 - y0) < min(frame.crop_width, frame.crop_height) / 4:
        found.append(
            f"The picture is small: {image.width} x {image.height} pixels were enlarged for the model, "
            "so its details are not evidence."
        )
    found += [f"{each.label}: {MEANINGS[each.status]}" for each in maps or [] if each.status != "ok"]
    return found
