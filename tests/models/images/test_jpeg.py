"""Segments and scans of a JPEG, counted before a decoder sees them."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest

from models.errors import ImageTooLarge
from models.images.decode import decode_image
from models.images.jpeg import count_scans


def encoded(**options: object) -> bytes:
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def with_segments(data: bytes, segment: bytes, count: int) -> bytes:
    return data[:2] + segment * count + data[2:]


def test_fifty_thousand_comments_are_a_valid_picture():
    plain = encoded()
    commented = with_segments(plain, b"\xff\xfe\0\x0acomment.", 50_000)
    pixels = [np.asarray(decode_image(data).pil) for data in (plain, commented)]
    np.testing.assert_array_equal(*pixels)


@pytest.mark.parametrize(
    ("segment", "kind"),
    [(b"\xff\xe1\0\x0aExif\0\0xx", "1,000 EXIF segments"), (b"\xff\xfe\0\x02", "200,000 segments")],
    ids=["EXIF", "comments"],
)
def test_a_million_segments_are_refused_before_a_decoder_sees_them(segment, kind, monkeypatch):
    """Pillow takes two minutes for the first, and two seconds for the other."""
    bomb = with_segments(encoded(), segment, 1_000_000)
    monkeypatch.delattr(PIL.Image, "open")
    with pytest.raises(ImageTooLarge, match=kind):
        decode_image(bomb)


def test_scans_are_counted_as_pillow_writes_them():
    assert count_scans(encoded(), 10) == 1
    assert count_scans(encoded(progressive=True), 100) > 5
    assert count_scans(encoded(progressive=True), 3) == 4, "no further than one more than enough"
    assert count_scans(b"GIF89a", 10) == 1


def test_what_follows_the_end_is_not_counted():
    whole = encoded()
    assert count_scans(whole + whole * 3, 10) == 1
