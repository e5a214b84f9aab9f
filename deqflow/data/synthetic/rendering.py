"""Frames, flow and masks of a stack of layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from torch import Tensor

from deqflow.data.synthetic.layers import Layer
from deqflow.data.synthetic.motions import Pose, Region
from deqflow.data.synthetic.scenes import SceneConfig
from deqflow.data.synthetic.shapes import margin

_OPAQUE = 127  # a pixel belongs to a layer that is less transparent than half
_LONGEST_BLUR = 10.0  # of motion blur, in pixels


def render(layers: list[Layer], config: SceneConfig, *, second: bool) -> tuple[np.ndarray, np.ndarray]:
    """Draw a frame: (H, W, 3) float32 in 0..255, and the number of the topmost layer at each pixel, (H, W)."""
    streaks = [streak(*layer.poses, layer.shape, config, layer.exposure) for layer in layers]
    return render_poses(layers, [layer.poses[second] for layer in layers], streaks, config)


def render_poses(
    layers: Sequence[Layer], poses: Sequence[Pose], streaks: Sequence[np.ndarray | None], config: SceneConfig
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`render`, with the layers in given poses, each smeared by its kernel of :func:`streak` if it has one."""
    frame = np.zeros((config.height, config.width, 3), np.float32)
    ids = np.zeros((config.height, config.width), np.int32)
    for number, (layer, pose, kernel) in enumerate(zip(layers, poses, streaks, strict=True)):
        region = _bounds(layer.shape, pose, config)
        if region.empty:
            continue
        view = _View(pose, region, config)
        colour = _colour(layer, view)
        if layer.shape is None:
            frame = colour if kernel is None else cv2.filter2D(colour, -1, kernel)
            continue
        opacity = _opacity(layer.shape, view)
        if kernel is None:
            _lay(frame[region.slices], colour, opacity)
        else:
            _lay_smeared(frame, colour, opacity, region, kernel)
        ids[region.slices][opacity > _OPAQUE] = number
    return frame, ids


@dataclass(frozen=True)
class _View:
    """A layer's plane as seen in a region of the frame."""

    pose: Pose
    region: Region
    config: SceneConfig

    @cached_property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """The points of the plane that are seen, x and y, (h, w) float32."""
        return self.pose.invert_region(self.region)

    def fetch(self, image: np.ndarray, to_image: np.ndarray, border: int) -> np.ndarray:
        """An image that lies on the plane, with the affine matrix from the plane to its pixels, in the region."""
        if self.pose.affine:
            flags, size = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, self.region.size
            matrix = (to_image @ np.linalg.inv(self.pose.matrix) @ self.region.to_frame)[:2]
            return cv2.warpAffine(image, matrix, size, flags=flags, borderMode=border)
        (a, b, c), (d, e, f) = to_image[:2].tolist()
        x, y = self.points
        return cv2.remap(image, a * x + b * y + c, d * x + e * y + f, cv2.INTER_LINEAR, borderMode=border)


def _colour(layer: Layer, view: _View) -> np.ndarray:
    """Colours of a layer in a view, (h, w, 3) float32."""
    colour = view.fetch(layer.texture, layer.to_texture, cv2.BORDER_REFLECT_101)
    return (colour if layer.colours is None else cv2.transform(colour, layer.colours)).astype(np.float32)


def _opacity(shape: np.ndarray, view: _View) -> np.ndarray:
    """Opacity of a shape on the canvas in a view, (h, w) uint8."""
    border = margin(view.config)
    if np.array_equal(view.pose.matrix, np.eye(3)) and view.pose.waves is None:
        return shape[border:-border, border:-border][view.region.slices]
    to_canvas = np.eye(3)
    to_canvas[:2, 2] = border
    return view.fetch(shape, to_canvas, cv2.BORDER_CONSTANT)


def _bounds(shape: np.ndarray | None, pose: Pose, config: SceneConfig) -> Region:
    """Region of the frame that holds all of a shape on the canvas in a pose; the whole frame if there is no shape."""
    if shape is None:
        return Region(0, 0, config.width, config.height)
    left, top, width, height = cv2.boundingRect(shape)
    if width == 0:
        return Region(0, 0, 0, 0)
    # What is inside the box stays inside its moved outline: poses don't fold.
    along, edge, border = np.linspace(-1.0, 1.0, 33), np.ones(33), margin(config)
    x = left - border + (width - 1) / 2 + (width / 2 + 1) * np.concatenate([along, along, edge, -edge])
    y = top - border + (height - 1) / 2 + (height / 2 + 1) * np.concatenate([edge, -edge, along, along])
    x, y = pose.apply(x, y)
    return Region(
        left=int(np.clip(np.floor(x.min()) - 1, 0, config.width)),
        top=int(np.clip(np.floor(y.min()) - 1, 0, config.height)),
        right=int(np.clip(np.ceil(x.max()) + 2, 0, config.width)),
        bottom=int(np.clip(np.ceil(y.max()) + 2, 0, config.height)),
    )


def _lay(behind: np.ndarray, colour: np.ndarray, opacity: np.ndarray) -> None:
    """Cover a part of the frame, in place."""
    colour -= behind
    colour *= opacity[..., None] / np.float32(255)
    behind += colour


def _lay_smeared(
    frame: np.ndarray, colour: np.ndarray, opacity: np.ndarray, region: Region, kernel: np.ndarray
) -> None:
    """The same with what moved while the shutter was open: what is covered some of the time shines through."""
    reach = kernel.shape[0] // 2
    height, width = frame.shape[:2]
    top, left = min(reach, region.top), min(reach, region.left)
    bottom, right = min(reach, height - region.bottom), min(reach, width - region.right)
    covered = (opacity / np.float32(255))[..., None]
    layer = np.concatenate([colour * covered, covered], -1)
    layer = cv2.copyMakeBorder(layer, top, bottom, left, right, cv2.BORDER_CONSTANT)
    layer = cv2.filter2D(layer, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    part = frame[region.top - top : region.bottom + bottom, region.left - left : region.right + right]
    part *= 1 - layer[..., 3:]
    part += layer[..., :3]


def streak(
    before: Pose, after: Pose, shape: np.ndarray | None, config: SceneConfig, exposure: float
) -> np.ndarray | None:
    """The kernel that smears a layer along its motion while the shutter is open, or None where that is under a pixel.

    The motion is taken as that of the layer's middle, and the exposure lies evenly around the frame's time.
    """
    if exposure == 0:
        return None
    x, y, width, height = (0, 0, config.width, config.height) if shape is None else cv2.boundingRect(shape)
    border = 0 if shape is None else margin(config)
    middle = np.array([x + width / 2 - border]), np.array([y + height / 2 - border])
    (x1, y1), (x2, y2) = before.apply(*middle), after.apply(*middle)
    move = exposure * np.array([(x2 - x1)[0], (y2 - y1)[0]])
    length = float(np.hypot(*move))
    if length < 1:
        return None
    move *= min(1.0, _LONGEST_BLUR / length)
    reach = int(np.ceil(np.abs(move).max() / 2))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    for part in np.linspace(-0.5, 0.5, 4 * reach + 1):
        across, down = reach + part * move
        left, top = int(across), int(down)
        right, below = across - left, down - top
        for column, row, weight in (
            (left, top, (1 - right) * (1 - below)),
            (left + 1, top, right * (1 - below)),
            (left, top + 1, (1 - right) * below),
            (left + 1, top + 1, right * below),
        ):
            if weight > 0:
                kernel[row, column] += weight
    return kernel / kernel.sum()


def true_flow(layers: list[Layer], ids1: np.ndarray, ids2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flow (H, W, 2) float32 of the topmost layers of frame 1, and where it leads out of sight, (H, W)."""
    ends = motion_ends([layer.poses[0] for layer in layers], [layer.poses[1] for layer in layers], ids1)
    height, width = ids1.shape
    y, x = np.mgrid[:height, :width].astype(np.float64)
    hidden, outside = out_of_sight(ends, ids1, ids2)
    return (ends - np.stack([x, y], -1)).astype(np.float32), hidden | outside


def motion_ends(before: Sequence[Pose], after: Sequence[Pose], ids: np.ndarray) -> np.ndarray:
    """Where the pixels of a frame lie in the next one, (H, W, 2) float64, x and y.

    Args:
        before: the layers' poses in the frame.
        after: their poses in the next one.
        ids: (H, W), the topmost layer of each pixel of the frame.
    """
    y, x = np.mgrid[: ids.shape[0], : ids.shape[1]].astype(np.float64)
    ends = np.empty((*ids.shape, 2))
    for number in np.flatnonzero(np.bincount(ids.ravel())).tolist():
        # The background is seen nearly everywhere: cheaper for all pixels than for its own.
        here = ids == number if number else ...
        end_x, end_y = after[number].apply(*before[number].invert(x[here], y[here]))
        ends[here, 0], ends[here, 1] = end_x, end_y
    return ends


def out_of_sight(ends: np.ndarray, ids1: np.ndarray, ids2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels are hidden in the next frame, and which are out of it, both (H, W).

    A pixel is hidden where the pixel of the next frame that its motion ends in shows another layer.
    """
    height, width = ids1.shape
    columns, rows = np.rint(ends[..., 0]).astype(int), np.rint(ends[..., 1]).astype(int)
    outside = (columns < 0) | (columns >= width) | (rows < 0) | (rows >= height)
    hidden = ids2[rows.clip(0, height - 1), columns.clip(0, width - 1)] != ids1
    return hidden & ~outside, outside


def out_of_frame(flow: Tensor) -> Tensor:
    """Where a flow leads out of the image: (..., 2, H, W) in pixels -> (..., H, W) booleans.

    What is occluded in a pair and not out of frame is hidden behind something.

    Raises:
        ValueError: another shape.
    """
    if flow.dim() < 3 or flow.shape[-3] != 2:
        raise ValueError(f"out_of_frame expects a flow of shape (..., 2, H, W), got {tuple(flow.shape)}.")
    height, width = flow.shape[-2:]
    rows = torch.arange(height, dtype=torch.float64, device=flow.device)[:, None]
    columns = torch.arange(width, dtype=torch.float64, device=flow.device)
    x, y = (columns + flow[..., 0, :, :]).round(), (rows + flow[..., 1, :, :]).round()
    return (x < 0) | (x >= width) | (y < 0) | (y >= height)
