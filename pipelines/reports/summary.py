"""What a reviewer should know after one minute, in sentences that claim no more than was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from models.images.geometry import Geometry
from pipelines.data.dataset import Dataset
from pipelines.data.visibility import seen_shares
from pipelines.evaluation.classification import Evaluation
from pipelines.evaluation.data_issues import DataIssues
from pipelines.evaluation.explanations import FINE_METHOD, LocalizationResult

_FEW = 50
_MUCH_SEEN = 0.9
_BADLY_CALIBRATED = 0.1


def summarize_evaluations(
    evaluations: Sequence[Evaluation],
    baseline: float | None = None,
    *,
    shared: Sequence[tuple[str, str]] = (),
    geometry: Geometry | None = None,
    located: Sequence[LocalizationResult] = (),
) -> list[str]:
    """Summarize the state of a model from its evaluated splits; the last is the one to believe most.

    ``baseline`` is the linear probe's accuracy on the first; ``shared`` are (train name, held-out name) of
    images on both sides; ``geometry`` is the model's, from which follows how much it saw;
    ``located`` is where its evidence lies against masks or boxes.
    """
    last = evaluations[-1]
    sentences = [_result(evaluation) for evaluation in evaluations]
    if baseline is not None:
        gain = evaluations[0].metrics["accuracy"] - baseline
        verdict = "no better than" if gain < 0.005 else f"{gain * 100:.1f} points above"
        sentences.append(
            f"The accuracy on {evaluations[0].split} is {verdict} that of a linear probe on the untouched "
            f"features ({baseline:.1%})."
        )
    sentences += _confusions(last)
    sentences += _weakest(last)
    sentences += _calibration(last)
    if geometry is not None:
        sentences += _visibility(last, geometry)
    sentences += [_localization(result) for result in located if result.method != FINE_METHOD]
    if shared:
        many = f"{len(shared)} held-out pictures were" if len(shared) > 1 else "One held-out picture was"
        sentences.append(
            f"{many} trained on as well, such as {shared[0][1]}: what is measured on them is no evidence."
        )
    if len(last.samples) < _FEW:
        sentences.append(
            f"{last.split} has only {len(last.samples)} pictures: one more mistake would move its "
            f"accuracy by {100 / len(last.samples):.1f} points."
        )
    return sentences


def summarize_data_issues(issues: DataIssues | None, data: Dataset) -> list[str]:
    """Say what is odd about the data; nothing where nobody looked."""
    if issues is None:
        return []
    sentences = []
    if issues.label_errors:
        first = issues.label_errors[0]
        suggested = " + ".join(data.classes[label] for label in first.suggested) or "none"
        sentences.append(
            f"{len(issues.label_errors)} of {issues.inspected} labels may be wrong: the other pictures speak "
            f"for another class, for {first.sample.name} for {suggested}."
        )
    if issues.near_duplicates:
        sentences.append(
            f"{len(issues.near_duplicates)} held-out pictures are almost copies of training pictures, such "
            f"as {issues.near_duplicates[0].held_out.name}."
        )
    if issues.too_few:
        named = ", ".join(data.classes[label] for label in issues.too_few[:5])
        sentences.append(f"Too few pictures to judge the labels of: {named}.")
    return sentences


def _result(evaluation: Evaluation) -> str:
    count, wrong = len(evaluation.samples), len(evaluation.wrong)
    sure = sum(item.is_confident_mistake for item in evaluation.wrong)
    sentence = f"{evaluation.split}: {count - wrong} of {count} pictures right"
    if not wrong:
        return f"{sentence}."
    how = "with a score of 80% or more"
    if wrong == 1:
        return f"{sentence}; the one mistake was {'' if sure else 'not '}made {how}."
    return f"{sentence}; {sure} of the {wrong} mistakes were made {how}."


def _confusions(evaluation: Evaluation) -> list[str]:
    pairs = Counter((item.truth, item.answer) for item in evaluation.wrong)
    if not pairs:
        return []
    (truth, answer), count = pairs.most_common(1)[0]
    if count < 2:
        return [f"No mistake on {evaluation.split} was made twice."]
    return [f"The most frequent mistake on {evaluation.split}: {truth} taken for {answer}, {count} times."]


def _weakest(evaluation: Evaluation) -> list[str]:
    recalls = [
        (class_metrics.recall, class_metrics)
        for class_metrics in evaluation.table
        if class_metrics.recall is not None
    ]
    recall, row = min(recalls, key=lambda pair: pair[0])
    if recall >= 1:
        return []
    hits = round(recall * row.pictures)
    return [f"The class found least often: {row.label}, {hits} of {row.pictures} on {evaluation.split}."]


def _calibration(evaluation: Evaluation) -> list[str]:
    error = evaluation.metrics["ece"]
    before = evaluation.metrics.get("uncalibrated_ece")
    was = f", {before:.1%} before calibration" if before is not None else ""
    means = "do not mean what they say" if error > _BADLY_CALIBRATED else "are close to what they claim"
    return [f"Scores on {evaluation.split} {means}: off by {error:.1%} on average{was}."]


def _visibility(evaluation: Evaluation, geometry: Geometry) -> list[str]:
    """Return how much was cropped away, where it is more than a rim."""
    seen = seen_shares(geometry, (item.sample for item in evaluation.samples))
    if fmean(seen) >= _MUCH_SEEN:
        return []
    wrong = seen_shares(geometry, (item.sample for item in evaluation.wrong))
    of_wrong = f", and {fmean(wrong):.0%} of those that it got wrong" if wrong else ""
    return [
        f"On {evaluation.split} the model saw {fmean(seen):.0%} of a picture's area on average{of_wrong}; "
        "the rest was cropped away. Trained with view = whole, it would see all of it."
    ]


def _localization(result: LocalizationResult) -> str:
    """Say where the evidence for the true class lies beside what chance would give, also where that is
    unflattering.
    """
    mean = result.mean
    beaten = ": pointing is no better than always the middle" if mean.pointing <= mean.centre else ""
    names = {"spot": "a plain spot in the middle", "other_class": "the map of another class",
             "other_picture": "that of another picture"}  # fmt: skip
    gaps = [f"{gap.value:+.2f} ({gap.low:+.2f} to {gap.high:+.2f}) beside {names[name]}"
            for name, gap in result.above.items()]  # fmt: skip
    beside = f": {'; '.join(gaps)}" if gaps else ""
    return (
        f"On {result.split} the evidence is stronger on the {result.what} than off it with an AUROC of "
        f"{mean.auroc:.2f}, where 0.5 is chance{beside}. Its strongest place lies there in "
        f"{mean.pointing:.0%} of {result.pictures} pictures, the middle of what the model sees in "
        f"{mean.centre:.0%}{beaten}. {mean.energy:.0%} of the evidence lies on the {result.what}, which "
        f"takes {mean.area:.0%} of what the model sees; the same maps squared, with no other order, would "
        f"have {mean.squared_energy:.0%}."
    )
