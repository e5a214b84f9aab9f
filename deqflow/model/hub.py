"""Published weights by name, downloaded from their publishers on first use and kept in torch's cache.

>>> deqflow.load("raft-large")

Only the named file is downloaded. It is checked by its hash; if no hash is known, it must be a complete checkpoint.
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
    """Where published weights can be downloaded.

    Attributes:
        address: URL of the file.
        file: name of the file in torch's cache.
        sha256: the first hexadecimal digits of the file's hash; empty if none is known.
        licence: licence of the weights.
        megabytes: size of the download in 10^6 bytes.
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
    """The path of published weights in torch's cache; they are downloaded if they are not there yet.

    Args:
        name: a key of ``PUBLISHED``.

    Raises:
        CheckpointError: the download is damaged, or another file than was published.
        FileNotFoundError: the download failed.
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
    """Delete a file that is not a complete checkpoint: torch.hub does not notice that a download was cut off."""
    try:
        read_tensors(path)
    except CheckpointError:
        path.unlink()
        raise


def _by_hand(published: PublishedFile, path: Path) -> str:
    return f"download {published.address} and put it at {path}."
