"""Published weights by name, fetched from their publishers on first use and kept in torch's cache.

>>> deqflow.load("raft-large")

Nothing is fetched but what is named. What came is checked by its hash, or, where none is known, for being whole.
"""

import sys
import urllib.error
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch

from deqflow.model.tensor_files import CheckpointError, read_tensors

TORCHVISION = "https://download.pytorch.org/models"
SEA_RAFT = "https://huggingface.co/MemorySlices"


@dataclass(frozen=True)
class PublishedFile:
    """Where published weights are to be had.

    Attributes:
        address: of the file.
        file: its name in torch's cache.
        sha256: the hash's first hexadecimal digits; empty where none is known.
        licence: of the weights.
        megabytes: to download, 10^6 bytes.
    """

    address: str
    file: str
    sha256: str
    licence: str
    megabytes: float


def _torchvision(file: str, sha256: str, megabytes: float) -> PublishedFile:
    return PublishedFile(f"{TORCHVISION}/{file}", file, sha256, "BSD-3, torchvision", megabytes)


def _sea_raft(size: str, revision: str, sha256: str, megabytes: float) -> PublishedFile:
    address = f"{SEA_RAFT}/Tartan-C-T-TSKH-spring540x960-{size}/resolve/{revision}/model.safetensors"
    return PublishedFile(address, f"sea-raft-{size.lower()}.safetensors", sha256, "BSD-3, SEA-RAFT", megabytes)


PUBLISHED = {
    "raft-large": _torchvision("raft_large_C_T_SKHT_V2-ff5fadd5.pth", "ff5fadd56d26", 21.1),
    "raft-small": _torchvision("raft_small_C_T_V2-01064c6d.pth", "01064c6dba73", 4.0),
    "sea-raft-s": _sea_raft("S", "31b9b4b711bd2d0d0d38cb99d93ba144beb2dc92", "d6a75e47f2630ba6", 35.6),
    "sea-raft-m": _sea_raft("M", "main", "", 78.8),
}


def fetched(name: str) -> Path:
    """The path of published weights in torch's cache; they are downloaded where they are not there yet.

    Args:
        name: a key of ``PUBLISHED``.

    Raises:
        CheckpointError: what came is not what was published.
        FileNotFoundError: nothing came.
    """
    published = PUBLISHED[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / published.file
    if path.is_file():
        return path
    print(f"Downloading {name} ({published.megabytes:g} MB, licence: {published.licence}) to {path}.", file=sys.stderr)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(published.address, str(path), published.sha256 or None, progress=False)
        if not published.sha256:
            _check(path)
    except (RuntimeError, CheckpointError) as error:  # torch.hub keeps no file of another hash
        raise CheckpointError(
            f"The download of {name} is damaged, or another file than was published ({error}): try again, or "
            f"{_by_hand(published, path)}"
        ) from error
    except (urllib.error.URLError, HTTPException, OSError) as error:
        raise FileNotFoundError(f"No network for {name} ({error}): {_by_hand(published, path)}") from error
    return path


def _check(path: Path) -> None:
    """Delete a file that is no whole checkpoint: torch.hub takes a cut download for a whole one."""
    try:
        read_tensors(path)
    except CheckpointError:
        path.unlink()
        raise


def _by_hand(published: PublishedFile, path: Path) -> str:
    return f"download {published.address} and put it at {path}."
