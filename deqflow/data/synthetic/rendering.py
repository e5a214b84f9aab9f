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

_OPAQUE = 127  # a pixel belongs to a layer whose opacity there is above this, which is half
_LONGEST_BLUR = 10.0  # the longest motion blur, in pixels


def render(layers: list[Layer], config: SceneConfig, *, second: bool) -> tuple[np.ndarray, np.ndarray]:
    """Render a frame: (H, W, 3) float32 in 0..255, and the number of the topmost layer at each pixel, (H, W)."""
    streaks = [streak(*layer.poses, layer.shape, config, layer.exposure) for layer in layers]
    return render_poses(layers, [layer.poses[second] for layer in layers], streaks, config)


def render_poses(
    layers: Sequence[Layer], poses: Sequence[Pose], streaks: Sequence[np.ndarray | None], config: SceneConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Render a frame as :func:`render` does, from given poses and kernels of motion blur (None for no blur)."""
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
        """The point of the plane that each pixel of the region shows: x and y, (h, w) float32."""
        return self.pose.invert_region(self.region)

    def fetch(self, image: np.ndarray, to_image: np.ndarray, border: int) -> np.ndarray:
        """Sample an image that lies on the plane at the region's pixels; ``to_image`` is affine, plane -> image."""
        if self.pose.affine:
            flags, size = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, self.region.size
            matrix = (to_image @ np.linalg.inv(self.pose.matrix) @ self.region.to_frame)[:2]
            return cv2.warpAffine(image, matrix, size, flags=flags, borderMode=border)
        (a, b, c), (d, e, f) = to_image[:2].tolist()
        x, y = self.points
        return cv2.remap(image, a * x + b * y + c, d * x + e * y + f, cv2.INTER_LINEAR, borderMode=border)


def _colour(layer: Layer, view: _View) -> np.ndarray:
    """The colours of a layer in a view, (h, w, 3) float32."""
    colour = view.fetch(layer.texture, layer.to_texture, cv2.BORDER_REFLECT_101)
    return (colour if layer.colours is None else cv2.transform(colour, layer.colours)).astype(np.float32)


def _opacity(shape: np.ndarray, view: _View) -> np.ndarray:
    """The opacity of a shape in a view, (h, w) uint8. The shape is given on the canvas."""
    border = margin(view.config)
    if np.array_equal(view.pose.matrix, np.eye(3)) and view.pose.waves is None:
        return shape[border:-border, border:-border][view.region.slices]
    to_canvas = np.eye(3)
    to_canvas[:2, 2] = border
    return view.fetch(shape, to_canvas, cv2.BORDER_CONSTANT)


def _bounds(shape: np.ndarray | None, pose: Pose, config: SceneConfig) -> Region:
    """The region of the frame that contains a shape in a pose; the whole frame if ``shape`` is None."""
    if shape is None:
        return Region(0, 0, config.width, config.height)
    left, top, width, height = cv2.boundingRect(shape)
    if width == 0:
        return Region(0, 0, 0, 0)
    # Poses don't fold, so what is inside the box stays inside the moved outline of the box.
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
    """Blend a layer over a part of the frame, in place."""
    colour -= behind
    colour *= opacity[..., None] / np.float32(255)
    behind += colour


def _lay_smeared(
    frame: np.ndarray, colour: np.ndarray, opacity: np.ndarray, region: Region, kernel: np.ndarray
) -> None:
    """Blend a layer that moved while the shutter was open over the frame, in place.

    What the layer covered for only a part of the exposure remains partly visible.
    """
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
    """The kernel that blurs a layer along its motion while the shutter is open, or None if that is less than a pixel.

    The motion is taken at the layer's middle, and the frame's time is the middle of the exposure.
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
    """Flow of the topmost layers of frame 1, (H, W, 2) float32, and a mask of the occluded pixels, (H, W)."""
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
    """Which pixels are hidden in the next frame, and which are out of it, both (H, W) booleans.

    A pixel is hidden if its motion ends at a pixel of the next frame that shows another layer.
    """
    height, width = ids1.shape
    columns, rows = np.rint(ends[..., 0]).astype(int), np.rint(ends[..., 1]).astype(int)
    outside = (columns < 0) | (columns >= width) | (rows < 0) | (rows >= height)
    hidden = ids2[rows.clip(0, height - 1), columns.clip(0, width - 1)] != ids1
    return hidden & ~outside, outside


def out_of_frame(flow: Tensor) -> Tensor:
    """Where a flow leads out of the image: (..., 2, H, W) in pixels -> (..., H, W) booleans.

    A pixel of a synthetic pair that is occluded and not out of frame is hidden behind another layer.

    Raises:
        ValueError: the flow has another shape.
    """
    if flow.dim() < 3 or flow.shape[-3] != 2:
        raise ValueError(f"out_of_frame expects a flow of shape (..., 2, H, W), got {tuple(flow.shape)}.")
    height, width = flow.shape[-2:]
    rows = torch.arange(height, dtype=torch.float64, device=flow.device)[:, None]
    columns = torch.arange(width, dtype=torch.float64, device=flow.device)
    x, y = (columns + flow[..., 0, :, :]).round(), (rows + flow[..., 1, :, :]).round()
    return (x < 0) | (x >= width) | (y < 0) | (y >= height)
