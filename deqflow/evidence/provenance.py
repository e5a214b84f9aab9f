"""Where a number comes from: commit, versions, hardware. Stored with every result."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("deqflow", "torch", "numpy", "opencv-python-headless", "scikit-image", "scipy")


def provenance(folder: str | Path = ".") -> dict[str, Any]:
    """Return commit, whether the working tree differs from it, versions and hardware, as json can hold them.

    Args:
        folder: a folder of the checkout; outside of one, commit is None.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    return {
        "commit": commit,
        "modified": None if commit is None else bool(_git(folder, "status", "--porcelain")),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
        "hardware": hardware(),
    }


def hardware() -> dict[str, Any]:
    """Return processor, cores, threads of torch, names of GPUs and the system's name."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(folder: str | Path, *arguments: str) -> str | None:
    try:
        run = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()
