"""Create a backend by name and check its logits before it is used."""

from __future__ import annotations

import torch
from torch import Tensor

from models.backends.base import BACKENDS, PRECISIONS, Backend
from models.backends.eager import EagerBackend
from models.backends.openvino import OpenVinoBackend
from models.errors import BundleError, ConfigError, UnknownChoice
from models.networks.batchnorm_folding import inference_copy
from models.networks.transfer_model import TransferModel

_TOLERANCE: dict[str, float] = {"fp32": 1e-3, "bf16": 8e-2}
"""Of the largest logit of the probe. Trained networks were within 2e-5 after folding and in OpenVINO's fp32,
deep ones with random weights within 2e-4; bfloat16 keeps eight bits."""


def create_backend(
    name: str,
    model: TransferModel,
    *,
    probe: Tensor,
    threads: int = 1,
    precision: str = "fp32",
) -> Backend:
    """Create the backend of that name on a folded copy of the model, checked on a probe batch (N, 3, H, W).

    Raises UnknownChoice, ConfigError for a precision that the engine does not have, WeightsUnavailable when
    its package is missing, and BundleError when its logits are off.
    """
    if name not in BACKENDS:
        raise UnknownChoice("engine", name, BACKENDS)
    if precision not in PRECISIONS:
        raise UnknownChoice("precision", precision, PRECISIONS)
    folded = inference_copy(model)
    if name == "eager":
        if precision != "fp32":
            raise ConfigError(f"The engine eager computes in fp32, not {precision}; openvino has both.")
        backend: Backend = EagerBackend(folded)
    else:
        backend = OpenVinoBackend(
            folded, threads=threads, precision="bf16" if precision == "bf16" else "fp32"
        )
    _check_logits(backend, model, probe)
    return backend


def _check_logits(backend: Backend, model: TransferModel, probe: Tensor) -> None:
    with torch.no_grad():
        expected = model(probe)
        logits = backend.model.after(model.cam_block, backend.until(model.cam_block, probe))
    allowed = _TOLERANCE[backend.precision] * max(1.0, float(expected.abs().max()))
    worst = float((logits - expected).abs().max())
    if not worst <= allowed:
        raise BundleError(
            f"The engine {backend.name} ({backend.precision}) gives logits that are off by {worst:.3g}, more "
            f"than {allowed:.3g}; it is not used."
        )
