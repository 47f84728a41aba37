"""Everything that can be set from outside, each by an environment variable LUCIDA_<NAME>."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

EngineName = Literal["auto", "eager", "compile", "openvino"]
"""As in models.backends, whose import would bring torch into the server's supervisor."""


def count_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return cores that this process may use: fewer than the machine has where it, or its container, was
    given fewer.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
        return max(1, min(cores, math.ceil(int(allowed) / int(period))))
    except (OSError, ValueError):
        # No such file, or "max": no limit.
        return cores


def count_gpus(driver: Path = Path("/proc/driver/nvidia/gpus")) -> int:
    """Return NVIDIA GPUs that this process may use, by the driver's list and CUDA_VISIBLE_DEVICES; without
    torch, whose import the server's supervisor does not need.
    """
    present = len(list(driver.glob("*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))


def count_workers(device: str) -> int:
    """Return workers for a device setting: one for each GPU, or for each core where the model runs there."""
    gpus = count_gpus()
    if device == "cpu" or (device == "auto" and gpus == 0):
        return count_cores()
    return max(1, gpus) if device in ("auto", "cuda") else 1


def device_of_worker(device: str, worker: int) -> str:
    """Return the device of a worker, the first being number 1: where there are several GPUs, its own."""
    gpus = count_gpus()
    return f"cuda:{(worker - 1) % gpus}" if device in ("auto", "cuda") and gpus > 1 else device


def state_home() -> Path:
    """Return the folder in which programs keep their state; a temporary one for a user without a home."""
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"state-{os.getuid()}"


class Settings(BaseSettings):
    """Limits and resources of the service."""

    model_config = SettingsConfigDict(
        env_prefix="LUCIDA_", frozen=True, extra="forbid", hide_input_in_errors=True
    )

    bundle: Path | None = Field(
        None,
        description="Serve this bundle folder instead of a packaged Bento model; may be a link, which can "
        "be turned to another bundle while the service runs.",
    )
    bento_model: str | None = Field(
        None,
        description="Bento model to serve, NAME or NAME:VERSION, where the store has several; a Bento serves "
        "its own.",
    )
    allow_exported: bool = Field(
        False,
        description="Whether a bundle with an exported program may be loaded: torch's loader of programs is "
        "not safe against a hostile file.",
    )
    public_key: Path | None = Field(
        None,
        description="ed25519 public key in PEM; with one, only a bundle that its owner signed is served.",
    )
    watch_seconds: float = Field(
        5.0, ge=0, description="How often to look for another bundle to change over to; 0 for never."
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?|mps)$",
        description="Where the model computes: cpu, cuda, cuda:N or mps; auto takes the fastest that is "
        "there, and of several GPUs one for each worker.",
    )
    engine: EngineName = Field(
        "auto",
        description="What runs the blocks: eager (torch), compile (torch.compile) or openvino (extra fast); "
        "auto times those that are there and takes the fastest that agrees.",
    )
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto",
        description="Of the engine: fp32, bf16 (where the processor has it) or int8 (where the bundle has "
        "int8 blocks). auto lets a chosen engine have any, and stands for fp32 with one that was set.",
    )
    workers: int = Field(
        default_factory=lambda data: count_workers(data.get("device", "auto")),
        ge=1,
        description="Worker processes, each with the model; one for each core, or for each GPU.",
    )
    torch_threads: int = Field(1, ge=1, description="Threads that torch takes in a worker.")
    request_threads: int = Field(
        4, ge=1, description="Pictures decoded, explained or drawn at once in a worker, beside the model."
    )
    max_batch: int = Field(
        8, ge=1, description="Most pictures that the model runs at once; 1 for no batches."
    )
    max_queue: int = Field(
        32, ge=0, description="Pictures that may wait in a worker; beyond them 503 with Retry-After."
    )
    deadline_ms: int = Field(10_000, ge=1, description="Longest that one request may take.")
    header_seconds: float = Field(
        10.0, gt=0, description="Longest that a new connection may take to send a request's header."
    )
    keep_alive_seconds: float = Field(
        75.0, gt=0,
        description="How long a connection may wait for its next request. Longer than the pools of clients "
        "and the load balancer before us keep one, so that none is closed while they use it.",
    )  # fmt: skip
    max_idle_connections: int = Field(
        400, ge=1, description="Connections that wait for a request in a worker; beyond them the oldest go."
    )
    allowed_hosts: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="Names, with commas between, under which the service may be asked where there are no "
        "keys, besides localhost and any address; *.example.org for all below one, * for any.",
    )
    root_path: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="Path under which a proxy offers the service, such as /lucida.",
    )
    upload_seconds: float = Field(20.0, gt=0, description="Longest that sending a request may take.")
    max_uploads_bytes: int = Field(
        300_000_000, ge=1_000, description="Bytes of uploads that a worker holds at once, jobs' among them."
    )
    max_body_bytes: int = Field(20_000_000, ge=1_000, description="Longest request body that is read.")
    max_pictures: int = Field(16, ge=1, description="Most pictures in one request.")
    max_pixels: int = Field(
        50_000_000, ge=1, description="Largest width x height of a picture, from its header."
    )
    max_pixels_at_once: int = Field(
        64_000_000,
        ge=1,
        description="Decoded pixels that a worker holds at once, up to 13 bytes each; others wait.",
    )
    max_scans: int = Field(200, ge=1, description="Most scans of a JPEG.")
    max_top_k: int = Field(20, ge=1, description="Most classes explained in one request.")
    max_forwards: int = Field(
        4_000, ge=1, description="Most forwards that one explanation may take, as far as can be told before."
    )
    max_overlay_side: int = Field(1600, ge=64, description="Longest side of an overlay in pixels.")
    api_keys: dict[str, str] = Field(
        default_factory=dict,
        description='JSON, {"name": "sha256 of the key, hexadecimal"}; with any, every route but /livez and '
        "/readyz asks for a key. `lucida key NAME` makes one.",
    )
    key_per_minute: int = Field(600, ge=1, description="Requests of one key in a minute; beyond them 429.")
    novelty: bool = Field(
        True, description="Whether answers say how unusual a picture is, where the bundle has a reference."
    )
    keep_samples: Path | None = Field(
        None,
        description="Folder in which unusual pictures are kept as they were sent, for somebody to look at; "
        "none are kept without.",
    )
    max_kept_bytes: int = Field(
        100_000_000, ge=1_000, description="Bytes of the pictures kept; beyond them the oldest go."
    )
    samples: Path | None = Field(
        None,
        description="Folder of pictures that the page offers to try; those packaged with the model without.",
    )
    log_requests: bool = Field(True, description="One line of JSON a request on standard error.")
    jobs: Path = Field(
        default_factory=lambda: state_home() / "camera-lucida/jobs",
        description="Folder of the jobs, their pictures and results, and of the service's figures. As a "
        "default, a folder within this one, of what is served and of the port.",
    )
    jobs_url: str | None = Field(
        None,
        pattern=r"^(s3|gs|az)://[^/\s?#]+(/[^\s?#]*)?$",
        description="Where the jobs lie instead, in an object store that several replicas share, as "
        "s3://bucket/service. Credentials come from that store's own variables.",
    )
    max_jobs: int = Field(50, ge=0, description="Jobs waiting or running; beyond them 429. 0 for no jobs.")
    max_jobs_bytes: int = Field(
        5_000_000_000, ge=1_000,
        description="Bytes of the jobs' folder; jobs that have ended go for new ones, and beyond them 507.",
    )  # fmt: skip
    max_job_bytes: int = Field(200_000_000, ge=1_000, description="Longest request body of a job.")
    max_job_pictures: int = Field(500, ge=1, description="Most pictures of a job.")
    job_hours: float = Field(24.0, gt=0, description="How long a job that has ended is kept.")
    max_kept_jobs: int = Field(
        200, ge=1, description="Jobs that have ended and are kept; the oldest go first."
    )
    job_minutes: float = Field(60.0, gt=0, description="Longest that one job may run.")

    @model_validator(mode="after")
    def _possible(self) -> Settings:
        """Raise ValueError where one request may bring more than there is memory for at all."""
        for name in ("max_body_bytes", "max_job_bytes"):
            if getattr(self, name) > self.max_uploads_bytes:
                raise ValueError(
                    f"LUCIDA_{name.upper()} is {getattr(self, name):,}, more than LUCIDA_MAX_UPLOADS_BYTES "
                    f"{self.max_uploads_bytes:,}, so that no such request would ever be let in"
                )
        return self

    @property
    def most_pictures(self) -> int:
        """In one request: no more than can be at work and waiting."""
        return min(self.max_pictures, self.request_threads + self.max_queue)

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, names: Any) -> Any:
        return (
            [name.strip().lower() for name in names.split(",") if name.strip()]
            if isinstance(names, str)
            else names
        )

    @field_validator("api_keys")
    @classmethod
    def _hashed(cls, keys: dict[str, str]) -> dict[str, str]:
        for name, digest in keys.items():
            if len(digest) != 64 or set(digest.lower()) - set("0123456789abcdef"):
                raise ValueError(
                    f"the key {name!r} must be given as its sha256, 64 hexadecimal digits, not as it is"
                )
        return {name: digest.lower() for name, digest in keys.items()}
