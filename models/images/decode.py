"""Bytes to upright RGB pixels, under limits: the only place in the project that opens an image.

Nothing is decoded before the header has been checked, and every failure is one of our errors. Colour
management is left out on purpose: embedded ICC profiles are ignored, in training as in serving, so that both
see the same numbers.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ExifTags
from PIL.Image import Transpose

from models.cancellation import check_deadline
from models.errors import ImageTooLarge, UnreadableImage, UnsupportedFormat, WorkStopped
from models.images.jpeg import count_scans
from models.images.pixel_budget import PixelBudget

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What we decode. Phone images of type MPO arrive as JPEG (their first frame)."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""File names that are taken for images when a folder is scanned; what a file is, its bytes decide."""

MAX_SIDE = 65_500
"""Pixels; the longest side that decoders and resizers take without a word."""

_STRIP_ROWS = 64
_CHUNK_BYTES = 16_384
"""Bytes of a JPEG handed to its decoder at once, so that a deadline is looked at often; a file of a hundred
kilobytes can hold passes over all pixels for minutes."""
_TRANSPOSE_BY_ORIENTATION = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation. Pillow's exif_transpose rewrites the tags too, and fails on odd ones."""
_JPEGS = {"JPEG", "MPO"}
_FIRST_TRANSPOSED = 5
"""From this EXIF orientation on, width and height change places."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on an encoded image, checked before its pixels are decoded."""

    max_bytes: int = 20_000_000
    """Length of the encoded image."""
    max_pixels: int = 50_000_000
    """Width times height from the header; a decoded pixel costs three bytes and more on the way."""
    max_scans: int = 200
    """Scans of a JPEG; real progressive files have about ten, a hostile one thousands, each a pass over all
    pixels.
    """
    max_passes: int = 600_000_000
    """Pixels of a JPEG times its scans: twelve scans of the largest image."""


@dataclass(frozen=True, slots=True)
class Image:
    """An upright RGB image as a person would see it.

    ``pil`` is in mode RGB with the EXIF orientation applied and transparency laid on white; ``notes`` says in
    sentences what a reader of the result should know about the conversion.
    """

    pil: PIL.Image.Image
    sha256: str
    """Hex digest of the encoded bytes."""
    format: str
    orientation: int = 1
    """EXIF orientation of the file, 1 to 8; it has been applied already."""
    notes: tuple[str, ...] = ()
    full_size: tuple[int, int] | None = None
    """(width, height) of the upright image where ``pil`` was decoded smaller; None where it is whole."""

    @property
    def reduction(self) -> int:
        """By how much less than its size it was decoded: 1, 2, 4 or 8."""
        return round(self.width / self.pil.width)

    @property
    def width(self) -> int:
        """Pixels of the whole image."""
        return self.full_size[0] if self.full_size else self.pil.width

    @property
    def height(self) -> int:
        """Pixels of the whole image."""
        return self.full_size[1] if self.full_size else self.pil.height


@dataclass(frozen=True, slots=True)
class DraftSize:
    """Pixels that are enough for what an image is wanted for; a larger JPEG may be decoded smaller, which
    takes a fraction of the time.
    """

    short: int
    """Of the shorter side. Four times what the model resizes to leaves its input all but equal: what a
    coarser decoding loses, the resizing takes away as well.
    """
    long: int
    """Of the longer side."""

    def factor(self, width: int, height: int) -> int:
        """Return the divisor at which a JPEG may be decoded: 8, 4, 2 or 1."""
        for factor in (8, 4, 2):
            if min(width, height) // factor >= self.short and max(width, height) // factor >= self.long:
                return factor
        return 1


def decode_image(
    data: bytes,
    *,
    limits: Limits | None = None,
    draft: DraftSize | None = None,
    budget: PixelBudget | None = None,
) -> Image:
    """Decode an encoded image (first frame) into an upright RGB :class:`Image`, whole unless a ``draft``
    size is enough. Its pixels count against ``budget`` until nobody holds ``pil`` any more.

    Raises UnsupportedFormat, ImageTooLarge or UnreadableImage, each with one sentence that says what is
    wrong.
    """
    limits = limits or Limits()
    if not data:
        raise UnreadableImage("The picture is empty: 0 bytes.")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"The picture has {len(data):,} bytes; the limit is {limits.max_bytes:,}.")
    scans = count_scans(data, limits.max_scans)
    opened = _open(data)
    _check_header(opened, scans, limits)
    full_size: tuple[int, int] | None = None
    if draft is not None and opened.format in _JPEGS:
        width, height = opened.size
        factor = draft.factor(width, height)
        if factor > 1:
            opened.draft(None, (width // factor, height // factor))
            full_size = (width, height)
    if budget is None:
        return _load_pixels(opened, data, full_size)
    # The coefficients of several scans are kept at full size, however small they are decoded.
    full = full_size if full_size is not None and scans > 1 else opened.size
    pixels = full[0] * full[1]
    budget.acquire(pixels)
    try:
        image = _load_pixels(opened, data, full_size)
    except BaseException:
        budget.release(pixels)
        raise
    budget.release_with(image.pil, pixels)
    return image


def read_image(path: str | Path, *, limits: Limits | None = None) -> Image:
    """Read and decode an image file; a file that cannot be read is an UnreadableImage too."""
    path, limits = Path(path), limits or Limits()
    try:
        size = path.stat().st_size
        if size > limits.max_bytes:
            raise ImageTooLarge(f"The picture has {size:,} bytes; the limit is {limits.max_bytes:,}.")
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImage(
            f"The file cannot be read: {error.strerror or type(error).__name__}."
        ) from error
    return decode_image(data, limits=limits)


def image_from_array(pixels: np.ndarray) -> Image:
    """Wrap an array of upright RGB pixels, uint8 of shape (height, width, 3); its digest is of the raw
    pixels.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UnreadableImage(
            f"Pixels must be uint8 of shape (height, width, 3), not {pixels.dtype} {pixels.shape}."
        )
    image = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    return Image(pil=image, sha256=hashlib.sha256(image.tobytes()).hexdigest(), format="pixels")


def _open(data: bytes) -> PIL.Image.Image:
    with warnings.catch_warnings():
        # Our own limit is checked next, from the same header; Pillow's warning would only be noise in a
        # server's log.
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module="PIL")
        try:
            opened = PIL.Image.open(_DeadlineBytesIO(data), formats=IMAGE_FORMATS)
        except PIL.Image.DecompressionBombError as error:
            raise ImageTooLarge(
                "The picture's header promises far more pixels than can be decoded safely."
            ) from error
        except PIL.UnidentifiedImageError as error:
            choices = "JPEG, PNG, WebP, GIF, BMP, TIFF"
            raise UnsupportedFormat(
                f"The bytes are not a picture in a supported format ({choices})."
            ) from error
        except WorkStopped:
            raise
        except Exception as error:  # a damaged header can raise nearly anything
            raise UnreadableImage("The picture's header is damaged.") from error
    if opened.format in _JPEGS:
        opened.decodermaxblock = _CHUNK_BYTES
    return opened


def _load_pixels(opened: PIL.Image.Image, data: bytes, full_size: tuple[int, int] | None) -> Image:
    notes: list[str] = []
    try:
        opened.load()
        rgb = _to_rgb(opened, notes)
    except (MemoryError, WorkStopped):
        raise
    except Exception as error:  # Pillow's decoders raise eight types of their own on damaged files
        raise UnreadableImage(
            f"The picture is a {_format_name(opened)} but cannot be decoded; "
            "it is probably cut off or damaged."
        ) from error
    # After load(): asked before, a PNG's EXIF reader decodes the pixels itself and hides their damage.
    orientation = _orientation(opened, notes)
    if full_size is not None and orientation >= _FIRST_TRANSPOSED:
        full_size = full_size[::-1]
    return Image(
        pil=rgb.transpose(_TRANSPOSE_BY_ORIENTATION[orientation]) if orientation != 1 else rgb,
        sha256=hashlib.sha256(data).hexdigest(),
        format=_format_name(opened),
        orientation=orientation,
        notes=tuple(notes),
        full_size=full_size,
    )


class _DeadlineBytesIO(io.BytesIO):
    """Bytes that stop being readable when the deadline of the work has passed."""

    def read(self, size: int | None = -1, /) -> bytes:
        check_deadline()
        return super().read(size)


def _check_header(opened: PIL.Image.Image, scans: int, limits: Limits) -> None:
    """Raise ImageTooLarge or UnreadableImage for sizes and scans beyond the limits."""
    pixels = opened.width * opened.height
    if pixels <= 0:
        raise UnreadableImage(f"The picture has no pixels: {opened.width} x {opened.height}.")
    if pixels > limits.max_pixels:
        raise ImageTooLarge(
            f"The picture has {opened.width} x {opened.height} = {pixels:,} pixels; "
            f"the limit is {limits.max_pixels:,}."
        )
    if max(opened.size) > MAX_SIDE:
        raise ImageTooLarge(
            f"The picture is {opened.width} x {opened.height}; its limit is {MAX_SIDE:,} a side."
        )
    if scans > limits.max_scans:
        raise ImageTooLarge(f"The JPEG has more than {limits.max_scans:,} scans, which is the limit.")
    if scans * pixels > limits.max_passes:
        raise ImageTooLarge(
            f"The JPEG has {scans} scans over {pixels:,} pixels; the limit is {limits.max_passes:,} in all."
        )


def _format_name(opened: PIL.Image.Image) -> str:
    return "JPEG" if opened.format == "MPO" else str(opened.format)


def _orientation(opened: PIL.Image.Image, notes: list[str]) -> int:
    """Read the EXIF orientation; damaged EXIF in a healthy image is a note, not a failure."""
    try:
        value = opened.getexif().get(ExifTags.Base.Orientation, 1)
        orientation = int(value)
    except Exception:  # the EXIF parser raises whatever struct, Pillow or int raise on damaged tags
        notes.append("The picture's EXIF data is damaged; its orientation was ignored.")
        return 1
    if orientation != 1 and orientation not in _TRANSPOSE_BY_ORIENTATION:
        notes.append(f"The picture's EXIF orientation {orientation} is not one of 1 to 8; it was ignored.")
        return 1
    return orientation


def _to_rgb(image: PIL.Image.Image, notes: list[str]) -> PIL.Image.Image:
    # Not n_frames: for a TIFF that walks its whole chain of directories, in quadratic time.
    if getattr(image, "is_animated", False) and image.format in {"GIF", "WEBP", "TIFF", "PNG"}:
        notes.append("The picture has several frames; the first one was used.")
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_grey_to_rgb(image, notes)
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        white = PIL.Image.new("RGB", rgba.size, "white")
        # Pasted rather than composed: two copies of the pixels fewer.
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    if image.mode == "RGB":
        # A plain copy: the opened file's object would keep the encoded bytes and its plugin state alive.
        return image.copy()
    return image.convert("RGB")


def _deep_grey_to_rgb(image: PIL.Image.Image, notes: list[str]) -> PIL.Image.Image:
    """Scale grey of 16 bits or more to 8 bits; Pillow's own conversion clips it to white (integers) or black
    (floats).

    16-bit values keep their full scale (65,535 is white). Wider integers and floats have no agreed white:
    values within [0, 1] (floats) or [0, 65535] (integers) take that scale, anything else is stretched from
    its own range.
    """
    values = np.asarray(image)
    low, high = _finite_range(values)
    white = 1.0 if image.mode == "F" else 65535.0
    black = 0.0
    if low < 0.0 or high > white:
        notes.append(f"Grey values from {low:g} to {high:g} were stretched to the range from black to white.")
        black, white = low, high if high > low else low + 1.0 + abs(low)
    grey = np.empty(values.shape, dtype=np.uint8)
    # In strips: the floats of a whole large image would take eight times its own memory.
    for top in range(0, len(values), _STRIP_ROWS):
        strip = values[top : top + _STRIP_ROWS].astype(np.float64)
        scaled = (np.nan_to_num(strip, nan=black, posinf=white, neginf=black) - black) / (white - black)
        grey[top : top + _STRIP_ROWS] = np.rint(np.clip(scaled, 0.0, 1.0) * 255.0)
    return PIL.Image.fromarray(grey).convert("RGB")


def _finite_range(values: np.ndarray) -> tuple[float, float]:
    """Return lowest and highest finite value; (0, 0) when there is none."""
    if values.dtype.kind != "f":
        return float(values.min()), float(values.max())
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
