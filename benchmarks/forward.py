"""A forward of efficientnet_lite0 on one thread of a CPU: as torch and the C library have it, and what
folding BatchNorm and keeping freed memory save.

python benchmarks/forward.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch

from models.host_memory import keep_freed_memory
from models.networks.batchnorm_folding import inference_copy
from models.networks.transfer_model import TransferModel

_BATCHES, _FORWARDS = (1, 8, 16), 9
_WAYS = {"plain": (False, False), "memory kept": (False, True), "folded": (True, False), "both": (True, True)}


def main() -> None:
    """Print milliseconds of a core for a picture, medians of the rounds, and their ratio to the plain one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=_WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(*_WAYS[options.way])))
        return
    # Each in a process of its own, in turn: what memory a process has kept cannot be taken back from it.
    rounds = [{way: run_alone(way) for way in _WAYS} for _ in range(options.rounds)]
    print(f"{'batch':14}" + "".join(f"{batch:>18}" for batch in _BATCHES))
    for way in _WAYS:
        cells = []
        for place in range(len(_BATCHES)):
            times = statistics.median(turn[way][place] for turn in rounds)
            ratio = statistics.median(turn[way][place] / turn["plain"][place] for turn in rounds)
            cells.append(f"{times:.1f} ms ({ratio:.2f})")
        print(f"{way:14}" + "".join(f"{cell:>18}" for cell in cells))


def run_alone(way: str) -> list[float]:
    """Measure one way in a process of its own."""
    words = [sys.executable, __file__, "--way", way]
    done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=True)
    return json.loads(done.stdout)


def measure(folded: bool, kept: bool) -> list[float]:
    """Return milliseconds of a core for a picture of each batch, medians."""
    if kept:
        keep_freed_memory()
    model = TransferModel.imagenet("efficientnet_lite0")
    model = inference_copy(model) if folded else model
    found = []
    for batch in _BATCHES:
        x = torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            model(x)
            found.append(1e3 / batch * statistics.median(time_once(model, x) for _ in range(_FORWARDS)))
    return found


def time_once(model: torch.nn.Module, x: torch.Tensor) -> float:
    """Return the processor's seconds for a forward."""
    began = time.process_time()
    model(x)
    return time.process_time() - began


if __name__ == "__main__":
    main()
