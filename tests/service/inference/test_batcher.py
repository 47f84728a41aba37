"""Batches change no answer, deadlines end waiting, and a failure is told to those who asked."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from models.attribution.forward import run_forward
from models.backends.registry import create_backend
from models.cancellation import Deadline, check_deadline, current_deadline, deadline_scope
from models.errors import Cancelled, DeadlineExceeded
from service.inference.batcher import BatchingBackend


@pytest.fixture(scope="module")
def inner(imagenet):
    return create_backend("eager", imagenet, probe=torch.randn(1, 3, 224, 224))


@pytest.fixture
def sizes() -> list[int]:
    return []


@pytest.fixture
def batching(inner, sizes):
    engine = BatchingBackend(inner, most=4, observe=sizes.append)
    yield engine
    engine.close()


def test_a_value_does_not_depend_on_its_neighbours(inner, batching, sizes):
    torch.set_num_threads(1)
    pictures = [torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(n)) for n in range(12)]
    alone = [inner.until("top", x) for x in pictures]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda x: batching.until("top", x), pictures))
    assert max(sizes) > 1, "some met"
    assert max(sizes) <= 4
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def test_requests_for_other_blocks_and_sizes_are_not_mixed(inner, batching):
    torch.set_num_threads(1)
    x, wide = torch.randn(1, 3, 224, 224), torch.randn(1, 3, 224, 256)
    asked = [("top", x), ("stage2.1", x), ("top", wide), ("stage5.2", x)] * 3
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda each: batching.until(*each), asked))
    for (block, picture), value in zip(asked, found, strict=True):
        assert torch.equal(value, inner.until(block, picture))


def test_a_failure_goes_to_those_who_asked_and_to_nobody_else(batching):
    with pytest.raises(RuntimeError):
        batching.until("top", torch.randn(1, 5, 224, 224))
    assert batching.until("top", torch.randn(1, 3, 224, 224)).shape == (1, 1280, 7, 7)


def test_a_deadline_ends_the_wait(inner):
    class Slow:
        name, precision, model = inner.name, inner.precision, inner.model

        def until(self, block, x):
            time.sleep(1.0)
            return inner.until(block, x)

    engine = BatchingBackend(Slow(), most=4)
    began = time.monotonic()
    with deadline_scope(Deadline(0.2)), pytest.raises(DeadlineExceeded, match=r"0\.2 seconds"):
        engine.until("top", torch.randn(1, 3, 224, 224))
    assert time.monotonic() - began < 0.5
    engine.close()


def test_a_closed_backend_still_answers(inner):
    engine = BatchingBackend(inner, most=4)
    engine.close()
    assert engine.until("top", torch.randn(1, 3, 224, 224)).shape == (1, 1280, 7, 7)


def test_loops_stop_where_the_deadline_says(imagenet):
    deadline = Deadline(None)
    threading.Timer(0.2, deadline.cancel).start()

    def for_ever() -> None:
        while True:
            run_forward(imagenet, torch.randn(1, 3, 224, 224))

    with deadline_scope(deadline), pytest.raises(Cancelled):
        for_ever()
    run_forward(imagenet, torch.randn(1, 3, 224, 224))


def test_a_deadline_is_of_its_own_thread():
    seen = []
    with deadline_scope(Deadline(-1.0)):
        thread = threading.Thread(target=lambda: seen.append(current_deadline()))
        thread.start()
        thread.join()
        with pytest.raises(DeadlineExceeded):
            check_deadline()
    check_deadline()
    assert seen == [None]


def test_a_figure_that_cannot_be_told_ends_no_thread(inner):
    def full(size: int) -> None:
        raise OSError(28, "No space left on device")

    engine = BatchingBackend(inner, most=4, observe=full)
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            engine.until("top", torch.randn(1, 3, 224, 224))
    engine.close()
