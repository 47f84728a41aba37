"""Answers to a reader who doubts: how far to trust a map, how it came about, what would change the answer."""

from __future__ import annotations

from models.errors import UnknownChoice
from models.explain.attribution import attribution
from models.explain.audit import audit, checked
from models.explain.evidence_split import EvidenceSplit, last_with_parts, split
from models.explain.methods import DEFAULT
from models.explain.sweep import Stage
from models.explain.trace import Trace, trace
from models.explain.what_if import WhatIf, by_box, by_map, what_if, workable
from models.render.overlay import data_uri, encode
from models.render.sheets import split_sheet, sweep_sheet, trace_sheet
from service import answers, schemas
from service.clock import Clock
from service.engine import Engine, Looked
from service.request import Request

_COVERED_SIDE = 800


class Doubts:
    """Asks an engine's bundle further; as safe for many threads as the engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def trust(self, data: bytes, request: Request, checks: list[str]) -> schemas.TrustAnswer:
        """The checks asked for (all of them when none is named) on the evidence for one target."""
        checked(checks)
        clock, engine = Clock(), self.engine
        looked = engine.looked(data, request, clock)
        with clock.part("checks"):
            found = audit(looked.image, looked.evidence, looked.maps[0], barred=engine.barred, checks=checks)
        evidence = engine.evidence(looked, found.attribution, overlay=request.overlay)
        if found.faithfulness is not None:
            judged = answers.faithfulness(found.faithfulness)
            evidence = evidence.model_copy(update={"faithfulness": judged})
        agreed, moved, stages = found.agreement, found.shifts, found.sweep
        return schemas.TrustAnswer(
            task=engine.model.scoring.task,
            predictions=[answers.score(item) for item in looked.ranking],
            evidence=[evidence],
            agreement=answers.agreement(agreed, dict(found.left_out)) if agreed is not None else None,
            shifts=answers.shifts(moved) if moved is not None else None,
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
        looked = self.engine.looked(data, request, Clock())
        found = audit(
            looked.image, looked.evidence, looked.maps[0], barred=self.engine.barred, checks=["sweep"]
        )
        return encode(sweep_sheet(looked.image, looked.frame, found.sweep or ()), "png")

    def trace(self, data: bytes, request: Request) -> schemas.TraceAnswer:
        """Grad-CAM's five steps."""
        clock = Clock()
        looked, found = self._traced(data, request, clock)
        return schemas.TraceAnswer(
            task=self.engine.model.scoring.task,
            predictions=[answers.score(item) for item in looked.ranking],
            logit=found.logit,
            channels=found.channels,
            speaking_for=[answers.traced(each) for each in found.speaking_for],
            speaking_against=[answers.traced(each) for each in found.speaking_against],
            evidence=self.engine.evidence(looked, found.attribution, overlay=True),
            **self.engine.about(looked.image, clock, self.engine.warnings(looked), looked.cut),
        )

    def trace_sheet(self, data: bytes, request: Request) -> bytes:
        """The five steps as a PNG sheet."""
        looked, found = self._traced(data, request, Clock())
        return encode(trace_sheet(looked.image, looked.frame, found), "png")

    def what_if(
        self, data: bytes, request: Request, *, box: str, share: float, cover: str
    ) -> schemas.WhatIfAnswer:
        """The scores with a box covered, or the hottest part of the map when there is none."""
        clock = Clock()
        looked = self.engine.looked(data, request, clock)
        with clock.part("what if"):
            image, scale = workable(looked.image)
            frame = self.engine.model.geometry.frame(image.width, image.height)
            if box:
                x0, y0, x1, y1 = (edge * scale for edge in _box(box))
                mask = by_box(frame, (x0, y0, x1, y1))
            else:
                mask = by_map(frame, looked.maps[0], share=share)
            found = what_if(self.engine.runner, image, mask, cover=cover)
        return schemas.WhatIfAnswer(
            changes=[answers.change(item) for item in found.changes],
            cover=found.cover,
            share=found.share,
            covered=_shown(found) if request.overlay else None,
            **self.engine.about(looked.image, clock, self.engine.warnings(looked), looked.cut),
        )

    def split(self, data: bytes, request: Request) -> schemas.SplitAnswer:
        """The evidence at a block by its parts."""
        clock = Clock()
        looked, found = self._split(data, request, clock)
        return schemas.SplitAnswer(
            label=found.target.label,
            against=found.target.against,
            block=found.block,
            kind=found.kind,
            logit=found.logit,
            parts=[answers.part(item) for item in found.parts],
            **self.engine.about(looked.image, clock, self.engine.warnings(looked), looked.cut),
        )

    def split_sheet(self, data: bytes, request: Request) -> bytes:
        """The parts as a PNG sheet."""
        looked, found = self._split(data, request, Clock())
        parts = [
            attribution(found.target, part.values, method=DEFAULT, block=found.block) for part in found.parts
        ]
        return encode(split_sheet(looked.image, looked.frame, found, parts), "png")

    # ------------------------------------------------------------ parts

    def _stage(self, looked: Looked, stage: Stage) -> schemas.StageAnswer:
        judged = stage.faithfulness
        return schemas.StageAnswer(
            evidence=answers.evidence(
                looked.frame,
                stage.attribution,
                looked.score(stage.attribution),
                full_scale=max(stage.attribution.maximum, 0.0) or None,
                sanity=self.engine.sanity_note(stage.attribution.method),
            ),
            faithfulness=answers.faithfulness(judged) if judged is not None else None,
        )

    def _traced(self, data: bytes, request: Request, clock: Clock) -> tuple[Looked, Trace]:
        self.engine.check_allowed(DEFAULT)
        looked = self.engine.looked(data, request, clock)
        with clock.part("trace"):
            return looked, trace(looked.evidence, 0, looked.maps[0].target)

    def _split(self, data: bytes, request: Request, clock: Clock) -> tuple[Looked, EvidenceSplit]:
        engine = self.engine
        engine.check_allowed(DEFAULT)
        looked = engine.looked(data, request, clock)
        block = request.block or last_with_parts(engine.model)
        with clock.part("split"):
            return looked, split(engine.model, looked.x, looked.maps[0].target, block, engine=engine.runner)


def _box(text: str) -> tuple[float, float, float, float]:
    """ "x0,y0,x1,y1" as numbers; raises UnknownChoice."""
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UnknownChoice("box", text, ("x0,y0,x1,y1 in pixels of the picture",)) from error
    return x0, y0, x1, y1


def _shown(found: WhatIf) -> str:
    small = found.covered.pil.copy()
    small.thumbnail((_COVERED_SIDE, _COVERED_SIDE))
    return data_uri(small)
