"""The model card that lies beside a bundle, if it was packaged with one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.bundle import CARD_FILE
from models.errors import BundleError
from models.strict_files import parse_json, read_file

_MOST_BYTES = 8_000_000


@dataclass(frozen=True, slots=True)
class StoredCard:
    """A card as it was packaged."""

    html: str
    markdown: str


def read_card(folder: Path, digest: str) -> StoredCard | None:
    """Return what lies beside a bundle as its card; raises BundleError for one that is damaged or
    another's.
    """
    path = folder / CARD_FILE
    if not path.exists():
        return None
    content = parse_json(read_file(path, most=_MOST_BYTES), CARD_FILE)
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise BundleError(f"The {CARD_FILE} in {folder.name} is not a proper card.")
    if content.get("digest") != digest:
        raise BundleError(f"The {CARD_FILE} in {folder.name} is of another bundle.")
    return StoredCard(content.get("html", ""), content.get("markdown", ""))
