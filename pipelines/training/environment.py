"""What a run ran on: packages, git commit, machine, and how busy it was."""

from __future__ import annotations

import os
import platform
import resource
import time
from importlib.metadata import distributions, version
from pathlib import Path

import psutil

_PAUSE_MS = 5000


def package_versions() -> dict[str, str]:
    """Return versions of what decides a model's bits, as tags."""
    named = ("camera-lucida", "torch", "torchvision", "captum", "pillow", "numpy")
    return {
        "version.python": platform.python_version(),
        **{f"version.{name}": version(name) for name in named},
    }


def describe_environment() -> str:
    """List interpreter, machine and every installed distribution, a line each."""
    installed = sorted(
        {f"{distribution.name}=={distribution.version}" for distribution in distributions()}, key=str.lower
    )
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    return "\n".join([f"# Python {platform.python_version()}", f"# {platform.platform()}", f"# {machine}",
                      *installed]) + "\n"  # fmt: skip


def git_tags(folder: Path) -> dict[str, str]:
    """Return the commit of the repository around a folder, and whether it has uncommitted changes; nothing
    outside of one.
    """
    try:
        # Its import fails where there is no git, which is no reason not to train.
        from git import GitError, Repo
    except ImportError:
        return {}
    try:
        with Repo(folder, search_parent_directories=True) as repository:
            commit = repository.head.commit.hexsha
            return {"mlflow.source.git.commit": commit, "git.changed": str(repository.is_dirty()).lower()}
    except (GitError, ValueError, OSError):
        return {}


def peak_memory_mb() -> float:
    """Return most memory that this process ever held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class SystemMetrics:
    """Load of the machine under the names that MLflow's system metrics page draws, every five seconds at
    most.
    """

    def __init__(self, started_ms: int) -> None:
        """Start to measure; samples are numbered by the time since the run was started, so that a resumed run
        goes on.
        """
        self._process, self._started_ms, self._last = psutil.Process(), started_ms, -1
        psutil.cpu_percent()

    def sample(self) -> tuple[int, dict[str, float]] | None:
        """Return (number of the sample, metrics), or None when the last one is not old enough."""
        number = int((time.time() * 1000 - self._started_ms) / _PAUSE_MS)
        if number <= self._last:
            return None
        self._last = number
        memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
        return number, {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_memory_usage_megabytes": self._process.memory_info().rss / 1e6,
            "system/disk_usage_percentage": disk.percent,
        }
