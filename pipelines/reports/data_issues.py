"""What is odd about the data, to look at: doubted labels with the evidence, near duplicates side by side."""

from __future__ import annotations

from dataclasses import dataclass, replace

from models.images.decode import read_image
from models.images.encode import to_data_uri
from models.networks.transfer_model import TransferModel
from pipelines.data.dataset import Dataset, Sample
from pipelines.data.listing import SPLITS
from pipelines.evaluation.classification import evaluate
from pipelines.evaluation.data_issues import DataIssues
from pipelines.progress import Reporter
from pipelines.reports.cases import NeighbourIndex, ReviewCase, explain_samples

_MOST_LABELS, _MOST_PAIRS = 24, 24
_PAIR_SIDE = 260


@dataclass(frozen=True, slots=True)
class ShownPair:
    """A near duplicate as a page shows it; images as data: URIs."""

    trained: str
    held_out: str
    trained_image: str
    held_out_image: str
    bits: int
    cosine: float


def explain_label_errors(
    model: TransferModel, issues: DataIssues, data: Dataset, near: NeighbourIndex, reporter: Reporter
) -> list[ReviewCase]:
    """Explain the pictures whose labels are least credible, at most 24, each with what is suggested."""
    first = issues.label_errors[:_MOST_LABELS]
    split_of = {sample.name: split for split in SPLITS for sample in data.samples(split)}
    cases: dict[str, ReviewCase] = {}
    for split in SPLITS:
        samples = [error.sample for error in first if split_of[error.sample.name] == split]
        if samples:
            evaluated = evaluate(model, samples, split).samples
            what = "explaining doubted labels"
            for case in explain_samples(model, evaluated, split, near, reporter.step, what=what):
                cases[case.evaluated.sample.name] = case
    explained = []
    for error in first:
        labels, suggested = (
            " + ".join(data.classes[label] for label in indices) or "none"
            for indices in (error.labels, error.suggested)
        )
        note = f"Labelled {labels} ({error.score:.0%} by the other pictures), which suggest {suggested}."
        case = cases[error.sample.name]
        explained.append(replace(case, notes=(note, *case.notes)))
    return explained


def show_near_duplicates(issues: DataIssues) -> list[ShownPair]:
    """Return the closest near duplicates for a page, at most 24."""
    return [
        ShownPair(
            pair.trained.name,
            pair.held_out.name,
            _small(pair.trained),
            _small(pair.held_out),
            pair.bits,
            pair.cosine,
        )
        for pair in issues.near_duplicates[:_MOST_PAIRS]
    ]


def _small(sample: Sample) -> str:
    image = read_image(sample.path).pil.copy()
    image.thumbnail((_PAIR_SIDE, _PAIR_SIDE))
    return to_data_uri(image)
