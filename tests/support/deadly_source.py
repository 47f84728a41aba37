"""A source of which some pictures end the process that reads them, or never come."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field

from models.images.decode import Limits
from pipelines.batch.sources import FileSource, SourceItem


@dataclass(frozen=True)
class DeadlySource:
    """A folder's pictures; by name what reading one of them does: "kill", "exit" or "hang"."""

    folder: FileSource
    deeds: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return self.folder.where

    @property
    def items(self) -> tuple[SourceItem, ...]:
        return self.folder.items

    def read(self, item: SourceItem, limits: Limits) -> bytes:
        deed = self.deeds.get(item.name)
        if deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "exit":
            os._exit(7)
        elif deed == "hang":
            time.sleep(600)
        return self.folder.read(item, limits)
