"""Base of all published sets: lists of files, checked when a set is opened, and samples read from these files."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from deqflow.data.datasets.samples import FlowSample, leaves_frame
from deqflow.data.flow_files import has_hidden_part, read_flow, read_image

ADVICE = "data/README.md says where each set comes from and how it must lie."


class SetNotFoundError(FileNotFoundError):
    """A set, or the part of it that was asked for, does not exist. The error message says what is expected where."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairFiles:
    """The paths of the files of a sample.

    Attributes:
        image1, image2: the two images.
        flow: the flow from the first to the second image.
        occlusion: the file from which the occlusion of the first image is read, or None.
    """

    image1: Path
    image2: Path
    flow: Path
    occlusion: Path | None = None


class FlowDataset(torch.utils.data.Dataset[FlowSample]):
    """Pairs of images with true flow, read from their files on demand.

    A pixel is ``occluded`` if the set says so, or if its known flow leaves the frame.

    Args:
        files: the files of the pairs, in order. All files must exist. They are checked now, so that a missing file does
            not stop a training hours later.

    Attributes:
        sparse: whether the truth is known at scattered pixels only, so that it must not be interpolated.

    Raises:
        FileNotFoundError: a file is missing.
    """

    sparse: bool = False

    def __init__(self, files: Iterable[PairFiles]) -> None:
        self.files = tuple(files)
        # List each folder once: checking a quarter of a million files one by one takes minutes on a network disk.
        listing = cache(_names)
        for pair in self.files:
            for field in fields(pair):
                path = getattr(pair, field.name)
                if path is not None and path.name not in listing(path.parent):
                    raise FileNotFoundError(
                        f"{type(self).__name__} is incomplete: expected the {field.name} of {pair.flow.name} "
                        f"at {path}. Unpack or copy the set again. {ADVICE}"
                    )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> FlowSample:
        """Read a sample.

        Raises:
            IndexError: the index is out of range.
            ValueError: a file is damaged, or the sizes of a pair's files differ.
        """
        files = self.files[index]
        image1, image2 = read_image(files.image1)[0], read_image(files.image2)[0]
        flow, valid = self._flow(files.flow)
        occluded = torch.zeros_like(valid) if files.occlusion is None else self._occluded(files.occlusion, valid)
        parts = {"first": image1, "second": image2, "flow": flow, "occlusion": occluded}
        sizes = {name: f"{part.shape[-1]}x{part.shape[-2]}" for name, part in parts.items()}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(f"{files.flow} and its images must have one size, got {told}: copy the set again.")
        return FlowSample(image1, image2, flow, valid, occluded | (valid & leaves_frame(flow)))

    def _flow(self, path: Path) -> tuple[Tensor, Tensor]:
        """Read the truth at the size of the images: flow (2, H, W), valid (H, W). Spring overrides it."""
        return read_flow(path)

    def _occluded(self, path: Path, valid: Tensor) -> Tensor:
        """Read where the first image is occluded, from a mask that is white there. KITTI overrides it."""
        return read_image(path)[0, 0] >= 128


def _names(folder: Path) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def expected_folder(folder: Path, what: str) -> Path:
    """Return the folder if it exists.

    Raises:
        SetNotFoundError: there is no such folder. The error message says what is expected there.
    """
    if not folder.is_dir():
        raise SetNotFoundError(f"No folder at {folder}: expected {what} there. {ADVICE}")
    return folder


def expected_files(folder: Path, pattern: str, what: str) -> list[Path]:
    """The files in a folder that match a pattern, sorted, without those in whose path a name begins with a dot.

    Raises:
        SetNotFoundError: there is no such folder, or no file in it matches.
    """
    matching = expected_folder(folder, what).glob(pattern)
    found = sorted(path for path in matching if not has_hidden_part(path.relative_to(folder)))
    if not found:
        raise SetNotFoundError(f"Nothing to read in {folder}: expected {what} there. {ADVICE}")
    return found


def one_of(value: str, choices: tuple[str, ...], what: str) -> str:
    """Return the value if it is one of the choices.

    Raises:
        ValueError: it is none of them.
    """
    if value not in choices:
        raise ValueError(f"Expected {what} to be one of {', '.join(choices)}, got {value!r}.")
    return value


def some_of(values: tuple[str, ...], choices: tuple[str, ...], what: str) -> None:
    """Check that the values are some of the choices.

    Raises:
        ValueError: ``values`` is a string, is empty, or contains something else.
    """
    if not values or isinstance(values, str) or not set(values) <= set(choices):
        raise ValueError(f"Expected {what} to be a tuple of some of {', '.join(choices)}, got {values!r}.")
