"""What a model is for, as its owner states it in a TOML file: nothing else in the project can know it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from models.errors import ConfigError

FIELDS: Mapping[str, str] = {
    "intended_use": "Intended use",
    "users": "Who uses it",
    "out_of_scope": "Not to be used for",
    "provider": "Provider",
    "contact": "Contact",
    "licence": "Licence",
    "data_provenance": "Where the pictures come from",
    "labelling": "How they were labelled",
    "known_shortcuts": "Known shortcuts",
    "limitations": "Known limitations",
    "human_oversight": "Human oversight",
    "risks": "Risks and what is done about them",
    "cybersecurity": "Cybersecurity",
    "monitoring": "Monitoring after it went live",
    "changes": "Changes foreseen",
    "standards": "Standards applied",
}
"""What may be stated, each as a text or a list of texts."""


def read_intended_use(path: Path | None) -> dict[str, list[str]]:
    """Return what a file states, by the names of :data:`FIELDS`; nothing without a file.

    Raises ConfigError for a file that cannot be read, or states something else.
    """
    if path is None:
        return {}
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"The file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The file {path} is not TOML: {error}.") from error
    if odd := sorted(set(content) - set(FIELDS)):
        raise ConfigError(f"{path} has {odd[0]!r}; it may have: {', '.join(FIELDS)}.")
    stated = {}
    for name, value in content.items():
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ConfigError(f"{name} in {path} is {value!r}; it must be a text or a list of texts.")
        stated[name] = [text.strip() for text in texts]
    return stated
