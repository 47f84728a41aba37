"""Make docs/reference/networks.md again: `make networks`, which takes half an hour and 16 GB of memory.

Every classifier of torchvision and the smallest network of each module of timm is built with random weights,
cut, and held against itself uncut: logits to the bit, Grad-CAM against Captum's. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import gc
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import timm
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from models.attribution.cam import grad_cam
from models.attribution.forward import run_forward
from models.attribution.targets import make_target
from models.errors import LucidaError
from models.networks.backbone import build_outline
from models.networks.library import library_backbone, library_names
from models.networks.transfer_model import TransferModel

PAGE = Path(__file__).parent / "reference/networks.md"
SMALL_ENOUGH = 6_000_000
TOLERANCE = 1e-5
COLUMNS = 7
HEADER = """# Networks

Every classifier of torchvision {torchvision} and the smallest network of each module of timm {timm}, built
with random weights and cut by the graph of its forward. `lucida networks --family NAME` says the same of any
other network, and `lucida train --backbone timm:convnext_atto` trains one. Made by `make networks`.

- **equal**: the blocks, then the head, give the logits of the uncut network to the bit, for one picture and
  for three.
- **Grad-CAM**: the map at the Grad-CAM block differs from Captum's `LayerGradCam` on the uncut network by at
  most 1e-5 of its largest value. Captum reads maps alone: "-" stands for tokens and channels last, and for a
  block that ends in a function rather than in a module.
- **maps**: how the Grad-CAM block's value is read, by a planted test; "none" has no map, and is served with
  the methods that ask the pixels.

{summary}

| network | blocks | Grad-CAM block | grid | maps | equal | Grad-CAM |
|---|---|---|---|---|---|---|
"""


def main() -> None:
    """Write the page, after each row; with ``--missing`` the rows that it has are kept."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--missing", action="store_true", help="leave the rows as they are; add what lacks")
    kept_rows = rows_of_page() if parser.parse_args().missing else {}
    rows: list[tuple[str, ...]] = []
    for name in chain(all_torchvision(), smallest_of_timm()):
        started = time.monotonic()
        rows.append(kept_rows.get(name) or row_of(name))
        print(*rows[-1], f"{time.monotonic() - started:.1f} s", flush=True)
        library_backbone.cache_clear()
        gc.collect()
        write_page(rows)


def write_page(rows: list[tuple[str, ...]]) -> None:
    """Write the page with these rows."""
    versions = {library: version(library) for library in ("torchvision", "timm")}
    lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    PAGE.write_text(HEADER.format(**versions, summary=summary_of(rows)) + lines)


def rows_of_page() -> dict[str, tuple[str, ...]]:
    """Return the rows of the page by the names of their networks."""
    lines = PAGE.read_text().splitlines() if PAGE.is_file() else []
    cells = [tuple(line.strip("| ").split(" | ")) for line in lines if ":" in line.split(" | ")[0]]
    return {row[0]: row for row in cells if len(row) == COLUMNS}


def summary_of(rows: list[tuple[str, ...]]) -> str:
    """Return how many of each library are cut, equal, and equal to Captum."""
    sentences = []
    for library in ("torchvision", "timm"):
        own = [row for row in rows if row[0].startswith(f"{library}:")]
        equal = sum(row[5] == "yes" for row in own)
        compared = [row for row in own if row[6] != "-"]
        agreeing = sum(row[6].startswith("yes") for row in compared)
        with_map = sum(row[4] not in {"none", "-"} for row in own)
        sentences.append(
            f"{library}: {equal} of {len(own)} equal, {with_map} with a map; "
            f"Grad-CAM equal to Captum's in {agreeing} of the {len(compared)} where Captum has one."
        )
    return "\n".join(sentences)


def all_torchvision() -> Iterator[str]:
    """Yield the names of torchvision's classifiers."""
    yield from (f"torchvision:{builder}" for builder in library_names("torchvision"))


def smallest_of_timm() -> Iterator[str]:
    """Yield the smallest network of each module of timm; the first that is small enough ends the search."""
    for module in timm.list_modules():
        counts: dict[str, int] = {}
        for builder in timm.list_models(module=module):
            outline = build_outline(lambda builder=builder: timm.create_model(builder))
            counts[builder] = sum(weights.numel() for weights in outline.parameters())
            if counts[builder] < SMALL_ENOUGH:
                break
        if counts:
            yield f"timm:{min(counts, key=lambda builder: counts[builder])}"


def row_of(name: str) -> tuple[str, ...]:
    """Return a network's row of the table."""
    try:
        backbone = library_backbone(name)
        torch.manual_seed(0)
        network = backbone.network("none").requires_grad_(False)
    except LucidaError as error:
        return (name, "-", "-", "-", "-", "no", str(error))
    model = TransferModel(backbone, network, classes=[str(number) for number in range(1000)])
    model = model.eval().requires_grad_(False)
    geometry = model.geometry
    x = torch.randn(3, 3, geometry.crop_height, geometry.crop_width)
    with torch.no_grad():
        equal = torch.equal(model(x), network(x)) and torch.equal(model(x[:1]), network(x[:1]))
    layout = model.layout(model.cam_block)
    blocks = f"{len(model.block_names)}: {model.block_names[0]} … {model.block_names[-1]}"
    if layout.name == "none":
        return (name, blocks, "-", "-", "none", "yes" if equal else "no", "-")
    with torch.no_grad():
        grid = model.as_map(model.cam_block, model.until(model.cam_block, x[:1])).shape[2:]
    reading = f"tokens, {layout.prefix} in front" if layout.prefix else layout.name
    return (
        name, blocks, model.cam_block, f"{grid[0]} x {grid[1]}", reading, "yes" if equal else "no",
        compare_with_captum(model, network, x[:1]),
    )  # fmt: skip


def compare_with_captum(model: TransferModel, network: nn.Module, x: Tensor) -> str:
    """Return whether Grad-CAM equals Captum's on the uncut network."""
    block = model.block(model.cam_block)
    own = set(network.modules())
    ends = [part for part in (block, *list(block.children())[-1:]) if part in own]
    if model.layout(model.cam_block).name != "maps" or not ends:
        return "-"
    ours = grad_cam(run_forward(model, x), [make_target(model.classes, 7)])
    with torch.enable_grad():
        peers = LayerGradCam(network.requires_grad_(True), ends[0]).attribute(x, target=7)
    worst = float((ours - peers[:, 0]).abs().max() / peers.abs().max().clamp(min=1e-30))
    return "yes" if worst <= TOLERANCE else f"no, off by {worst:.0e}"


if __name__ == "__main__":
    main()
