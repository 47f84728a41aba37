"""Create a backend by name, checked before it is used, or the fastest of those that this machine has."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.backends.base import BACKENDS, PRECISIONS, Backend, BackendName, BackendPrecision
from models.backends.compile import CompileBackend
from models.backends.eager import EagerBackend
from models.backends.openvino import OpenVinoBackend
from models.backends.quantized import QuantizedBlocks
from models.devices import CPU, synchronize, to_host
from models.errors import BundleError, EngineUnavailable, LucidaError, UnknownChoice
from models.networks.batchnorm_folding import inference_copy
from models.networks.transfer_model import TransferModel

AUTO = "auto"
_TOLERANCE: dict[str, float] = {"fp32": 1e-3, "bf16": 8e-2, "int8": 0.3}
"""Of the largest logit of the probe. Trained networks were within 2e-5 after folding and in OpenVINO's fp32,
deep ones with random weights within 2e-4; bfloat16 keeps eight bits. What int8 does to answers and maps is
measured on photographs when it is made; here it must only be the same network."""
_WORTH_IT = 0.9
"""Of the time of what is more exact: a less exact backend must be faster than noise makes it look."""
_WARM_UPS, _ROUNDS = 2, 7


@dataclass(frozen=True, slots=True)
class BackendTrial:
    """A backend that was tried: how long a prediction took it, or why it was not used."""

    name: BackendName
    precision: BackendPrecision
    milliseconds: float | None
    """Median for the batch; None where it cannot be used."""
    refusal: str | None = None

    def __str__(self) -> str:
        """Name it with its time or its refusal."""
        took = f"{self.milliseconds:.1f} ms" if self.milliseconds is not None else self.refusal
        return f"{self.name} {self.precision}: {took}"


def create_backend(
    name: str,
    model: TransferModel,
    *,
    probe: Tensor,
    threads: int = 1,
    precision: str = AUTO,
    quantized: QuantizedBlocks | None = None,
    graph: Any = None,
) -> Backend:
    """Create the backend of that name on a folded copy of the model, checked on a probe batch (N, 3, H, W).

    "auto" tries all that the machine has and takes the fastest; as a precision it stands for fp32 with any
    other name. ``graph`` is this model's for OpenVINO, where it was converted before. Raises UnknownChoice,
    EngineUnavailable for what is not here, and BundleError when the logits are off.
    """
    if name == AUTO:
        chosen = choose_backend(model, probe=probe, threads=threads, precision=precision, quantized=quantized)
        return chosen[0]
    if name not in BACKENDS:
        raise UnknownChoice("engine", name, (AUTO, *BACKENDS))
    own = PRECISIONS[0] if precision == AUTO else _check_precision(precision)
    return _create(name, own, inference_copy(model), model, probe, threads, quantized, graph)


def choose_backend(
    model: TransferModel,
    *,
    probe: Tensor,
    threads: int = 1,
    precision: str = AUTO,
    quantized: QuantizedBlocks | None = None,
) -> tuple[Backend, list[BackendTrial]]:
    """Return the fastest backend whose logits agree, and how each did on the probe batch.

    A less exact precision is taken only where it saves a tenth of the time. Raises UnknownChoice for an
    unknown precision.
    """
    if precision != AUTO:
        _check_precision(precision)
    tried = list(try_backends(model, probe=probe, threads=threads, precision=precision, quantized=quantized))
    trials = [trial for _, trial in tried]
    best = pick_fastest(trials)
    backend = next((backend for backend, trial in tried if trial is best), None)
    if backend is None:
        results = "; ".join(str(trial) for trial in trials) or "none was tried"
        raise EngineUnavailable(f"No engine computes in {precision} here: {results}.")
    return backend, trials


def try_backends(
    model: TransferModel,
    *,
    probe: Tensor,
    threads: int = 1,
    precision: str = AUTO,
    quantized: QuantizedBlocks | None = None,
) -> Iterator[tuple[Backend | None, BackendTrial]]:
    """Yield each backend that suits the model's device and the precision, with its trial on a probe batch,
    the most exact first; None in the place of one that cannot be used.
    """
    folded = inference_copy(model)
    graph = None
    for name, own in _candidates(model.device, quantized):
        if precision not in (AUTO, own):
            continue
        try:
            backend = _create(name, own, folded, model, probe, threads, quantized, graph)
        except LucidaError as error:
            yield None, BackendTrial(name, own, None, str(error))
        else:
            graph = backend.graph if isinstance(backend, OpenVinoBackend) else graph
            yield backend, BackendTrial(name, own, 1e3 * time_backend(backend, probe))


def pick_fastest(trials: Sequence[BackendTrial]) -> BackendTrial | None:
    """Return the fastest of the trials, which go from exact to coarse; None where none can be used."""
    best: BackendTrial | None = None
    for trial in trials:
        if trial.milliseconds is None:
            continue
        if best is None or best.milliseconds is None:
            best = trial
            continue
        coarser = PRECISIONS.index(trial.precision) > PRECISIONS.index(best.precision)
        if trial.milliseconds < best.milliseconds * (_WORTH_IT if coarser else 1.0):
            best = trial
    return best


def _check_precision(precision: str) -> BackendPrecision:
    for item in PRECISIONS:
        if item == precision:
            return item
    raise UnknownChoice("precision", precision, (AUTO, *PRECISIONS))


def count_candidates(model: TransferModel, quantized: QuantizedBlocks | None = None) -> int:
    """Return how many backends :func:`try_backends` tries."""
    return len(_candidates(model.device, quantized))


def time_backend(backend: Backend, x: Tensor) -> float:
    """Return the median seconds of a prediction for a batch (N, 3, H, W)."""
    model, block = backend.model, backend.model.cam_block
    seconds = []
    for _ in range(_WARM_UPS + _ROUNDS):
        start = time.perf_counter()
        with torch.no_grad():
            model.after(block, backend.until(block, x))
        synchronize(model.device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[_WARM_UPS:])


def _candidates(
    device: torch.device, quantized: QuantizedBlocks | None
) -> list[tuple[BackendName, BackendPrecision]]:
    """Return what is worth trying on a device, the most exact first. On a processor OpenVINO was faster than
    torch.compile on every network, and compiling takes a minute.
    """
    if device != CPU:
        return [("eager", "fp32"), ("compile", "fp32"), ("eager", "bf16"), ("compile", "bf16")]
    int8: list[tuple[BackendName, BackendPrecision]] = [("openvino", "int8")] if quantized else []
    return [("eager", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"), *int8]


def _create(
    name: BackendName,
    precision: BackendPrecision,
    folded: TransferModel,
    model: TransferModel,
    probe: Tensor,
    threads: int,
    quantized: QuantizedBlocks | None,
    graph: Any = None,
) -> Backend:
    backend: Backend
    if name == "openvino":
        backend = OpenVinoBackend(
            folded, threads=threads, precision=precision, quantized=quantized, graph=graph
        )
    else:
        backend = (CompileBackend if name == "compile" else EagerBackend)(folded, precision)
    _check_logits(backend, model, probe)
    return backend


def _check_logits(backend: Backend, model: TransferModel, probe: Tensor) -> None:
    with torch.no_grad():
        expected = to_host(model(probe))
        logits = to_host(backend.model.after(model.cam_block, backend.until(model.cam_block, probe)))
    allowed = _TOLERANCE[backend.precision] * max(1.0, float(expected.abs().max()))
    worst = float((logits - expected).abs().max())
    if not worst <= allowed:
        raise BundleError(
            f"The engine {backend.name} ({backend.precision}) gives logits that are off by {worst:.3g}, more "
            f"than {allowed:.3g}; it is not used."
        )
