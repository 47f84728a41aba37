"""Losses, mixing and class weights against formulas written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from pipelines.config.schema import PhaseConfig
from pipelines.training.losses import BatchMixer, Objective, balanced_weights

PHASE = PhaseConfig("p", "layer", 1, 0.1)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    logits = torch.randn(64, 4) * 2
    labels = torch.randint(0, 4, (64,))
    return logits, labels, F.one_hot(labels, 4).float()


def test_one_class_of_many_is_cross_entropy(batch):
    logits, labels, wanted = batch
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    torch.testing.assert_close(Objective("multiclass").loss(logits, wanted), F.cross_entropy(logits, labels))
    smooth = 0.1 * -F.log_softmax(logits, 1).mean() + 0.9 * F.cross_entropy(logits, labels)
    torch.testing.assert_close(Objective("multiclass").loss(logits, wanted, smoothing=0.1), smooth)
    # torch divides by the weights of the labels, or with probabilities by the pictures: ours are
    # probabilities.
    each = weights[labels] * F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(
        Objective("multiclass", class_weights=weights).loss(logits, wanted), each.mean()
    )
    assert float(Objective("multiclass").correctness(logits, wanted).mean()) == float(
        (logits.argmax(1) == labels).float().mean()
    )


def test_several_labels_are_binary_cross_entropies(batch):
    logits, _, _ = batch
    wanted = (torch.rand(64, 4) > 0.6).float()
    p = torch.sigmoid(logits)
    by_hand = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).mean()
    torch.testing.assert_close(Objective("multilabel").loss(logits, wanted), by_hand)
    soft = wanted * 0.8 + 0.1
    by_hand = -(soft * p.log() + (1 - soft) * (1 - p).log()).mean()
    torch.testing.assert_close(Objective("multilabel").loss(logits, wanted, smoothing=0.2), by_hand)
    right = ((p > 0.5) == wanted.bool()).float().mean(1)
    assert torch.equal(Objective("multilabel").correctness(logits, wanted), right)


def test_balanced_weights_let_each_class_count_alike():
    labels = torch.tensor([0] * 30 + [1] * 6 + [2] * 4)
    wanted = F.one_hot(labels, 3).float()
    weights = balanced_weights("multiclass", wanted)
    assert (weights * wanted.sum(0)).tolist() == pytest.approx([40 / 3] * 3)
    assert float((weights[labels]).mean()) == pytest.approx(1.0)
    several = balanced_weights("multilabel", wanted)
    assert several.tolist() == pytest.approx([10 / 30, 34 / 6, 36 / 4])
    assert balanced_weights("multilabel", torch.zeros(1000, 1)).tolist() == [100.0], "bounded"


@pytest.mark.parametrize("shape", [(16, 5), (16, 5, 1, 1), (16, 5, 7, 7)])
def test_mixup_mixes_features_and_targets_alike(shape):
    torch.manual_seed(0)
    x, wanted = torch.rand(shape), F.one_hot(torch.arange(16) % 4, 4).float()
    mixed, soft = BatchMixer(replace(PHASE, mixup=0.4), 4)(x, wanted)
    assert mixed.shape == x.shape
    share = float(soft[0].max())
    expected = share * wanted + (1 - share) * wanted.roll(1, 0)
    other = (1 - share) * wanted + share * wanted.roll(1, 0)
    is_share = torch.allclose(soft, expected)
    assert is_share or torch.allclose(soft, other)
    kept = share if is_share else 1 - share
    torch.testing.assert_close(mixed, kept * x + (1 - kept) * x.roll(1, 0))


def test_cutmix_cuts_maps_and_weighs_targets_by_area():
    torch.manual_seed(3)
    x = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 2, 14, 14).contiguous()
    wanted = F.one_hot(torch.arange(8), 8).float()
    mixed, soft = BatchMixer(replace(PHASE, cutmix=1.0), 8)(x, wanted)
    own = (mixed[3, 0] == 3).float().mean()
    assert 0 < float(own) < 1
    assert float(soft[3, 3]) == pytest.approx(float(own))
    assert float(soft[3, 2]) == pytest.approx(1 - float(own))


def test_several_labels_can_be_mixed_too():
    torch.manual_seed(0)
    wanted = (torch.rand(16, 4) > 0.5).float()
    _, soft = BatchMixer(replace(PHASE, mixup=1.0), 4)(torch.rand(16, 3), wanted)
    assert soft.shape == wanted.shape
    assert ((soft >= 0) & (soft <= 1)).all()


def test_nothing_to_mix_changes_nothing():
    x, wanted = torch.rand(4, 3), torch.eye(4)
    assert BatchMixer(PHASE, 4)(x, wanted) == (x, wanted)
    single = BatchMixer(replace(PHASE, mixup=1.0), 4)(x[:1], wanted[:1])
    assert torch.equal(single[0], x[:1])
