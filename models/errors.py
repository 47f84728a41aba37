"""Every exception that the project raises on purpose, in one tree.

    LucidaError
    ├── ImageError              the image cannot be used
    │   ├── UnsupportedFormat   not one of the formats that are decoded
    │   ├── ImageTooLarge       more bytes, pixels or scans than the limits allow
    │   └── UnreadableImage     empty, cut off or damaged
    ├── UnknownChoice           a class, block, backbone or setting that does not exist; names the choices
    ├── ConfigError             a setting that breaks a rule
    ├── ExplanationError        this block or target cannot be explained
    ├── NetworkNotTraceable     the graph of a network cannot be found, so that it cannot be cut into blocks
    ├── WorkStopped             work that was ended before it was done
    │   ├── DeadlineExceeded    it took longer than it was allowed
    │   └── Cancelled           nobody waits for it any more
    ├── EngineUnavailable       an engine or precision that this machine or installation does not have
    ├── OutOfDeviceMemory       a device whose memory is too small for the work
    ├── BundleError             a bundle that is incomplete, altered or not ours
    └── WeightsUnavailable      pretrained weights that are neither on disk nor can be downloaded

:mod:`pipelines.errors` adds what only pipelines raise. Each message is one sentence for a person: it
names the value, the rule and, where there are any, the choices.
"""

from __future__ import annotations

from collections.abc import Iterable


class LucidaError(Exception):
    """Root of the tree: catching it catches every failure that we foresaw."""


class ImageError(LucidaError):
    """The image cannot be used."""


class UnsupportedFormat(ImageError):
    """The bytes are not an image in one of the formats that we decode."""


class ImageTooLarge(ImageError):
    """The image breaks a limit on bytes, pixels, scans or sides."""


class UnreadableImage(ImageError):
    """The image is empty, cut off or damaged."""


class UnknownChoice(LucidaError):
    """A name that is none of the choices; the message lists them."""

    def __init__(self, what: str, value: object, choices: Iterable[object]) -> None:
        self.what, self.value, self.choices = what, value, tuple(str(choice) for choice in choices)
        listed = ", ".join(self.choices[:30]) + (", …" if len(self.choices) > 30 else "")
        super().__init__(f"Unknown {what} {str(value)[:80]!r}; choose one of: {listed}.")


class ExplanationError(LucidaError):
    """A block, method or target that cannot be explained for this model."""


class NetworkNotTraceable(LucidaError):
    """A network whose forward cannot be followed, or that nothing cuts into blocks."""


class WorkStopped(LucidaError):
    """Work that was ended before it was done."""


class DeadlineExceeded(WorkStopped):
    """Work that took longer than its deadline."""


class Cancelled(WorkStopped):
    """Work that nobody waits for any more."""


class EngineUnavailable(LucidaError):
    """An engine that cannot run here: its package, a compiler, or the processor's precision is missing."""


class OutOfDeviceMemory(LucidaError):
    """Work for which a device has too little memory."""


class BundleError(LucidaError):
    """A bundle that is incomplete, altered or not ours."""


class WeightsUnavailable(LucidaError):
    """Pretrained weights that can be had neither from disk nor from the network."""


class ConfigError(LucidaError):
    """A training configuration that breaks a rule."""
