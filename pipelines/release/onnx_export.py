"""A bundle as one ONNX graph (extra ``onnx``): pictures in; logits, scores, classes and their evidence out.

The evidence needs the gradient of the head. It is traced together with the forward, so that the graph holds
it as plain operators, and any runtime gives a map with the prediction: Triton, OpenVINO Model Server, the
browser.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.atomic_write import atomic_write
from models.attribution.forward import run_forward
from models.attribution.registry import attribute
from models.bundle import Bundle
from models.devices import CPU, to_numpy
from models.errors import EngineUnavailable, ExplanationError, UnknownChoice
from models.networks.batchnorm_folding import inference_copy
from models.networks.layouts import MAPS
from models.networks.predictions import class_index
from models.networks.transfer_model import TransferModel
from pipelines.errors import RegistryError

INPUT, OUTPUTS = "image", ("logits", "scores", "classes", "maps")
TOLERANCE = 1e-4
"""Of the largest logit and of each map's largest value: how far onnxruntime may be from torch."""

_MAP_FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad_cam": lambda gradient, grid: (gradient.mean((2, 3), keepdim=True) * grid).sum(1),
    "hires_cam": lambda gradient, grid: (gradient * grid).sum(1),
    "layer_cam": lambda gradient, grid: (gradient.clamp(min=0) * grid).sum(1),
}
"""From the gradient of a logit by the map and the map, (N, channels, rows, cols), to (N, rows, cols); as
:mod:`models.attribution.cam` defines them."""


@dataclass(frozen=True, slots=True)
class OnnxExport:
    """An ONNX file that was written and held against torch."""

    path: Path
    bytes: int
    batch: str
    """"any", or the number of pictures that it was made for."""
    maps: tuple[int, ...]
    """(rows, cols) of each map."""
    worst_logit: float
    worst_map: float
    """Largest differences from torch, as shares of the largest value."""


def export_onnx(
    bundle: Bundle,
    path: Path,
    *,
    targets: Sequence[str] = (),
    top_k: int = 1,
    method: str = "grad_cam",
    block: str | None = None,
) -> OnnxExport:
    """Write the model with maps of the named classes, or of the ``top_k`` highest, as an ONNX file.

    Raises EngineUnavailable without the extra, UnknownChoice for names that the model does not have,
    ExplanationError for a network without a map, and RegistryError where onnxruntime disagrees with torch:
    then nothing is written.
    """
    if method not in _MAP_FORMULAS:
        raise UnknownChoice("method", method, _MAP_FORMULAS)
    classes = bundle.model.classes
    if not 1 <= top_k <= len(classes):
        raise UnknownChoice("top_k", top_k, (f"a whole number from 1 to {len(classes)}",))
    chosen = [class_index(name, classes) for name in targets]
    block = block or bundle.model.cam_block
    bundle.model.index_of(block)
    if bundle.model.layout(block).name == "none":
        raise ExplanationError(f"Block {block!r} of {bundle.model.backbone.name} passes no map on.")
    # Channels last would have torch trace its strides too.
    model = inference_copy(bundle.model).to(CPU).to(memory_format=torch.contiguous_format)
    graph = _ExplainedNetwork(model, block, chosen, top_k, _MAP_FORMULAS[method])
    # Attention and windows have the batch in their shapes.
    any_batch = all(model.layout(name) == MAPS for name in model.block_names)
    probe = bundle.probe[0]
    example = torch.cat([probe, probe.flip(3)]) if any_batch else probe
    data = _to_onnx(graph, example, any_batch, _metadata(bundle, method, block, targets))
    worst = _compare(data, model, example, block, method)
    atomic_write(path, data)
    size = (int(worst[2]), int(worst[3]))
    return OnnxExport(path, len(data), "any" if any_batch else "1", size, worst[0], worst[1])


class _ExplainedNetwork(nn.Module):
    """A network that gives its logits, scores, classes and maps in one forward."""

    def __init__(
        self,
        model: TransferModel,
        block: str,
        chosen: Sequence[int],
        top_k: int,
        formula: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.model, self.block, self.chosen, self.top_k = model, block, tuple(chosen), top_k
        self.formula = formula

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        model, layout = self.model, self.model.layout(self.block)
        value = model.until(self.block, x)
        grid = model.as_map(self.block, value).contiguous()
        (logits, pull) = torch.func.vjp(  # type: ignore[misc]
            lambda held: model.after(self.block, layout.from_map(held, value)), grid
        )
        if self.chosen:
            classes = torch.tensor(self.chosen)[None].expand(x.shape[0], -1)
        else:
            classes = logits.topk(self.top_k, dim=1).indices
        numbers = torch.arange(len(model.classes))[None]
        maps = []
        for place in range(classes.shape[1]):
            (gradient,) = pull((classes[:, place : place + 1] == numbers).to(logits.dtype))
            maps.append(self.formula(gradient, grid))
        return logits, model.scoring.scores(logits).float(), classes, torch.stack(maps, 1)


def _to_onnx(graph: nn.Module, example: Tensor, any_batch: bool, metadata: dict[str, str]) -> bytes:
    """Return the file's bytes; raises EngineUnavailable."""
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise EngineUnavailable(
            "An ONNX file needs the extra 'onnx': pip install 'camera-lucida[onnx]'."
        ) from error
    from torch.fx.experimental.proxy_tensor import make_fx

    table = {torch.ops.aten.convolution_backward.default: _convolution_backward}
    mode: Literal["symbolic", "fake"] = "symbolic" if any_batch else "fake"
    for name in ("torch.onnx", "onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Attention by plain operators: no runtime knows the gradient of a fused kernel.
    with warnings.catch_warnings(), redirect_stdout(StringIO()), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")
        traced = make_fx(graph, decomposition_table=table, tracing_mode=mode, _allow_non_fake_inputs=True)(
            example
        )
        batch = torch.export.Dim("batch", min=1, max=4096)
        program = torch.export.export(
            traced, (example,), dynamic_shapes=({0: batch},) if any_batch else None, strict=False
        )
        converted = torch.onnx.export(
            program, (example,), dynamo=True, input_names=[INPUT], output_names=list(OUTPUTS), verbose=False
        )
    assert converted is not None
    proto = converted.model_proto
    for key, text in metadata.items():
        proto.metadata_props.append(onnx.StringStringEntryProto(key=key, value=text))
    data: bytes = proto.SerializeToString()
    return data


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool, output_padding: Sequence[int],
    groups: int, output_mask: Sequence[bool],
) -> tuple[Tensor, None, None]:  # fmt: skip
    """Write the gradient by a convolution's input as a transposed convolution; the weights need none here."""
    spare = [
        size - ((out - 1) * step - 2 * pad + dil * (kernel - 1) + 1)
        for size, out, step, pad, dil, kernel in zip(
            x.shape[2:], gradient.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True
        )
    ]
    by_input = torch.ops.aten.convolution.default(
        gradient, weight, None, stride, padding, dilation, True, spare, groups
    )
    return by_input, None, None


def _metadata(bundle: Bundle, method: str, block: str, targets: Sequence[str]) -> dict[str, str]:
    origin = bundle.provenance
    return {
        "model": origin.model,
        "version": origin.version or "",
        "run_id": origin.run_id or "",
        "bundle_digest": origin.digest,
        "backbone": origin.backbone,
        "classes": json.dumps(bundle.model.classes),
        "explained_classes": json.dumps(list(targets)),
        "geometry": json.dumps(bundle.model.geometry.to_dict()),
        "method": method,
        "block": block,
    }


def map_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return how far two maps of one size are apart, as a share of the second's largest value: of all but a
    hundredth of the cells, for below the last block rounding may carry a unit over the edge of its ReLU.
    """
    return float(np.quantile(np.abs(one - other), 0.99) / max(np.abs(other).max(), 1e-12))


def _compare(
    data: bytes, model: TransferModel, x: Tensor, block: str, method: str
) -> tuple[float, float, int, int]:
    """Return the largest differences of logits and maps between onnxruntime and torch, and the maps' size;
    raises RegistryError for larger ones than allowed.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    logits, _, classes, maps = session.run(list(OUTPUTS), {INPUT: to_numpy(x)})
    forward = run_forward(model, x, block=block)
    expected = to_numpy(forward.logits)
    rows = attribute(forward, [[int(index) for index in row] for row in classes], method=method)
    worst_logit = float(np.abs(logits - expected).max() / max(1.0, np.abs(expected).max()))
    worst_map = max(
        map_difference(own, item.values)
        for own_row, row in zip(maps, rows, strict=True)
        for own, item in zip(own_row, row, strict=True)
    )
    if not max(worst_logit, worst_map) <= TOLERANCE:
        raise RegistryError(
            f"onnxruntime's logits differ from torch's by {worst_logit:.2g} of the largest, its maps by "
            f"{worst_map:.2g}; {TOLERANCE:g} is allowed. No file was written."
        )
    return worst_logit, worst_map, maps.shape[2], maps.shape[3]
