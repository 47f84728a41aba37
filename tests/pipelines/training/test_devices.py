"""Training, evaluation, snapshots and the atlas on a device: the same bits, and no tensor out of place."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from models.errors import ConfigError, OutOfDeviceMemory
from models.explainer import Explainer
from models.networks.transfer_model import TransferModel
from pipelines.config.schema import PhaseConfig, TrainConfig
from pipelines.data.dataset import scan_folder
from pipelines.evaluation.classification import embed_samples, evaluate
from pipelines.evaluation.concepts import study_concepts
from pipelines.evaluation.phase_snapshots import flatten_weights, take_snapshot
from pipelines.progress import Reporter
from pipelines.reports.filter_atlas import build_atlas
from pipelines.training.feature_cache import FeatureCache, default_cache_folder
from pipelines.training.features import Features
from pipelines.training.train import train_model
from tests.support.remote_device import RemoteTensor, remote_device, send
from tests.support.training import fine_tune

CONFIG = TrainConfig(
    backbone="resnet18",
    weights="none",
    views=2,
    batch_size=8,
    class_weights="balanced",
    phases=(
        PhaseConfig(name="head", train_from="head", epochs=2, rate=4e-3, mixup=0.2, ema_decay=0.9),
        PhaseConfig(name="top", train_from="layer4.0", epochs=1, rate=5e-4, clip_norm=1.0),
    ),
)


@pytest.fixture(scope="module")
def data(butterflies):
    whole = scan_folder(butterflies)
    return replace(whole, train=whole.train[::4], val=whole.val[::3])


def small_model(data) -> TransferModel:
    torch.manual_seed(0)
    model = TransferModel.create("resnet18", data.classes, pretraining="none")
    model.geometry = replace(model.geometry, resize=64, crop_height=64, crop_width=64)
    return model


@pytest.mark.filterwarnings("ignore:.*non-meta parameter")
def test_training_on_a_device_gives_the_same_weights(data):
    here = small_model(data)
    there = send(copy.deepcopy(here))
    results = fine_tune(here, data, CONFIG)
    with remote_device():
        other = fine_tune(there, data, CONFIG)
    losses = [[epoch.val_loss for epoch in result.epochs] for result in results]
    assert losses == [[epoch.val_loss for epoch in result.epochs] for result in other]
    for (key, value), far in zip(here.state_dict().items(), there.state_dict().values(), strict=True):
        assert isinstance(far, RemoteTensor)
        assert torch.equal(value, far.held), key


def test_evaluation_snapshots_and_atlas_work_on_a_device(data):
    here = small_model(data)
    there = send(copy.deepcopy(here))
    with remote_device():
        assert torch.equal(evaluate(there, data.val, "val").logits, evaluate(here, data.val, "val").logits)
        assert torch.equal(embed_samples(there, data.val), embed_samples(here, data.val))
        before = flatten_weights(there)
        snapshot = take_snapshot(there, data.val[:2], "head", before)
        atlas = build_atlas(there, data, "layer1.0", count=1, steps=2)
        study = study_concepts(Explainer(there), data, block="layer2.1", count=2)
    assert set(snapshot.moved.values()) == {0.0}
    assert snapshot.maps == take_snapshot(here, data.val[:2], "head", flatten_weights(here)).maps
    assert len(atlas.entries) == 1
    assert study.measures == study_concepts(Explainer(here), data, block="layer2.1", count=2).measures


def test_features_of_a_device_are_not_those_of_the_processor(data):
    """They differ by rounding, so a run on one must not read what a run on the other has kept."""
    here = small_model(data)
    store = FeatureCache(default_cache_folder(), memory_gb=0.1, disk_gb=0.1)
    keys = [Features(here, data, CONFIG, store, Reporter())._key(data.val, 0, 1)]
    with remote_device():
        there = send(copy.deepcopy(here))
        keys.append(Features(there, data, CONFIG, store, Reporter())._key(data.val, 0, 1))
    assert keys[0] != keys[1]


def test_a_device_that_is_not_here_ends_training_before_a_run_is_opened(data, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(ConfigError, match=r"The device 'cuda:77' is not here"):
        train_model(data, replace(CONFIG, device="cuda:77"), name="nowhere")
    assert not (tmp_path / "mlflow.db").exists()
    with pytest.raises(ConfigError, match="auto, cpu, cuda, cuda:N or mps"):
        replace(CONFIG, device="gpu")


def test_a_step_without_enough_memory_says_what_to_lower(data, monkeypatch):
    model = small_model(data)
    rest = TransferModel.trainable_rest

    def small(self: TransferModel, x: torch.Tensor) -> torch.Tensor:
        if self.training and len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return rest(self, x)

    monkeypatch.setattr(TransferModel, "trainable_rest", small)
    with pytest.raises(OutOfDeviceMemory, match=r"for 8 pictures at once; lower batch_size"):
        fine_tune(model, data, CONFIG)
