"""Cached features: the same bits, bounded in memory and on disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.networks.transfer_model import TransferModel
from pipelines.config.schema import Augmentation, PhaseConfig, TrainConfig
from pipelines.data.dataset import scan_folder
from pipelines.errors import TrainingError
from pipelines.progress import Reporter
from pipelines.training.feature_cache import FeatureCache, cache_size, clear_cache
from pipelines.training.features import Features
from pipelines.training.losses import Objective
from pipelines.training.trainer import run_phase

HEAD = PhaseConfig("head", "head", 3, 4e-3)
TOP = PhaseConfig("top", "stage7.0", 1, 1e-3)
CONFIG = TrainConfig(phases=(HEAD, TOP), views=2, batch_size=8)


@pytest.fixture(scope="module")
def found(butterflies):
    return scan_folder(butterflies)


def model_of(found):
    torch.manual_seed(0)
    return TransferModel.create("efficientnet_lite0", found.classes)


def counted(found, folder, config=CONFIG, *, memory_gb=2.0, disk_gb=20.0):
    """Features, and how many pictures had to be computed for them."""
    computed: list[str] = []
    store = FeatureCache(folder, memory_gb=memory_gb, disk_gb=disk_gb)
    model = model_of(found)
    stream = Features.stream
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Features, "stream",
            lambda self, samples, views, level: (computed.extend(s.name for s in samples),
                                                 stream(self, samples, views, level))[1],
        )  # fmt: skip
        return model, Features(model, found, config, store, Reporter()), len(computed)


def test_cached_features_are_those_of_the_whole_network(found, tmp_path):
    """The uncached way: every view through the whole model, in the same order, must give the same logits."""
    model, features, _ = counted(found, tmp_path)
    for phase in CONFIG.phases:
        at = features.at(phase.train_from)
        model.freeze_below(phase.train_from)
        model.eval()
        assert len(at.train) == 2
        for view, cached in enumerate(at.train):
            x = torch.stack([features.augmenter.tensor(sample, view) for sample in found.train[:4]])
            with torch.no_grad():
                rest = model.trainable_rest(cached.rows(slice(0, 4)))
                torch.testing.assert_close(rest, model(x), atol=1e-4, rtol=1e-4)
        assert at.val is not None
        assert len(at.val) == len(found.val)


def test_a_rerun_reads_and_only_what_changed_is_computed_again(found, tmp_path):
    _, first, computed = counted(found, tmp_path)
    assert computed == 2 * 30 + 20
    _, again, computed = counted(found, tmp_path)
    assert computed == 0
    assert torch.equal(first.train[1].rows(slice(None)), again.train[1].rows(slice(None)))
    for changed, expected in (
        ({"views": 3}, 30),
        ({"seed": 1}, 30),
        ({"augmentation": Augmentation(colour=0.3)}, 30),
        ({"batch_size": 10}, 80),
        ({"phases": (replace(TOP, train_from="top"),)}, 80),
        ({"phases": (replace(HEAD, rate=0.1, epochs=9), TOP)}, 0),
    ):
        assert counted(found, tmp_path, replace(CONFIG, **changed))[2] == expected, changed
    fewer = replace(found, train=found.train[:-1])
    assert counted(fewer, tmp_path)[2] == 2 * 29


@pytest.mark.parametrize(("memory_gb", "disk_gb"), [(2.0, 20.0), (0.0, 20.0), (2.0, 0.0), (0.0, 0.0)])
def test_memory_disk_and_neither_train_the_same_way(found, tmp_path, memory_gb, disk_gb):
    model, features, _ = counted(
        found, tmp_path / f"{memory_gb}-{disk_gb}", memory_gb=memory_gb, disk_gb=disk_gb
    )
    at = features.at("head")
    result = run_phase(model, at, HEAD, Objective("multiclass"), Reporter(), seed=0)
    assert result.cached_views == (2 if memory_gb or disk_gb else 0)
    assert all(stored.in_memory == (memory_gb > 0) for stored in at.train)
    assert (tmp_path / f"{memory_gb}-{disk_gb}").exists() == (disk_gb > 0)
    assert result.best.val_loss < 0.8 * result.epochs[0].val_loss
    assert not model.training
    if memory_gb or disk_gb:
        reference, base, _ = counted(found, tmp_path / "reference")
        other = run_phase(reference, base.at("head"), HEAD, Objective("multiclass"), Reporter(), seed=0)
        losses = [[e.val_loss for e in each.epochs] for each in (result, other)]
        assert losses[0] == losses[1], "wherever the features lie, the same bits"


def test_without_a_cache_the_same_seed_still_gives_the_same_bits(found, tmp_path):
    losses = []
    for _ in range(2):
        model, features, _ = counted(found, tmp_path, memory_gb=0, disk_gb=0)
        result = run_phase(model, features.at("head"), HEAD, Objective("multiclass"), Reporter(), seed=0)
        losses.append([(e.train_loss, e.val_loss) for e in result.epochs])
    assert losses[0] == losses[1]


def test_a_budget_for_one_view_gives_one_view(found, tmp_path):
    row = 192 * 7 * 7 * 4 + 1280 * 4
    _, features, _ = counted(found, tmp_path, memory_gb=0.0, disk_gb=1.5 * 2 * row * 50 / 1e9)
    assert features.views == 1


def named(letter: str) -> str:
    """A key as long as a digest."""
    return letter * 64


def array(store: FeatureCache, key: str, value: float, rows: int = 100):
    def fill(put):
        for start in range(0, rows, 40):
            put(start, torch.full((min(40, rows - start), 10), value))

    return store.get(named(key), (rows, 10), fill)


def test_the_oldest_arrays_go_first_and_those_in_use_stay_readable(tmp_path):
    store = FeatureCache(tmp_path, memory_gb=0, disk_gb=13e3 / 1e9)
    for number, key in enumerate("abc"):
        array(store, key, number)
        os.utime(tmp_path / f"{named(key)}.npy", (number, number))
    held = array(FeatureCache(tmp_path, memory_gb=0, disk_gb=1), "a", -1)
    assert float(held.rows(slice(0, 1))[0, 0]) == 0, "read, not computed"
    os.utime(tmp_path / f"{named('a')}.npy", (0, 0))
    array(FeatureCache(tmp_path, memory_gb=0, disk_gb=13e3 / 1e9), "d", 9)
    assert {path.name for path in tmp_path.iterdir()} == {f"{named(key)}.npy" for key in "bcd"}
    assert float(held.rows(slice(99, 100))[0, 9]) == 0, "whoever has it open keeps it"


def test_what_a_dead_process_left_half_written_is_removed_and_never_read(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".{named('a')}.npy.{dead.pid}.part").write_bytes(b"half")
    alive = tmp_path / f".{named('b')}.npy.{os.getpid()}.part"
    alive.write_bytes(b"somebody is at it")
    (tmp_path / f"{named('c')}.npy").write_bytes(b"\x93NUMPY cut off")
    store = FeatureCache(tmp_path, memory_gb=0, disk_gb=1)
    assert float(array(store, "c", 3.0).rows(slice(7, 8))[0, 0]) == 3.0
    assert {path.name for path in tmp_path.iterdir()} == {f"{named('c')}.npy", alive.name}


def test_an_interrupted_computation_leaves_nothing_behind(tmp_path):
    store = FeatureCache(tmp_path, memory_gb=0, disk_gb=1)

    def stopped(put):
        put(0, torch.zeros(40, 10))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get(named("k"), (100, 10), stopped)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rows", [np.array([5, 1, 1, 99]), slice(10, 12), np.array([], int)])
def test_rows_are_copies_in_the_order_asked_for(tmp_path, rows):
    store = FeatureCache(tmp_path, memory_gb=0, disk_gb=1)
    values = torch.arange(1000.0).reshape(100, 10)
    stored = store.get(named("k"), (100, 10), lambda put: put(0, values))
    taken = stored.rows(rows)
    assert torch.equal(taken, values[rows])
    taken.zero_()
    assert torch.equal(stored.rows(rows), values[rows])


def test_a_full_disk_is_named_and_leaves_no_half_file(small_disk):
    store = FeatureCache(small_disk / "cache", memory_gb=0, disk_gb=1)
    with pytest.raises(TrainingError, match=r"cache.*No space left.*LUCIDA_CACHE.*cache_disk_gb"):
        array(store, "b", 1.0, rows=4_000_000)
    assert list((small_disk / "cache").iterdir()) == []


def test_the_cache_can_be_asked_and_cleared(tmp_path):
    array(FeatureCache(tmp_path / "c", memory_gb=0, disk_gb=1), "e", 1.0)
    own = tmp_path / "c" / "somebodys.npy"
    own.write_bytes(b"not ours")
    files, size = cache_size(tmp_path / "c")
    assert files == 1
    assert 4000 < size < 4400
    clear_cache(tmp_path / "c")
    assert cache_size(tmp_path / "c") == (0, 0)
    assert own.read_bytes() == b"not ours"


GROW = """
import resource, sys, numpy as np, torch
from pathlib import Path
from pipelines.training.feature_cache import FeatureCache
rows = int(sys.argv[1])
store = FeatureCache(Path(sys.argv[2]), memory_gb=0.02, disk_gb=10)
def fill(put):
    for start in range(0, rows, 32):
        put(start, torch.rand(32, 9408))
stored = store.get(f"{rows:064d}", (rows, 9408), fill)
rng = np.random.default_rng(0)
for start in range(0, rows, 32):
    stored.rows(rng.integers(0, rows, 32))
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_stays_bounded_when_the_set_grows_tenfold(tmp_path):
    def peak(rows: int) -> int:
        command = [sys.executable, "-c", GROW, str(rows), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(re.search(r"peak (\d+)", done.stdout)[1])

    small, large = peak(1600), peak(16000)
    print(f"peak memory {small} MB with 60 MB of features, {large} MB with 600 MB")
    assert large < small + 60


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = FeatureCache(tmp_path / "file" / "cache", memory_gb=0, disk_gb=1)
    with pytest.raises(TrainingError, match=r"Not a directory.*LUCIDA_CACHE"):
        array(store, "e", 1.0)
