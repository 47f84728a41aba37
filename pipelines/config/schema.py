"""A training run as data: frozen dataclasses, each field with its meaning, checked where they are made."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from models.devices import DEVICE_FORMS, is_device_name
from models.errors import ConfigError, UnknownChoice
from models.images.geometry import VIEWS, View
from models.networks.registry import DEFAULT_BACKBONE, get_backbone
from models.networks.scoring import TASKS
from models.networks.transfer_model import HEAD

TOP_BLOCKS = "top blocks"
"""As a phase's ``train_from``: the backbone's own choice of where its top blocks begin."""
ALL = "all"
"""As a phase's ``train_from``: every block."""

_PHASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,49}")

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
"""Of files of weights."""

Schedule = Literal["cosine", "one_cycle", "constant"]
BatchNormPolicy = Literal["frozen", "trained"]
TrainPrecision = Literal["float32", "bfloat16"]


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value!r}; it must be {rule}.")


def _choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UnknownChoice(name, value, choices)


@dataclass(frozen=True, slots=True)
class PhaseConfig:
    """A phase of fine-tuning."""

    name: str
    train_from: str
    """"head", "top blocks", "all", or the lowest block to train; what is below stays frozen to the bit."""
    epochs: int
    rate: float
    """Peak learning rate of the head (AdamW)."""
    block_decay: float = 0.65
    """Each block below the head trains at this share of the rate of the one above it."""
    schedule: Schedule = "cosine"
    """"cosine" (short warm-up, down to a hundredth), "one_cycle" (Smith 2018, momentum against it) or
    "constant"."""
    weight_decay: float = 0.01
    batch_norm: BatchNormPolicy = "frozen"
    """Running statistics of the trained blocks: "frozen" as they were learnt, or "trained" on. Frozen blocks
    keep theirs in any case."""
    patience: int = 0
    """Epochs without a lower validation loss after which the phase ends; 0 goes on to the last."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over the other answers."""
    mixup: float = 0.0
    """Beta parameter of mixup (Zhang et al. 2018) at the frozen boundary; 0 turns it off."""
    cutmix: float = 0.0
    """Beta parameter of CutMix (Yun et al. 2019) on the maps at the frozen boundary; 0 turns it off."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights that is validated and kept; 0 keeps the weights as they
    are."""
    precision: TrainPrecision = "float32"
    """"bfloat16" runs the trained part under autocast; weights and optimiser stay float32."""
    clip_norm: float = 5.0
    """Longest gradient, as the norm over all trained weights; 0 does not clip."""

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        rule = "letters, digits, spaces, '.', '_' or '-', at most 50, as the tracker's names are"
        _require(_PHASE_NAME.fullmatch(self.name) is not None, "a phase's name", self.name, rule)
        _require(1 <= self.epochs <= 100_000, "epochs", self.epochs, "from 1 to 100000")
        _require(0 < self.rate <= 1, "rate", self.rate, "above 0 and at most 1")
        _require(0 < self.block_decay <= 1, "block_decay", self.block_decay, "above 0 and at most 1")
        _choose("schedule", self.schedule, ("cosine", "one_cycle", "constant"))
        _require(0 <= self.weight_decay < 1, "weight_decay", self.weight_decay, "at least 0 and below 1")
        _choose("batch_norm", self.batch_norm, ("frozen", "trained"))
        _require(self.patience >= 0, "patience", self.patience, "at least 0")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "from 0, below 1")
        _require(0 <= self.mixup <= 10, "mixup", self.mixup, "from 0 to 10")
        _require(0 <= self.cutmix <= 10, "cutmix", self.cutmix, "from 0 to 10")
        _require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "at least 0 and below 1")
        _choose("precision", self.precision, ("float32", "bfloat16"))
        _require(0 <= self.clip_norm < float("inf"), "clip_norm", self.clip_norm, "at least 0")
        if self.cutmix and self.train_from == HEAD:
            raise ConfigError(
                f"cutmix is {self.cutmix!r} in phase {self.name!r}, which trains the head on pooled "
                "features; it cuts maps: train from a block, or use mixup."
            )


DEFAULT_PHASES = (
    PhaseConfig(name="head", train_from=HEAD, epochs=16, rate=4e-3),
    PhaseConfig(name=TOP_BLOCKS, train_from=TOP_BLOCKS, epochs=6, rate=4e-4),
)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Ranges of the random changes of training images; each field is the widest change, 0 turns it off."""

    min_crop_area: float = 0.5
    """Smallest share of the image that a random crop may keep."""
    flip: bool = True
    """Mirror left and right half of the time."""
    flip_vertical: bool = False
    """Mirror top and bottom half of the time."""
    rotate_degrees: float = 12.0
    shift: float = 0.0
    """Share of the image's width and height."""
    shear_degrees: float = 0.0
    colour: float = 0.2
    """Brightness, contrast and saturation, as a share."""
    erase: float = 0.0
    """Largest share of the crop that is covered by a grey box, half of the time (Zhong et al. 2020)."""
    mitigation: str = ""
    """Folder that `lucida shortcuts --mitigate` wrote: found parts are erased from pictures that have them,
    and laid into others, half of the time each."""

    def __post_init__(self) -> None:
        """Refuse values that would leave no image."""
        _require(0.05 <= self.min_crop_area <= 1, "min_crop_area", self.min_crop_area, "from 0.05 to 1")
        _require(0 <= self.rotate_degrees <= 180, "rotate_degrees", self.rotate_degrees, "from 0 to 180")
        _require(0 <= self.shift <= 0.5, "shift", self.shift, "from 0 to 0.5")
        _require(0 <= self.shear_degrees <= 45, "shear_degrees", self.shear_degrees, "from 0 to 45")
        _require(0 <= self.colour < 1, "colour", self.colour, "at least 0 and below 1")
        _require(0 <= self.erase <= 0.5, "erase", self.erase, "from 0 to 0.5")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """A whole run."""

    preset: str = "default"
    """Name of the preset that the other settings began with; decides nothing by itself."""
    backbone: str = DEFAULT_BACKBONE
    weights: str = "imagenet"
    """"imagenet", "none" for random weights, or a file of weights (.safetensors, or torch's of tensors)."""
    task: str = "auto"
    """"multiclass", "binary", "multilabel", or "auto" for what the data's labels are."""
    view: View = "whole"
    """What of an image the model sees, in training as in service: the "whole" of it resized to the input,
    the "crop" of its centre, or the whole in its own shape with margins ("pad")."""
    seed: int = 0
    batch_size: int = 32
    views: int = 4
    """Of each image: the plain one and varied ones, whose frozen features are computed once for all
    epochs.
    """
    cache_gb: float = 2.0
    """Memory for those features; what is beyond is read from disk as it is needed."""
    cache_disk_gb: float = 20.0
    """Disk for the features of this and earlier runs, the oldest of which go first; a set that needs more
    gets fewer views, then none cached."""
    class_weights: str = "none"
    """"balanced" weighs each class by the inverse of its share of the training images."""
    val_share: float = 0.25
    """Share of a folder without train/ and val/ that is held out, chosen by content hash."""
    threads: int = 0
    """Torch threads; 0 takes one for each core."""
    device: str = "auto"
    """Where the network computes: "cpu", "cuda", "cuda:1", "mps", or "auto" for the fastest there is."""
    sanity: str = "all"
    """Which explanation methods are checked against shuffled weights, and compared by a short benchmark,
    before the bundle is saved: "all", only the cheap ones that read a "block", or "none"."""
    phases: tuple[PhaseConfig, ...] = DEFAULT_PHASES
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        """Refuse names that do not exist and values that cannot train; put the backbone's own block names
        in.
        """
        row = get_backbone(self.backbone)
        if self.weights not in ("imagenet", "none") and not self.weights.endswith(WEIGHTS_SUFFIXES):
            files = f"a file ({', '.join(WEIGHTS_SUFFIXES)})"
            raise UnknownChoice("weights", self.weights, ("imagenet", "none", files))
        _choose("task", self.task, ("auto", *TASKS))
        _choose("view", self.view, VIEWS)
        _require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")
        _require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2")
        _require(1 <= self.views <= 1000, "views", self.views, "from 1 to 1000")
        _choose("class_weights", self.class_weights, ("none", "balanced"))
        _require(0 < self.val_share < 1, "val_share", self.val_share, "between 0 and 1")
        _require(0 <= self.cache_gb < 1e6, "cache_gb", self.cache_gb, "at least 0 and below 1000000")
        _require(0 <= self.cache_disk_gb < 1e6, "cache_disk_gb", self.cache_disk_gb, "from 0, below 1000000")
        _require(self.threads >= 0, "threads", self.threads, "at least 0")
        _require(is_device_name(self.device), "device", self.device, DEVICE_FORMS)
        _choose("sanity", self.sanity, ("all", "block", "none"))
        _require(len(self.phases) > 0, "phases", self.phases, "at least one phase")
        names = [phase.name for phase in self.phases]
        _require(len(set(names)) == len(names), "phase names", names, "all different")
        blocks = row.block_names()
        own = {TOP_BLOCKS: row.top_block, ALL: blocks[0]}
        for phase in self.phases:
            _choose("train_from", phase.train_from, (HEAD, TOP_BLOCKS, ALL, *blocks))
        phases = tuple(
            replace(phase, train_from=own.get(phase.train_from, phase.train_from)) for phase in self.phases
        )
        object.__setattr__(self, "phases", phases)

    def flat(self) -> dict[str, str | int | float | bool]:
        """Return all settings as dotted names and plain values, for a tracker."""
        flat: dict[str, str | int | float | bool] = {}
        for key, value in asdict(self).items():
            if key == "phases":
                for number, phase in enumerate(value, start=1):
                    flat |= {f"phase{number}.{name}": item for name, item in phase.items()}
            elif isinstance(value, dict):
                flat |= {f"{key}.{name}": item for name, item in value.items()}
            else:
                flat[key] = value
        return flat
