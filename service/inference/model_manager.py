"""The model that answers now, and its successor: loaded beside it, tried, and only then put in its place.

A request holds on to the predictor that it began with, so its scores, maps and version always belong
together. A successor that cannot be loaded, does not meet its probe or cannot explain it is left where it is;
the present one goes on, and the reason is logged and shown by GET /model.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from service.inference.predictor import Predictor
from service.metrics import Metrics
from service.settings import Settings

log = logging.getLogger("lucida.model")


class ModelManager:
    """The predictor of one worker process; ``source`` says which bundle folder is to be served now."""

    def __init__(
        self,
        source: Callable[[], Path],
        settings: Settings,
        metrics: Metrics,
        trial: Callable[[Predictor], None],
    ) -> None:
        """Load the model that is to be served; raises BundleError, as ``trial`` may."""
        self._source, self._settings, self._metrics, self._trial = source, settings, metrics, trial
        self._folder = source().resolve()
        self.predictor = self._load(self._folder)
        self.refused: str | None = None
        """Why the latest successor was not taken, if it was not."""
        self._refused_folder: Path | None = None
        self._stop = threading.Event()
        self._announce()

    @property
    def folder(self) -> Path:
        """Folder of the bundle that answers now."""
        return self._folder

    def watch(self) -> None:
        """Look for a successor every so often, in a thread of its own, until :meth:`close`."""
        if self._settings.watch_seconds > 0:
            threading.Thread(target=self._watch, name="lucida-model-manager", daemon=True).start()

    def close(self) -> None:
        """Stop looking, and let the model's own thread end."""
        self._stop.set()
        self.predictor.close()

    def refresh(self) -> bool:
        """Take over a successor if there is one; return whether there was."""
        try:
            folder = self._source().resolve()
        except Exception as error:  # a store that is being written to can fail in ways of its own
            log.warning("The model to be served cannot be told: %s", error)
            return False
        if folder == self._folder:
            # Turned back: what was refused may be mended meanwhile, and is tried again when its turn comes.
            self.refused = self._refused_folder = None
        if folder in (self._folder, self._refused_folder):
            return False
        try:
            successor = self._load(folder)
        except Exception as error:  # whatever ails it, the old one goes on, and this one is not tried again
            self.refused, self._refused_folder = f"{folder.name} was refused: {error}", folder
            self._metrics.refused_models.inc()
            log.error("The model in %s is not taken: %s", folder.name, error)
            return False
        before, self.predictor = self.predictor, successor
        self._folder, self.refused, self._refused_folder = folder, None, None
        self._announce()
        before.close()
        return True

    def _load(self, folder: Path) -> Predictor:
        predictor = Predictor(folder, self._settings, observe_batch=self._metrics.batch.observe)
        try:
            self._trial(predictor)
        except BaseException:
            predictor.close()
            raise
        return predictor

    def _watch(self) -> None:
        while not self._stop.wait(self._settings.watch_seconds):
            try:
                self.refresh()
            except Exception:
                log.exception("Looking for another model failed; the present one goes on.")

    def _announce(self) -> None:
        origin = self.predictor.bundle.provenance
        self._metrics.serves(origin.model, origin.version, origin.digest)
        log.info("Serving %s version %s (%s).", origin.model, origin.version, origin.digest[:12])
