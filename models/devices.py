"""Where a network computes: the processor, a CUDA device or Apple's MPS.

One rule holds everywhere: images, maps and logits lie in the host's memory; a network alone lies on its
device. It takes what it is given there itself (:func:`to_device`), and what is read from it is brought back
by :func:`to_host` or :func:`to_numpy`. No other module knows devices.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from models.errors import ConfigError, OutOfDeviceMemory

AUTO = "auto"
CPU = torch.device("cpu")
DEVICE_FORMS = "auto, cpu, cuda, cuda:N or mps"
_NAME = re.compile(r"auto|cpu|cuda(:\d{1,3})?|mps")


def is_device_name(name: str) -> bool:
    """Return whether a text names a device, be it here or not."""
    return _NAME.fullmatch(name) is not None


def available_devices() -> list[str]:
    """Return the names of this machine's devices, the fastest first."""
    devices = [f"cuda:{index}" for index in range(_count_cuda())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, "cpu"]


def resolve_device(name: str = AUTO) -> torch.device:
    """Return the device of that name: "auto" for the fastest there is, "cuda" for the first CUDA device.

    Makes CUDA's convolutions deterministic and exact to fp32, as they are on a processor. Raises ConfigError
    for a device that is not there.
    """
    devices = available_devices()
    chosen = {AUTO: devices[0], "cuda": "cuda:0"}.get(name, name)
    if chosen not in devices:
        built = "" if torch.version.cuda else f" (torch {torch.__version__} was built without CUDA)"
        raise ConfigError(
            f"The device {name[:40]!r} is not here: it must be {DEVICE_FORMS}, and this machine has "
            f"{', '.join(devices)}{built}."
        )
    device = torch.device(chosen)
    if device.type == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        torch.backends.cudnn.allow_tf32 = False
    return device


def describe_device(device: torch.device) -> str:
    """Return the device with its model, such as "cuda:0 (NVIDIA A10)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device, itself where it lies there; from the host to CUDA by pinned memory, so
    that the copy runs beside what the device computes.
    """
    if x.device == device:
        return x
    if device.type == "cuda" and x.device == CPU and not x.requires_grad:
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def to_host(x: Tensor) -> Tensor:
    """Return a tensor in the host's memory, itself where it lies there; a gradient passes."""
    return x.to(CPU)


def to_numpy(x: Tensor) -> np.ndarray:
    """Return the values of a tensor on any device as float32."""
    values: np.ndarray = to_host(x.detach()).float().numpy()
    return values


def supports_bf16(device: torch.device) -> bool:
    """Return whether a CUDA device multiplies matrices in bfloat16 by itself."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def autocast_bf16(device: torch.device, *, enabled: bool) -> AbstractContextManager[object]:
    """Return a context in which convolutions and matrices are computed in bfloat16, if that is enabled."""
    return torch.autocast(device.type, torch.bfloat16) if enabled else nullcontext()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; for whoever measures time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def memory_errors(images: int, advice: str) -> Iterator[None]:
    """Raise OutOfDeviceMemory, with the number of images and advice, where a device runs out of memory."""
    try:
        yield
    except RuntimeError as error:
        # CUDA has a class of its own for it, MPS only the words.
        if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise OutOfDeviceMemory(
            f"The device has too little memory for {images} picture{'s' * (images != 1)} at once; {advice}."
        ) from error


def run_in_parts(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``run(x)``, computed in halves where the device has too little memory for the whole.

    ``run`` must treat each of the N images (N, …) on its own. Raises OutOfDeviceMemory where even one image
    is too much.
    """
    try:
        with memory_errors(len(x), "choose a smaller network or the device cpu"):
            return run(x)
    except OutOfDeviceMemory:
        if len(x) < 2:
            raise
    middle = len(x) // 2
    return torch.cat([run_in_parts(run, x[:middle]), run_in_parts(run, x[middle:])])


def _count_cuda() -> int:
    with warnings.catch_warnings():
        # Torch warns where its CUDA build meets a machine without a driver, which is no fault here.
        warnings.simplefilter("ignore")
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
