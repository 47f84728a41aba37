"""Whose turn it is, by huey: kept in an sqlite file beside the jobs, or in Redis.

huey writes its messages by pickle unless told otherwise; a message here is a list in JSON. The folder of a
job is the truth, and the queue only says when: what a queue that is away has not heard is handed out again by
the process that works on jobs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from huey import Huey, RedisHuey, SqliteHuey
from huey.registry import Message
from huey.serializer import Serializer

from service.settings import Settings

log = logging.getLogger("lucida.jobs")


class JsonSerializer(Serializer):  # type: ignore[misc]
    """Messages as JSON."""

    def _serialize(self, data: Any) -> bytes:
        return json.dumps(data).encode()

    def _deserialize(self, data: bytes) -> Any:
        content = json.loads(data)
        return (
            Message(*content)
            if isinstance(content, list) and len(content) == len(Message._fields)
            else content
        )


def make_queue(settings: Settings, work: Callable[[str], None]) -> tuple[Huey, Callable[[str], None]]:
    """The queue, and what puts a job's id into it, or logs that it could not; ``work`` is what the queue's
    consumer does with one.
    """
    options: dict[str, Any] = {"results": False, "serializer": JsonSerializer(), "immediate": False}
    if settings.redis is not None:
        queue = RedisHuey("lucida", url=settings.redis, **options)
    else:
        settings.jobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        queue = SqliteHuey("lucida", filename=str(settings.jobs / "queue.db"), **options)

    # A function of this module, by whose name both ends of the queue know the task.
    @queue.task(name="work")  # type: ignore[untyped-decorator]
    def task(job: str) -> None:
        work(job)

    def hand_out(job: str) -> None:
        try:
            task(job)
        except Exception as error:  # sqlite's and Redis' own, and what their drivers add
            log.warning("The queue does not take job %s now, which therefore starts later: %s", job, error)

    return queue, hand_out
