"""Fine-tuning in phases: what is trained, that it resumes to the same bits, and what it reaches."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.networks.scoring import Scoring
from models.networks.transfer_model import TransferModel
from pipelines.config.schema import Augmentation, PhaseConfig, TrainConfig
from pipelines.data.dataset import scan_folder
from pipelines.errors import TrainingError
from pipelines.evaluation.classification import evaluate
from pipelines.progress import Reporter
from pipelines.training.feature_cache import FeatureCache, default_cache_folder
from pipelines.training.features import Features
from pipelines.training.losses import Objective
from pipelines.training.lr_finder import run_lr_range_test
from pipelines.training.schedules import lr_factor, momentum
from pipelines.training.trainer import PhaseState, rate_groups, run_phase
from tests.support.training import fine_tune

SEEDS = int(os.environ.get("LUCIDA_SEEDS", "3"))
"""Seeds by which photographs must reach the bar."""

HEAD = PhaseConfig(name="head", train_from="head", epochs=6, rate=4e-3)
TOP = PhaseConfig(name="top blocks", train_from="stage7.0", epochs=2, rate=5e-4)
CONFIG = TrainConfig(phases=(HEAD, TOP), views=2, batch_size=8)


@pytest.fixture(scope="module")
def found(butterflies):
    return scan_folder(butterflies)


def features_of(model, found, config: TrainConfig, reporter: Reporter | None = None) -> Features:
    store = FeatureCache(default_cache_folder(), memory_gb=config.cache_gb, disk_gb=config.cache_disk_gb)
    return Features(model, found, config, store, reporter or Reporter())


def trained(found, config: TrainConfig, reporter: Reporter | None = None):
    torch.manual_seed(config.seed)
    model = TransferModel.create(config.backbone, found.classes, task=found.task)
    return model, fine_tune(model, found, config, reporter)


def state_bytes(model) -> bytes:
    return b"".join(value.contiguous().numpy().tobytes() for value in model.state_dict().values())


def changed_parts(model, before) -> set[str]:
    return {
        key.split(".")[1] if key.startswith("blocks") else "head"
        for key, value in model.state_dict().items()
        if not torch.equal(value, before[key])
    }


def initial(found, config: TrainConfig = CONFIG):
    torch.manual_seed(config.seed)
    return TransferModel.create(config.backbone, found.classes).state_dict()


def test_phases_train_what_they_say_and_nothing_else(found):
    model, results = trained(found, CONFIG)
    before = initial(found)
    changed = changed_parts(model, before)
    assert changed <= {"stage7_0", "top", "head"}
    assert "head" in changed
    assert results[0].trained_blocks == ["head"]
    assert results[1].trained_blocks == ["stage7.0", "top", "head"]
    rates = results[1].epochs[0].rates
    assert rates["stage7.0"] < rates["top"] < rates["head"], "lower rates for lower blocks"
    statistics = [key for key in before if "running" in key or "num_batches" in key]
    assert all(torch.equal(before[key], model.state_dict()[key]) for key in statistics), "eval"


def test_gradual_unfreezing_moves_the_boundary_down_and_up_again(found):
    phases = (
        replace(HEAD, epochs=1),
        PhaseConfig("top", "top", 1, 1e-3),
        PhaseConfig("lower", "stage6.3", 1, 1e-3),
        PhaseConfig("head again", "head", 1, 1e-3),
    )
    torch.manual_seed(0)
    model = TransferModel.create("efficientnet_lite0", found.classes)
    features = features_of(model, found, replace(CONFIG, phases=phases, views=1))
    allowed = [{"head"}, {"top", "head"}, {"stage6_3", "stage7_0", "top", "head"}, {"head"}]
    for number, (phase, parts) in enumerate(zip(phases, allowed, strict=True)):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        boundary = features.at(phase.train_from)
        # What a phase trains on is what the network makes of the pictures now, also after lower blocks moved.
        x = torch.stack([features.augmenter.tensor(sample, 0) for sample in found.train[:3]])
        model.freeze_below(phase.train_from)
        with torch.no_grad():
            model.eval()
            direct, cached = model(x), model.trainable_rest(boundary.train[0].rows(slice(0, 3)))
        torch.testing.assert_close(cached, direct, atol=1e-4, rtol=1e-4)
        run_phase(model, boundary, phase, Objective("multiclass"), Reporter(), seed=number)
        assert changed_parts(model, before) <= parts, phase.name


def test_batch_norm_is_trained_only_where_it_is_said(found):
    phase = replace(TOP, batch_norm="trained", rate=1e-3)
    torch.manual_seed(0)
    model = TransferModel.create("efficientnet_lite0", found.classes)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    features = features_of(model, found, replace(CONFIG, phases=(phase,)))
    states: list[PhaseState] = []
    run_phase(
        model, features.at("stage7.0"), phase, Objective("multiclass"), Reporter(), seed=0, save=states.append
    )
    last = states[-1].tensors
    moved = {
        key.removeprefix("model.").split(".")[1]
        for key, value in last.items()
        if key.startswith("model.") and "running" in key and not torch.equal(value, before[key[6:]])
    }
    assert moved == {"stage7_0", "top"}


def test_a_phase_begins_with_no_moments_and_only_its_own_weights(found):
    """The optimiser at a boundary: nothing of the phase before and nothing frozen."""
    torch.manual_seed(0)
    model = TransferModel.create("efficientnet_lite0", found.classes)
    features = features_of(model, found, CONFIG)
    states: list[PhaseState] = []

    def keep(state: PhaseState) -> None:
        states.append(PhaseState(list(state.epochs), {k: v.clone() for k, v in state.tensors.items()}))

    for number, phase in enumerate(CONFIG.phases):
        states.clear()
        run_phase(
            model, features.at(phase.train_from), phase, Objective("multiclass"), Reporter(), seed=number,
            save=keep,
        )  # fmt: skip
        assert not [key for key in states[0].tensors if key.startswith("adamw.")], "no moments at the start"
        steps = {float(v) for k, v in states[1].tensors.items() if k.endswith(".step")}
        assert steps == {4.0}, "thirty pictures in batches of eight"
        kept = {int(key.split(".")[1]) for key in states[1].tensors if key.startswith("adamw.")}
        model.freeze_below(phase.train_from)
        assert len(kept) == sum(p.requires_grad for p in model.parameters())
    jump = states[1].epochs[1].val_loss - states[1].epochs[0].val_loss
    assert jump < 1.0, "the first epoch of unfreezing does not throw the head away"


def test_the_model_learns_and_holds_its_best_state(found):
    model, results = trained(found, CONFIG)
    assert results[0].best.val_loss < 0.7 * results[0].epochs[0].val_loss
    best = min(results[1].epochs, key=lambda epoch: epoch.val_loss)
    assert results[1].best == best
    again = evaluate(model, found.val, "val")
    assert again.metrics["loss"] == pytest.approx(best.val_loss, abs=1e-4), (
        "the service's own path gives the same loss"
    )


def test_the_same_seed_gives_the_same_model_to_the_bit(found):
    first, second = trained(found, CONFIG)[0], trained(found, CONFIG)[0]
    assert state_bytes(first) == state_bytes(second)
    other = trained(found, replace(CONFIG, seed=1))[0]
    assert state_bytes(other) != state_bytes(first)


EVERYTHING = replace(
    TOP, epochs=4, schedule="one_cycle", label_smoothing=0.1, mixup=0.4, cutmix=0.4, ema_decay=0.9,
    batch_norm="trained",
)  # fmt: skip


@pytest.mark.parametrize("phase", [HEAD, EVERYTHING], ids=["plain", "everything"])
def test_a_phase_left_after_any_epoch_goes_on_to_the_same_bits(found, phase):
    config = replace(CONFIG, phases=(phase,))

    def run(state=None, until=None):
        torch.manual_seed(0)
        model = TransferModel.create("efficientnet_lite0", found.classes)
        features = features_of(model, found, config)
        states: list[PhaseState] = []

        def save(each: PhaseState) -> None:
            states.append(PhaseState(list(each.epochs), {k: v.clone() for k, v in each.tensors.items()}))
            if len(states) == until:
                raise KeyboardInterrupt

        at = features.at(phase.train_from)
        try:
            result = run_phase(
                model, at, phase, Objective("multiclass"), Reporter(), seed=3, state=state, save=save
            )
        except KeyboardInterrupt:
            return states[-1]
        return state_bytes(model), [(e.train_loss, e.val_loss) for e in result.epochs]

    whole = run()
    for until in (1, 3):
        assert run(state=run(until=until)) == whole


@pytest.mark.parametrize(
    "change",
    [
        {"label_smoothing": 0.2},
        {"mixup": 0.4},
        {"cutmix": 0.8},
        {"ema_decay": 0.9},
        {"precision": "bfloat16"},
        {"clip_norm": 0.01},
        {"schedule": "one_cycle"},
        {"schedule": "constant"},
        {"weight_decay": 0.5},
        {"block_decay": 0.1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_setting_changes_training_and_still_learns(found, change):
    def losses(phase):
        _, results = trained(found, replace(CONFIG, phases=(phase,)))
        return [epoch.val_loss for epoch in results[0].epochs]

    phase = replace(TOP, epochs=3, rate=1e-3)
    plain, changed = losses(phase), losses(replace(phase, **change))
    assert plain[0] == changed[0]
    assert plain[1:] != changed[1:]
    assert min(changed[1:]) < changed[0]


def test_patience_ends_a_phase_that_no_longer_improves(found):
    phase = replace(HEAD, epochs=60, rate=0.05, patience=2)
    _, (result,) = trained(found, replace(CONFIG, phases=(phase,)))
    assert result.epochs[-1].number < 60
    assert result.epochs[-1].number - result.best.number == 2


def test_one_cycle_is_torchs():
    for steps in (10, 48, 333):
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimiser = torch.optim.AdamW([parameter], lr=1.0)
        torchs = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, max_lr=1.0, total_steps=steps, final_div_factor=1e4
        )
        for step in range(steps):
            group = optimiser.param_groups[0]
            assert lr_factor("one_cycle", step, steps) == pytest.approx(group["lr"], abs=1e-12)
            assert momentum("one_cycle", step, steps) == pytest.approx(group["betas"][0], abs=1e-12)
            optimiser.step()
            if step < steps - 1:
                torchs.step()


def test_the_cosine_warms_up_and_ends_at_a_hundredth():
    shares = [lr_factor("cosine", step, 100) for step in range(101)]
    assert shares[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[100] == pytest.approx(0.01)
    assert {lr_factor("constant", step, 9) for step in range(9)} == {1.0}


def test_rates_fall_with_depth(found):
    model = TransferModel.create("efficientnet_lite0", found.classes, pretraining="none")
    model.freeze_below("stage6.3")
    rates = {
        group["name"]: group["peak"] for group in rate_groups(model, replace(TOP, block_decay=0.5, rate=1))
    }
    assert rates == {"head": 1, "top": 0.5, "stage7.0": 0.25, "stage6.3": 0.125}


def test_the_rate_finder_suggests_a_rate_that_learns_and_leaves_the_model_alone(found):
    torch.manual_seed(0)
    model = TransferModel.create("efficientnet_lite0", found.classes)
    features = features_of(model, found, CONFIG)
    before = state_bytes(model)
    test = run_lr_range_test(model, features.at("head"), HEAD, Objective("multiclass"), Reporter(), seed=0)
    assert state_bytes(model) == before
    assert test.rates == sorted(test.rates)
    assert 1e-3 < test.suggested < 0.2
    at = test.rates.index(test.suggested)
    assert min(test.losses) < 0.8 * test.losses[0]
    assert test.losses[at] > min(test.losses), "before the bottom, where it still falls"
    phase = replace(HEAD, rate=test.suggested)
    result = run_phase(model, features.at("head"), phase, Objective("multiclass"), Reporter(), seed=0)
    assert result.best.val_loss < 0.7 * result.epochs[0].val_loss


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(found):
    torch.manual_seed(0)
    model = TransferModel.create("efficientnet_lite0", found.classes)
    features = features_of(model, found, CONFIG)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sound = features.at("head")

    class Spoilt:
        """Features of which one value is no number."""

        def __init__(self, sound):
            self.sound, self.shape = sound, sound.shape

        def rows(self, wanted):
            taken = self.sound.rows(wanted)
            taken[0, 0] = float("nan")
            return taken

        def __len__(self):
            return self.shape[0]

    spoilt = replace(sound, train=[Spoilt(sound.train[0])])
    with pytest.raises(
        TrainingError, match=r"loss is nan in step 1 of epoch 1 of phase 'head'.*Lower the phase"
    ):
        run_phase(model, spoilt, HEAD, Objective("multiclass"), Reporter(), seed=0)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    blind = replace(sound, val=Spoilt(sound.val))
    with pytest.raises(TrainingError, match="validation loss is nan after epoch 0"):
        run_phase(model, blind, HEAD, Objective("multiclass"), Reporter(), seed=0)


def test_progress_reaches_the_reporter(found):
    steps, epochs = [], []
    trained(
        found,
        replace(CONFIG, phases=(HEAD,), augmentation=Augmentation(colour=0.11)),
        Reporter(epoch=epochs.append, step=lambda *news: steps.append(news)),
    )
    assert [epoch.number for epoch in epochs] == [0, 1, 2, 3, 4, 5, 6]
    assert ("training features, view 2 of 2", 30, 30) in steps
    assert ("phase head", 24, 24) in steps


def test_evaluation_agrees_with_counting_by_hand(found):
    model, _ = trained(found, replace(CONFIG, phases=(HEAD,)))
    result = evaluate(model, found.val, "val")
    right = [item.top.label == item.truth for item in result.samples]
    assert result.metrics["accuracy"] == pytest.approx(np.mean(right))
    recalls = [
        np.mean([r for r, item in zip(right, result.samples, strict=True) if item.truth == name])
        for name in result.classes
    ]
    assert result.metrics["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert [row.recall for row in result.table] == pytest.approx(recalls)
    assert result.confusion.sum() == len(found.val)
    assert int(result.confusion.trace()) == sum(right)
    assert len(result.wrong) + len(result.least_sure) == len(found.val)
    assert [item.top.score for item in result.wrong] == sorted(
        (item.top.score for item in result.wrong), reverse=True
    )
    torch.testing.assert_close(
        Scoring().scores(result.logits).sum(1), torch.ones(len(found.val), dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("name", "bar", "seed"),
    [
        *(pytest.param("hymenoptera", 0.90, seed, marks=pytest.mark.soak) for seed in range(SEEDS)),
        pytest.param("caltech_animals", 0.94, 0, marks=pytest.mark.soak),
    ],
)
def test_real_photographs_reach_the_bar(photos, name, bar, seed):
    _, results = trained(scan_folder(photos / name), TrainConfig(seed=seed))
    accuracy = results[-1].best.val_accuracy
    print(f"{name} seed {seed}: val accuracy {accuracy:.4f} (bar {bar})")
    assert accuracy >= bar
