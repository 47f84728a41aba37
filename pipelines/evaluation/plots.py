"""Plots of a training run, as images: made by matplotlib without a window, on the house's colours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.ticker import FuncFormatter

from models.metrics.faithfulness import FaithfulnessResult
from models.visualization.fonts import WIDE_FONTS
from pipelines.evaluation.classification import Evaluation, ReliabilityBin
from pipelines.progress import EpochResult

INK, FAINT, LINE = "#201e28", "#6d6878", "#d9d4ca"
_MOST_NAMED = 40
"""Classes of a confusion matrix that have room for their names and counts."""
_LONGEST_NAME = 32
PURPLE, ORANGE = "#5b2a86", "#e07b39"
"""Far apart in lightness as well as in hue."""


def plot_confusion(evaluation: Evaluation) -> PIL.Image.Image:
    """Plot the confusion matrix: counts in each cell, shaded by the share of the true class. For several
    labels, one row a label: hits, misses, false alarms, rightly silent.
    """
    counts = evaluation.confusion.numpy()
    columns = evaluation.classes
    if counts.ndim == 3:
        # A label's four counts in the order in which a reviewer asks for them.
        counts = np.stack([counts[:, 1, 1], counts[:, 1, 0], counts[:, 0, 1], counts[:, 0, 0]], axis=1)
        columns = ["hit", "missed", "false alarm", "rightly silent"]
        share = counts / max(len(evaluation.samples), 1)
    else:
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = len(counts) <= _MOST_NAMED
    height = max(3.2, 0.5 * len(counts) + 2.0) if named else 9.0
    figure, axes = _figure(max(4.4, 0.75 * len(columns) + 2.4) if named else 9.6, height)
    axes.imshow(share, cmap="Purples", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    if named:
        # A class may be called "$x$"; it is a name, not a formula.
        style: dict[str, Any] = {"parse_math": False, "fontfamily": _families()}
        axes.set_xticks(range(len(columns)), _short(columns), rotation=40, ha="right", **style)
        axes.set_yticks(range(len(counts)), _short(evaluation.classes), **style)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    accuracy = evaluation.metrics["accuracy"]
    axes.set_title(f"{evaluation.split}: accuracy {accuracy:.3f} of {len(evaluation.samples)}", fontsize=11)
    for row, col in np.ndindex(*counts.shape):
        if counts[row, col] and named:
            axes.text(col, row, str(int(counts[row, col])), ha="center", va="center", fontsize=10,
                      color="white" if share[row, col] > 0.55 else INK)  # fmt: skip
    return _render(figure)


def plot_reliability(
    before: Sequence[ReliabilityBin], after: Sequence[ReliabilityBin], *, title: str
) -> PIL.Image.Image:
    """Plot how often answers of each score are right, before and after calibration; the area of a dot is the
    number of answers, the diagonal a model whose scores mean what they say.
    """
    figure, axes = _figure(5.2, 5.0)
    axes.plot([0, 1], [0, 1], color=LINE, linewidth=1.5, zorder=1)
    total = max(sum(bar.answers for bar in after), 1)
    for bins, colour, label in ((before, FAINT, "as trained"), (after, PURPLE, "calibrated")):
        used = [bar for bar in bins if bar.answers]
        x, y = [bar.confidence for bar in used], [bar.accuracy for bar in used]
        sizes = [20 + 600 * bar.answers / total for bar in used]
        axes.plot(x, y, color=colour, linewidth=1.2, zorder=2)
        axes.scatter(x, y, s=sizes, color=colour, alpha=0.65, label=label, edgecolors="white", zorder=3)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(-0.02, 1.05)
    axes.set_xlabel("score of the answer")
    axes.set_ylabel("share of these answers that is right")
    axes.set_title(title, fontsize=11)
    legend = axes.legend(loc="upper left", frameon=False)
    for handle in legend.legend_handles:
        handle.set_sizes([60])  # type: ignore[union-attr]
    return _render(figure)


def plot_history(phases: Sequence[Sequence[EpochResult]]) -> PIL.Image.Image:
    """Plot loss and accuracy along all epochs, the phases side by side, the kept epoch of each marked."""
    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    start = 0
    for epochs in phases:
        x = [start + epoch.number for epoch in epochs]
        best = max((i for i, epoch in enumerate(epochs) if epoch.best), default=0)
        trained = [
            (place, e.train_loss) for place, e in zip(x, epochs, strict=True) if e.train_loss is not None
        ]
        left.plot(*zip(*trained, strict=True), color=ORANGE, linewidth=1.6) if trained else None
        left.plot(x, [epoch.val_loss for epoch in epochs], color=PURPLE, linewidth=1.6)
        right.plot(x, [epoch.val_accuracy for epoch in epochs], color=PURPLE, linewidth=1.6)
        left.scatter([x[best]], [epochs[best].val_loss], color=PURPLE, s=36, zorder=3)
        right.scatter([x[best]], [epochs[best].val_accuracy], color=PURPLE, s=36, zorder=3)
        for axes in (left, right):
            axes.axvline(start, color=LINE, linewidth=1)
            axes.annotate(f" {epochs[0].phase}", (start, 1), xycoords=("data", "axes fraction"),
                          va="top", fontsize=9, color=FAINT)  # fmt: skip
        start = x[-1]
    left.set_ylabel("loss (training orange, validation purple)", fontsize=9)
    right.set_ylabel("validation accuracy", fontsize=9)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        _style_axes(axes)
    return _render(figure)


def plot_lr_range_test(
    tried: Sequence[float], losses: Sequence[float], suggested: float, *, title: str
) -> PIL.Image.Image:
    """Plot the loss along rising learning rates, and the one suggested."""
    figure, axes = _figure(6.4, 3.8)
    axes.plot(tried, losses, color=PURPLE, linewidth=1.8)
    axes.axvline(suggested, color=ORANGE, linewidth=1.4)
    axes.annotate(f" {suggested:.2g}", (suggested, 0.96), xycoords=("data", "axes fraction"),
                  va="top", color=INK)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("learning rate of the head")
    axes.set_ylabel("loss, smoothed")
    axes.set_title(title, fontsize=11)
    return _render(figure)


def plot_weight_movement(stages: Sequence[str], moved: Sequence[dict[str, float]]) -> PIL.Image.Image:
    """Plot how far each block's weights have moved from where they began, after each phase; what stayed
    frozen has no bar.
    """
    blocks = list(moved[-1])
    figure, axes = _figure(max(6.0, 0.42 * len(blocks) + 2), 3.8)
    width = 0.8 / len(stages)
    shades = [PURPLE, ORANGE, FAINT, "#8f6bb1", "#b98b4e", INK]
    for number, (stage, distances) in enumerate(zip(stages, moved, strict=True)):
        x = np.arange(len(blocks)) + (number - (len(stages) - 1) / 2) * width
        axes.bar(x, [100 * distances[block] for block in blocks], width * 0.92, label=f"after {stage}",
                 color=shades[number % len(shades)])  # fmt: skip
    axes.set_xticks(range(len(blocks)), blocks, rotation=50, ha="right", fontsize=9)
    # A new head moves a hundred times as far as a pretrained block: only a logarithm shows both.
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.01)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("weights moved, % of their length")
    axes.legend(frameon=False)
    return _render(figure)


def plot_evidence_movement(pairs: Sequence[tuple[str, float]]) -> PIL.Image.Image:
    """Plot how many images had how much of their evidence moved, those that changed sides set apart."""
    figure, axes = _figure(5.2, 3.2)
    same = [moved for kind, moved in pairs if kind == "same"]
    changed = [moved for kind, moved in pairs if kind != "same"]
    axes.hist([same, changed], bins=np.linspace(0, 1, 21).tolist(), stacked=True, color=[PURPLE, ORANGE],
              label=["same answer", "changed answer"])  # fmt: skip
    axes.set_xlabel("share of the evidence that moved")
    axes.set_ylabel("pictures")
    axes.legend(frameon=False)
    return _render(figure)


@cache
def _families() -> list[str]:
    """Return the fonts of class names: characters that the first lacks are taken from the next."""
    available = set(get_font_names())
    return ["DejaVu Sans", *(family for family in WIDE_FONTS.values() if family in available)]


def _short(names: Sequence[str]) -> list[str]:
    return [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in names]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    _style_axes(axes)
    return figure, axes


def _style_axes(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    axes.tick_params(colors=FAINT, labelcolor=INK)


def _render(figure: Figure) -> PIL.Image.Image:
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A character that no font here has is drawn as a box; that is all there is to say.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        canvas.draw()  # type: ignore[no-untyped-call]
    return PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())  # type: ignore[no-untyped-call]


def plot_faithfulness(result: FaithfulnessResult) -> PIL.Image.Image:
    """Plot the deletion and insertion curves of a map, and its score among those of its controls."""
    figure = Figure(figsize=(7.6, 3.4), dpi=110, layout="constrained")
    curves, beside = figure.subplots(1, 2, width_ratios=(1.7, 1))
    _style_axes(curves)
    _style_axes(beside)
    for curve, colour, label in (
        (result.insertion, ORANGE, "shown, strongest first"),
        (result.deletion, PURPLE, "covered, strongest first"),
    ):
        curves.plot(curve.shares, curve.scores, color=colour, marker="o", markersize=3, label=label)
    curves.set(
        xlabel="share of the picture", ylabel="score", ylim=(min(-0.02, *result.deletion.scores), 1.02)
    )
    curves.legend(frameon=False, fontsize=9)
    beside.hist(result.curves.controls, bins=9, color=LINE, label="control maps")
    beside.axvline(result.score, color=ORANGE, linewidth=2, label="this map")
    beside.axvline(result.centre, color=FAINT, linestyle=":", label="a spot in the middle")
    beside.set(xlabel="insertion less deletion", yticks=[])
    beside.legend(frameon=False, fontsize=8)
    return _render(figure)
