"""The model's values written as answers."""

from __future__ import annotations

import numpy as np

from models.attribution.result import Attribution
from models.images.geometry import Frame
from models.introspection.activations import BlockActivation
from models.introspection.cover_test import ScoreChange
from models.introspection.decomposition import DecompositionPart
from models.introspection.gradcam_trace import ChannelTrace
from models.metrics.agreement import MethodAgreement
from models.metrics.faithfulness import FaithfulnessResult, ScoreCurve
from models.metrics.stability import ShiftTest
from models.metrics.warnings import audit_border
from models.networks.predictions import Prediction
from service import schemas


def score(item: Prediction) -> schemas.Score:
    """One class with its score."""
    return schemas.Score(label=item.label, index=item.index, score=item.score, accepted=item.accepted)


def grid(values: np.ndarray) -> schemas.Grid:
    """A signed map."""
    rows, cols = values.shape
    return schemas.Grid(
        rows=rows, cols=cols, values=values.tolist(), min=float(values.min()), max=float(values.max())
    )


def evidence(
    frame: Frame,
    attribution: Attribution,
    score: float,
    *,
    full_scale: float | None,
    sanity: str | None,
    overlay: str | None = None,
) -> schemas.Evidence:
    """One map with where it lies and how far to trust it."""
    cell_width, cell_height = frame.cell_size(attribution.rows, attribution.cols)
    x0, y0, x1, y1 = frame.seen_box
    rim = audit_border(attribution)
    return schemas.Evidence(
        label=attribution.label,
        index=attribution.index,
        score=score,
        against=attribution.target.against,
        method=attribution.method,
        block=attribution.block,
        status=attribution.status,
        unit=attribution.unit,
        grid=grid(attribution.values),
        full_scale=full_scale,
        cell_px=(round(cell_width, 3), round(cell_height, 3)),
        seen_box=(round(x0, 3), round(y0, 3), round(x1, 3), round(y1, 3)),
        settings=dict(attribution.settings),
        border=schemas.Border(mass=rim.mass, area=rim.area, suspicious=rim.suspicious),
        sanity=sanity,
        overlay=overlay,
    )


def faithfulness_answer(found: FaithfulnessResult) -> schemas.Faithfulness:
    """Curves, percentile and verdict."""
    return schemas.Faithfulness(
        score=found.score,
        percentile=found.percentile,
        random_maps=len(found.random_scores),
        centre=found.centre,
        cover=found.cover,
        deletion=_curve(found.deletion),
        insertion=_curve(found.insertion),
        verdict=found.verdict,
    )


def agreement(found: MethodAgreement, left_out: dict[str, str]) -> schemas.Agreement:
    """Pairwise, and in words."""
    return schemas.Agreement(
        methods=list(found.methods),
        correlations=[list(row) for row in found.correlations],
        mean=found.mean,
        overlap=found.overlap,
        left_out=left_out,
        verdict=found.verdict,
    )


def shifts(found: ShiftTest) -> schemas.Shifts:
    """Move by move, and in words."""
    return schemas.Shifts(
        score=found.score,
        spread=found.spread,
        correlation=found.correlation,
        moves=[
            schemas.Move(
                right=move.right,
                down=move.down,
                score=move.score,
                same_answer=move.same_answer,
                correlation=move.correlation,
            )
            for move in found.moves
        ],
        verdict=found.verdict,
    )


def traced(channel: ChannelTrace) -> schemas.TracedChannel:
    """One channel's steps 1 to 3."""
    return schemas.TracedChannel(
        index=channel.index,
        weight=channel.weight,
        share=channel.share,
        activation=channel.activation.tolist(),
        gradient=channel.gradient.tolist(),
    )


def change(item: ScoreChange) -> schemas.Change:
    """One class before and after."""
    return schemas.Change(
        label=item.label, index=item.index, before=item.before, after=item.after, change=item.change
    )


def part(item: DecompositionPart) -> schemas.PartAnswer:
    """One part of a block."""
    return schemas.PartAnswer(
        name=item.name,
        channels=item.channels,
        total=item.total,
        without=item.without,
        grid=grid(item.values),
    )


def block(each: BlockActivation) -> schemas.BlockAnswer:
    """A block's statistics."""
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


def _curve(found: ScoreCurve) -> schemas.Curve:
    return schemas.Curve(shares=list(found.shares), scores=list(found.scores), area=found.area)
