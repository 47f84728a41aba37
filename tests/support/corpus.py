"""More than a hundred odd, broken and hostile files, each with what a service has to say to it.

Run by the tests; by hand, ``python tests/support/corpus.py FOLDER`` writes them to look at.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from PIL.Image import Transpose

OK, UNREADABLE, TOO_LARGE, UNSUPPORTED = (200,), (400,), (413,), (415,)
REFUSED = (400, 413, 415, 422)
UNDO = {
    1: None, 2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_90, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_270,
}  # fmt: skip
"""How the stored pixels of each EXIF orientation are made from the upright picture."""


@dataclass(frozen=True)
class Case:
    name: str
    data: bytes = field(repr=False)
    expected: tuple[int, ...]
    twin: float | None = None
    """Largest difference of its map from the plain picture's, of that map's maximum, where it is the same
    picture.
    """
    filename: str = "picture.jpg"
    kind: str = "image/jpeg"


def encoded(picture: PIL.Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def scene(width: int = 320, height: int = 240) -> PIL.Image.Image:
    """A drawn picture with structure everywhere and no symmetry, so that every turn shows."""
    rows, cols = np.mgrid[0:height, 0:width]
    red = 255 * cols / width
    green = 255 * rows / height
    blue = 127 + 127 * np.sin(cols / 9.0) * np.cos(rows / 13.0)
    pixels = np.stack([red, green, blue], axis=2)
    spot = ((cols - width * 0.62) ** 2 + (rows - height * 0.4) ** 2) < (height / 5) ** 2
    pixels[spot] = (250, 220, 30)
    return PIL.Image.fromarray(pixels.astype(np.uint8))


def cases(upright: PIL.Image.Image) -> Iterator[Case]:
    """All of them, made from one upright RGB picture."""
    yield from _twins(upright)
    yield from _modes(upright)
    yield from _shapes()
    yield from _cut_and_damaged(upright)
    yield from _hostile(upright)
    yield from _no_pictures()
    yield from _names(upright)


def _twins(upright: PIL.Image.Image) -> Iterator[Case]:
    plain = encoded(upright, "PNG")
    yield Case("plain", plain, OK, 0.0)
    for format, lossy in (("PNG", 0.02), ("TIFF", 0.02), ("JPEG", 0.15), ("WEBP", 0.15)):
        for orientation, undo in UNDO.items():
            exif = PIL.Image.Exif()
            exif[0x0112] = orientation
            stored = upright if undo is None else upright.transpose(undo)
            options = {"quality": 97} if format in {"JPEG", "WEBP"} else {}
            if format == "TIFF":
                stored.save(buffer := io.BytesIO(), "TIFF", tiffinfo={0x0112: orientation})
                data = buffer.getvalue()
            else:
                data = encoded(stored, format, exif=exif, **options)
            yield Case(f"exif {orientation} {format}", data, OK, lossy)
    yield Case("bmp", encoded(upright, "BMP"), OK, 0.02)
    yield Case("progressive", encoded(upright, "JPEG", quality=97, progressive=True), OK, 0.15)
    yield Case("4:4:4", encoded(upright, "JPEG", quality=97, subsampling=0), OK, 0.15)
    yield Case("webp lossless", encoded(upright, "WEBP", lossless=True), OK, 0.02)
    yield Case("tiff deflate", encoded(upright, "TIFF", compression="tiff_adobe_deflate"), OK, 0.02)
    yield Case("tiff lzw", encoded(upright, "TIFF", compression="tiff_lzw"), OK, 0.02)
    yield Case("trailing garbage", plain + b"\0garbage" * 500, OK, 0.02)
    yield Case("opaque alpha", encoded(upright.convert("RGBA"), "PNG"), OK, 0.02)
    yield Case("interlaced", _interlaced(upright), OK, 0.02)
    profile = b"\0" * 128 + b"no profile at all"
    yield Case("broken icc", encoded(upright, "PNG", icc_profile=profile), OK, 0.02)
    yield Case("broken exif", encoded(upright, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), OK, 0.02)
    yield Case("comment", encoded(upright, "JPEG", quality=97, comment=b"<script>" * 1000), OK, 0.15)
    frames = [upright, PIL.Image.new("RGB", upright.size)]
    yield Case("animated webp", _animated(frames, "WEBP", lossless=True), OK, 0.02)
    yield Case("animated tiff", _animated(frames, "TIFF"), OK, 0.02)
    yield Case("animated png", _animated(frames, "PNG"), OK, 0.02)
    for name, kind in (
        ("picture.png", "image/gif"),
        ("picture.txt", "text/html"),
        ("picture", "x/y"),
        ("", ""),
    ):
        yield Case(
            f"as {name or 'nothing'} {kind}", plain, OK, 0.02, filename=name or "x", kind=kind or "a/b"
        )


def _modes(upright: PIL.Image.Image) -> Iterator[Case]:
    for mode, format in (
        ("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("P", "GIF"), ("L", "JPEG"), ("CMYK", "JPEG"),
        ("CMYK", "TIFF"), ("LAB", "TIFF"), ("YCbCr", "TIFF"), ("RGBA", "WEBP"), ("1", "TIFF"), ("1", "BMP"),
        ("L", "BMP"), ("P", "BMP"), ("L", "GIF"),
    ):  # fmt: skip
        picture = upright.convert(mode)
        yield Case(f"{mode} {format}", encoded(picture, format), OK, kind=f"image/{format.lower()}")
    grey = np.asarray(upright.convert("L"))
    yield Case("16-bit grey png", encoded(PIL.Image.fromarray(grey.astype(np.uint16) * 257), "PNG"), OK)
    yield Case("32-bit tiff", encoded(PIL.Image.fromarray(grey.astype(np.int32) * 9999), "TIFF"), OK)
    yield Case("float tiff", encoded(PIL.Image.fromarray(grey.astype(np.float32) / 255), "TIFF"), OK)
    holes = grey.astype(np.float32).copy()
    holes[::7] = np.nan
    holes[3] = np.inf
    yield Case("nan tiff", encoded(PIL.Image.fromarray(holes), "TIFF"), OK)
    clear = upright.convert("RGBA")
    clear.putalpha(0)
    yield Case("all transparent", encoded(clear, "PNG"), OK)
    yield Case("palette with transparency", encoded(upright.convert("P"), "PNG", transparency=3), OK)
    yield Case("rgb with transparent colour", encoded(upright, "PNG", transparency=(1, 2, 3)), OK)
    frames = [upright.convert("P"), upright.convert("L").convert("P")]
    yield Case("animated gif", _animated(frames, "GIF"), OK)


def _shapes() -> Iterator[Case]:
    for width, height in ((1, 1), (2, 2), (1, 5000), (5000, 1), (3, 700), (223, 223), (224, 224), (225, 223)):
        yield Case(f"{width}x{height}", encoded(scene(width, height), "PNG"), OK)
    for colour in ("black", "white", "red"):
        yield Case(f"all {colour}", encoded(PIL.Image.new("RGB", (300, 200), colour), "PNG"), OK)
    yield Case("24 megapixels", encoded(scene(6000, 4000), "JPEG"), OK)


def _cut_and_damaged(upright: PIL.Image.Image) -> Iterator[Case]:
    for format in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
        whole = encoded(upright.convert("P") if format == "GIF" else upright, format)
        for share in (0.02, 0.3, 0.7):
            yield Case(f"{format} cut at {share}", whole[: int(len(whole) * share)], REFUSED)
    jpeg = encoded(upright, "JPEG")
    rng = np.random.default_rng(5)
    for n in range(8):
        # A damaged stream may decode to noise or not at all: both are answers, neither is a 5xx.
        damaged = np.frombuffer(jpeg, np.uint8).copy()
        damaged[rng.integers(300, len(damaged), 40)] = rng.integers(0, 256, 40)
        yield Case(f"damaged jpeg {n}", damaged.tobytes(), (*OK, *REFUSED))
    png = encoded(upright, "PNG")
    for n in range(6):
        damaged = np.frombuffer(png, np.uint8).copy()
        damaged[rng.integers(40, len(damaged), 5)] ^= 0xFF
        yield Case(f"damaged png {n}", damaged.tobytes(), (*OK, *REFUSED))
    yield Case("jpeg head alone", jpeg[:2], REFUSED)
    yield Case("png signature alone", png[:8], REFUSED)
    yield Case("png without pixels", png[:33] + _chunk(b"IEND", b""), REFUSED)
    yield Case(
        "png of no width", png[:8] + _chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 5, 8, 2, 0, 0, 0)), REFUSED
    )
    yield Case("two jpegs", jpeg + jpeg, OK)


def _hostile(upright: PIL.Image.Image) -> Iterator[Case]:
    for width, height in ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (100_000, 501)):
        yield Case(f"png bomb {width}x{height}", png_bomb(width, height), TOO_LARGE)
    deep = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 34_000_000, 1, 16, 6, 0, 0, 0))
    yield Case("a line of 34 million deep pixels", deep + png_bomb(1, 1)[33:], TOO_LARGE)
    whole = encoded(upright, "JPEG")
    yield Case("a million empty segments", whole[:-2] + b"\xff\xe0\0\2" * 1_000_000 + whole[-2:], TOO_LARGE)
    yield Case("pixels inside the limit, nothing behind", png_bomb(7000, 7000), REFUSED)
    yield Case(
        "gif bomb", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + bytes(8), REFUSED
    )
    bmp = bytearray(encoded(upright, "BMP"))
    bmp[18:26] = struct.pack("<ii", 40_000, 40_000)
    yield Case("bmp bomb", bytes(bmp), TOO_LARGE)
    jpeg = bytearray(encoded(upright, "JPEG"))
    at = jpeg.find(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65_000, 65_000)
    yield Case("jpeg bomb", bytes(jpeg), TOO_LARGE)
    yield Case("2,000 scans", scans(2000), TOO_LARGE)
    yield Case("150 scans of 24 megapixels", scans(150, side=(6000, 4000)), TOO_LARGE)
    yield Case("text bomb in a png", _text_bomb(upright), (*OK, *REFUSED))
    yield Case("tiff that points at itself", _tiff_loop(upright), (*OK, *REFUSED))
    yield Case("polyglot pdf", b"%PDF-1.7\n" + encoded(upright, "JPEG"), UNSUPPORTED)
    yield Case("polyglot zip", encoded(upright, "PNG") + b"PK\x03\x04" + bytes(200), OK)
    yield Case("polyglot html", encoded(upright, "GIF") + b"<script>alert(1)</script>", OK)
    yield Case("mpo", _mpo(upright), OK)


def _no_pictures() -> Iterator[Case]:
    yield Case("empty", b"", UNREADABLE)
    texts = {
        "text": b"no picture at all", "url": b"http://169.254.169.254/latest/meta-data/",
        "path": b"/etc/passwd", "html": b"<!doctype html><p>x", "json": b'{"image": "x"}',
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "pdf": b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "zip": b"PK\x03\x04" + bytes(100),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "pickle": b"\x80\x04cos\nsystem\n.",
        "numpy": b"\x93NUMPY\x01\0v\0{'descr': '|O'}", "elf": b"\x7fELF\x02\x01\x01" + bytes(100),
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1",
        "ico": b"\0\0\x01\0\x01\0\x10\x10\0\0\x01\0\x20\0", "psd": b"8BPS\0\x01" + bytes(40),
        "ppm": b"P6 2 2 255\n" + bytes(12), "tga": bytes([0, 0, 2]) + bytes(15), "jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
        "mp4": b"\0\0\0\x20ftypisom" + bytes(40), "zeros": bytes(10_000), "ones": b"\xff" * 10_000,
        "newlines": b"\r\n" * 500, "base64": b"data:image/png;base64,iVBORw0KGgo=", "xbm": b"#define x_width 8\n",
    }  # fmt: skip
    for name, data in texts.items():
        yield Case(name, data, (*UNREADABLE, *UNSUPPORTED))


def _names(upright: PIL.Image.Image) -> Iterator[Case]:
    plain = encoded(upright, "PNG")
    for name in (
        "../../etc/passwd", "a" * 3000, "quote\".png", "semi;colon.png", "null\0byte.png", "line\r\nbreak.png",
        "\u202egnp.exe", "CON", "-rf", "%2e%2e%2f", "<script>.png", "😀.png",
    ):  # fmt: skip
        yield Case(f"name {name[:20]!r}", plain, OK, 0.02, filename=name)


def png_bomb(width: int, height: int) -> bytes:
    """A header that promises many pixels and a few bytes that could unpack to them."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + _chunk(b"IDAT", zlib.compress(bytes(1_000_000), 9))
        + _chunk(b"IEND", b"")
    )


def scans(count: int, side: tuple[int, int] = (1500, 1500)) -> bytes:
    """A progressive JPEG whose last scan comes again and again; each is a pass over all pixels."""
    data = encoded(PIL.Image.new("RGB", side, (90, 120, 40)), "JPEG", progressive=True, quality=20)
    last = data.rfind(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _interlaced(picture: PIL.Image.Image) -> bytes:
    """A PNG in Adam7 order, which Pillow reads and does not write."""
    pixels = np.asarray(picture)
    starts = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    raw = b"".join(
        b"\0" + row.tobytes() for top, left, down, right in starts for row in pixels[top::down, left::right]
        if row.size
    )  # fmt: skip
    head = struct.pack(">IIBBBBB", picture.width, picture.height, 8, 2, 0, 0, 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", head)
        + _chunk(b"IDAT", zlib.compress(raw))
        + _chunk(b"IEND", b"")
    )


def _animated(frames: list[PIL.Image.Image], format: str, **options: Any) -> bytes:
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)


def _text_bomb(picture: PIL.Image.Image) -> bytes:
    data = encoded(picture, "PNG")
    text = b"bomb\0\0" + zlib.compress(bytes(80_000_000), 9)
    return data[:33] + _chunk(b"zTXt", text) + data[33:]


def _tiff_loop(picture: PIL.Image.Image) -> bytes:
    data = bytearray(encoded(picture, "TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    return bytes(data)


def _mpo(picture: PIL.Image.Image) -> bytes:
    return encoded(picture, "MPO", save_all=True, append_images=[picture.convert("L").convert("RGB")])


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(cases(scene())):
        (out / f"{number:03d}-{''.join(c if c.isalnum() else '_' for c in case.name)}").write_bytes(case.data)
    print(f"{number + 1} files in {out}")
