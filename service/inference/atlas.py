"""The filter atlas that lies beside a bundle, if one was made."""

from __future__ import annotations

import json
from pathlib import Path

from models.bundle import ATLAS_FILE
from models.errors import BundleError
from service.schemas import TemplateAnswer


def read_atlas(folder: Path, digest: str) -> list[TemplateAnswer]:
    """Return what lies beside the bundle as its atlas; raises BundleError for one that is damaged or
    another's.
    """
    path = folder / ATLAS_FILE
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
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
    except (OSError, ValueError, KeyError, TypeError) as error:
        # An OSError's own text has the whole path.
        why = error.strerror if isinstance(error, OSError) else error
        raise BundleError(f"The {ATLAS_FILE} in {folder.name} cannot be read: {why}.") from error
