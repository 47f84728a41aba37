"""Whether the controls of faithfulness can be fooled: maps that know nothing of a picture, judged as if they
were explanations of it.

python benchmarks/controls.py PICTURES [--count 60] [--steps 10]

Prints for true Grad-CAM maps, and for mirrored, foreign, centred, edge and negated ones, the mean percentile
among the controls and the share of the surest words; for deletion and insertion, and for single deletion, and
the share of the surest words that the other test does not dispute.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models.attribution.forward import run_forward
from models.attribution.registry import attribute_each
from models.backends.registry import create_backend
from models.images.decode import read_image
from models.metrics.control_maps import centre_spot, edge_map, select_bank
from models.metrics.faithfulness import measure_faithfulness
from models.networks.transfer_model import TransferModel

_BANK = 32


def main() -> None:
    """Print a line for each kind of map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    model = TransferModel.imagenet("efficientnet_lite0")
    files = sorted(options.pictures.rglob("*.jpg"))
    np.random.default_rng(0).shuffle(files)
    x = [model.geometry.prepare(read_image(path))[0] for path in files[: options.count + _BANK]]
    backend = create_backend("auto", model, probe=torch.stack(x[:1]), threads=os.cpu_count() or 1)
    maps = []
    for image in x:
        forward = run_forward(model, image[None], backend=backend)
        maps += attribute_each(forward, [int(forward.logits.argmax())])
    bank = select_bank([item.values for item in maps[options.count :]])
    results = defaultdict(list)
    for n in range(options.count):
        for kind, values in kinds_of(x[n], maps[n].values, maps[(n + 1) % options.count].values).items():
            judged = replace(maps[n], values=np.ascontiguousarray(values, np.float32))
            found = measure_faithfulness(backend, x[n], judged, bank=bank, steps=options.steps, batch=32)
            results[kind].append((found.percentile, found.curves.level, found.single_percentile,
                                  found.single.level, found.disagree))  # fmt: skip
    print(f"{options.count} pictures; mean percentile (share of the surest words)")
    for kind, rows in results.items():
        curves, level, single, single_level, disagree = np.array(rows, dtype=float).T
        sure = level == 2
        print(
            f"{kind:10} deletion and insertion {curves.mean():5.1f} ({sure.mean():.0%}), "
            f"single deletion {single.mean():5.1f} ({(single_level == 2).mean():.0%}), "
            f"disagree {disagree.mean():.0%}, sure and not disputed {(sure & (disagree == 0)).mean():.0%}"
        )


def kinds_of(x: torch.Tensor, own: np.ndarray, foreign: np.ndarray) -> dict[str, np.ndarray]:
    """Return the true map and those that know nothing of this picture."""
    return {"true": own, "mirrored": own[:, ::-1], "foreign": foreign, "centred": centre_spot(own.shape) ** 3,
            "edges": edge_map(x, own.shape), "negated": own.max() - own}  # fmt: skip


if __name__ == "__main__":
    main()
