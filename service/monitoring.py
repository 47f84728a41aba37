"""The watch over what a service is asked: counts of the answers' figures in windows of time, held against the
reference of the model that answers.

Each worker counts for itself, ten minutes a file; a window is the sum of the files of all workers, so it
outlives each of them. Figures are kept, and pictures only where a folder for unusual ones was named.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.atomic_write import atomic_write
from models.metrics.drift import DEFAULT_LEVEL, LARGE_PSI, Counts, compare_to_reference
from models.observer import UNUSUAL_PERCENTILE
from models.reference import Observation, Reference

log = logging.getLogger("lucida.monitoring")

WINDOWS: Mapping[str, float] = {"hour": 3600.0, "day": 86_400.0}
"""Seconds that each window reaches back."""
_BUCKET_SECONDS = 600
_FLUSH_SECONDS = 2.0
_MOST_FILES = 4_000
_FOLDER = "drift"


class DriftMonitor:
    """Counts of one model's answers by all workers of a service; safe to use from many threads."""

    def __init__(
        self, folder: Path, digest: str, reference: Reference, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Count in a folder, which need not exist; what other workers and earlier ones left there counts."""
        self.digest, self.reference = digest, reference
        self._root = folder / _FOLDER
        self._folder, self._clock = self._root / digest[:16], clock
        self._own = f"{socket.gethostname()}-{os.getpid()}-{time.monotonic_ns():x}"
        self._lock = threading.Lock()
        self._bucket, self._counts, self._changed = self._now(), Counts(reference), False
        self._stop = threading.Event()
        threading.Thread(target=self._flush_often, name="lucida-monitor", daemon=True).start()

    def observe(self, observation: Observation) -> None:
        """Count one answer."""
        with self._lock:
            if self._bucket != self._now():
                self._flush()
                self._bucket, self._counts = self._now(), Counts(self.reference)
            self._counts.add(observation)
            self._changed = True

    def count_window(self, seconds: float) -> Counts:
        """Return the counts of all workers from so long ago until now, to ten minutes."""
        with self._lock:
            self._flush()
            unwritten = self._counts.to_dict() if self._changed else None
        total, first = Counts(self.reference), (self._clock() - seconds) // _BUCKET_SECONDS
        if unwritten is not None:
            total.add_counts(unwritten)
        for path in self._files():
            if _bucket_of(path) <= first:
                continue
            try:
                part = Counts(self.reference)
                part.add_counts(json.loads(path.read_text()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                log.warning("The counts in %s are left out: %s", path.name, error)
                continue
            total.add_counts(part.to_dict())
        return total

    def report(self) -> dict[str, Any]:
        """Return each window's figures beside the reference's, as GET /drift has them."""
        windows = {}
        for name, seconds in WINDOWS.items():
            counts = self.count_window(seconds)
            results = compare_to_reference(counts, self.reference)
            windows[name] = {
                "images": counts.images,
                "alarm": any(result.alarm for result in results),
                "figures": [asdict(result) for result in results],
            }
        return {
            "digest": self.digest,
            "reference_images": self.reference.count,
            "level": DEFAULT_LEVEL,
            "smallest_psi": LARGE_PSI,
            "windows": windows,
        }

    def close(self) -> None:
        """Write what was counted, and stop."""
        self._stop.set()
        with self._lock:
            self._flush()

    # ------------------------------------------------------------ files

    def _now(self) -> int:
        return int(self._clock() // _BUCKET_SECONDS)

    def _flush_often(self) -> None:
        while not self._stop.wait(_FLUSH_SECONDS):
            with self._lock:
                self._flush()

    def _flush(self) -> None:
        """Write the present counts; where the disk takes none, they stay this worker's alone."""
        if not self._changed:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            content = json.dumps(self._counts.to_dict()).encode()
            atomic_write(self._folder / f"{self._bucket}-{self._own}.json", content)
            self._changed = False
            self._forget_the_old()
        except OSError as error:
            log.warning("What was counted cannot be written: %s", error)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("[0-9]*.json"), key=_bucket_of)

    def _forget_the_old(self) -> None:
        """Remove files that no window reaches, and those of models that answered before."""
        oldest = self._clock() - max(WINDOWS.values()) - 2 * _BUCKET_SECONDS
        files = self._files()
        for path in files[: max(0, len(files) - _MOST_FILES)]:
            path.unlink(missing_ok=True)
        for folder in self._root.iterdir():
            with suppress(OSError):
                aged = [path for path in folder.iterdir() if path.stat().st_mtime < oldest]
                for path in aged:
                    path.unlink(missing_ok=True)
                if folder != self._folder and not any(folder.iterdir()):
                    shutil.rmtree(folder)


def _bucket_of(path: Path) -> int:
    number = path.name.partition("-")[0]
    return int(number) if number.isascii() and number.isdigit() else -1


class KeptSamples:
    """A folder of pictures as they were sent, of at most so many bytes."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most = folder, most_bytes
        self._lock = threading.Lock()

    def add(self, data: bytes) -> None:
        """Keep an encoded picture, named by its digest; the oldest go where there is no room."""
        if len(data) > self._most:
            return
        with self._lock:
            try:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                atomic_write(self._folder / f"{hashlib.sha256(data).hexdigest()}.image", data)
                self._make_room()
            except OSError as error:
                log.warning("An unusual picture cannot be kept: %s", error)

    def _make_room(self) -> None:
        files = sorted(self._folder.glob("*.image"), key=lambda path: path.stat().st_mtime)
        used = sum(path.stat().st_size for path in files)
        for path in files:
            if used <= self._most:
                return
            used -= path.stat().st_size
            path.unlink(missing_ok=True)


class Monitor:
    """The watch of one worker: over the model that answers now, which may change."""

    def __init__(self, folder: Path, samples: KeptSamples | None = None) -> None:
        self._folder, self._samples = folder, samples
        self._lock = threading.Lock()
        self._present: DriftMonitor | None = None

    def watch(self, digest: str, reference: Reference | None) -> DriftMonitor | None:
        """Return the monitor of the model that answers now; None for one without a reference."""
        with self._lock:
            if self._present is not None and self._present.digest != digest:
                self._present.close()
                self._present = None
            if self._present is None and reference is not None:
                self._present = DriftMonitor(self._folder, digest, reference)
            return self._present

    def observe(
        self, digest: str, reference: Reference | None, observation: Observation | None, data: bytes
    ) -> None:
        """Count one answer, and keep its encoded picture where it is unusual and a folder was named."""
        if observation is None or reference is None:
            return
        monitor = self.watch(digest, reference)
        if monitor is not None:
            monitor.observe(observation)
        distance = observation.figures.get("novelty")
        if self._samples is None or distance is None:
            return
        if reference.percentile(distance) >= UNUSUAL_PERCENTILE:
            self._samples.add(data)

    def close(self) -> None:
        """Write what was counted."""
        with self._lock:
            if self._present is not None:
                self._present.close()

    def collect(self) -> Iterator[Any]:
        """Yield the gauges of the windows, as prometheus_client asks its collectors for them."""
        from prometheus_client.core import GaugeMetricFamily

        with self._lock:
            monitor = self._present
        if monitor is None:
            return
        labels = ["figure", "window"]
        psi = GaugeMetricFamily("lucida_drift_psi", "Population stability index.", labels=labels)
        p_value = GaugeMetricFamily("lucida_drift_p_value", "Of the test for a difference.", labels=labels)
        alarm = GaugeMetricFamily("lucida_drift_alarm", "1 where a figure has drifted.", labels=labels)
        images = GaugeMetricFamily("lucida_drift_images", "Pictures in the window.", labels=["window"])
        for window, content in monitor.report()["windows"].items():
            images.add_metric([window], content["images"])
            for row in content["figures"]:
                for family, value in ((psi, row["psi"]), (p_value, row["p_value"]), (alarm, row["alarm"])):
                    family.add_metric([row["figure"], window], float(value))
        yield from (psi, p_value, alarm, images)
