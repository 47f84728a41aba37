"""Answers to a reader who doubts: how far to trust a map, how it came about, what would change the answer."""

from __future__ import annotations

from models.attribution.registry import DEFAULT_METHOD
from models.attribution.result import make_attribution
from models.errors import UnknownChoice
from models.images.encode import encode_image, to_data_uri
from models.introspection.cover_test import (
    CoverTest,
    limit_size,
    mask_from_box,
    mask_from_map,
    run_cover_test,
)
from models.introspection.decomposition import Decomposition, decompose, last_block_with_parts
from models.introspection.gradcam_trace import GradCamTrace, trace_grad_cam
from models.metrics.audit import check_names, run_audit
from models.metrics.layer_sweep import SweepStage
from models.visualization.figures import draw_decomposition_figure, draw_sweep_figure, draw_trace_figure
from service import schemas
from service.inference.answers import (
    agreement,
    change,
    evidence,
    faithfulness_answer,
    part,
    score,
    shifts,
    traced,
)
from service.inference.predictor import Engine, ExplainedImage
from service.inference.request import Request
from service.inference.timing import Timer

_COVERED_SIDE = 800


class Doubts:
    """Asks an engine's bundle further; as safe for many threads as the engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def trust(self, data: bytes, request: Request, checks: list[str]) -> schemas.TrustAnswer:
        """The checks asked for (all of them when none is named) on the evidence for one target."""
        check_names(checks)
        clock, engine = Timer(), self.engine
        looked = engine.looked(data, request, clock)
        with clock.part("checks"):
            found = run_audit(
                looked.image, looked.evidence, looked.maps[0], barred=engine.barred, checks=checks
            )
        evidence = engine.evidence(looked, found.attribution, overlay=request.overlay)
        if found.faithfulness is not None:
            judged = faithfulness_answer(found.faithfulness)
            evidence = evidence.model_copy(update={"faithfulness": judged})
        agreed, moved, stages = found.agreement, found.shifts, found.sweep
        return schemas.TrustAnswer(
            task=engine.model.scoring.task,
            predictions=[score(item) for item in looked.ranking],
            evidence=[evidence],
            agreement=agreement(agreed, dict(found.left_out)) if agreed is not None else None,
            shifts=shifts(moved) if moved is not None else None,
            sweep=[self._stage(looked, stage) for stage in stages] if stages is not None else None,
            **engine.about(
                looked.image,
                clock,
                engine.warnings(looked),
                (*looked.cut, *(f"{name}: this check was left out" for name in found.cut)),
            ),
        )

    def sweep_sheet(self, data: bytes, request: Request) -> bytes:
        """The map of each stage as a PNG sheet."""
        looked = self.engine.looked(data, request, Timer())
        found = run_audit(
            looked.image, looked.evidence, looked.maps[0], barred=self.engine.barred, checks=["sweep"]
        )
        return encode_image(draw_sweep_figure(looked.image, looked.frame, found.sweep or ()), "png")

    def trace(self, data: bytes, request: Request) -> schemas.TraceAnswer:
        """Grad-CAM's five steps."""
        clock = Timer()
        looked, found = self._traced(data, request, clock)
        return schemas.TraceAnswer(
            task=self.engine.model.scoring.task,
            predictions=[score(item) for item in looked.ranking],
            logit=found.logit,
            channels=found.channels,
            speaking_for=[traced(each) for each in found.speaking_for],
            speaking_against=[traced(each) for each in found.speaking_against],
            evidence=self.engine.evidence(looked, found.attribution, overlay=True),
            **self.engine.about(looked.image, clock, self.engine.warnings(looked), looked.cut),
        )

    def trace_sheet(self, data: bytes, request: Request) -> bytes:
        """The five steps as a PNG sheet."""
        looked, found = self._traced(data, request, Timer())
        return encode_image(draw_trace_figure(looked.image, looked.frame, found), "png")

    def what_if(
        self, data: bytes, request: Request, *, box: str, share: float, cover: str
    ) -> schemas.WhatIfAnswer:
        """The scores with a box covered, or the hottest part of the map when there is none."""
        clock = Timer()
        looked = self.engine.looked(data, request, clock)
        with clock.part("what if"):
            image, scale = limit_size(looked.image)
            frame = self.engine.model.geometry.frame(image.width, image.height)
            if box:
                x0, y0, x1, y1 = (edge * scale for edge in _box(box))
                mask = mask_from_box(frame, (x0, y0, x1, y1))
            else:
                mask = mask_from_map(frame, looked.maps[0], share=share)
            found = run_cover_test(self.engine.runner, image, mask, cover=cover)
        return schemas.WhatIfAnswer(
            changes=[change(item) for item in found.changes],
            cover=found.cover,
            share=found.share,
            covered=_shown(found) if request.overlay else None,
            **self.engine.about(looked.image, clock, self.engine.warnings(looked), looked.cut),
        )

    def split(self, data: bytes, request: Request) -> schemas.SplitAnswer:
        """The evidence at a block by its parts."""
        clock = Timer()
        looked, found = self._split(data, request, clock)
        return schemas.SplitAnswer(
            label=found.target.label,
            against=found.target.against,
            block=found.block,
            kind=found.kind,
            logit=found.logit,
            parts=[part(item) for item in found.parts],
            **self.engine.about(looked.image, clock, self.engine.warnings(looked), looked.cut),
        )

    def split_sheet(self, data: bytes, request: Request) -> bytes:
        """The parts as a PNG sheet."""
        looked, found = self._split(data, request, Timer())
        parts = [
            make_attribution(found.target, part.values, method=DEFAULT_METHOD, block=found.block)
            for part in found.parts
        ]
        return encode_image(draw_decomposition_figure(looked.image, looked.frame, found, parts), "png")

    # ------------------------------------------------------------ parts

    def _stage(self, looked: ExplainedImage, stage: SweepStage) -> schemas.StageAnswer:
        judged = stage.faithfulness
        return schemas.StageAnswer(
            evidence=evidence(
                looked.frame,
                stage.attribution,
                looked.score(stage.attribution),
                full_scale=max(stage.attribution.maximum, 0.0) or None,
                sanity=self.engine.sanity_note(stage.attribution.method),
            ),
            faithfulness=faithfulness_answer(judged) if judged is not None else None,
        )

    def _traced(self, data: bytes, request: Request, clock: Timer) -> tuple[ExplainedImage, GradCamTrace]:
        self.engine.check_allowed(DEFAULT_METHOD)
        looked = self.engine.looked(data, request, clock)
        with clock.part("trace"):
            return looked, trace_grad_cam(looked.evidence, 0, looked.maps[0].target)

    def _split(self, data: bytes, request: Request, clock: Timer) -> tuple[ExplainedImage, Decomposition]:
        engine = self.engine
        engine.check_allowed(DEFAULT_METHOD)
        looked = engine.looked(data, request, clock)
        block = request.block or last_block_with_parts(engine.model)
        with clock.part("split"):
            return looked, decompose(
                engine.model, looked.x, looked.maps[0].target, block, engine=engine.runner
            )


def _box(text: str) -> tuple[float, float, float, float]:
    """ "x0,y0,x1,y1" as numbers; raises UnknownChoice."""
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UnknownChoice("box", text, ("x0,y0,x1,y1 in pixels of the picture",)) from error
    return x0, y0, x1, y1


def _shown(found: CoverTest) -> str:
    small = found.covered.pil.copy()
    small.thumbnail((_COVERED_SIDE, _COVERED_SIDE))
    return to_data_uri(small)
