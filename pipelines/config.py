"""A training run as data: frozen, checked, read from TOML, overridden by the command line; unknown keys are
refused.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from models.backbones import DEFAULT, backbone
from models.errors import ConfigError, UnknownChoice
from models.transfer import HEAD

T = TypeVar("T")

TOP_BLOCKS = "top blocks"
"""As a phase's ``train_from``: the backbone's own choice of where its top blocks begin."""


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value!r}; it must be {rule}.")


@dataclass(frozen=True, slots=True)
class PhaseConfig:
    """One stretch of fine-tuning."""

    name: str
    train_from: str
    """"head", "top blocks", or the lowest block to train; everything below it stays frozen to the bit."""
    epochs: int
    rate: float
    """Peak learning rate of the head (AdamW, cosine down to a hundredth after a short warm-up)."""
    block_decay: float = 0.65
    """Each block below the head trains at this share of the rate of the one above it."""
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        _require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _require(0 < self.rate <= 1, "rate", self.rate, "above 0 and at most 1")
        _require(0 < self.block_decay <= 1, "block_decay", self.block_decay, "above 0 and at most 1")
        _require(0 <= self.weight_decay < 1, "weight_decay", self.weight_decay, "at least 0 and below 1")


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How training pictures are varied; each field is the widest change, 0 turns it off."""

    min_crop_area: float = 0.5
    """Smallest share of the picture that a random crop may keep."""
    flip: bool = True
    """Mirror left and right half of the time."""
    rotate_degrees: float = 12.0
    colour: float = 0.2
    """Brightness, contrast and saturation, as a share."""

    def __post_init__(self) -> None:
        """Refuse values that would leave no picture."""
        _require(0.05 <= self.min_crop_area <= 1, "min_crop_area", self.min_crop_area, "from 0.05 to 1")
        _require(0 <= self.rotate_degrees <= 180, "rotate_degrees", self.rotate_degrees, "from 0 to 180")
        _require(0 <= self.colour < 1, "colour", self.colour, "at least 0 and below 1")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """A whole run."""

    backbone: str = DEFAULT
    weights: str = "imagenet"
    """"imagenet", or "none" for random weights."""
    seed: int = 0
    batch_size: int = 32
    views: int = 4
    """Augmented views of each picture whose frozen features are computed once and reused over the epochs."""
    cache_gb: float = 2.0
    """Memory for those features; a set that needs more gets fewer views, then none cached."""
    val_share: float = 0.25
    """Share of a folder without train/ and val/ that is held out, chosen by content hash."""
    threads: int = 0
    """Torch threads; 0 takes one for each core."""
    phases: tuple[PhaseConfig, ...] = (
        PhaseConfig(name="head", train_from=HEAD, epochs=16, rate=4e-3),
        PhaseConfig(name=TOP_BLOCKS, train_from=TOP_BLOCKS, epochs=6, rate=6e-4),
    )
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        """Refuse names that do not exist and values that cannot train."""
        row = backbone(self.backbone)
        if self.weights not in {"imagenet", "none"}:
            raise UnknownChoice("weights", self.weights, ("imagenet", "none"))
        _require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")
        _require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2")
        _require(self.views >= 1, "views", self.views, "at least 1")
        _require(0 < self.val_share < 1, "val_share", self.val_share, "between 0 and 1")
        _require(0 <= self.cache_gb < 1e6, "cache_gb", self.cache_gb, "at least 0 and below 1000000")
        _require(self.threads >= 0, "threads", self.threads, "at least 0")
        _require(len(self.phases) > 0, "phases", self.phases, "at least one phase")
        names = [phase.name for phase in self.phases]
        _require(len(set(names)) == len(names), "phase names", names, "all different")
        choices = (HEAD, TOP_BLOCKS, *row.block_names())
        for phase in self.phases:
            if phase.train_from not in choices:
                raise UnknownChoice("train_from", phase.train_from, choices)
        object.__setattr__(
            self,
            "phases",
            tuple(
                replace(phase, train_from=row.top_block) if phase.train_from == TOP_BLOCKS else phase
                for phase in self.phases
            ),
        )

    def flat(self) -> dict[str, str | int | float | bool]:
        """All settings as dotted names and plain values, for a tracker."""
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


def load(path: Path | None, overrides: Mapping[str, Any]) -> TrainConfig:
    """Read a TOML file (``phases`` as ``[[phases]]``), then apply the overrides that are not None.

    Raises ConfigError for a file that cannot be read, an unknown key or a value that breaks a rule.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigError(f"The config file {path} cannot be read: {error.strerror}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"The config file {path} is not TOML: {error}.") from error
    data |= {key: value for key, value in overrides.items() if value is not None}
    if "phases" in data:
        if not isinstance(data["phases"], list):
            raise ConfigError("phases must be a list: write each as [[phases]].")
        data["phases"] = tuple(_build(PhaseConfig, phase, "a phase") for phase in data["phases"])
    if "augmentation" in data:
        data["augmentation"] = _build(Augmentation, data["augmentation"], "augmentation")
    return _build(TrainConfig, data, "the config")


def _build(kind: type[T], data: Any, where: str) -> T:
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must be a table of settings, not {data!r}.")
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    for key, value in data.items():
        if key not in known:
            raise ConfigError(f"Unknown setting {key!r} in {where}; choose from: {', '.join(known)}.")
        _check_kind(key, value, str(known[key].type))
    try:
        return kind(**data)
    except TypeError as error:
        raise ConfigError(f"{where} is not complete: {error}.") from error


def _check_kind(key: str, value: Any, wanted: str) -> None:
    kinds: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "str": (str,),
        "bool": (bool,),
    }
    if wanted in kinds and (
        not isinstance(value, kinds[wanted]) or (isinstance(value, bool) and wanted != "bool")
    ):
        raise ConfigError(f"{key} must be of type {wanted}, not {value!r}.")
