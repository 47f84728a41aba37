"""The structure of a JPEG file, looked at before a decoder is: its segments and its scans.

Each costs a decoder time that no limit of bytes or pixels bounds: a scan is a pass over all pixels, and
Pillow joins the EXIF segments of a file one by one, in quadratic time.
"""

from __future__ import annotations

import re

from models.errors import ImageTooLarge

_MAX_SEGMENTS = 200_000
"""A quarter of a second in Pillow. Real files have some hundreds at most."""
_MAX_EXIF_SEGMENTS = 1_000
"""16 for each of 64 kilobytes that a large maker's note may need; a thousand take some milliseconds."""
_START, _START_OF_SCAN, _END_OF_IMAGE, _APP1 = b"\xff\xd8", 0xDA, 0xD9, 0xE1
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
"""A segment's marker: neither a stuffed byte, nor a restart, nor one that stands alone."""


def count_scans(data: bytes, enough: int) -> int:
    """Return the scans of a JPEG up to its end marker, counted to ``enough`` + 1; 1 for what is no JPEG.

    Raises ImageTooLarge for a file of more segments than any camera or program writes.
    """
    if not data.startswith(_START):
        return 1
    position, scans, segments, exif_segments = 2, 0, 0, 0
    while match := _MARKER.search(data, position):
        start, marker = match.end(), data[match.end() - 1]
        if marker == _END_OF_IMAGE or scans > enough:
            break
        scans += marker == _START_OF_SCAN
        exif_segments += marker == _APP1 and data.startswith(b"Exif", start + 2)
        segments += 1
        _check(segments, _MAX_SEGMENTS, "segments")
        _check(exif_segments, _MAX_EXIF_SEGMENTS, "EXIF segments")
        position = start + max(int.from_bytes(data[start : start + 2], "big"), 2)
    return scans


def _check(count: int, most: int, kind: str) -> None:
    if count > most:
        raise ImageTooLarge(f"The JPEG has more than {most:,} {kind}, which is the limit.")
