"""Procedural pairs of images with exact flow and occlusion, in the manner of FlyingChairs and AutoFlow.

A scene is a stack of layers, the first of which fills the picture. Each layer has a texture (a photograph
that scikit-image ships, or noise), a shape, and an affine motion. Both frames are drawn from the layers
directly, so the flow is known exactly: at a pixel of the first frame it is the motion of the topmost layer.
A scene is a function of (seed, index) alone, whichever process makes it.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import skimage
import torch

from deqflow.datasets import FlowSample
from deqflow.flow_files import read_image

# scikit-image's photographs with enough detail to match; its motorcycle pair is for testing only.
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "rocket.jpg",
    "text.png",
)


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What scenes look like.

    Attributes:
        height, width: of the frames, in pixels.
        objects: least and greatest number of moving shapes.
        camera: mean displacement of the background, in pixels; exponentially distributed.
        motion: mean displacement of a shape against the background, in pixels.
        largest: displacements are cut off here, in pixels.
        motion_scales: one is drawn for each scene and multiplies all of its motion, so that small
            displacements are as common as large ones.
        sideways: share of scenes whose motion is mostly horizontal, as from a vehicle or a stereo rig.
        texture_step: least and greatest size of a frame's pixel in pixels of the texture; above 1 is sharper.
        noise: share of textures that are noise instead of a photograph.
        plain: share of the shapes that have one colour under a smooth shading.
        struts: share of the shapes that have thin bars, like the legs of a chair.
        photometric: strength of brightness, contrast, colour, noise and blur changes; 0 turns them off.
    """

    height: int = 192
    width: int = 256
    objects: tuple[int, int] = (2, 8)
    camera: float = 14.0
    motion: float = 12.0
    largest: float = 80.0
    motion_scales: tuple[float, ...] = (0.1, 0.3, 1.0, 1.0)
    sideways: float = 0.25
    texture_step: tuple[float, float] = (0.4, 1.3)
    noise: float = 0.15
    plain: float = 0.15
    struts: float = 0.25
    photometric: float = 1.0

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 16:
            raise ValueError(f"SceneConfig expects frames of at least 16x16 px, got {self.width}x{self.height}.")
        if not 0 <= self.objects[0] <= self.objects[1]:
            raise ValueError(f"SceneConfig expects objects as (least, greatest), got {self.objects}.")


@dataclass(frozen=True)
class Layer:
    """A texture, where it is taken from, its shape on an enlarged canvas, and how it moves.

    The 3x3 matrices act on homogeneous pixel coordinates (x, y, 1).
    """

    texture: np.ndarray
    to_texture: np.ndarray  # frame 1 -> texture
    shape: np.ndarray | None  # opacity 0..255 on the canvas; None fills the picture
    motion: np.ndarray  # frame 1 -> frame 2


@cache
def photographs() -> tuple[np.ndarray, ...]:
    """scikit-image's photographs, uint8 RGB (H, W, 3), sides of at most 800 px."""
    folder = Path(skimage.__file__).parent / "data"
    images = []
    for name in PHOTOGRAPHS:
        image = read_image(folder / name)[0].permute(1, 2, 0).byte().numpy()
        scale = min(1.0, 800 / max(image.shape))
        images.append(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    return tuple(images)


class SyntheticPairs(torch.utils.data.Dataset[FlowSample]):
    """Procedural pairs, made on demand: item i is always the same, for a seed and a configuration.

    Args:
        length: how many items there are.
        seed: of the whole set.
        config: what scenes look like.
    """

    def __init__(self, length: int, *, seed: int = 0, config: SceneConfig | None = None) -> None:
        if length < 1:
            raise ValueError(f"SyntheticPairs expects a length of at least 1, got {length}.")
        self.length, self.seed, self.config = length, seed, config or SceneConfig()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> FlowSample:
        if not 0 <= index < self.length:
            raise IndexError(f"Expected an index from 0 to {self.length - 1}, got {index}.")
        return make_pair(self.config, np.random.default_rng([self.seed, index]))


def make_pair(config: SceneConfig, rng: np.random.Generator) -> FlowSample:
    """Draw a scene at random and render it."""
    layers = random_layers(config, rng)
    frame1, ids1 = render(layers, config, second=False)
    frame2, ids2 = render(layers, config, second=True)
    flow, occluded = true_flow(layers, ids1, ids2)
    if config.photometric > 0:
        frame1, frame2 = change_light(frame1, frame2, config.photometric, rng)
    return FlowSample(
        image1=torch.from_numpy(frame1).permute(2, 0, 1).contiguous(),
        image2=torch.from_numpy(frame2).permute(2, 0, 1).contiguous(),
        flow=torch.from_numpy(flow).permute(2, 0, 1).contiguous(),
        valid=torch.ones(config.height, config.width, dtype=torch.bool),
        occluded=torch.from_numpy(occluded),
    )


def random_layers(config: SceneConfig, rng: np.random.Generator) -> list[Layer]:
    """A background with the camera's motion, then shapes, each moving against the background."""
    scale = float(rng.choice(config.motion_scales))
    sideways = rng.random() < config.sideways
    centre = np.array([config.width / 2, config.height / 2])
    camera = random_motion(centre, config.camera * scale, scale, config.largest, sideways, rng)
    layers = [Layer(*random_texture(config, rng), None, camera)]
    for _ in range(rng.integers(config.objects[0], config.objects[1] + 1)):
        centre = rng.uniform(-0.1, 1.1, 2) * [config.width, config.height]
        own = random_motion(centre, config.motion * scale, scale, config.largest, sideways, rng)
        texture = random_texture(config, rng, plain=config.plain)
        layers.append(Layer(*texture, random_shape(config, centre, rng), camera @ own))
    return layers


def random_motion(
    centre: np.ndarray, mean: float, scale: float, largest: float, sideways: bool, rng: np.random.Generator
) -> np.ndarray:
    """An affine motion about a centre: heavy-tailed translation, some rotation, zoom and shear. 3x3."""
    length = min(rng.exponential(mean), largest)
    angle = rng.normal(0, 0.08) + rng.choice([0, np.pi]) if sideways else rng.uniform(0, 2 * np.pi)
    turn, zoom = rng.normal(0, 0.06 * scale), np.exp(rng.normal(0, 0.05 * scale))
    linear = zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = linear + rng.normal(0, 0.015 * scale, (2, 2))
    motion = np.eye(3)
    motion[:2, :2] = linear
    motion[:2, 2] = centre - linear @ centre + length * np.array([np.cos(angle), np.sin(angle)])
    return motion


def random_texture(
    config: SceneConfig, rng: np.random.Generator, *, plain: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """A texture, plain with the given probability, and the similarity that takes pixels of frame 1 to its pixels."""
    if _chance(plain, rng):
        texture = plain_texture(rng)
    elif rng.random() < config.noise:
        texture = noise_texture(rng)
    else:
        texture = photographs()[rng.integers(len(photographs()))]
        if rng.random() < 0.5:
            texture = np.ascontiguousarray(texture[..., rng.permutation(3)])
    step = np.exp(rng.uniform(*np.log(config.texture_step)))
    turn = rng.uniform(0, 2 * np.pi)
    to_texture = np.eye(3)
    to_texture[:2, :2] = step * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    to_texture[:2, 2] = rng.uniform(0, 1, 2) * texture.shape[1::-1]
    return texture, to_texture


def _chance(share: float, rng: np.random.Generator) -> bool:
    """True with the given probability; a share of 0 draws nothing, so that it leaves the scenes as they were."""
    return share > 0 and rng.random() < share


def plain_texture(rng: np.random.Generator, side: int = 256) -> np.ndarray:
    """One colour under a smooth shading, uint8 (side, side, 3)."""
    shading = cv2.resize(rng.standard_normal((4, 4)), (side, side), interpolation=cv2.INTER_CUBIC)
    colour = rng.uniform(0, 1, 3) * rng.uniform(20, 255) + rng.uniform(0, 25) * shading[..., None]
    return np.clip(colour, 0, 255).astype(np.uint8)


def noise_texture(rng: np.random.Generator, side: int = 256) -> np.ndarray:
    """Coloured noise with detail at several scales, uint8 (side, side, 3)."""
    total = np.zeros((side, side, 3), np.float32)
    for octave in range(2, 8):
        coarse = rng.standard_normal((2**octave, 2**octave, 3)).astype(np.float32)
        total += cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC) * rng.uniform(0.3, 1) * 0.75**octave
    total = rng.uniform(60, 190, 3) + rng.uniform(25, 70) * total / (total.std() + 1e-6)
    return np.clip(total, 0, 255).astype(np.uint8)


def random_shape(config: SceneConfig, centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Opacity of a blob, a polygon or an ellipse, perhaps with a hole or bars, on the canvas (uint8, 0..255)."""
    margin = _margin(config)
    canvas = np.zeros((config.height + 2 * margin, config.width + 2 * margin), np.uint8)
    radius = np.exp(rng.uniform(np.log(0.06), np.log(0.45))) * min(config.height, config.width)
    _fill(canvas, centre + margin, _outline(radius, rng), 255)
    if rng.random() < 0.2:
        hole = rng.uniform(-0.3, 0.3, 2) * radius
        _fill(canvas, centre + margin + hole, _outline(0.4 * radius, rng), 0)
    if _chance(config.struts, rng):
        for _ in range(rng.integers(2, 9)):
            middle = centre + margin + rng.uniform(-0.8, 0.8, 2) * radius
            _fill(canvas, middle, _bar(radius * rng.uniform(0.5, 1.5), rng.uniform(1.0, 4.0), rng), 255)
    return canvas


def _margin(config: SceneConfig) -> int:
    """How far the canvas reaches beyond the frame, so that shapes can come in from outside."""
    return max(config.height, config.width) // 4


def _outline(radius: float, rng: np.random.Generator) -> np.ndarray:
    """Points (N, 2) of a closed curve around the origin."""
    kind = rng.integers(3)
    if kind == 0:  # polygon
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
        radii = radius * rng.uniform(0.5, 1.2, len(angles))
    else:  # blob, or an ellipse where there are no harmonics
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        radii = np.full(64, radius)
        for harmonic in range(2, 6) if kind == 1 else ():
            radii = radii + radius * rng.uniform(0, 0.25) * np.cos(harmonic * angles + rng.uniform(0, 2 * np.pi))
    stretch, turn = np.exp(rng.normal(0, 0.35)), rng.uniform(0, np.pi)
    points = np.stack([radii * np.cos(angles) * stretch, radii * np.sin(angles) / stretch], 1)
    return points @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])


def _bar(half_length: float, half_width: float, rng: np.random.Generator) -> np.ndarray:
    """The corners (4, 2) of a bar around the origin, in pixels, upright more often than not."""
    angle = rng.normal(0, 0.3) + (np.pi / 2 if rng.random() < 0.7 else 0)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    corners = [(1, 1), (1, -1), (-1, -1), (-1, 1)]
    return np.array([a * half_length * along + b * half_width * across for a, b in corners])


def _fill(canvas: np.ndarray, centre: np.ndarray, outline: np.ndarray, value: int) -> None:
    points = np.round((outline + centre) * 16).astype(np.int32)  # 4 bits of sub-pixel precision
    cv2.fillPoly(canvas, [points], value, lineType=cv2.LINE_AA, shift=4)


def render(layers: list[Layer], config: SceneConfig, *, second: bool) -> tuple[np.ndarray, np.ndarray]:
    """Draw a frame: (H, W, 3) float32 in 0..255, and the number of the topmost layer at each pixel, (H, W)."""
    size = (config.width, config.height)
    frame = np.zeros((config.height, config.width, 3), np.float32)
    ids = np.zeros((config.height, config.width), np.int32)
    to_canvas = np.eye(3)
    to_canvas[:2, 2] = _margin(config)
    for number, layer in enumerate(layers):
        back = np.linalg.inv(layer.motion) if second else np.eye(3)  # this frame -> frame 1
        colour = _fetch(layer.texture, layer.to_texture @ back, size, cv2.BORDER_REFLECT_101).astype(np.float32)
        if layer.shape is None:
            frame = colour
            continue
        opacity = _fetch(layer.shape, to_canvas @ back, size, cv2.BORDER_CONSTANT)
        frame += (opacity[..., None] / np.float32(255)) * (colour - frame)
        ids[opacity > 127] = number
    return frame, ids


def _fetch(image: np.ndarray, to_source: np.ndarray, size: tuple[int, int], border: int) -> np.ndarray:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, to_source[:2], size, flags=flags, borderMode=border)


def true_flow(layers: list[Layer], ids1: np.ndarray, ids2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flow (H, W, 2) float32 of the topmost layers of frame 1, and where it leads out of sight, (H, W)."""
    height, width = ids1.shape
    y, x = np.mgrid[:height, :width].astype(np.float64)
    points = np.stack([x, y, np.ones_like(x)], -1)
    motions = np.stack([layer.motion[:2] for layer in layers])
    ends = np.einsum("hwij,hwj->hwi", motions[ids1], points)
    columns, rows = np.rint(ends[..., 0]).astype(int), np.rint(ends[..., 1]).astype(int)
    outside = (columns < 0) | (columns >= width) | (rows < 0) | (rows >= height)
    hidden = ids2[rows.clip(0, height - 1), columns.clip(0, width - 1)] != ids1
    return (ends - points[..., :2]).astype(np.float32), outside | hidden


def change_light(
    frame1: np.ndarray, frame2: np.ndarray, strength: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Change contrast, brightness, colour and gamma of both frames, a little differently, then noise and blur."""
    shared = rng.normal(0, 1, 3)
    noise, blur = rng.uniform(0, 5) * strength, rng.random() < 0.2 * strength
    changed = []
    for frame in (frame1, frame2):
        contrast, brightness, gamma = strength * (shared + 0.2 * rng.normal(0, 1, 3)) * [0.2, 0.1, 0.2]
        tint = 1 + strength * rng.normal(0, 0.03, 3)
        frame = (frame / 255 - 0.5) * np.exp(contrast) * tint + 0.5 + brightness
        frame = 255 * np.clip(frame, 0, 1) ** np.exp(gamma)
        if blur:
            frame = cv2.GaussianBlur(frame, (0, 0), 0.7)
        frame = frame + noise * rng.standard_normal(frame.shape)
        changed.append(np.clip(frame, 0, 255).astype(np.float32))
    return changed[0], changed[1]
