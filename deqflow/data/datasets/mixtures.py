"""Mixtures of augmented data sets by weight, as the published training stages use them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from deqflow.data.datasets.augmentation import dense_augmentation, sparse_augmentation
from deqflow.data.datasets.benchmarks import HD1K, FlyingChairs, FlyingThings3D, Kitti, Sintel
from deqflow.data.datasets.folders import open_set
from deqflow.data.datasets.samples import FlowSample

Stage = Literal["chairs", "things", "sintel", "kitti"]


class Samples(Protocol):
    """Samples by index: a list, or a set such as a :class:`deqflow.data.datasets.FlowDataset`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> FlowSample: ...


@dataclass(frozen=True, kw_only=True)
class Part:
    """A set in a mixture.

    Attributes:
        dataset: the set.
        augmentation: the augmentation of its samples.
        weight: the number of times that each of its samples occurs in an epoch.
    """

    dataset: Samples
    augmentation: Callable[[FlowSample, np.random.Generator], FlowSample]
    weight: int = 1

    def __post_init__(self) -> None:
        if self.weight < 1:
            raise ValueError(f"Part expects a weight of at least 1, got {self.weight}.")


class Mixture(torch.utils.data.Dataset[FlowSample]):
    """Several sets, augmented and shuffled, for any number of epochs.

    Item i is in epoch ``i // len(mixture)``. In each epoch every sample occurs as often as its part's weight says; each
    epoch has a different order and different augmentations. An item depends only on (seed, index), not on the process
    that makes it. So a loader needs no shuffling and no seeds for its workers, and a run can resume at any step. The
    same indices always give the same items, so continue the indices from epoch to epoch::

        DataLoader(mixture, batch_size=6, sampler=range(first_step * 6, last_step * 6), num_workers=4)

    Args:
        parts: the sets.
        seed: the seed of the order and the augmentations, at least 0.

    Raises:
        ValueError: there are no parts, or the seed is negative.
    """

    def __init__(self, parts: Sequence[Part], *, seed: int = 0) -> None:
        if not parts or seed < 0:
            raise ValueError(
                f"Mixture expects at least one part and a seed of at least 0, got {len(parts)} and {seed}."
            )
        self.parts, self.seed = tuple(parts), seed
        # Where each part begins in an epoch before shuffling, and where the last part ends.
        self._starts = np.cumsum([0, *(len(part.dataset) * part.weight for part in parts)])
        self._order = (-1, np.zeros(0, np.int64))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[FlowSample]:
        """The first epoch."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> FlowSample:
        part, item = self.locate(index)
        epoch, place = divmod(index, len(self))
        rng = np.random.default_rng([self.seed, epoch, place])
        return part.augmentation(part.dataset[item], rng)

    def locate(self, index: int) -> tuple[Part, int]:
        """The part that an item is made from, and the item's index in the part's set.

        Raises:
            IndexError: the index is negative.
        """
        if index < 0:
            raise IndexError(f"Expected an index of at least 0, got {index}.")
        epoch, place = divmod(index, len(self))
        if self._order[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self))
            self._order = (epoch, order)
        entry = int(self._order[1][place])
        number = int(np.searchsorted(self._starts, entry, side="right")) - 1
        part = self.parts[number]
        return part, (entry - int(self._starts[number])) % len(part.dataset)


def stage_mixture(stage: Stage, root: Path, *, crop: tuple[int, int], seed: int) -> Mixture:
    """The mixture of a published training stage (Teed and Deng 2020; Bai et al. 2022 use the same).

    "chairs": FlyingChairs' training split. "things": FlyingThings3D, clean and final. "sintel": Sintel clean and
    final 100 times each, KITTI 2015 200 times, HD1K 5 times, FlyingThings3D clean once. "kitti": KITTI 2015.

    Args:
        stage: the name of the stage.
        root: the folder that holds the sets' folders, such as ``data``.
        crop: height and width of the samples, in pixels.
        seed: the seed of the order and the augmentations.

    Raises:
        FileNotFoundError: a set, or a file of one, is missing.
        ValueError: the stage is unknown, or the crop is too small.
    """
    if stage not in STAGES:
        raise ValueError(f"Expected stage to be one of {', '.join(STAGES)}, got {stage!r}.")
    return Mixture(STAGES[stage](Path(root), crop), seed=seed)


def _chairs(root: Path, crop: tuple[int, int]) -> list[Part]:
    chairs = open_set(root, "chairs", lambda folder: FlyingChairs(folder, "train"))
    return [Part(dataset=chairs, augmentation=dense_augmentation(crop, (-0.1, 1.0)))]


def _things(root: Path, crop: tuple[int, int]) -> list[Part]:
    augmentation = dense_augmentation(crop, (-0.4, 0.8))
    clean = open_set(root, "things", lambda folder: FlyingThings3D(folder, render="clean"))
    final = open_set(root, "things", lambda folder: FlyingThings3D(folder, render="final"))
    return [Part(dataset=clean, augmentation=augmentation), Part(dataset=final, augmentation=augmentation)]


def _sintel(root: Path, crop: tuple[int, int]) -> list[Part]:
    dense = dense_augmentation(crop, (-0.2, 0.6))
    kitti, hd1k = sparse_augmentation(crop, (-0.3, 0.5)), sparse_augmentation(crop, (-0.5, 0.2))
    clean = open_set(root, "sintel", lambda folder: Sintel(folder, "clean"))
    final = open_set(root, "sintel", lambda folder: Sintel(folder, "final"))
    return [
        Part(dataset=clean, augmentation=dense, weight=100),
        Part(dataset=final, augmentation=dense, weight=100),
        Part(dataset=open_set(root, "kitti-2015", Kitti), augmentation=kitti, weight=200),
        Part(dataset=open_set(root, "hd1k", HD1K), augmentation=hd1k, weight=5),
        Part(dataset=open_set(root, "things", FlyingThings3D), augmentation=dense),
    ]


def _kitti(root: Path, crop: tuple[int, int]) -> list[Part]:
    # No flips: in a mirrored image, cars would drive on the left.
    augmentation = sparse_augmentation(crop, (-0.2, 0.4), (0.0, 0.0))
    return [Part(dataset=open_set(root, "kitti-2015", Kitti), augmentation=augmentation)]


STAGES: dict[str, Callable[[Path, tuple[int, int]], list[Part]]] = {
    "chairs": _chairs,
    "things": _things,
    "sintel": _sintel,
    "kitti": _kitti,
}
