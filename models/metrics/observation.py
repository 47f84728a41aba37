"""One image in figures: what the model sees of it, and where its evidence lies."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from models.attribution.forward import ForwardPass
from models.attribution.result import Attribution
from models.devices import to_host
from models.images.decode import Image
from models.images.geometry import Geometry
from models.metrics.warnings import audit_border
from models.networks.transfer_model import TransferModel

_LUMINANCE = (0.299, 0.587, 0.114)
_LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


def pool_features(model: TransferModel, value: Tensor) -> np.ndarray | None:
    """Return the features (N, D) of images by the value of the Grad-CAM block: its map, averaged over the
    places. None for a network that passes no map on.
    """
    if model.layout(model.cam_block).name == "none":
        return None
    return _mean_of_places(model.as_map(model.cam_block, value))


def pool_map(forward: ForwardPass) -> np.ndarray | None:
    """Return the same of a forward pass that was cut at the Grad-CAM block."""
    return None if not forward.has_map else _mean_of_places(forward.map.detach())


def _mean_of_places(grid: Tensor) -> np.ndarray:
    features: np.ndarray = to_host(grid.mean(dim=(2, 3))).numpy()
    return features


def image_figures(image: Image, x: Tensor, geometry: Geometry) -> dict[str, float]:
    """Return brightness, contrast and sharpness of what the model sees, x (3, H, W), and the image's size
    and shape.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (geometry.mean, geometry.std))
    weights = torch.tensor(_LUMINANCE).view(3, 1, 1)
    luminance = ((x * std + mean) * weights).sum(dim=0)
    edges = conv2d(luminance[None, None], torch.tensor(_LAPLACIAN)[None, None])
    return {
        "brightness": float(luminance.mean()),
        "contrast": float(luminance.std()),
        "sharpness": float(edges.std()),
        "megapixels": image.width * image.height / 1e6,
        "aspect": image.width / image.height,
    }


def map_figures(attribution: Attribution) -> dict[str, float]:
    """Return where the positive evidence of a map lies; nothing for a map without any."""
    positive = np.maximum(attribution.values.astype(np.float64), 0.0)
    total = positive.sum()
    if attribution.status != "ok" or total <= 0:
        return {}
    rows, cols = positive.shape
    return {
        "concentration": concentration(positive),
        "border": audit_border(attribution).mass,
        "centre_x": float(positive.sum(axis=0) @ (np.arange(cols) + 0.5) / total / cols),
        "centre_y": float(positive.sum(axis=1) @ (np.arange(rows) + 0.5) / total / rows),
    }


def concentration(values: np.ndarray) -> float:
    """Return 1 less the entropy of a map's positive part over that of an even map: 0 spread evenly, 1 all in
    one cell.
    """
    positive = values[values > 0].astype(np.float64)
    if values.size < 2 or not len(positive):
        return 1.0
    shares = positive / positive.sum()
    shares = shares[shares > 0]
    return float(1.0 + (shares * np.log(shares)).sum() / np.log(values.size))
