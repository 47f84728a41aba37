"""A batch job as a dataset of FiftyOne: predictions, truths, figures, and each map as a heatmap label.

It is written in the layout of files that FiftyOne imports: samples.json with paths, and the maps as grey
PNGs, laid over the whole picture and scaled by the full scale of their overlay. Nothing of FiftyOne has to be
installed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from models.images.frame import Frame
from pipelines.batch.job import ExplainJob
from pipelines.batch.sinks import OBSERVED_COLUMNS, ImageResult, overlay_name, read_rows
from pipelines.batch.sources import local_files
from pipelines.batch.store import Store

FOLDER = "fiftyone"
_EVIDENCE = "fields/evidence"
_LONGEST = 320
_FIGURES = ("novelty_percentile", "border_mass", "faithfulness_percentile", "agreement", *OBSERVED_COLUMNS)


class FiftyOneSink:
    """A sink that writes the folder fiftyone of a job's results."""

    def __init__(self, store: Store, job: ExplainJob) -> None:
        self._store, self._job = store, job

    def has_part(self, part: str) -> bool:
        """Return True: heatmaps are named by their pictures, and the samples are made from the rows."""
        return True

    def add(self, result: ImageResult) -> None:
        """Write the heatmap of one picture."""
        if result.row["status"] == "ok":
            self._store.write(_heatmap_file(result.name), _draw_heatmap(result.row), whole=False)

    def end_part(self, part: str) -> None:
        """Do nothing more: the heatmaps are there."""

    def finish(self) -> None:
        """Write samples.json and metadata.json from the rows."""
        files = local_files(self._job.source)
        rows = read_rows(self._store, leave_out=("grid", "features", "also"))
        samples = [_to_sample(row, files[row["path"]]) for row in rows]
        metadata = {"info": {"camera_lucida": self._job.settings(), "model_digest": self._job.model_digest}}
        for name, content in (("samples.json", {"samples": samples}), ("metadata.json", metadata)):
            self._store.write(f"{FOLDER}/{name}", json.dumps(content, ensure_ascii=False).encode())


def _heatmap_file(name: str) -> str:
    return f"{FOLDER}/{_EVIDENCE}/{overlay_name(name).removesuffix('.jpg')}.png"


def _draw_heatmap(row: Mapping[str, Any]) -> bytes:
    """Return a PNG of the evidence over the whole picture, 0 where the model never looked."""
    x0, y0, x1, y1 = row["seen_box"]
    size = (row["width"], row["height"])
    frame = Frame(*size, *size, round(x0), round(y0), round(x1 - x0), round(y1 - y0))
    if max(size) > _LONGEST:
        frame = frame.resized_to(_LONGEST)
    grid = np.asarray(row["grid"], np.float32).reshape(row["grid_rows"], row["grid_cols"])
    scale = row["full_scale"] or float(grid.max()) or 1.0
    laid = np.nan_to_num(frame.unwarp(np.clip(grid / scale, 0.0, 1.0)))
    buffer = io.BytesIO()
    PIL.Image.fromarray((laid * 255).round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _to_sample(row: Mapping[str, Any], file: Path) -> dict[str, Any]:
    sample: dict[str, Any] = {"filepath": str(file), "tags": [row["status"]], "metadata": None}
    if row["truth"] is not None:
        sample["ground_truth"] = {"_cls": "Classification", "tags": [], "label": row["truth"]}
    if row["prediction"] is None:
        return sample | {"error": row["error"]}
    sample["prediction"] = {
        "_cls": "Classification", "tags": [], "label": row["prediction"], "confidence": row["score"],
    }  # fmt: skip
    if row["status"] == "ok":
        path = _heatmap_file(row["path"]).removeprefix(f"{FOLDER}/")
        sample["evidence"] = {"_cls": "Heatmap", "tags": [], "map_path": path, "range": [0, 255]}
        sample["explained"] = {"_cls": "Classification", "tags": [row["method"]], "label": row["target"]}
    figures = {name: row[name] for name in _FIGURES if row[name] is not None}
    return sample | figures | {"warnings": row["warnings"]}
