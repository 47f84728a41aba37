"""Networks that only their own code can build, kept as a program of torch.export.

A program holds the network's modules by their own paths, so it is cut like any other. It has eval mode baked
in, and its activation functions are no modules: what trains it, and what changes the rules of its ReLUs, does
not apply. Torch's loader of programs is not safe against a hostile file, so one is loaded only where whoever
runs the process allows it.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import BundleError, NetworkNotTraceable
from models.strict_files import read_file

ALLOW = "LUCIDA_ALLOW_EXPORTED"
PROGRAM_FILE = "network.pt2"
PROGRAM_SUFFIX = ".pt2"
MOST_PROGRAM_BYTES = 8_000_000_000
EXPORTED_PREFIX = "exported:"


def are_exported_allowed() -> bool:
    """Return whether LUCIDA_ALLOW_EXPORTED says that programs may be loaded in this process."""
    return os.environ.get(ALLOW, "").lower() in ("1", "true", "t", "yes", "y", "on")


def check_exported_allowed(allowed: bool) -> None:
    """Raise BundleError, with what to do, where no program may be loaded."""
    if not allowed:
        raise BundleError(
            f"{PROGRAM_FILE} is a program of torch.export, whose loader is not safe against a hostile file. "
            f"If you trust where it comes from, set {ALLOW}=true."
        )


def export_network(network: nn.Module, x: Tensor) -> bytes:
    """Return a network in eval mode, (N, 3, H, W) to logits, as a program for any number of images.

    ``x`` is an example. Raises NetworkNotTraceable.
    """
    batch = torch.export.Dim("batch", min=1, max=4096)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                network.eval(), (torch.cat([x, x]),), dynamic_shapes=({0: batch},), strict=False
            )
            file = io.BytesIO()
            torch.export.save(program, file)
    except Exception as error:
        # A network's code may fail in any way when it is given a stand-in for its input.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NetworkNotTraceable(f"{type(network).__name__} cannot be exported: {reason[:300]}") from error
    return file.getvalue()


def load_program(data: bytes) -> nn.Module:
    """Return the network of a program that may be loaded (:func:`check_exported_allowed`), with its modules
    by their paths; raises BundleError for what is none.
    """
    # Torch says on its log, with a traceback, what is raised anyway.
    logging.getLogger("torch.export").setLevel(logging.CRITICAL)
    try:
        # A program's tensors come from its file, also where a network's outline is asked for.
        with warnings.catch_warnings(), torch.device("cpu"):
            warnings.simplefilter("ignore")
            network: nn.Module = torch.export.unflatten(torch.export.load(io.BytesIO(data)))
    except Exception as error:  # torch's loader raises errors of many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(f"{PROGRAM_FILE} is no program that torch can load: {reason[:200]}") from error
    return network


def as_exported(network: nn.Module, x: Tensor) -> nn.Module:
    """Return a network in hand as its own exported program; raises NetworkNotTraceable.

    It was made here a moment ago, so that its loader meets nothing hostile.
    """
    return load_program(export_network(network, x))


def read_program(path: Path) -> bytes:
    """Return the bytes of a program's file; raises BundleError."""
    return read_file(path, most=MOST_PROGRAM_BYTES)


def input_size(network: nn.Module) -> tuple[int, int]:
    """Return (height, width) of the images that a loaded program takes; raises BundleError."""
    graph: Any = network.graph
    for node in graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] == 3:
            return int(value.shape[2]), int(value.shape[3])
    raise BundleError(f"{PROGRAM_FILE} does not take images (N, 3, height, width).")
