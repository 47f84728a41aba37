from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models import images
from models.errors import TrainingError
from models.transfer import TransferModel
from pipelines import data
from pipelines.config import Augmentation, PhaseConfig, TrainConfig
from pipelines.evaluate import evaluate
from pipelines.finetune import Augmenter, Features, Reporter, run_phase

HEAD = PhaseConfig(name="head", train_from="head", epochs=6, rate=4e-3)
TOP = PhaseConfig(name="top blocks", train_from="stage7.0", epochs=2, rate=5e-4)
CONFIG = TrainConfig(phases=(HEAD, TOP), views=2, batch_size=8)


@pytest.fixture(scope="module")
def found(butterflies):
    return data.scan(butterflies)


def trained(found, config: TrainConfig, reporter: Reporter | None = None):
    torch.manual_seed(config.seed)
    model = TransferModel.create(config.backbone, found.classes)
    features = Features(model, found, config, reporter or Reporter())
    results = [
        run_phase(model, features, phase, reporter or Reporter(), seed=n)
        for n, phase in enumerate(config.phases)
    ]
    return model, results


def state_bytes(model) -> bytes:
    return b"".join(value.contiguous().numpy().tobytes() for value in model.state_dict().values())


def test_phases_train_what_they_say_and_nothing_else(found):
    torch.manual_seed(0)
    fresh = TransferModel.create("efficientnet_lite0", found.classes).state_dict()
    model, results = trained(found, CONFIG)
    changed = {
        key.split(".")[1] if key.startswith("blocks") else "head"
        for key, value in model.state_dict().items()
        if not torch.equal(value, fresh[key])
    }
    assert changed <= {"stage7_0", "top", "head"}
    assert "head" in changed
    assert results[0].trained_blocks == ["head"]
    assert results[1].trained_blocks == ["stage7.0", "top", "head"]
    rates = results[1].epochs[0].rates
    assert rates["stage7.0"] < rates["top"] < rates["head"], "lower rates for lower blocks"
    statistics = [key for key in fresh if "running" in key or "num_batches" in key]
    assert all(torch.equal(fresh[key], model.state_dict()[key]) for key in statistics), "BatchNorm in eval"


def test_the_model_learns_and_holds_its_best_state(found):
    model, results = trained(found, CONFIG)
    losses = [epoch.val_loss for result in results for epoch in result.epochs]
    assert results[0].best.val_loss < 0.7 * results[0].epochs[0].val_loss
    best = min(results[1].epochs, key=lambda epoch: epoch.val_loss)
    assert results[1].best == best
    again = evaluate(model, found.val, "val")
    assert again.metrics["loss"] == pytest.approx(best.val_loss, abs=1e-4), (
        "the service's own path gives the same loss"
    )
    assert min(losses) == pytest.approx(best.val_loss)


def test_the_same_seed_gives_the_same_model_to_the_bit(found):
    first, second = trained(found, CONFIG)[0], trained(found, CONFIG)[0]
    assert state_bytes(first) == state_bytes(second)
    other = trained(found, replace(CONFIG, seed=1))[0]
    assert state_bytes(other) != state_bytes(first)


def test_cached_features_are_those_of_the_whole_network(found):
    """The uncached way: every view through the whole model, in the same order, must give the same logits."""
    model = TransferModel.create("efficientnet_lite0", found.classes)
    features = Features(model, found, CONFIG, Reporter())
    model.freeze_below("head")
    views, val = features.for_phase()
    assert len(views) == 2
    for view, cached in enumerate(views):
        x = torch.stack([features.augmenter.tensor(sample, view) for sample in found.train[:4]])
        with torch.no_grad():
            torch.testing.assert_close(model.trainable_rest(cached[:4]), model(x), atol=1e-4, rtol=1e-4)
    assert len(val) == len(found.val)


def test_a_set_too_large_for_the_cache_is_trained_all_the_same(found):
    config = replace(CONFIG, cache_gb=0.0, phases=(replace(HEAD, epochs=3),))
    model, results = trained(found, config)
    assert state_bytes(model) == state_bytes(trained(found, config)[0]), "the same seed, the same bits"
    assert results[0].cached_views == 0
    assert results[0].best.val_loss < results[0].epochs[0].val_loss
    assert not model.training


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(found):
    torch.manual_seed(0)
    model = TransferModel.create("efficientnet_lite0", found.classes)
    features = Features(model, found, CONFIG, Reporter())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    features.train[0][0, 0] = float("nan")
    with pytest.raises(TrainingError, match="epoch 1 of phase 'head'"):
        run_phase(model, features, HEAD, Reporter(), seed=0)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_views_are_varied_repeatable_and_start_with_the_served_one(found):
    geometry = TransferModel.create("efficientnet_lite0", found.classes, pretraining="none").geometry
    augmenter = Augmenter(geometry, Augmentation(), seed=0)
    sample = found.train[0]
    assert torch.equal(augmenter.tensor(sample, 0), geometry.prepare(images.read(sample.path))[0])
    views = [augmenter.tensor(sample, view) for view in (1, 2, 3)]
    assert not torch.equal(views[0], views[1])
    torch.rand(7)
    assert torch.equal(views[1], augmenter.tensor(sample, 2)), "whatever was drawn before"
    still = Augmenter(geometry, Augmentation(min_crop_area=1, flip=False, rotate_degrees=0, colour=0), seed=0)
    assert float((still.tensor(sample, 1) - still.tensor(sample, 2)).abs().mean()) < 0.2


def test_progress_reaches_the_reporter(found):
    steps, epochs = [], []
    trained(
        found,
        replace(CONFIG, phases=(HEAD,)),
        Reporter(epoch=epochs.append, step=lambda *news: steps.append(news)),
    )
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4, 5, 6]
    assert ("training features", 60, 60) in steps


def test_evaluation_agrees_with_counting_by_hand(found):
    model, _ = trained(found, replace(CONFIG, phases=(HEAD,)))
    result = evaluate(model, found.val, "val")
    right = [item.top.label == item.truth for item in result.judged]
    assert result.metrics["accuracy"] == pytest.approx(np.mean(right))
    recalls = [
        np.mean([r for r, item in zip(right, result.judged, strict=True) if item.truth == name])
        for name in result.classes
    ]
    assert result.metrics["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert result.confusion.sum() == len(found.val)
    assert int(result.confusion.trace()) == sum(right)
    assert len(result.wrong) + len(result.least_sure) == len(found.val)
    assert [item.top.score for item in result.wrong] == sorted(
        (item.top.score for item in result.wrong), reverse=True
    )


@pytest.mark.parametrize(("name", "bar"), [("hymenoptera", 0.90), ("caltech_animals", 0.94)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_real_photographs_reach_the_bar(photos, name, bar, seed):
    _, results = trained(data.scan(photos / name), TrainConfig(seed=seed))
    accuracy = results[-1].best.val_accuracy
    print(f"{name} seed {seed}: val accuracy {accuracy:.4f} (bar {bar})")
    assert accuracy >= bar
