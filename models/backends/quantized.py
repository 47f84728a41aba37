"""The int8 blocks of a bundle: an OpenVINO graph beside its fp32 weights, and what it was measured to do.

They lie in three files beside a bundle and change nothing in it: answers in fp32 stay what they were. The
graph is data that OpenVINO parses; no code of it is run. It is read only where the digests of its files and
of the bundle agree, and its logits are held against the bundle's before it is used.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.errors import BundleError, EngineUnavailable
from models.strict_files import parse_json, read_file

NOTE_FILE, GRAPH_FILE, TENSOR_FILE = "int8.json", "int8.xml", "int8.bin"
_MOST_BYTES = {NOTE_FILE: 100_000, GRAPH_FILE: 50_000_000, TENSOR_FILE: 2_000_000_000}


@dataclass(frozen=True, slots=True)
class QuantizationFigures:
    """Figures by which int8 blocks were kept: measured on pictures that they were not calibrated on, close
    calls decided in fp32.
    """

    calibration_images: int
    images: int
    top1_agreement: float
    """Share of the images with the same first class as in fp32."""
    map_correlation: float
    """Mean over the images of the correlation of the Grad-CAM maps of that class."""
    worst_map_correlation: float
    close_calls: int
    """Images that were run again in fp32."""


@dataclass(frozen=True, slots=True)
class QuantizedBlocks:
    """The blocks up to the Grad-CAM block in int8, as OpenVINO writes a graph."""

    graph: bytes
    tensors: bytes
    figures: QuantizationFigures | None = None

    def read(self) -> Any:
        """Return OpenVINO's graph; raises EngineUnavailable or BundleError."""
        try:
            import openvino
        except ImportError as error:
            raise EngineUnavailable(
                "The engine openvino needs the extra 'fast': pip install 'camera-lucida[fast]'."
            ) from error
        try:
            return openvino.Core().read_model(model=self.graph, weights=self.tensors)
        except RuntimeError as error:
            raise BundleError(
                f"The int8 blocks cannot be read: {' '.join(str(error).split())[:200]}"
            ) from error

    def write(self, folder: Path, bundle_digest: str) -> None:
        """Write the three files beside a bundle."""
        files = {GRAPH_FILE: self.graph, TENSOR_FILE: self.tensors}
        note = {
            "bundle digest": bundle_digest,
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
            "figures": None if self.figures is None else asdict(self.figures),
        }
        for name, data in files.items():
            (folder / name).write_bytes(data)
        (folder / NOTE_FILE).write_text(json.dumps(note, indent=2))


def read_quantized(folder: Path, bundle_digest: str) -> QuantizedBlocks | None:
    """Return the int8 blocks beside a bundle, None where there are none; raises BundleError for those of
    another bundle, and for files that were altered.
    """
    if not (folder / NOTE_FILE).exists():
        return None
    note = parse_json(read_file(folder / NOTE_FILE, most=_MOST_BYTES[NOTE_FILE]), NOTE_FILE)
    try:
        if note["bundle digest"] != bundle_digest:
            raise BundleError(f"The {NOTE_FILE} in {folder.name} is of another bundle.")
        figures = None if note["figures"] is None else QuantizationFigures(**note["figures"])
        digests = {name: note["files"][name] for name in (GRAPH_FILE, TENSOR_FILE)}
    except (KeyError, TypeError) as error:
        raise BundleError(f"The {NOTE_FILE} in {folder.name} is damaged: {error!r}.") from error
    contents = {name: read_file(folder / name, most=_MOST_BYTES[name]) for name in digests}
    for name, data in contents.items():
        if hashlib.sha256(data).hexdigest() != digests[name]:
            raise BundleError(f"The file {name} does not have the digest in {NOTE_FILE}; it was altered.")
    return QuantizedBlocks(contents[GRAPH_FILE], contents[TENSOR_FILE], figures)
