"""Metrics and calibration against scikit-learn and counting by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from sklearn import metrics as sk

from models.networks.scoring import Scoring
from models.visualization.contact_sheet import Tile, draw_contact_sheet
from pipelines.data.dataset import Sample
from pipelines.evaluation.classification import evaluate_logits, fit_temperature
from pipelines.evaluation.plots import plot_confusion, plot_reliability


def judged(logits, labels, task="multiclass", temperature=1.0, names=None):
    samples = [Sample(Path("x"), f"{n}.png", tuple(each), f"{n:064d}", 8, 8) for n, each in enumerate(labels)]
    classes = names or [f"c{n}" for n in range(logits.shape[1])]
    return evaluate_logits(classes, Scoring(task, temperature), samples, "val", logits)


@pytest.fixture
def three():
    torch.manual_seed(0)
    logits = torch.randn(200, 3) * 3
    labels = torch.where(torch.rand(200) < 0.7, logits.argmax(1), torch.randint(0, 3, (200,)))
    return logits, labels


def test_one_class_of_many_against_scikit_learn(three):
    logits, labels = three
    result = judged(logits, [[int(label)] for label in labels])
    p, answer = torch.softmax(logits.double(), 1).numpy(), logits.argmax(1).numpy()
    y = labels.numpy()
    assert result.metrics["accuracy"] == pytest.approx(sk.accuracy_score(y, answer))
    assert result.metrics["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, answer))
    assert result.metrics["macro_f1"] == pytest.approx(sk.f1_score(y, answer, average="macro"))
    assert result.metrics["auroc"] == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr"), abs=1e-6)
    assert result.metrics["loss"] == pytest.approx(sk.log_loss(y, p))
    table = sk.precision_recall_fscore_support(y, answer)
    for place, row in enumerate(result.table):
        expected = [table[0][place], table[1][place], table[2][place]]
        assert [row.precision, row.recall, row.f1] == pytest.approx(expected)
        assert row.pictures == table[3][place]
    assert result.confusion.tolist() == sk.confusion_matrix(y, answer).tolist()
    bins = [each for each in result.reliability if each.answers]
    by_hand = sum(each.answers / 200 * abs(each.confidence - each.accuracy) for each in bins)
    assert result.metrics["ece"] == pytest.approx(by_hand, abs=1e-6)


def test_several_labels_against_scikit_learn():
    torch.manual_seed(1)
    logits = torch.randn(150, 4)
    truth = (torch.rand(150, 4) < torch.sigmoid(2 * logits)).int()
    result = judged(logits, [row.nonzero().flatten().tolist() for row in truth], "multilabel")
    y, p = truth.numpy(), torch.sigmoid(logits).numpy()
    answer = p >= 0.5
    assert result.metrics["accuracy"] == pytest.approx(np.mean(y == answer))
    assert result.metrics["exact_match"] == pytest.approx(sk.accuracy_score(y, answer))
    assert result.metrics["macro_f1"] == pytest.approx(sk.f1_score(y, answer, average="macro"))
    assert result.metrics["auroc"] == pytest.approx(sk.roc_auc_score(y, p), abs=1e-6)
    average = sk.average_precision_score(y, p)
    assert result.metrics["mean_average_precision"] == pytest.approx(average, abs=1e-6)
    balanced = np.mean([sk.balanced_accuracy_score(y[:, i], answer[:, i]) for i in range(4)])
    assert result.metrics["balanced_accuracy"] == pytest.approx(balanced)
    assert result.confusion.shape == (4, 2, 2)
    assert sum(item.is_correct for item in result.samples) == round(result.metrics["exact_match"] * 150)


def test_a_binary_question_against_scikit_learn():
    torch.manual_seed(2)
    z = torch.randn(120, 1) * 2
    y = (torch.rand(120) < torch.sigmoid(z[:, 0])).int()
    two = torch.cat([-z / 2, z / 2], 1)
    result = judged(two, [[int(each)] for each in y], "binary", names=["not rust", "rust"])
    answer, p = (z[:, 0] > 0).numpy(), torch.sigmoid(z[:, 0]).numpy()
    assert result.metrics["precision"] == pytest.approx(sk.precision_score(y, answer))
    assert result.metrics["recall"] == pytest.approx(sk.recall_score(y, answer))
    assert result.metrics["specificity"] == pytest.approx(sk.recall_score(1 - y, ~answer))
    assert result.metrics["auroc"] == pytest.approx(sk.roc_auc_score(y, p), abs=1e-6)
    assert result.metrics["average_precision"] == pytest.approx(sk.average_precision_score(y, p), abs=1e-6)


@pytest.mark.parametrize("true_temperature", [0.7, 1.0, 2.5, 6.0])
def test_the_temperature_that_spoilt_the_scores_is_found(true_temperature):
    torch.manual_seed(0)
    honest = torch.randn(20000, 3) * 2
    labels = torch.multinomial(torch.softmax(honest, 1), 1)
    result = judged(honest * true_temperature, labels.tolist())
    found = fit_temperature(result, Scoring())
    assert found == pytest.approx(true_temperature, rel=0.05)
    better = judged(honest * true_temperature, labels.tolist(), temperature=found)
    assert better.metrics["ece"] < 0.015
    assert better.metrics["loss"] <= result.metrics["loss"] + 1e-9
    assert better.metrics["accuracy"] == result.metrics["accuracy"]


def test_a_faultless_small_split_does_not_ask_for_certainty():
    logits = torch.tensor([[3.0, -3.0], [-3.0, 3.0]])
    assert 0.95 < fit_temperature(judged(logits, [[0], [1]]), Scoring()) <= 1.0


def test_mistakes_are_told_the_worst_first():
    logits = torch.tensor([[5.0, 0.0, 0.0], [1.0, 0.9, 0.0], [0.0, 4.0, 0.0], [2.0, 0.0, 0.0]])
    result = judged(logits, [[1], [1], [1], [0]])
    assert [item.sample.name for item in result.wrong] == ["0.png", "1.png"]
    assert [item.sample.name for item in result.least_sure] == ["3.png", "2.png"]
    first = result.wrong[0]
    assert (first.answer, first.truth, first.predicted.label, first.target.label) == ("c0", "c1", "c0", "c1")


def test_several_labels_say_what_was_false_and_what_was_missed():
    logits = torch.tensor([[3.0, 2.0, -3.0], [-2.0, -1.0, -4.0], [-2.0, -2.0, 1.0]])
    result = judged(logits, [[0], [1], [2]], "multilabel")
    false, missed, right = result.samples
    assert (false.answer, false.truth, false.predicted.label, false.target.label) == (
        "c0 + c1",
        "c0",
        "c1",
        "c0",
    )
    assert (missed.answer, missed.truth, missed.predicted.label, missed.target.label) == (
        "none",
        "c1",
        "c1",
        "c1",
    )
    assert missed.error == pytest.approx(1 - torch.sigmoid(torch.tensor(-1.0)).item())
    assert right.is_correct
    assert [item.sample.name for item in result.wrong] == ["0.png", "1.png"]
    nothing = judged(torch.tensor([[-3.0, -3.0], [1.0, -3.0]]), [[], []], "multilabel")
    assert [(item.truth, item.answer, item.is_correct) for item in nothing.samples] == [
        ("none", "none", True),
        ("none", "c0", False),
    ]


def test_the_plots_can_be_drawn_for_every_task(three):
    logits, labels = three
    single = judged(logits, [[int(label)] for label in labels])
    several = judged(logits, [[int(label), 0] for label in labels], "multilabel")
    for each in (single, several):
        assert min(plot_confusion(each).size) > 300
        assert min(plot_reliability(each.reliability, each.reliability, title="t").size) > 300


def test_a_class_that_a_split_does_not_show_is_counted_nowhere():
    logits = torch.eye(5)[[0, 1, 2, 3] * 5] * 9
    perfect = judged(logits, [[n % 4] for n in range(20)])
    for name in ("accuracy", "balanced_accuracy", "auroc", "macro_f1"):
        assert perfect.metrics[name] == pytest.approx(1.0), name
    absent = perfect.table[4]
    assert (absent.pictures, absent.recall, absent.auroc) == (0, None, None)
    several = judged(torch.tensor([[3.0, 3.0], [3.0, -3.0]]), [[0, 1], [0]], "multilabel")
    assert several.metrics["auroc"] == 1.0, "the label that is always true says nothing"
    assert several.table[0].auroc is None


def test_hundreds_of_classes_and_names_like_formulas_can_be_drawn():
    torch.manual_seed(0)
    many = judged(torch.randn(300, 300), [[n] for n in range(300)])
    assert max(plot_confusion(many).size) < 2000
    odd = judged(torch.randn(4, 2), [[0], [1], [0], [1]], names=["$_$", "<b>&\\foo"])
    assert min(plot_confusion(odd).size) > 300


@pytest.mark.filterwarnings("error")
def test_names_of_any_script_and_length_are_drawn_without_a_warning():
    torch.manual_seed(0)
    names = ["蜜蜂", "🐝", "a" * 200]
    odd = judged(torch.randn(6, 3), [[n % 3] for n in range(6)], names=names)
    assert max(plot_confusion(odd).size) < 1200
    sheet = draw_contact_sheet(
        [Tile(PIL.Image.new("RGB", (40, 40)), name, name) for name in names], columns=3, title="蜜蜂"
    )
    blank = draw_contact_sheet([Tile(PIL.Image.new("RGB", (40, 40)), " ", " ")] * 3, columns=3, title=" ")
    differs = (np.asarray(sheet) != np.asarray(blank)).any(axis=2)
    captions = np.array_split(differs[-40:], 3, axis=1)
    assert all(part.any() for part in captions), "a box stands where no font has the character"


def test_only_what_a_review_needs_is_kept_of_a_thousand_classes():
    torch.manual_seed(0)
    result = judged(torch.randn(3, 1000), [[7], [8], [9]])
    assert all(len(item.ranking) <= 6 for item in result.samples)
    assert [item.target.label for item in result.samples] == ["c7", "c8", "c9"]


def test_a_sure_mistake_is_a_false_answer_or_a_clear_miss():
    logits = torch.tensor([[3.0, -5.0], [3.0, 0.2], [-5.0, -0.2]])
    missed, half, silent = judged(logits, [[0, 1], [0], [0]], "multilabel").samples
    assert missed.is_confident_mistake, "b is true and has a score of 0.01"
    assert not half.is_confident_mistake
    assert half.error == pytest.approx(torch.sigmoid(torch.tensor(0.2)).item())
    assert silent.error == pytest.approx(1 - torch.sigmoid(torch.tensor(-5.0)).item())
