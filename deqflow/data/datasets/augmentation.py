"""RAFT's augmentation (Teed and Deng 2020): colours, erased rectangles, zoom, stretch, flips and a crop."""

from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from deqflow.data.datasets.photometric import Eraser, Jitter
from deqflow.data.datasets.samples import FlowSample, leaves_frame


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """RAFT's augmentation of a pair, which ends with a random crop.

    All randomness comes from the generator that is passed in. A pixel of the result is ``occluded`` if it was occluded
    before, or if its known flow leads out of the crop or into an erased rectangle.

    Attributes:
        crop: height and width of the result, in pixels. A smaller image is enlarged until the crop fits.
        scale: least and greatest zoom, as powers of 2.
        zooms: share of pairs that are zoomed, and perhaps stretched.
        stretch: greatest additional zoom of an axis, as a power of 2; it is drawn for each axis separately.
        stretches: share of zoomed pairs that are stretched.
        flips: share of pairs that are mirrored left to right, and upside down.
        sparse: whether the truth is known at scattered pixels only, as in KITTI and HD1K. Its vectors are then moved,
            not interpolated. The crop may be drawn up to 20 rows above or below and 50 columns beside the image and is
            then moved back into it, which favours the edges.
        jitter: changes of the colours; None for no changes.
        eraser: erases rectangles of the second image; None to erase nothing.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (-0.2, 0.5)
    zooms: float = 0.8
    stretch: float = 0.2
    stretches: float = 0.8
    flips: tuple[float, float] = (0.5, 0.1)
    sparse: bool = False
    jitter: Jitter | None = field(default_factory=Jitter)
    eraser: Eraser | None = field(default_factory=Eraser)

    def __post_init__(self) -> None:
        if min(self.crop) < 16:
            raise ValueError(f"Augmentation expects a crop (height, width) of at least 16 px a side, got {self.crop}.")
        if self.scale[0] > self.scale[1] or self.stretch < 0:
            raise ValueError(
                f"Augmentation expects scale as (least, greatest) and a stretch of at least 0, got {self}."
            )

    def __call__(self, sample: FlowSample, rng: np.random.Generator) -> FlowSample:
        """Augment a sample of any size. The result has the size of the crop."""
        pair = _Pair.of(sample)
        if self.jitter is not None:
            image1, image2 = self.jitter(pair.image1, pair.image2, rng)
            pair = replace(pair, image1=image1, image2=image2)
        if self.eraser is not None:
            image2, erased = self.eraser(pair.image2, rng)
            pair = replace(pair, image2=image2, occluded=pair.occluded | pair.leads_into(erased))
        size = self._size(pair.valid.shape, rng)
        if size != pair.valid.shape:
            pair = pair.resized(size, sparse=self.sparse)
        for axis, share in ((1, self.flips[0]), (0, self.flips[1])):
            if rng.random() < share:
                pair = pair.flipped(axis)
        return pair.cropped(*self._corner(size, rng), *self.crop).sample()

    def _size(self, size: tuple[int, ...], rng: np.random.Generator) -> tuple[int, int]:
        """Draw the height and width to resize to, which are never smaller than the crop."""
        height, width = size
        crop_height, crop_width = self.crop
        zoomed = rng.random() < self.zooms
        zoom = np.exp2([rng.uniform(*self.scale)] * 2)
        if rng.random() < self.stretches:
            zoom = zoom * np.exp2(rng.uniform(-self.stretch, self.stretch, 2))
        if not zoomed and height >= crop_height and width >= crop_width:
            return height, width
        # A few spare pixels leave the crop a choice of positions.
        spare = 1 if self.sparse else 8
        zoom = np.maximum(zoom, max((crop_height + spare) / height, (crop_width + spare) / width))
        return round(height * float(zoom[0])), round(width * float(zoom[1]))

    def _corner(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """Draw the top and left of the crop."""
        free = np.array(size) - np.array(self.crop)
        beyond = np.array([20, 50] if self.sparse else [0, 0])
        top, left = np.clip(rng.integers(-beyond, free + beyond, endpoint=True), 0, free)
        return int(top), int(left)


def dense_augmentation(
    crop: tuple[int, int], scale: tuple[float, float], flips: tuple[float, float] = (0.5, 0.1)
) -> Augmentation:
    """RAFT's augmentation of sets whose truth is known everywhere."""
    return Augmentation(crop=crop, scale=scale, flips=flips)


def sparse_augmentation(
    crop: tuple[int, int], scale: tuple[float, float], flips: tuple[float, float] = (0.5, 0.0)
) -> Augmentation:
    """RAFT's augmentation of KITTI and HD1K: milder colours, alike in both images, and no stretch."""
    jitter = Jitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.3 / np.pi, asymmetric=0.0)
    return Augmentation(crop=crop, scale=scale, flips=flips, stretches=0.0, sparse=True, jitter=jitter)


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A sample in the form that OpenCV takes.

    Attributes:
        image1, image2: (H, W, 3) float32, 0..255.
        flow: (H, W, 2) float32.
        valid, occluded: (H, W) booleans.
    """

    image1: np.ndarray
    image2: np.ndarray
    flow: np.ndarray
    valid: np.ndarray
    occluded: np.ndarray

    @classmethod
    def of(cls, sample: FlowSample) -> "_Pair":
        image1, image2, flow = (_last(part) for part in (sample.image1, sample.image2, sample.flow))
        return cls(
            image1=image1, image2=image2, flow=flow, valid=sample.valid.numpy(), occluded=sample.occluded.numpy()
        )

    def sample(self) -> FlowSample:
        image1, image2, flow = (_first(part) for part in (self.image1, self.image2, self.flow))
        valid, occluded = (torch.from_numpy(np.ascontiguousarray(part)) for part in (self.valid, self.occluded))
        return FlowSample(image1, image2, flow, valid, occluded | (valid & leaves_frame(flow)))

    def leads_into(self, region: np.ndarray) -> np.ndarray:
        """A mask of the pixels whose known flow leads into a region (H, W) of the second image."""
        if not region.any():
            return np.zeros_like(self.valid)
        height, width = region.shape
        columns = np.rint(np.arange(width) + self.flow[..., 0])
        rows = np.rint(np.arange(height)[:, None] + self.flow[..., 1])
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height) & self.valid
        into = np.zeros_like(self.valid)
        into[inside] = region[rows[inside].astype(int), columns[inside].astype(int)]
        return into

    def resized(self, size: tuple[int, int], *, sparse: bool) -> "_Pair":
        """The pair at another height and width. The flow's vectors are scaled with it."""
        image1, image2 = (_resize(image, size, cv2.INTER_LINEAR) for image in (self.image1, self.image2))
        if sparse:
            flow, valid, occluded = self._scattered(size)
        else:
            ratio = np.array([size[1] / self.valid.shape[1], size[0] / self.valid.shape[0]], np.float32)
            # A vector that is interpolated from an unknown one is unknown.
            valid = _resize(self.valid.astype(np.float32), size, cv2.INTER_LINEAR) > 0.999
            flow = _resize(self.flow, size, cv2.INTER_LINEAR) * ratio * valid[..., None]
            occluded = _resize(self.occluded.astype(np.uint8), size, cv2.INTER_NEAREST) > 0
        return _Pair(image1=image1, image2=image2, flow=flow, valid=valid, occluded=occluded)

    def _scattered(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flow, validity and occlusion at another size: each known vector moves with its pixel.

        If several vectors reach one pixel, one of them is kept.
        """
        ratio = np.array([size[0] / self.valid.shape[0], size[1] / self.valid.shape[1]])
        rows, columns = np.nonzero(self.valid)
        down = ((rows + 0.5) * ratio[0]).astype(int)
        across = ((columns + 0.5) * ratio[1]).astype(int)
        flow, valid, occluded = np.zeros((*size, 2), np.float32), np.zeros(size, bool), np.zeros(size, bool)
        flow[down, across] = self.flow[rows, columns] * ratio[::-1]
        valid[down, across] = True
        occluded[down, across] = self.occluded[rows, columns]
        return flow, valid, occluded

    def flipped(self, axis: int) -> "_Pair":
        """The pair mirrored along an axis: 0 is vertical, 1 is horizontal."""
        sign = np.array([-1, 1] if axis == 1 else [1, -1], np.float32)
        parts = {name: np.flip(part, axis) for name, part in vars(self).items()}
        return _Pair(**parts | {"flow": parts["flow"] * sign})

    def cropped(self, top: int, left: int, height: int, width: int) -> "_Pair":
        return _Pair(**{name: part[top : top + height, left : left + width] for name, part in vars(self).items()})


def _last(part: Tensor) -> np.ndarray:
    """(C, H, W) -> (H, W, C)."""
    return np.ascontiguousarray(part.permute(1, 2, 0).numpy())


def _first(part: np.ndarray) -> Tensor:
    """(H, W, C) -> (C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1), np.float32))


def _resize(part: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    return cv2.resize(part, size[::-1], interpolation=interpolation)
