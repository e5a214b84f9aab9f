"""Opacity of random shapes: blobs, polygons and ellipses, with holes and bars, and thin wires."""

import cv2
import numpy as np

from deqflow.data.synthetic.motions import chance
from deqflow.data.synthetic.scenes import SceneConfig


def random_shape(config: SceneConfig, centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a shape: a blob, a polygon or an ellipse, perhaps with holes or bars, or wires.

    The result is the shape's opacity on the canvas, uint8, 0..255. The canvas is the frame and :func:`margin` pixels
    around it.
    """
    border = margin(config)
    canvas = np.zeros((config.height + 2 * border, config.width + 2 * border), np.uint8)
    radius = np.exp(rng.uniform(np.log(0.06), np.log(0.45))) * min(config.height, config.width)
    middle = centre + border
    if chance(config.wires, rng):
        _draw_wires(canvas, middle, max(radius, 12.0), rng)
        return canvas
    _fill(canvas, middle, _outline(radius, rng), 255)
    if rng.random() < 0.2:
        hole = rng.uniform(-0.3, 0.3, 2) * radius
        _fill(canvas, middle + hole, _outline(0.4 * radius, rng), 0)
    if chance(config.holes, rng):
        for _ in range(rng.integers(3, 10)):
            hole = rng.uniform(-0.8, 0.8, 2) * radius
            _fill(canvas, middle + hole, _outline(rng.uniform(0.1, 0.25) * radius, rng), 0)
    if chance(config.struts, rng):
        for _ in range(rng.integers(2, 9)):
            place = middle + rng.uniform(-0.8, 0.8, 2) * radius
            _fill(canvas, place, _bar(radius * rng.uniform(0.5, 1.5), rng.uniform(1.0, 4.0), rng), 255)
    return canvas


def margin(config: SceneConfig) -> int:
    """How far the canvas extends beyond the frame, in pixels, so that shapes can enter from outside."""
    return max(config.height, config.width) // 4


def _outline(radius: float, rng: np.random.Generator) -> np.ndarray:
    """Points (N, 2) of a closed curve around the origin."""
    kind = rng.integers(3)
    if kind == 0:  # polygon
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
        radii = radius * rng.uniform(0.5, 1.2, len(angles))
    else:  # a blob, or an ellipse if it has no harmonics
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        radii = np.full(64, radius)
        for harmonic in range(2, 6) if kind == 1 else ():
            radii = radii + radius * rng.uniform(0, 0.25) * np.cos(harmonic * angles + rng.uniform(0, 2 * np.pi))
    stretch, turn = np.exp(rng.normal(0, 0.35)), rng.uniform(0, np.pi)
    points = np.stack([radii * np.cos(angles) * stretch, radii * np.sin(angles) / stretch], 1)
    return points @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])


def _bar(half_length: float, half_width: float, rng: np.random.Generator) -> np.ndarray:
    """The corners (4, 2) of a bar around the origin, in pixels. Most bars are roughly upright."""
    angle = rng.normal(0, 0.3) + (np.pi / 2 if rng.random() < 0.7 else 0)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    corners = [(1, 1), (1, -1), (-1, -1), (-1, 1)]
    return np.array([a * half_length * along + b * half_width * across for a, b in corners])


def _draw_wires(canvas: np.ndarray, middle: np.ndarray, radius: float, rng: np.random.Generator) -> None:
    """Draw a wheel with spokes, or a few bent wires, on the canvas, in place."""
    if rng.random() < 0.4:
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        rim = np.stack([np.cos(angles) * rng.uniform(0.4, 1.0), np.sin(angles)], 1) * radius
        _stroke(canvas, middle + rim, int(rng.integers(2, 6)), closed=True)
        for end in rim[rng.permutation(64)[: rng.integers(3, 12)]]:
            _stroke(canvas, middle + np.stack([np.zeros(2), end]), int(rng.integers(1, 4)))
        return
    along = np.linspace(0, 1, 24)[:, None]
    for _ in range(rng.integers(2, 7)):
        start, bend, end = middle + rng.uniform(-1.3, 1.3, (3, 2)) * radius
        curve = (1 - along) ** 2 * start + 2 * along * (1 - along) * bend + along**2 * end  # a Bezier curve
        _stroke(canvas, curve, int(rng.integers(1, 6)))


def _stroke(canvas: np.ndarray, points: np.ndarray, thickness: int, *, closed: bool = False) -> None:
    cv2.polylines(canvas, [_fixed_point(points)], closed, 255, thickness, lineType=cv2.LINE_AA, shift=4)


def _fill(canvas: np.ndarray, centre: np.ndarray, outline: np.ndarray, value: int) -> None:
    cv2.fillPoly(canvas, [_fixed_point(outline + centre)], value, lineType=cv2.LINE_AA, shift=4)


def _fixed_point(points: np.ndarray) -> np.ndarray:
    return np.round(points * 16).astype(np.int32)  # 4 bits of sub-pixel precision
