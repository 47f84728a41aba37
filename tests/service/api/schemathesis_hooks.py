"""What the generated requests take for a picture: real ones, and bytes that are none."""

from __future__ import annotations

import io

import PIL.Image
import schemathesis
from hypothesis import strategies as st


def _picture(format: str, side: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.linear_gradient("L").resize((side, side)).convert("RGB").save(buffer, format)
    return buffer.getvalue()


schemathesis.openapi.format(
    "binary", st.sampled_from([_picture("PNG", 40), _picture("JPEG", 300), _picture("WEBP", 64)])
)
