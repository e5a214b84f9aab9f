"""Where a number comes from: commit, versions, hardware, weights. Stored with every result."""

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

PACKAGES = ("deqflow", "torch", "numpy", "opencv-python-headless", "scikit-image", "scipy")


def provenance(folder: str | Path = ".") -> dict[str, Any]:
    """Return commit, whether the working tree differs from it, versions and hardware, as json can hold them.

    Args:
        folder: a folder of the checkout. For any other folder, commit is None.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    return {
        "commit": commit,
        "modified": None if commit is None else bool(_git(folder, "status", "--porcelain")),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
        "hardware": hardware(),
    }


def digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights and buffers: equal for equal weights, on any device."""
    tensors = (tensor.detach().cpu().contiguous() for tensor in model.state_dict().values())
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def hardware() -> dict[str, Any]:
    """Return the processor, its cores, torch's threads, the names of the GPUs, and the system."""
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
