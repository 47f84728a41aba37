"""int8 blocks for a bundle (extra ``quantise``): calibrated on pictures, measured on others, kept if they
agree.

Post-training quantisation by NNCF of the OpenVINO graph below the cut (Jacob et al. 2018): weights to eight
bits for each channel, activations by the ranges that the calibration pictures show. What follows the cut,
which Captum differentiates, stays torch's in fp32.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.attribution.forward import run_forward
from models.attribution.registry import attribute_each
from models.backends.base import Backend
from models.backends.openvino import convert_blocks
from models.backends.quantized import GRAPH_FILE, TENSOR_FILE, QuantizationFigures, QuantizedBlocks
from models.backends.registry import create_backend
from models.bundle import Bundle
from models.devices import CPU, to_host
from models.errors import EngineUnavailable
from models.networks.batchnorm_folding import inference_copy
from models.progress import Progress, no_progress
from pipelines.data.dataset import Dataset, Sample
from pipelines.errors import DataError, RegistryError

LEAST_AGREEMENT = 0.99
"""Of first classes with fp32, and of the mean correlation of Grad-CAM maps; with less, none are kept."""
_MOST_CALIBRATION, _MOST_HELD_OUT, _BATCH = 300, 1000, 16
_FEWEST = 20


def quantize(bundle: Bundle, data: Dataset, *, progress: Progress = no_progress) -> QuantizedBlocks:
    """Return int8 blocks calibrated on the data's training pictures and measured on its held-out ones.

    Raises EngineUnavailable without the extras ``quantise`` and ``fast``, DataError for too few pictures, and
    RegistryError where the blocks agree too little with fp32.
    """
    calibration = _spread(data.train, _MOST_CALIBRATION)
    held_out = _spread([*data.val, *data.test], _MOST_HELD_OUT)
    if min(len(calibration), len(held_out)) < _FEWEST:
        raise DataError(
            f"{data.root} has {len(calibration)} training and {len(held_out)} held-out pictures; int8 needs "
            f"at least {_FEWEST} of each, to be calibrated and to be measured."
        )
    blocks = _calibrate(bundle, calibration)
    figures = _measure(bundle, blocks, len(calibration), held_out, progress)
    if min(figures.top1_agreement, figures.map_correlation) < LEAST_AGREEMENT:
        raise RegistryError(
            f"The int8 blocks are not kept: on {figures.images} held-out pictures they agree with fp32 on "
            f"{figures.top1_agreement:.3f} of the classes, and their maps correlate by "
            f"{figures.map_correlation:.3f}; both must be at least {LEAST_AGREEMENT}."
        )
    return QuantizedBlocks(blocks.graph, blocks.tensors, figures)


def describe_quantization(figures: QuantizationFigures) -> str:
    """Return the figures as a sentence."""
    return (
        f"int8: on {figures.images} held-out pictures the first class is fp32's on "
        f"{figures.top1_agreement:.1%} and the Grad-CAM maps correlate by {figures.map_correlation:.3f} "
        f"(worst {figures.worst_map_correlation:.3f}); {figures.close_calls} close calls were decided in "
        "fp32."
    )


def _spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Return at most so many samples, the same ones for the same data, in the order of their digests."""
    return sorted(samples, key=lambda sample: sample.sha256)[:most]


def _calibrate(bundle: Bundle, samples: Sequence[Sample]) -> QuantizedBlocks:
    """Return int8 blocks; NNCF draws its own bars meanwhile."""
    # Telemetry is a call to the outside that nobody asked for.
    os.environ.setdefault("NNCF_CI", "1")
    # NNCF has torch look for CUDA's compiler, which is not needed here.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        import nncf
    except ImportError as error:
        raise EngineUnavailable(
            "int8 blocks need the extra 'quantise': pip install 'camera-lucida[fast,quantise]'."
        ) from error
    logging.getLogger("nncf").setLevel(logging.ERROR)
    model = inference_copy(bundle.model).to(CPU)
    converted = convert_blocks(model, model.cam_block)

    def read(sample: Sample) -> np.ndarray:
        x: np.ndarray = to_host(model.geometry.prepare_files([sample.path])).numpy()
        return x

    quantized = nncf.quantize(
        converted,
        nncf.Dataset(samples, read),
        subset_size=len(samples),
        preset=nncf.QuantizationPreset.MIXED,
    )
    return serialized(quantized)


def serialized(graph: object) -> QuantizedBlocks:
    """Return a quantised OpenVINO graph as the bytes of its files."""
    import openvino

    with tempfile.TemporaryDirectory() as aside:
        openvino.save_model(graph, Path(aside) / GRAPH_FILE, compress_to_fp16=False)
        return QuantizedBlocks(
            (Path(aside) / GRAPH_FILE).read_bytes(), (Path(aside) / TENSOR_FILE).read_bytes()
        )


def _measure(
    bundle: Bundle, blocks: QuantizedBlocks, calibrated: int, samples: Sequence[Sample], progress: Progress
) -> QuantizationFigures:
    probe, threads = bundle.probe[0], torch.get_num_threads()
    exact, int8 = (
        create_backend(
            "openvino", bundle.model, probe=probe, threads=threads, precision=precision, quantized=blocks
        )
        for precision in ("fp32", "int8")
    )
    agree: list[bool] = []
    correlations: list[float] = []
    refined = 0
    for start in range(0, len(samples), _BATCH):
        part = samples[start : start + _BATCH]
        x = bundle.model.geometry.prepare_files(sample.path for sample in part)
        same, correlated, closest = _compare(exact, int8, x)
        agree += same
        correlations += correlated
        refined += closest
        progress("measuring int8", start + len(part), len(samples))
    return QuantizationFigures(
        calibration_images=calibrated,
        images=len(samples),
        top1_agreement=float(np.mean(agree)),
        map_correlation=float(np.mean(correlations)),
        worst_map_correlation=float(np.min(correlations)),
        close_calls=refined,
    )


def _compare(exact: Backend, int8: Backend, x: Tensor) -> tuple[list[bool], list[float], int]:
    """Return for a batch whether the first classes agree, the correlations of the maps, and how many close
    calls were run again.
    """
    one, other = run_forward(exact.model, x, backend=exact), run_forward(int8.model, x, backend=int8)
    targets = one.logits.argmax(1)
    pairs = zip(attribute_each(one, targets.tolist()), attribute_each(other, targets.tolist()), strict=True)
    correlations = [
        float(np.corrcoef(a.values.ravel(), b.values.ravel())[0, 1]) if a.values.std() > 0 < b.values.std()
        else float(a.values.std() == b.values.std())
        for a, b in pairs
    ]  # fmt: skip
    again = (one.map.detach() == other.map.detach()).flatten(1).all(1)
    return (targets == other.logits.argmax(1)).tolist(), correlations, int(again.sum())
