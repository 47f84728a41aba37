"""The filter atlas that lies beside a bundle, if one was made."""

from __future__ import annotations

from pathlib import Path

from models.bundle import ATLAS_FILE
from models.errors import BundleError
from models.strict_files import parse_json, read_file
from service.schemas import TemplateAnswer

_MOST_BYTES = 64_000_000


def read_atlas(folder: Path, digest: str) -> list[TemplateAnswer]:
    """Return what lies beside the bundle as its atlas; raises BundleError for one that is damaged or
    another's.
    """
    path = folder / ATLAS_FILE
    if not path.exists():
        return []
    try:
        content = parse_json(read_file(path, most=_MOST_BYTES), ATLAS_FILE)
        if content["provenance"]["bundle digest"] != digest:
            raise BundleError(f"The {ATLAS_FILE} in {folder.name} is of another bundle.")
        return [
            TemplateAnswer(
                block=content["block"],
                channel=entry["channel"],
                **entry["template"],
                patches=[patch["crop"] for patch in entry["patches"]],
            )
            for entry in content["entries"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"The {ATLAS_FILE} in {folder.name} cannot be read: {error!r}.") from error
