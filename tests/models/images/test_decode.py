"""Images are decoded upright, within limits, and share a budget of pixels."""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings, strategies as st

from models.cancellation import Deadline, deadline_scope
from models.errors import DeadlineExceeded, ImageError, ImageTooLarge, UnreadableImage, UnsupportedFormat
from models.images.decode import DraftSize, Limits, decode_image, read_image
from models.images.geometry import Geometry
from models.images.pixel_budget import PixelBudget

RED, WHITE = (255, 0, 0), (255, 255, 255)


def scene(width: int = 40, height: int = 30) -> PIL.Image.Image:
    """Left half red, right half blue, a white dot in the upper left."""
    picture = PIL.Image.new("RGB", (width, height), (0, 0, 255))
    picture.paste(RED, (0, 0, width // 2, height))
    picture.paste(WHITE, (2, 2, 8, 8))
    return picture


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_allowed_format_gives_the_same_pixels(format, encode):
    data = encode(scene(), format, **({"quality": 95, "subsampling": 0} if format == "JPEG" else {}))
    image = decode_image(data)
    assert (image.format, image.width, image.height) == (format, 40, 30)
    assert image.sha256 == hashlib.sha256(data).hexdigest()
    difference = np.abs(np.asarray(image.pil, int) - np.asarray(scene(), int))
    assert np.median(difference) <= 3
    assert np.asarray(image.pil)[15, 10].tolist() == pytest.approx(RED, abs=12)


@pytest.mark.parametrize("format", ["ICO", "PPM", "TGA", "JPEG2000", "PDF"])
def test_other_formats_are_refused_by_name(format, encode):
    with pytest.raises(UnsupportedFormat, match="JPEG, PNG, WebP"):
        decode_image(encode(scene(), format))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation, encode):
    upright = np.asarray(scene())
    # What a camera held in that orientation stores, worked out by hand from the EXIF standard.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encode(np.ascontiguousarray(stored), "PNG", exif=exif))
    assert image.orientation == orientation
    np.testing.assert_array_equal(np.asarray(image.pil), upright)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_impossible_orientation_is_ignored_with_a_note(value, encode):
    exif = PIL.Image.Exif()
    exif[0x0112] = value
    image = decode_image(encode(scene(), "PNG", exif=exif))
    assert image.orientation == 1
    assert any("orientation" in note for note in image.notes)


def test_damaged_exif_in_a_healthy_picture_is_only_a_note(encode):
    data = encode(scene(), "JPEG", exif=b"Exif\x00\x00" + b"MM\x00*\xff\xff\xff\xff" + b"\x01" * 30)
    assert decode_image(data).width == 40


def test_transparency_lies_on_white(encode):
    picture = PIL.Image.new("RGBA", (10, 10), (255, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 5, 10))
    pixels = np.asarray(decode_image(encode(picture)).pil)
    assert tuple(pixels[5, 2]) == RED
    assert tuple(pixels[5, 8]) == WHITE


def test_palette_with_a_transparent_colour_lies_on_white(encode):
    picture = PIL.Image.new("P", (10, 10), 1)
    picture.putpalette([0, 255, 0, 255, 0, 0])
    picture.paste(0, (0, 0, 5, 10))
    pixels = np.asarray(decode_image(encode(picture, "PNG", transparency=0)).pil)
    assert tuple(pixels[5, 2]) == WHITE
    assert tuple(pixels[5, 8]) == RED


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr"])
def test_odd_modes_keep_their_scene(mode, encode):
    format = "TIFF" if mode in {"CMYK", "YCbCr"} else "PNG"
    pixels = np.asarray(decode_image(encode(scene().convert(mode), format)).pil.convert("L"), int)
    assert pixels.shape == (30, 40)
    assert pixels[4, 4] > pixels[20, 5] > pixels[20, 35] - 1, "white dot, red left, blue right"


def test_sixteen_bit_grey_is_scaled_not_clipped(encode):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    for format in ("PNG", "TIFF"):
        grey = np.asarray(decode_image(encode(PIL.Image.fromarray(ramp), format)).pil)[0, :, 0]
        np.testing.assert_allclose(grey, np.arange(256), atol=1)


@pytest.mark.parametrize(("low", "high", "noted"), [(0.0, 1.0, False), (-50.0, 900.0, True)])
def test_float_grey_is_scaled_and_said(low, high, noted, encode):
    ramp = np.linspace(low, high, 256, dtype=np.float32)[None].repeat(4, 0)
    image = decode_image(encode(PIL.Image.fromarray(ramp), "TIFF"))
    np.testing.assert_allclose(np.asarray(image.pil)[0, :, 0], np.arange(256), atol=1)
    assert bool(image.notes) is noted


@pytest.mark.parametrize("value", [100_000, -7])
def test_one_grey_beyond_the_agreed_scale_is_black_and_said(value, encode):
    image = decode_image(encode(PIL.Image.fromarray(np.full((4, 4), value, np.int32)), "TIFF"))
    assert np.asarray(image.pil).max() == 0
    assert any("stretched" in note for note in image.notes)


def test_first_frame_of_an_animation(encode):
    second = PIL.Image.new("RGB", (40, 30), (0, 255, 0))
    image = decode_image(encode(scene(), "GIF", save_all=True, append_images=[second]))
    assert np.asarray(image.pil)[20, 5].tolist() == pytest.approx(RED, abs=4)
    assert any("several frames" in note for note in image.notes)


def test_trailing_garbage_is_harmless(encode):
    assert decode_image(encode(scene(), "JPEG") + b"\x00garbage" * 50).width == 40


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises pixels which it does not have."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 10))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8_000, 14_000, 60_000])
def test_bombs_are_refused_from_the_header(side, monkeypatch):
    def decoded(self: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(PIL.Image.Image, "load", decoded)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with pytest.raises(ImageTooLarge, match="pixels"):
        decode_image(png_header(side, side))


def test_a_jpeg_of_thousands_of_scans_is_refused(encode):
    data = encode(scene(), "JPEG", progressive=True)
    scan = data.index(b"\xff\xda")
    bomb = data[:scan] + data[scan:-2] * 300 + b"\xff\xd9"
    with pytest.raises(ImageTooLarge, match="scans"):
        decode_image(bomb)
    assert decode_image(data).width == 40, "a real progressive file passes"


def test_one_changed_byte_in_a_pngs_pixels_is_an_error_not_a_picture(encode):
    rng = np.random.default_rng(0)
    data = encode(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8), "PNG")
    start = data.index(b"IDAT") + 8
    for position in rng.integers(start, len(data) - 20, 40):
        damaged = bytearray(data)
        damaged[position] ^= 0x55
        with pytest.raises(UnreadableImage):
            decode_image(bytes(damaged))


def test_what_a_phone_appends_to_a_jpeg_is_not_counted_as_scans(encode):
    assert decode_image(encode(scene(), "JPEG") + b"\xff\xda" * 5000).width == 40


def test_a_long_chain_of_tiff_pages_costs_nothing(encode):
    pages = [PIL.Image.new("1", (1, 1))] * 3000
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    start = time.process_time()
    image = decode_image(data)
    assert any("several frames" in note for note in image.notes)
    assert time.process_time() - start < 1.0, "walking the chain took seconds"


def test_limits_are_settings(encode):
    data = encode(scene())
    with pytest.raises(ImageTooLarge, match=r"1,200 pixels; the limit is 1,199"):
        decode_image(data, limits=Limits(max_pixels=1199))
    with pytest.raises(ImageTooLarge, match="bytes; the limit is 50"):
        decode_image(data, limits=Limits(max_bytes=50))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_cut_file_is_an_error_not_half_a_picture(format, share, encode):
    rng = np.random.default_rng(0)
    data = encode(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8), format)
    with pytest.raises(ImageError):
        decode_image(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"\xff\xd8\xff"]
)
def test_what_is_no_picture(data):
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert str(caught.value).endswith(".")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_raise_only_our_errors(data):
    format = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]))
    buffer = io.BytesIO()
    scene().save(buffer, format)
    damaged = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode_image(bytes(damaged), limits=Limits(max_pixels=1_000_000))
    except ImageError:
        return
    assert image.pil.mode == "RGB"


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UnreadableImage, match="cannot be read"):
        read_image(tmp_path / "missing.jpg")


def detailed(width: int, height: int) -> PIL.Image.Image:
    """Noise at many scales, fine detail among it."""
    rng = np.random.default_rng(3)
    total = np.zeros((height, width, 3))
    for side in (4, 16, 64, 256):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        total += np.asarray(coarse.resize((width, height), PIL.Image.Resampling.BICUBIC), float) / 4
    return PIL.Image.fromarray(total.astype(np.uint8))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_may_be_decoded_smaller_and_is_seen_alike(encode, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encode(detailed(4000, 3000), "JPEG", quality=92, exif=exif)
    whole = decode_image(data)
    less = decode_image(data, draft=DraftSize(1024, 1600))
    assert (whole.reduction, less.reduction) == (1, 2)
    assert (less.width, less.height) == (whole.width, whole.height)
    assert max(less.pil.size) == 2000
    geometry = Geometry(256, 224, 224, (0.5,) * 3, (0.5,) * 3, "bicubic")
    (x, frame), (y, same) = geometry.prepare(whole), geometry.prepare(less)
    assert frame == same
    # In grey levels of 255.
    assert float((x - y).abs().mean()) * 127.5 < 0.6
    assert float((x - y).abs().max()) * 127.5 < 8
    (moved, frame), (also, same) = (geometry.see_moved(each, 8, -4) for each in (whole, less))
    assert frame == same
    assert np.abs(np.asarray(moved, int) - np.asarray(also, int)).mean() < 0.6


def test_what_is_small_or_no_jpeg_is_decoded_whole(encode):
    draft = DraftSize(1024, 1600)
    for data in (encode(detailed(2000, 1500), "JPEG"), encode(detailed(4000, 3000), "PNG")):
        found = decode_image(data, draft=draft)
        assert found.full_size is None
        assert found.reduction == 1
    assert draft.factor(40_000, 1_000) == 1
    assert draft.factor(20_000, 16_000) == 8


def test_pictures_that_do_not_fit_beside_each_other_wait_until_one_is_let_go():
    budget, most, lock = PixelBudget(1_500_000), 0, threading.Lock()
    data = encoded_scene(1200, 1000)

    def work(_: int) -> None:
        nonlocal most
        image = decode_image(data, budget=budget)
        with lock:
            most = max(most, budget.taken)
        time.sleep(0.01)
        assert image.width == 1200

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(18)))
    assert most == 1_200_000, "two were decoded at once"
    assert budget.taken == 0


def test_the_budget_is_given_back_by_what_fails_and_by_what_is_too_large_for_it():
    data, budget = encoded_scene(1200, 1000), PixelBudget(100)
    for _ in range(3):
        with pytest.raises(UnreadableImage):
            decode_image(data[: len(data) // 2], budget=budget)
        assert budget.taken == 0
    image = decode_image(data, budget=budget)
    with deadline_scope(Deadline(0.2)), pytest.raises(DeadlineExceeded):
        decode_image(data, budget=budget)
    del image
    assert decode_image(data, budget=budget).height == 1000


def encoded_scene(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    scene(width, height).save(buffer, "PNG")
    return buffer.getvalue()
