"""Where a config comes from: a preset, a TOML file over it, single settings over that; and back to TOML.

Unknown keys are refused with the choices named, and a value of the wrong kind with the kind wanted.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_core import ErrorDetails

from models.errors import ConfigError, UnknownChoice
from models.networks.transfer_model import HEAD
from pipelines.config.schema import DEFAULT_PHASES, TOP_BLOCKS, Augmentation, PhaseConfig, TrainConfig

T = TypeVar("T")

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "views": 2,
        "sanity": "block",
        "phases": [{"name": "head", "train_from": HEAD, "epochs": 10, "rate": 4e-3}],
    },
    "default": {},
    "thorough": {
        "views": 8,
        "augmentation": {"shift": 0.05, "shear_degrees": 5.0, "erase": 0.15},
        "phases": [
            {
                "name": "head", "train_from": HEAD, "epochs": 24, "rate": 4e-3, "schedule": "one_cycle",
                "label_smoothing": 0.05,
            },
            {
                "name": TOP_BLOCKS, "train_from": TOP_BLOCKS, "epochs": 16, "rate": 6e-4, "patience": 6,
                "schedule": "one_cycle", "label_smoothing": 0.05, "mixup": 0.2, "ema_decay": 0.99,
            },
        ],
    },
}  # fmt: skip
"""``quick`` for a first look, ``default``, and ``thorough`` for a model that will be answered for."""


def load_config(
    path: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    settings: Sequence[str] = (),
) -> TrainConfig:
    """Return the preset, then a TOML file (``phases`` as ``[[phases]]``; it may name its own ``preset``),
    then the overrides that are not None, then ``settings`` such as ``phases.head.epochs=4``.

    Raises ConfigError for a file that cannot be read, an unknown key or a value that breaks a rule.
    """
    file = _read(path) if path is not None else {}
    named = preset or file.pop("preset", None) or "default"
    file.pop("preset", None)
    if named not in PRESETS:
        raise UnknownChoice("preset", named, PRESETS)
    data = json.loads(json.dumps(PRESETS[named]))
    for key, value in file.items():
        merges = isinstance(value, dict) and isinstance(data.get(key), dict)
        data[key] = data[key] | value if merges else value
    data |= {key: value for key, value in (overrides or {}).items() if value is not None}
    for setting in settings:
        _apply(data, setting)
    return config_from_dict(data | {"preset": named})


def config_from_dict(data: Mapping[str, Any]) -> TrainConfig:
    """Return a config from plain values, checked like a file's."""
    data = dict(data)
    if "phases" in data:
        if not isinstance(data["phases"], list):
            raise ConfigError("phases must be a list: write each as [[phases]].")
        data["phases"] = tuple(_build(PhaseConfig, phase, "a phase") for phase in data["phases"])
    if "augmentation" in data:
        data["augmentation"] = _build(Augmentation, data["augmentation"], "augmentation")
    return _build(TrainConfig, data, "the config")


def config_from_toml(text: str) -> TrainConfig:
    """Return a config from the text of a TOML file; raises ConfigError."""
    try:
        return config_from_dict(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The config is not TOML: {error}.") from error


def config_to_toml(config: TrainConfig) -> str:
    """Return the whole config as a TOML file that :func:`config_from_toml` reads back to the same config."""
    plain = asdict(config)
    phases, augmentation = plain.pop("phases"), plain.pop("augmentation")
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    lines += ["", "[augmentation]", *(f"{key} = {json.dumps(value)}" for key, value in augmentation.items())]
    for phase in phases:
        lines += ["", "[[phases]]", *(f"{key} = {json.dumps(value)}" for key, value in phase.items())]
    return "\n".join(lines) + "\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"The config file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The config file {path} is not TOML: {error}.") from error


def _apply(data: dict[str, Any], setting: str) -> None:
    """Put one ``dotted.name=value`` into plain data; a phase is found by its name or number."""
    dotted, equals, text = setting.partition("=")
    parts = dotted.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"A setting is written name=value, such as phases.head.epochs=4, not {setting!r}.")
    value = _value(text.strip())
    if parts[0] == "phases":
        _apply_to_phase(data, parts, value, setting)
    elif parts[0] == "augmentation" and len(parts) == 2:
        data["augmentation"] = {**data.get("augmentation", {}), parts[1]: value}
    else:
        data[".".join(parts)] = value


def _apply_to_phase(data: dict[str, Any], parts: list[str], value: Any, setting: str) -> None:
    phases = data.setdefault("phases", [asdict(phase) for phase in DEFAULT_PHASES])
    if len(parts) != 3 or not isinstance(phases, list):
        raise ConfigError(f"A phase's setting is written phases.NAME.setting=value, not {setting!r}.")
    names = [str(phase.get("name")) for phase in phases]
    phase_name = parts[1]
    if phase_name in names:
        phases[names.index(phase_name)][parts[2]] = value
    elif phase_name.isdigit() and 1 <= int(phase_name) <= len(phases):
        phases[int(phase_name) - 1][parts[2]] = value
    else:
        raise UnknownChoice("phase", phase_name, [*names, *range(1, len(names) + 1)])


def _value(text: str) -> Any:
    """Parse a TOML value, or take the text itself where it is none: ``backbone=resnet18`` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _build(kind: type[T], data: Any, where: str) -> T:
    """Make a config of plain values, whose names and types pydantic checks."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must be a table of settings, not {data!r}.")
    try:
        _shape_of(kind).model_validate(data)  # type: ignore[arg-type]
    except ValidationError as error:
        for item in error.errors():
            _refuse(item, kind, where)
    return kind(**data)


@cache
def _shape_of(kind: Any) -> type[BaseModel]:
    """Return a pydantic model with the fields of a config class, strict about names and types."""
    hints = get_type_hints(kind)
    shape: dict[str, Any] = {
        item.name: (
            hints[item.name],
            ... if item.default is MISSING and item.default_factory is MISSING else None,
        )
        for item in fields(kind)
    }
    config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
    return create_model(kind.__name__, __config__=config, **shape)


def _refuse(item: ErrorDetails, kind: type[Any], where: str) -> None:
    """Raise ConfigError for one of pydantic's findings; a choice is checked by the config itself."""
    key, value = str(item["loc"][0]), item["input"]
    if item["type"] == "extra_forbidden":
        names = ", ".join(field.name for field in fields(kind))
        raise ConfigError(f"Unknown setting {key!r} in {where}; choose from: {names}.")
    if item["type"] == "missing":
        raise ConfigError(f"{where} is not complete: {key} is missing.")
    if item["type"] == "literal_error" and isinstance(value, str):
        return
    hint = get_type_hints(kind)[key]
    raise ConfigError(f"{key} must be of type {getattr(hint, '__name__', 'str')}, not {value!r}.")
