"""A training run and the runs of its phases in MLflow, told by way of an outbox."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import PIL.Image
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag

from models.images.decode import decode_image
from models.images.encode import encode_image
from pipelines.data.dataset import Dataset
from pipelines.errors import RegistryError, TrackerUnavailable
from pipelines.tracking.outbox import TRACKER_ERRORS, Message, Outbox, pack_bytes, unpack_bytes
from pipelines.tracking.store import tracker_call, tracking_client, tracking_uri_without_password

EXPERIMENT = "camera-lucida"
_FOLDER_TAG = "lucida.folder"
_MOST_PARAMS, _MOST_METRICS, _MOST_TAGS = 100, 1000, 100
"""MLflow's limits for one call."""
_LONGEST = 6000
"""Characters of a parameter's or a tag's value that MLflow keeps for certain."""


def open_runs(name: str, phases: Iterable[str], *, folder: str) -> tuple[str, list[str]]:
    """Open a run and one child run for each phase; returns their ids.

    ``folder`` marks them, so that :func:`terminate_abandoned` finds them whatever happens to this process.
    Raises TrackerUnavailable: training does not begin without a run.
    """
    client = tracking_client()
    with tracker_call("No run can be opened"):
        experiment = mlflow.set_experiment(EXPERIMENT).experiment_id
        tags = {_FOLDER_TAG: folder, "mlflow.source.name": "lucida train", "mlflow.source.type": "LOCAL"}
        parent = client.create_run(experiment, tags=tags, run_name=name).info.run_id
        children = []
        for number, phase in enumerate(phases, start=1):
            nested = tags | {"mlflow.parentRunId": parent}
            child = client.create_run(experiment, tags=nested, run_name=f"{number} {phase}")
            client.update_run(child.info.run_id, status="SCHEDULED")
            children.append(child.info.run_id)
    return parent, children


def terminate_abandoned(folder: str) -> bool:
    """Mark the unended runs of a process that died as KILLED; return False when the tracker is away, for the
    next time.
    """
    try:
        client = tracking_client()
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return True
        abandoned = client.search_runs([experiment.experiment_id], f"tags.`{_FOLDER_TAG}` = '{folder}'")
        for run in abandoned:
            if run.info.status in ("RUNNING", "SCHEDULED"):
                client.set_terminated(run.info.run_id, status="KILLED")
    except (TrackerUnavailable, *TRACKER_ERRORS):
        return False
    return True


def check_run_exists(run_id: str) -> None:
    """Raise RegistryError where the store answers that it has no such run; one that is away may have it."""
    try:
        mlflow.MlflowClient().get_run(run_id)
    except TRACKER_ERRORS as error:
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            raise RegistryError(
                f"The store at {tracking_uri_without_password()} has no run {run_id}; go to the folder, "
                "or set the MLFLOW_TRACKING_URI, where it was begun."
            ) from error


class RunLogger:
    """A writer of one run; nothing here waits for MLflow but :meth:`flush`."""

    def __init__(self, run_id: str, outbox: Path) -> None:
        self.run_id = run_id
        self._outbox = Outbox(outbox, _deliver)

    def params(self, values: Mapping[str, Any], *, run_id: str | None = None) -> None:
        """Log parameters, which never change; a value that MLflow would cut becomes an artefact."""
        short = {}
        for key, value in values.items():
            short[key] = text = str(value)
            if len(text) > _LONGEST:
                path = f"parameters/{key}.txt"
                self._add("file", run_id, path=path, data=pack_bytes(text.encode()))
                short[key] = f"{len(text):,} characters, in the artefact {path}"
        self._add("params", run_id, values=short)

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags, which may be set again."""
        self._add("tags", None, values={key: str(value)[:_LONGEST] for key, value in values.items()})

    def metrics(
        self,
        values: Mapping[str, float],
        *,
        step: int = 0,
        run_id: str | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        """Log metrics of one step; logged again with the same timestamp they stay one."""
        now = int(time.time() * 1000) if timestamp_ms is None else timestamp_ms
        self._add("metrics", run_id, values=dict(values), step=step, timestamp=now)

    def dataset(self, data: Dataset) -> None:
        """Log the data set as the run's input, by name and digest."""
        self._add("dataset", None, root=str(data.root), name=data.name, digest=data.digest)

    def image(self, content: PIL.Image.Image, path: str) -> None:
        """Log a PNG artefact."""
        self.file(encode_image(content, "png"), path)

    def file(self, data: bytes | str, path: str) -> None:
        """Log an artefact."""
        raw = data.encode() if isinstance(data, str) else data
        self._add("file", None, path=path, data=pack_bytes(raw))

    def table(self, columns: dict[str, list[Any]], path: str) -> None:
        """Log a table that MLflow's page can show; uint8 arrays (height, width, 3) become images in it."""
        plain, image_keys = _packed_columns(columns)
        self._add("table", None, columns=plain, pictures=image_keys, path=path)

    def status(self, status: str, *, run_id: str | None = None) -> None:
        """Set the run's status: RUNNING, or how it ended: FINISHED, FAILED or KILLED."""
        self._add("status", run_id, status=status, timestamp=int(time.time() * 1000))

    def flush(self, patience_s: float) -> None:
        """Wait until MLflow has it all; raises TrackerUnavailable after that time."""
        self._outbox.flush(patience_s)

    @property
    def refused(self) -> list[str]:
        """Why MLflow would not take some of it."""
        return self._outbox.refused

    def close(self) -> None:
        """Stop delivering; what is left stays for a resumed run."""
        self._outbox.close()

    def _add(self, kind: str, run_id: str | None, **news: Any) -> None:
        self._outbox.add(kind=kind, run=run_id or self.run_id, **news)


def _deliver(news: Message) -> None:
    """Say one piece of news to MLflow; saying it twice leaves the same."""
    client, run_id, kind = mlflow.MlflowClient(), news["run"], news["kind"]
    if kind == "metrics":
        metrics = [Metric(k, v, news["timestamp"], news["step"]) for k, v in news["values"].items()]
        for part in _chunks(metrics, _MOST_METRICS):
            client.log_batch(run_id, metrics=part)
    elif kind == "params":
        for part in _chunks([Param(k, v) for k, v in news["values"].items()], _MOST_PARAMS):
            client.log_batch(run_id, params=part)
    elif kind == "tags":
        for part in _chunks([RunTag(k, v) for k, v in news["values"].items()], _MOST_TAGS):
            client.log_batch(run_id, tags=part)
    elif kind == "file":
        _log_file(run_id, unpack_bytes(news["data"]), news["path"])
    elif kind == "table":
        _log_table(run_id, news["columns"], news["pictures"], news["path"])
    elif kind == "dataset":
        _deliver_dataset(client, run_id, news)
    elif news["status"] == "RUNNING":
        client.update_run(run_id, status="RUNNING")
    else:
        client.set_terminated(run_id, status=news["status"], end_time=news["timestamp"])


def log_file(run_id: str, data: bytes | str, path: str) -> None:
    """Log an artefact of a run, at once; raises TrackerUnavailable."""
    with tracker_call(f"{path} cannot be logged"):
        _log_file(run_id, data, path)


def _log_file(run_id: str, data: bytes | str, path: str) -> None:
    data = data.encode() if isinstance(data, str) else data
    with tempfile.TemporaryDirectory() as aside:
        file = Path(aside) / Path(path).name
        file.write_bytes(data)
        parent = str(Path(path).parent)
        mlflow.MlflowClient().log_artifact(run_id, str(file), None if parent == "." else parent)


def log_comparison(
    compared: tuple[str, str], metrics: Mapping[str, float], files: Mapping[str, str], digest: str
) -> str:
    """Log a finished run of its own that compares two others; return its id. Raises TrackerUnavailable."""
    tags = {"compare.first": compared[0], "compare.second": compared[1], "dataset.digest": digest}
    name = f"compare {compared[0][:8]} {compared[1][:8]}"
    return log_finished_run(name, "lucida compare", tags=tags, metrics=metrics, files=files)


def log_finished_run(
    name: str,
    command: str,
    *,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    files: Mapping[str, str],
    params: Mapping[str, object] = MappingProxyType({}),
) -> str:
    """Log a run of something that is done already; return its id. Raises TrackerUnavailable."""
    with tracker_call(f"The run {name} cannot be logged"):
        client = tracking_client()
        experiment = mlflow.set_experiment(EXPERIMENT).experiment_id
        own = {**tags, "mlflow.source.name": command}
        run_id: str = client.create_run(experiment, tags=own, run_name=name).info.run_id
        now = int(time.time() * 1000)
        try:
            client.log_batch(
                run_id,
                metrics=[Metric(key, value, now, 0) for key, value in metrics.items()],
                params=[Param(key, str(value)[:_LONGEST]) for key, value in params.items()],
            )
            for path, content in files.items():
                _log_file(run_id, content, path)
        except BaseException:
            client.set_terminated(run_id, status="FAILED")
            raise
        client.set_terminated(run_id)
        return run_id


def log_table(run_id: str, columns: dict[str, list[Any]], path: str) -> None:
    """Log a table of a run, at once; see :meth:`RunLogger.table`. Raises TrackerUnavailable."""
    with tracker_call(f"{path} cannot be logged"):
        _log_table(run_id, *_packed_columns(columns), path)


def _packed_columns(columns: dict[str, list[Any]]) -> tuple[dict[str, list[Any]], list[str]]:
    """Return the columns with arrays as PNG files in text, and the names of those columns."""
    image_keys = [name for name, values in columns.items() if values and isinstance(values[0], np.ndarray)]
    packed_columns = {
        name: [pack_bytes(encode_image(PIL.Image.fromarray(value), "png")) for value in values]
        if name in image_keys
        else list(values)
        for name, values in columns.items()
    }
    return packed_columns, image_keys


def _log_table(run_id: str, columns: dict[str, list[Any]], image_keys: list[str], path: str) -> None:
    """Log a table of a run, unless the run has it already: MLflow would append the same rows again."""
    client = mlflow.MlflowClient()
    parent = str(Path(path).parent)
    if path in [file.path for file in client.list_artifacts(run_id, None if parent == "." else parent)]:
        return
    table = dict(columns)
    for name in image_keys:
        table[name] = [
            mlflow.Image(decode_image(unpack_bytes(packed_image)).pil) for packed_image in columns[name]
        ]
    client.log_table(run_id, pd.DataFrame(table), path)


def _deliver_dataset(client: mlflow.MlflowClient, run_id: str, news: Message) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = resolve_dataset_source(news["root"])
    # MLflow allows a digest 36 characters; the whole one is a tag.
    described = MetaDataset(source, name=news["name"], digest=news["digest"][:36])
    entity = DatasetInput(described._to_mlflow_entity(), [InputTag("mlflow.data.context", "training")])
    client.log_inputs(run_id, datasets=[entity])


def _chunks(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
