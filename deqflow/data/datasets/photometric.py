"""The colour part of RAFT's augmentation: jitter, and rectangles erased from the second image."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Random changes of colour, in random order, as in RAFT (Teed and Deng 2020, section 4 and supplement).

    Attributes:
        brightness, contrast, saturation: greatest change of each factor, which is drawn from 1 - x to 1 + x.
        hue: greatest turn of the colour circle, in turns.
        asymmetric: share of pairs whose two images are changed independently; in all others both change alike.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.5 / np.pi
    asymmetric: float = 0.2

    def __post_init__(self) -> None:
        factors = (self.brightness, self.contrast, self.saturation)
        if not all(0 <= change <= 1 for change in factors) or not 0 <= self.hue <= 0.5:
            raise ValueError(f"Jitter expects changes of factors from 0 to 1 and a hue from 0 to 0.5, got {self}.")

    def __call__(
        self, image1: np.ndarray, image2: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Change two images (H, W, 3), float32 RGB in 0..255."""
        if rng.random() < self.asymmetric:
            return self.change(image1, rng), self.change(image2, rng)
        # Change both as one image, so that they also share the mean grey that contrast is measured from.
        both = self.change(np.concatenate([image1, image2]), rng)
        return both[: len(image1)], both[len(image1) :]

    def change(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change one image (H, W, 3), float32 RGB in 0..255."""
        strengths = np.array([self.brightness, self.contrast, self.saturation])
        bright, contrast, saturation = (float(factor) for factor in 1 + rng.uniform(-1, 1, 3) * strengths)
        turn = float(rng.uniform(-self.hue, self.hue))
        changes: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
            lambda pixels: pixels * bright,
            lambda pixels: _blend(pixels, np.float32(_grey(pixels).mean()), contrast),
            lambda pixels: _blend(pixels, _grey(pixels)[..., None], saturation),
            lambda pixels: turn_hue(pixels, turn),
        )
        for number in rng.permutation(len(changes)):
            image = np.clip(changes[number](image), 0, 255)
        return image


@dataclass(frozen=True, kw_only=True)
class Eraser:
    """Rectangles of the second image filled with its mean colour, so that what was there is hidden.

    Attributes:
        share: the share of pairs that are changed.
        rectangles: least and greatest number of rectangles.
        sides: least and greatest length of a side, in pixels; what extends beyond the image is cut off.
    """

    share: float = 0.5
    rectangles: tuple[int, int] = (1, 2)
    sides: tuple[int, int] = (50, 100)

    def __post_init__(self) -> None:
        if not 0 < self.rectangles[0] <= self.rectangles[1] or not 0 < self.sides[0] <= self.sides[1]:
            raise ValueError(f"Eraser expects rectangles and sides as (least, greatest), above 0, got {self}.")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return the image, (H, W, 3), with rectangles, and a mask of them, (H, W)."""
        erased = np.zeros(image.shape[:2], bool)
        if rng.random() < self.share:
            for _ in range(rng.integers(self.rectangles[0], self.rectangles[1], endpoint=True)):
                y, x = rng.integers(0, image.shape[:2])
                down, across = rng.integers(self.sides[0], self.sides[1], 2, endpoint=True)
                erased[y : y + down, x : x + across] = True
            image = np.where(erased[..., None], image.mean((0, 1)), image)
        return image, erased


def turn_hue(image: np.ndarray, turns: float) -> np.ndarray:
    """Turn the colour circle of an image (H, W, 3), float32 RGB."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)  # hue in degrees
    hsv[..., 0] = (hsv[..., 0] + 360 * turns) % 360
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _blend(image: np.ndarray, other: np.ndarray | np.float32, factor: float) -> np.ndarray:
    return factor * image + (1 - factor) * other
