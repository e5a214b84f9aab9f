"""Videos of any length, one frame at a time."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deqflow.data.synthetic.layers import Layer
from deqflow.data.synthetic.light import Weather, expose
from deqflow.data.synthetic.motions import Pose, Waves, chance, random_waves
from deqflow.data.synthetic.pairs import keep_to_one_thread, require_photographs
from deqflow.data.synthetic.rendering import motion_ends, out_of_sight, render_poses, streak
from deqflow.data.synthetic.scenes import SceneConfig
from deqflow.data.synthetic.shapes import random_shape
from deqflow.data.synthetic.textures import random_texture

Speed = Literal["slow", "ordinary", "fast"]
SPEEDS: dict[Speed, float] = {"slow": 1.0, "ordinary": 4.0, "fast": 12.0}  # root mean square of a shape, px a frame


class VideoFrame(NamedTuple):
    """A frame, and the true flow and occlusion from it to the next frame.

    Attributes:
        image: (3, H, W) float32, RGB, 0..255.
        flow: (2, H, W) float32, to the next frame, in pixels; zero before a cut and at the last frame.
        valid: (H, W) booleans: true everywhere, or false everywhere before a cut and at the last frame.
        occluded: (H, W) booleans, true where a pixel is hidden or out of frame in the next frame.
        out_of_frame: (H, W) booleans, true where a pixel is out of frame in the next frame.
    """

    image: Tensor
    flow: Tensor
    valid: Tensor
    occluded: Tensor
    out_of_frame: Tensor


class SyntheticVideo(torch.utils.data.Dataset[VideoFrame]):
    """A procedural video, whose frames are made on demand, in any order, in constant memory.

    Layers swing smoothly, so they stay in the image however long the video is. A frame depends only on the seed, its
    index, the cuts, the speed and the configuration.

    Args:
        length: the number of frames.
        seed: the seed of the video.
        config: what the scenes look like; ``speed`` replaces its ``camera``, ``motion``, ``motion_scales``,
            ``sideways``, ``tail`` and ``stereo``.
        speed: "slow", "ordinary" or "fast": shapes move relative to the background by 1, 4 or 12 pixels a frame
            (root mean square over shapes and time), and the background moves by half of that.
        cuts: indices of the frames that begin a new scene, in increasing order.

    Raises:
        ValueError: the length is less than 1, the seed less than 0, the speed is unknown, or the cuts are out of order
            or out of range.
        ModuleNotFoundError, FileNotFoundError: a photograph is missing.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        config: SceneConfig | None = None,
        speed: Speed = "ordinary",
        cuts: Sequence[int] = (),
    ) -> None:
        if length < 1:
            raise ValueError(f"SyntheticVideo expects a length of at least 1, got {length}.")
        if seed < 0:
            raise ValueError(f"SyntheticVideo expects a seed of at least 0, got {seed}.")
        if speed not in SPEEDS:
            raise ValueError(f"SyntheticVideo expects a speed of {', '.join(SPEEDS)}, got {speed!r}.")
        if list(cuts) != sorted(set(cuts)) or not all(0 < cut < length for cut in cuts):
            raise ValueError(f"SyntheticVideo expects cuts in order, from 1 to {length - 1}, got {tuple(cuts)}.")
        self.length, self.seed, self.config = length, seed, config or SceneConfig()
        self.speed: Speed = speed
        self.cuts = tuple(cuts)
        require_photographs(self.config)
        self._latest: tuple[int, _Scene] | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> VideoFrame:
        if not 0 <= index < self.length:
            raise IndexError(f"Expected an index from 0 to {self.length - 1}, got {index}.")
        keep_to_one_thread()
        number = bisect_right(self.cuts, index)
        scene = self._scene(number)
        picture, ids = scene.frame(index, np.random.default_rng([self.seed, index, 2]))
        shape = self.config.height, self.config.width
        last = index + 1 == self.length or index + 1 in self.cuts
        if last:
            flow, hidden, outside = np.zeros((*shape, 2), np.float32), np.zeros(shape, bool), np.zeros(shape, bool)
        else:
            flow, hidden, outside = scene.truth(index, ids)
        return VideoFrame(
            image=torch.from_numpy(picture).permute(2, 0, 1).contiguous(),
            flow=torch.from_numpy(flow).permute(2, 0, 1).contiguous(),
            valid=torch.full(shape, not last),
            occluded=torch.from_numpy(hidden | outside),
            out_of_frame=torch.from_numpy(outside),
        )

    def _scene(self, number: int) -> "_Scene":
        """The scene of a given number; each cut begins the next one. Only the latest scene is kept in memory."""
        if self._latest is None or self._latest[0] != number:
            rng = np.random.default_rng([self.seed, number, 1])
            self._latest = number, _Scene(self.config, SPEEDS[self.speed], rng)
        return self._latest[1]


@dataclass(frozen=True)
class _Track:
    """The poses of a layer over time: it swings about its centre, turns, zooms and tilts, and its waves travel.

    Each of x, y, turn, the logarithm of zoom and the tilts in x and y is ``amplitude * sin(rate * t + phase)``.
    """

    centre: np.ndarray  # (2,)
    amplitudes: np.ndarray  # (6,)
    rates: np.ndarray  # (6,), radians a frame
    phases: np.ndarray  # (6,)
    waves: Waves | None
    wave_rate: float

    @classmethod
    def draw(cls, config: SceneConfig, centre: np.ndarray, speed: float, rng: np.random.Generator) -> "_Track":
        """Draw a track whose translation has the given root mean square speed, in pixels a frame."""
        size, scale = np.array([config.width, config.height]), min(speed, 4.0) / 4
        direction = rng.uniform(0, 2 * np.pi)
        pace = speed * np.sqrt(2) * np.abs([np.cos(direction), np.sin(direction)])  # amplitude * rate
        rates = 2 * np.pi / rng.uniform(40, 120, 6)
        # Fast layers turn back sooner, so that they stay in the image.
        rates[:2] = np.maximum(rates[:2], pace / (0.35 * size))
        swings = rng.normal(0, [0.2, 0.12]) * scale
        tilts = np.clip(rng.normal(0, 0.2, 2) * scale, -0.3, 0.3) / size * chance(config.projective, rng)
        waves = random_waves(scale, config.height, config.width, rng) if chance(config.nonrigid, rng) else None
        amplitudes, phases = np.concatenate([pace / rates[:2], swings, tilts]), rng.uniform(0, 2 * np.pi, 6)
        return cls(centre, amplitudes, rates, phases, waves, float(rng.normal(0, 0.1)))

    def pose(self, time: float, camera: np.ndarray | None = None) -> Pose:
        """The pose at a time in frames. The camera's 3x3, if given, is applied after the track's own motion."""
        x, y, turn, zoom, *tilt = self.amplitudes * np.sin(self.rates * time + self.phases)
        to_middle, swing, middle = np.eye(3), np.eye(3), np.eye(3)
        to_middle[:2, 2] = -self.centre
        middle[2, :2] = tilt
        swing[:2, :2] = np.exp(zoom) * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        swing[:2, 2] = self.centre + np.array([x, y])
        matrix = swing @ middle @ to_middle
        waves = self.waves
        if waves is not None:
            waves = replace(waves, phases=waves.phases + self.wave_rate * time)
        return Pose(matrix if camera is None else camera @ matrix, waves)


class _Scene:
    """A scene between two cuts: layers, their tracks, and light that changes slowly."""

    def __init__(self, config: SceneConfig, speed: float, rng: np.random.Generator) -> None:
        self.config, self.layers, self.tracks = config, list[Layer](), list[_Track]()
        size = np.array([config.width, config.height])
        self.exposure = float(rng.uniform(0.1, 0.6)) if chance(config.motion_blur, rng) else 0.0
        for number in range(int(rng.integers(config.objects[0], config.objects[1] + 1)) + 1):
            behind = number == 0
            centre = size / 2 if behind else rng.uniform(0, 1, 2) * size
            pace = speed / 2 if behind else speed * rng.choice([0.25, 0.5, 0.8, 1.7])  # their mean square is about 1
            self.tracks.append(_Track.draw(config, centre, pace, rng))
            texture = random_texture(config, rng, plain=0.0 if behind else config.plain)
            shape = None if behind else random_shape(config, centre, rng)
            self.layers.append(Layer(texture.image, texture.to_image, shape, np.eye(3), colours=texture.colours))
        self.weather = Weather.draw(config, rng)
        self.exposures = config.photometric * rng.normal(0, [[1.0], [0.2]], (2, 3)) * [0.2, 0.1, 0.2]
        self.tint = 1 + config.photometric * rng.normal(0, 0.03, 3)
        self.noise, self.soft = config.photometric * rng.uniform(0, 5), rng.random() < 0.2 * config.photometric
        self.drift = 2 * np.pi / rng.uniform(30, 90)

    def frame(self, time: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The image, (H, W, 3) float32 in 0..255, and the topmost layer of each pixel, (H, W)."""
        poses = self._poses(time)
        streaks = self._streaks(time) if self.exposure else [None] * len(poses)
        picture, ids = render_poses(self.layers, poses, streaks, self.config)
        phase = float(np.sin(self.drift * time))
        picture = self.weather.apply(picture, phase)
        if self.config.photometric > 0:
            exposure = self.exposures[0] + phase * self.exposures[1]
            picture = expose(picture, exposure, self.tint, noise=self.noise, blur=bool(self.soft), rng=rng)
        return picture, ids

    def truth(self, time: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flow to the next frame, (H, W, 2) float32, and masks of what is hidden there and out of it, (H, W)."""
        before, after = self._poses(time), self._poses(time + 1)
        _, next_ids = render_poses(self.layers, after, [None] * len(after), self.config)
        ends = motion_ends(before, after, ids)
        y, x = np.mgrid[: self.config.height, : self.config.width]
        return (ends - np.stack([x, y], -1)).astype(np.float32), *out_of_sight(ends, ids, next_ids)

    def _poses(self, time: float) -> list[Pose]:
        camera = self.tracks[0].pose(time)
        return [camera, *(track.pose(time, camera.matrix) for track in self.tracks[1:])]

    def _streaks(self, time: int) -> list[np.ndarray | None]:
        # From half a frame before to half a frame after, so that the frame's time is the middle of the exposure.
        poses = zip(self.layers, self._poses(time - 0.5), self._poses(time + 0.5), strict=True)
        return [streak(before, after, layer.shape, self.config, self.exposure) for layer, before, after in poses]
