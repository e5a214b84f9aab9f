"""Motions of layers: smooth bending, then a homography. They are evaluated exactly and inverted numerically."""

from dataclasses import dataclass

import cv2
import numpy as np

STEEPEST = 0.45  # of all waves together: change of displacement over distance; below 1, nothing folds


@dataclass(frozen=True)
class Waves:
    """A smooth displacement: the sum of ``shifts[i] * sin(vectors[i] . p + phases[i])`` over n sine waves.

    Attributes:
        shifts: (n, 2), amplitudes in pixels.
        vectors: (n, 2), wave vectors in radians a pixel.
        phases: (n,), in radians.
    """

    shifts: np.ndarray
    vectors: np.ndarray
    phases: np.ndarray

    def displacement(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The displacement in x and y at points x and y, in the precision of the points."""
        across, down = np.zeros_like(x), np.zeros_like(y)
        for (right, below), (along_x, along_y), phase in zip(
            self.shifts.tolist(), self.vectors.tolist(), self.phases.tolist(), strict=True
        ):
            wave = np.sin(along_x * x + along_y * y + phase)
            across += right * wave
            down += below * wave
        return across, down


@dataclass(frozen=True)
class Pose:
    """Where a layer lies in a frame: a point p of the layer's plane is seen at ``H (p + waves(p))``.

    Attributes:
        matrix: H, 3x3, on homogeneous pixel coordinates (x, y, 1).
        waves: smooth bending, or None.
    """

    matrix: np.ndarray
    waves: Waves | None = None

    @property
    def affine(self) -> bool:
        """Whether a 2x3 matrix describes the whole pose."""
        return self.waves is None and not self.matrix[2, :2].any()

    def apply(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points of the layer's plane -> points of the frame."""
        if self.waves is not None:
            across, down = self.waves.displacement(x, y)
            x, y = x + across, y + down
        return _project(self.matrix, x, y)

    def invert(self, x: np.ndarray, y: np.ndarray, tolerance: float = 1e-6) -> tuple[np.ndarray, np.ndarray]:
        """Points of the frame -> points of the layer's plane, to within ``tolerance`` px."""
        x, y = _project(np.linalg.inv(self.matrix), x, y)  # the identity leaves points bit for bit as they are
        return (x, y) if self.waves is None else _unbend(self.waves, x, y, x, y, tolerance)

    def invert_region(self, region: "Region", tolerance: float = 2e-3) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`invert` at the pixels of a region of the frame: x and y, (h, w) float32."""
        rows = np.arange(region.top, region.bottom, dtype=np.float32)
        columns = np.arange(region.left, region.right, dtype=np.float32)
        x, y = _project(np.linalg.inv(self.matrix), *np.meshgrid(columns, rows))
        if self.waves is None:
            return x, y
        # Every fourth pixel is solved first, which is cheap. Interpolation then gives a guess for all pixels, which
        # needs only one or two more iterations.
        guess = _unbend(self.waves, x[::4, ::4], y[::4, ::4], x[::4, ::4], y[::4, ::4], tolerance)
        bend = np.stack([guess[0] - x[::4, ::4], guess[1] - y[::4, ::4]], -1)
        to_coarse = np.array([[0.25, 0.0, 0.0], [0.0, 0.25, 0.0]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        bend = cv2.warpAffine(bend, to_coarse, x.shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return _unbend(self.waves, x, y, x + bend[..., 0], y + bend[..., 1], tolerance)


@dataclass(frozen=True)
class Region:
    """A rectangle of pixels: columns left to right - 1, rows top to bottom - 1."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Slices of rows and columns, to index an array with."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.right - self.left, self.bottom - self.top

    @property
    def to_frame(self) -> np.ndarray:
        """3x3, pixels of the region -> pixels of the frame."""
        return np.array([[1.0, 0.0, self.left], [0.0, 1.0, self.top], [0.0, 0.0, 1.0]])

    @property
    def empty(self) -> bool:
        """Whether the region has no pixel."""
        return self.right <= self.left or self.bottom <= self.top


def _project(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (a, b, c), (d, e, f), (g, h, i) = matrix.tolist()  # Python's numbers keep the precision of the points
    if g == h == 0 and i == 1:
        # Keep this order of additions: it reproduces, bit for bit, the pairs that the shipped weights were trained on.
        return (a * x + c) + b * y, (d * x + f) + e * y
    scale = 1 / (g * x + h * y + i)
    return (a * x + b * y + c) * scale, (d * x + e * y + f) * scale


def _unbend(
    waves: Waves, x: np.ndarray, y: np.ndarray, guess_x: np.ndarray, guess_y: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Solve ``p + waves(p) = (x, y)`` for p by fixed-point iteration, a contraction as the waves are not steep."""
    steepness = float((np.linalg.norm(waves.shifts, axis=1) * np.linalg.norm(waves.vectors, axis=1)).sum())
    while True:
        across, down = waves.displacement(guess_x, guess_y)
        next_x, next_y = x - across, y - down
        moved = max(float(np.abs(next_x - guess_x).max()), float(np.abs(next_y - guess_y).max()))
        guess_x, guess_y = next_x, next_y
        # The remaining error is at most a geometric series of steps, each `steepness` times the one before.
        if moved * 1.5 * steepness <= tolerance * (1 - steepness):
            return guess_x, guess_y


def chance(share: float, rng: np.random.Generator) -> bool:
    """Return True with the given probability. A share of 0 uses no random number: other draws stay the same."""
    return share > 0 and rng.random() < share


def random_motion(
    centre: np.ndarray,
    mean: float,
    scale: float,
    largest: float,
    sideways: bool,
    rng: np.random.Generator,
    *,
    tail: float = 0.0,
    similarity: float = 0.0,
) -> np.ndarray:
    """Draw an affine motion about a centre, 3x3: a heavy-tailed translation, some rotation, zoom and shear.

    Args:
        centre: (2,), in pixels.
        mean: mean length of the translation, in pixels.
        scale: factor of rotation, zoom and shear.
        largest: the greatest length of the translation, in pixels; greater lengths are reduced to it.
        sideways: whether the translation is mostly horizontal.
        rng: source of the random numbers.
        tail: probability of a length whose logarithm is uniformly distributed, from the mean to the largest.
        similarity: probability of no shear.
    """
    length = min(rng.exponential(mean), largest)
    if chance(tail, rng) and 0 < mean < largest:
        length = mean * (largest / mean) ** rng.random()
    angle = rng.normal(0, 0.08) + rng.choice([0, np.pi]) if sideways else rng.uniform(0, 2 * np.pi)
    turn, zoom = rng.normal(0, 0.06 * scale), np.exp(rng.normal(0, 0.05 * scale))
    linear = zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    shear = rng.normal(0, 0.015 * scale, (2, 2))
    if not chance(similarity, rng):
        linear = linear + shear
    motion = np.eye(3)
    motion[:2, :2] = linear
    motion[:2, 2] = centre - linear @ centre + length * np.array([np.cos(angle), np.sin(angle)])
    return motion


def random_tilt(centre: np.ndarray, scale: float, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the homography of a plane that tilts about a centre, 3x3. The centre stays in place."""
    # The denominator 1 + tilt . (p - centre) is between 0.6 and 1.4 in the frame, and positive well beyond the frame.
    tilt = np.clip(rng.normal(0, 0.12 * scale, 2), -0.2, 0.2) / [width, height]
    there, back, middle = np.eye(3), np.eye(3), np.eye(3)
    there[:2, 2], back[:2, 2], middle[2, :2] = centre, -centre, tilt
    return there @ middle @ back


def random_waves(scale: float, height: int, width: int, rng: np.random.Generator) -> Waves:
    """Draw one to three long waves, whose steepness grows with the scale up to a scale of 1."""
    count = int(rng.integers(1, 4))
    lengths = np.exp(rng.uniform(np.log(0.25), np.log(1.0), count)) * max(height, width)
    angles, directions = rng.uniform(0, 2 * np.pi, (2, count))
    steepness = STEEPEST / count * min(scale, 1.0) * rng.uniform(0.1, 1.0, count)
    vectors = (2 * np.pi / lengths)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    amplitudes = steepness * lengths / (2 * np.pi)
    shifts = amplitudes[:, None] * np.stack([np.cos(directions), np.sin(directions)], 1)
    return Waves(shifts, vectors, rng.uniform(0, 2 * np.pi, count))


def random_disparity(centre: np.ndarray, disparity: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the motion of a slanted plane between rectified stereo images, 3x3. It goes along the rows.

    Args:
        centre: (2,), in pixels.
        disparity: displacement in x at the centre, in pixels.
        rng: source of the slant.
    """
    motion = np.eye(3)
    slant = rng.normal(0, [0.0012, 0.002]) * np.clip(disparity, -40, 40)
    motion[0] = [1 + slant[0], slant[1], disparity - slant @ centre]
    return motion
