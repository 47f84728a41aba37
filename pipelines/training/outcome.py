"""What a training run came to: the registered version, its phases, and a description for MLflow's pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.evaluation.classification import Evaluation
from pipelines.training.checkpoint import FinishedPhase

ARTIFACTS = "{artifacts}"
"""Stands in a description for the address of the run's artefacts, which the tracker knows."""
_LINKS = {
    "Review": "review/review.html",
    "curves": "history.png",
    "evidence by phase": "forensics/probes.png",
    "data": "dataset.json",
    "settings": "config.toml",
}


@dataclass(frozen=True, slots=True)
class PhaseOutcome:
    """A finished phase: how long it trained, and which state was kept."""

    name: str
    epochs: int
    of: int
    """Epochs that it was allowed; fewer were trained where it stopped early."""
    best_epoch: int
    """The epoch whose state the model has; 0 is the state before the phase."""
    val_loss: float
    """In nats, of the kept state."""
    val_accuracy: float


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """The result of a run."""

    run_id: str
    name: str
    evaluations: dict[str, Evaluation]
    phases: list[PhaseOutcome]
    baseline: float | None
    """Validation accuracy of the linear probe."""
    view: str
    """A sentence on what the model sees of a picture."""
    skipped: int
    """Files of the data folder that were not used."""
    barred: list[str]
    """Explanation methods that may not be used with the model."""
    peak_memory_mb: float
    version: str = ""
    """Number of the registered version, once there is one."""
    digest: str = ""
    """Of its bundle."""


def phase_outcomes(done: Sequence[FinishedPhase]) -> list[PhaseOutcome]:
    """Return the outcome of each finished phase."""
    outcomes = []
    for phase in done:
        last, best = phase.epochs[-1], min(phase.epochs, key=lambda epoch: epoch.val_loss)
        outcomes.append(
            PhaseOutcome(last.phase, last.number, last.of, best.number, best.val_loss, best.val_accuracy)
        )
    return outcomes


def describe_outcome(trained: TrainedModel, summary: Sequence[str]) -> str:
    """Return a description in Markdown: the verdict first, then figures, then links to what shows them."""
    verdict, *others = summary
    lines = [f"**{verdict}**", "", *(f"- {sentence}" for sentence in (*others, trained.view))]
    if trained.skipped:
        lines.append(f"- {trained.skipped} files of the data folder were not used; dataset.json names each.")
    if trained.barred:
        lines.append(f"- Barred, for their maps do not depend on the weights: {', '.join(trained.barred)}.")
    lines += ["", "| phase | epochs | kept | val loss | val accuracy |", "|---|---|---|---|---|"]
    lines += [
        f"| {phase.name} | {phase.epochs} of {phase.of} | {phase.best_epoch} | {phase.val_loss:.3f} "
        f"| {phase.val_accuracy:.3f} |"
        for phase in trained.phases
    ]
    return "\n".join(
        [*lines, "", " · ".join(f"[{text}]({ARTIFACTS}/{path})" for text, path in _LINKS.items())]
    )
