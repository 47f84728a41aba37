"""Fine-tuning on cached features beside the usual loops and beside fastai's fine_tune: `make
bench-finetune`.

All ways start from the same pretrained weights, see the same pictures and run in turn in one process;
each ratio is taken within one round, and the median over the rounds is what to read. Ours always begins
with an empty feature cache, and computing the features is in its time. Every way validates after each
epoch. Two cores are noisy: read ratios, not seconds.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from models.networks.transfer_model import TransferModel
from pipelines.config.schema import TOP_BLOCKS, PhaseConfig, TrainConfig
from pipelines.data.augmentation import Augmenter, read_batches
from pipelines.data.dataset import Dataset, scan_folder
from pipelines.progress import EpochResult, Reporter
from pipelines.training.feature_cache import FeatureCache
from pipelines.training.features import Features, encode_targets
from pipelines.training.losses import Objective
from pipelines.training.trainer import run_phase

CONFIG = TrainConfig(
    phases=(PhaseConfig("head", "head", 10, 4e-3), PhaseConfig("top blocks", TOP_BLOCKS, 6, 4e-4)), views=4
)
HEAD, TOP = CONFIG.phases
SETS = ("hymenoptera", "caltech_animals")
FASTAI_EPOCHS = 4
PEERS = Path(__file__).parents[1] / ".peers"


@dataclass
class Run:
    """How one way went: validation accuracy after each epoch, and when it was reached."""

    seconds: float = 0.0
    reached: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since the start, accuracy)."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds of the features and of each phase."""

    @property
    def best(self) -> float:
        """Highest validation accuracy."""
        return max(accuracy for _, accuracy in self.reached)

    def seconds_to(self, accuracy: float) -> float:
        """When that accuracy was first reached."""
        return next(seconds for seconds, reached in self.reached if reached >= accuracy)


def ours(found: Dataset, config: TrainConfig) -> Run:
    """Features from nothing, then each phase on them."""
    run, start = Run(), time.perf_counter()
    torch.manual_seed(config.seed)
    model = TransferModel.create(config.backbone, found.classes)

    def epoch(news: EpochResult) -> None:
        run.reached.append((time.perf_counter() - start, news.val_accuracy))

    with tempfile.TemporaryDirectory() as folder:
        store = FeatureCache(Path(folder), memory_gb=2, disk_gb=20)
        features = Features(model, found, config, store, Reporter())
        run.phases["features"] = time.perf_counter() - start
        for number, phase in enumerate(config.phases, start=1):
            began = time.perf_counter()
            at = features.at(phase.train_from)
            run_phase(
                model, at, phase, Objective("multiclass"), Reporter(epoch=epoch), seed=config.seed + number
            )
            at.release()
            run.phases[phase.name] = time.perf_counter() - began
    run.seconds = time.perf_counter() - start
    return run


def usual(
    found: Dataset, phase: PhaseConfig, seed: int, layout: torch.memory_format, batch_size: int = 32
) -> Run:
    """Return the loop that tutorials show: every epoch through the whole network, requires_grad off below."""
    run, start = Run(), time.perf_counter()
    torch.manual_seed(seed)
    model = TransferModel.create("efficientnet_lite0", found.classes).to(memory_format=layout)
    model.freeze_below(phase.train_from)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=phase.rate)
    steps = phase.epochs * -(-len(found.train) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, phase.rate, total_steps=steps)
    augmenter = Augmenter(model.geometry, TrainConfig().augmentation, seed=seed)
    wanted, val_wanted = encode_targets(found, found.train), encode_targets(found, found.val)
    for number in range(1, phase.epochs + 1):
        model.train()
        order = np.random.default_rng([seed, number]).permutation(len(found.train))
        samples = [found.train[place] for place in order]
        parts: Iterator[np.ndarray] = iter(np.split(order, range(batch_size, len(order), batch_size)))
        for x, part in zip(
            read_batches(augmenter, samples, [number] * len(samples), batch_size), parts, strict=True
        ):
            optimiser.zero_grad()
            F.cross_entropy(model(x.contiguous(memory_format=layout)), wanted[part]).backward()
            optimiser.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            views = read_batches(augmenter, found.val, [0] * len(found.val), batch_size)
            logits = torch.cat([model(x.contiguous(memory_format=layout)) for x in views])
        accuracy = float((logits.argmax(1) == val_wanted.argmax(1)).float().mean())
        run.reached.append((time.perf_counter() - start, accuracy))
    run.seconds = time.perf_counter() - start
    return run


def fastai(found: Dataset, seed: int) -> Run:
    """``fine_tune`` as its documentation has it, on the same backbone: a frozen epoch, then all of it."""
    sys.path.append(str(PEERS))
    vision = importlib.import_module("fastai.vision.all")
    geometry = TransferModel.create("efficientnet_lite0", found.classes).geometry
    run, start = Run(), time.perf_counter()
    vision.set_seed(seed)
    loaders = vision.ImageDataLoaders.from_folder(
        found.root, train="train", valid="val", bs=32, num_workers=0, seed=seed,
        item_tfms=vision.RandomResizedCrop(224, min_scale=0.5),
        batch_tfms=[*vision.aug_transforms(), vision.Normalize.from_stats(geometry.mean, geometry.std)],
        device=torch.device("cpu"),
    )  # fmt: skip
    model = TransferModel.create("efficientnet_lite0", found.classes).to(
        memory_format=torch.contiguous_format
    )
    body = torch.nn.Sequential(*model.blocks.values())
    network = torch.nn.Sequential(body, vision.create_head(1280, len(found.classes)))
    vision.apply_init(network[1], torch.nn.init.kaiming_normal_)

    def split(net: torch.nn.Module) -> list[object]:
        return [vision.params(each) for each in net]

    class Clock(vision.Callback):  # type: ignore[misc, name-defined]
        """Notes the validation accuracy of each epoch."""

        order = vision.Recorder.order + 1

        def after_epoch(self) -> None:
            run.reached.append((time.perf_counter() - start, float(self.recorder.values[-1][-1])))

    learner = vision.Learner(loaders, network, splitter=split, metrics=vision.accuracy, cbs=[Clock()])
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(FASTAI_EPOCHS)
    run.seconds = time.perf_counter() - start
    return run


def show(name: str, values: list[float]) -> None:
    """Print a line with the median and each round."""
    rounds = ", ".join(f"{value:.3f}" for value in values)
    print(f"  {name:<66} {statistics.median(values):6.3f}   rounds {rounds}", flush=True)


def bench_phases(found: Dataset, rounds: int) -> None:
    """Each phase beside the usual loop, in the memory format that torch builds and in the faster one."""
    print(f"{found.name}: {len(found.train)} pictures to train on, {len(found.val)} to validate, K = 4 views")
    ratios: dict[str, list[float]] = {}
    accuracy: dict[str, list[float]] = {}

    def note(name: str, ratio: float) -> None:
        ratios.setdefault(name, []).append(ratio)

    for seed in range(rounds):
        mine = ours(found, replace(CONFIG, seed=seed))
        head_alone = ours(found, replace(CONFIG, seed=seed, phases=(HEAD,)))
        accuracy.setdefault("head, ours on 4 cached views", []).append(head_alone.reached[-1][1])
        for label, layout in (("as built", torch.contiguous_format), ("channels last", torch.channels_last)):
            head = usual(found, HEAD, seed, layout)
            top = usual(found, TOP, seed, layout)
            note(f"phase head, 10 epochs : usual loop {label}", head_alone.seconds / head.seconds)
            note(f"phase top blocks, 6 epochs : usual loop {label}", mine.phases["top blocks"] / top.seconds)
            both = mine.seconds / (head.seconds + top.seconds)
            note(f"features and both phases : both usual loops {label}", both)
            accuracy.setdefault(f"head, usual loop {label}", []).append(head.reached[-1][1])
    for name, values in ratios.items():
        show(name, values)
    for name, values in accuracy.items():
        show(f"validation accuracy, {name}", values)


def bench_fastai(found: Dataset, seeds: int) -> None:
    """Time the whole default run beside fastai, to the accuracy that both reach."""
    mine, peer = [], []
    for seed in range(seeds):
        mine.append(ours(found, TrainConfig(seed=seed)))
        peer.append(fastai(found, seed))
    equal = [
        a.seconds_to(min(a.best, b.best)) / b.seconds_to(min(a.best, b.best))
        for a, b in zip(mine, peer, strict=True)
    ]
    print(
        f"{found.name}: default run beside fastai {FASTAI_EPOCHS} epochs of fine_tune, seeds 0 to {seeds - 1}"
    )
    show("time to the accuracy that both reach, ours : fastai", equal)
    show("whole time, ours : fastai", [a.seconds / b.seconds for a, b in zip(mine, peer, strict=True)])
    show("best validation accuracy, ours", [each.best for each in mine])
    show("best validation accuracy, fastai", [each.best for each in peer])


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = os.environ.get("LUCIDA_DATA", Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(folder), help="folder with " + " and ".join(SETS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["phases", "fastai"])
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(os.cpu_count() or 1)
    sets = [scan_folder(asked.data / name) for name in SETS]
    if asked.only != "fastai":
        bench_phases(sets[1], asked.rounds)
    if asked.only != "phases":
        if not (PEERS / "fastai").is_dir():
            listed = Path(__file__).with_name("peers.txt")
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "-q",
                "--no-deps",
                "--target",
                PEERS,
                "-r",
                listed,
            ]
            subprocess.run(command, check=True)
        for found in sets:
            bench_fastai(found, asked.rounds)


if __name__ == "__main__":
    main()
