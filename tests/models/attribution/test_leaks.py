"""Nothing is left behind, and nothing is mixed up: a thousand explanations, and eight threads at once."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import torch

from models.attribution.forward import run_forward
from models.attribution.registry import attribute, attribute_each
from models.backends.registry import create_backend
from models.errors import UnknownChoice
from tests.support.methods import FOR_MAPS, parameters_of

QUICK = {"steps": 2, "window": 112, "stride": 112, "masks": 2}


@pytest.fixture(scope="module")
def backend(imagenet, random_batch):
    return create_backend("eager", imagenet, probe=random_batch())


def state_of(model):
    return {
        name: (
            module.training,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            len(module._backward_hooks),
        )
        for name, module in model.named_modules()
    }


def graphs():
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, torch.Tensor) and each.grad_fn is not None]


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.soak)])
def test_many_explanations_leave_nothing_behind(backend, random_batch, count):
    model, before = backend.model, state_of(backend.model)
    xs = [random_batch(seed=seed, side=96) for seed in range(4)]
    blocks = ("top", "stage5.2", "stage3.1")
    for method in FOR_MAPS:
        # The first run of each sets up buffers that stay.
        attribute(
            run_forward(model, xs[0], backend=backend), [[0, 7]], method=method,
            parameters=parameters_of(method, **QUICK),
        )  # fmt: skip
    process = psutil.Process()
    resident = []
    for number in range(count):
        method = FOR_MAPS[number % 4 if number % 20 else 4 + number // 20 % 4]
        forward = run_forward(model, xs[number % 4], block=blocks[number % 3], backend=backend)
        attribute(forward, [[number % 1000, 7]], method=method, parameters=parameters_of(method, **QUICK))
        if number % (count // 10) == count // 10 - 1:
            with pytest.raises(UnknownChoice):
                attribute_each(forward, [100_000])
            resident.append(process.memory_info().rss / 2**20)
    del forward
    assert not graphs()
    assert state_of(model) == before
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert resident[-1] - resident[1] < 60, f"resident memory in MB: {resident}"


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.soak)])
def test_eight_threads_give_no_error_and_no_map_that_differs(backend, random_batch, rounds):
    xs = [random_batch(seed=seed, side=96) for seed in range(6)]
    methods = ("grad_cam", "hires_cam", "layer_cam", "grad_cam_plus_plus", "guided_grad_cam")
    jobs = [
        (seed, index, block, methods[(seed + index) % len(methods)])
        for seed in range(6)
        for index in range(1, 11)
        for block in ("top", "stage6.1")
    ] * rounds

    def values(job) -> np.ndarray:
        seed, index, block, method = job
        return attribute_each(
            run_forward(backend.model, xs[seed], block=block, backend=backend), [index], method=method
        )[0].values

    alone = {job: values(job) for job in set(jobs)}
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(values, jobs))
    assert len(together) == 120 * rounds
    assert [
        job for job, found in zip(jobs, together, strict=True) if not np.array_equal(found, alone[job])
    ] == []
    assert not graphs()
