"""Which maps of a small vision transformer lie where its evidence is: it is trained here to name the
texture of a disc, and asked about pictures of four discs, where each class has its own place, and of one.

python benchmarks/transformers.py [--images 1500] [--epochs 6] [--count 60]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import PIL.Image
import timm
import torch
from torch import Tensor, nn

from models.attribution.forward import run_forward
from models.attribution.parameters import Parameters
from models.attribution.registry import METHODS, attribute_each
from models.images.frame import Frame
from models.images.geometry import Geometry
from models.metrics.layer_sweep import forward_for
from models.metrics.localization import auroc_on, localize
from models.networks.adoption import adopt
from models.networks.transfer_model import TransferModel

SIDE = 64
TEXTURES = ("level", "upright", "rising", "falling", "checked", "plain")
"""Of the disc that a picture shows: bars in four directions, squares, or one colour."""
ASKED = ("attention_relevance", "legrad", "grad_cam", "hires_cam", "layer_cam", "occlusion")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--count", type=int, default=60, help="pictures of four discs, and of one")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    pictures = [draw(rng, [int(rng.integers(len(TEXTURES)))]) for _ in range(options.images)]
    model = fit([item.x for item in pictures], [item.labels[0] for item in pictures], epochs=options.epochs)
    single = [draw(rng, [int(rng.integers(len(TEXTURES)))]) for _ in range(400)]
    with torch.no_grad():
        predicted = model(torch.stack([item.x for item in single])).argmax(1).tolist()
    right = [item for item, label in zip(single, predicted, strict=True) if item.labels == [label]]
    print(f"accuracy on 400 other pictures: {len(right) / len(single):.3f}")
    four = [draw(rng, rng.permutation(len(TEXTURES))[:4].tolist()) for _ in range(options.count)]
    print(f"{options.count} pictures of four discs, then of one: AUROC and pointing, ± one standard error")
    for name in ASKED:
        figures = [measure(model, name, chosen) for chosen in (four, right[: options.count])]
        print(f"{name:20} " + "   ".join(figure(values) for pair in figures for values in pair), flush=True)


@dataclass(frozen=True)
class Picture:
    """A picture of discs."""

    x: Tensor
    """(3, 64, 64), from -1 to 1"""
    labels: list[int]
    masks: list[np.ndarray]
    """Of each disc, boolean (64, 64)."""


def draw(rng: np.random.Generator, labels: list[int]) -> Picture:
    """Draw a disc of each texture on blurred noise: one anywhere, or four in quarters of their own."""
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(coarse).resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)
    pixels = np.asarray(image, np.float32) + rng.normal(0, 8, (SIDE, SIDE, 3)).astype(np.float32)
    rows, cols = np.indices((SIDE, SIDE))
    side, masks = SIDE if len(labels) == 1 else SIDE // 2, []
    for place, label in enumerate(labels):
        radius = rng.uniform(8, 14)
        y, x = rng.uniform(radius, side - radius, 2) + np.array(divmod(place, 2)) * side
        mask = (rows - y) ** 2 + (cols - x) ** 2 <= radius**2
        one, other = rng.permutation(np.array([rng.uniform(0, 90, 3), rng.uniform(165, 255, 3)]))
        pixels[mask] = np.where(lit(TEXTURES[label], rows, cols)[..., None], one, other)[mask]
        masks.append(mask)
    return Picture(torch.from_numpy(pixels.transpose(2, 0, 1) / 127.5 - 1), labels, masks)


def lit(texture: str, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Return where a texture has its first colour."""
    level, upright = rows % 4 < 2, cols % 4 < 2
    return {
        "level": level, "upright": upright, "checked": level ^ upright, "plain": rows >= 0,
        "rising": (rows + cols) % 4 < 2, "falling": (rows - cols) % 4 < 2,
    }[texture]  # fmt: skip


def fit(pictures: list[Tensor], labels: list[int], *, epochs: int) -> TransferModel:
    """Train a transformer of 4 layers and 64 patches, and cut it."""
    torch.manual_seed(0)
    x, y = torch.stack(pictures), torch.tensor(labels)
    network = timm.models.VisionTransformer(
        img_size=SIDE, patch_size=8, embed_dim=64, depth=4, num_heads=2, mlp_ratio=2,
        num_classes=len(TEXTURES),
    )  # fmt: skip
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.05)
    steps = epochs * (len(x) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.5e-3, total_steps=steps)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(32)[: len(x) // 32]:
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x[part]), y[part]).backward()
            optimiser.step()
            schedule.step()
    geometry = Geometry(SIDE, SIDE, SIDE, (0.5,) * 3, (0.5,) * 3, "bilinear")
    return adopt(network.eval().requires_grad_(False), classes=TEXTURES, geometry=geometry)


def measure(model: TransferModel, name: str, pictures: list[Picture]) -> tuple[list[float], list[float]]:
    """Return AUROC and pointing of the map of each disc's class in that disc."""
    frame = Frame(SIDE, SIDE, SIDE, SIDE, 0, 0, SIDE, SIDE)
    areas, hits = [], []
    for item in pictures:
        maps = maps_of(model, name, item.x.repeat(len(item.labels), 1, 1, 1), item.labels)
        for found, mask in zip(maps, item.masks, strict=True):
            areas.append(auroc_on(found.values, frame, mask))
            hits.append(float(localize(found.values, frame, mask).pointing))
    return areas, hits


def maps_of(model: TransferModel, name: str, x: Tensor, classes: list[int]) -> list:
    """Return each picture's map of its own class, where the method reads without being told a block."""
    method = METHODS[name]
    small = {"window": 16, "stride": 8, "cell": 8}
    known = {key: value for key, value in small.items() if hasattr(method.parameters(), key)}
    parameters: Parameters = method.parameters.from_names(known)
    forward = forward_for(method, run_forward(model, x))
    return attribute_each(forward, classes, method=name, parameters=parameters)


def figure(values: list[float]) -> str:
    """Write a mean and its standard error."""
    return f"{np.mean(values):.3f} ± {np.std(values) / np.sqrt(len(values)):.3f}"


if __name__ == "__main__":
    main()
