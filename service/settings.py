"""Everything that can be set from outside, each by an environment variable LUCIDA_<NAME>."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

EngineName = Literal["eager", "openvino"]
"""As in models.engines, whose import would bring torch into the server's supervisor."""


class Settings(BaseSettings):
    """Limits and resources of the service."""

    model_config = SettingsConfigDict(env_prefix="LUCIDA_", frozen=True, extra="forbid")

    bundle: Path | None = Field(
        None, description="Serve this bundle folder instead of the packaged Bento model."
    )
    engine: EngineName = Field("eager", description="What runs the blocks: eager, or openvino (extra fast).")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Of the engine: fp32, or bf16 (openvino, where the processor has it)."
    )
    max_body_bytes: int = Field(20_000_000, ge=1_000, description="Longest request body that is read.")
    max_pixels: int = Field(
        50_000_000, ge=1, description="Largest width x height of a picture, from its header."
    )
    max_scans: int = Field(200, ge=1, description="Most scans of a JPEG.")
    max_top_k: int = Field(20, ge=1, description="Most classes explained in one request.")
    max_forwards: int = Field(
        4_000, ge=1, description="Most forwards that one explanation may take, as far as can be told before."
    )
    max_overlay_side: int = Field(1600, ge=64, description="Longest side of an overlay in pixels.")
    request_threads: int = Field(
        default_factory=lambda: max(2, os.cpu_count() or 1),
        ge=1,
        description="Requests worked on at once in a process.",
    )
    torch_threads: int = Field(1, ge=1, description="Threads that torch takes for one request.")
