"""Effects of light, air and lens on frames: exposure, shading, fog, defocus and noise."""

from dataclasses import dataclass

import cv2
import numpy as np

from deqflow.data.synthetic.motions import chance
from deqflow.data.synthetic.scenes import SceneConfig


def change_light(
    frame1: np.ndarray, frame2: np.ndarray, strength: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Change contrast, brightness, colour and gamma, slightly differently in both frames, then add blur and noise."""
    shared = rng.normal(0, 1, 3)
    noise, blur = rng.uniform(0, 5) * strength, rng.random() < 0.2 * strength
    changed = []
    for frame in (frame1, frame2):
        exposure = strength * (shared + 0.2 * rng.normal(0, 1, 3)) * [0.2, 0.1, 0.2]
        tint = 1 + strength * rng.normal(0, 0.03, 3)
        changed.append(expose(frame, exposure, tint, noise=noise, blur=bool(blur), rng=rng))
    return changed[0], changed[1]


def expose(
    frame: np.ndarray, exposure: np.ndarray, tint: np.ndarray, *, noise: float, blur: bool, rng: np.random.Generator
) -> np.ndarray:
    """Take an image of a frame, (H, W, 3) float32 in 0..255.

    Args:
        frame: the scene, (H, W, 3) float32 in 0..255.
        exposure: (3,): the logarithm of contrast, brightness as a share of white, and the logarithm of gamma.
        tint: (3,), factors for red, green and blue.
        noise: standard deviation of the noise, on the scale 0..255.
        blur: whether the lens is a little soft.
        rng: source of the noise.
    """
    contrast, brightness, gamma = exposure
    gain = (np.exp(contrast) * tint).astype(np.float32)  # single precision throughout takes half the time
    picture = frame * (gain / 255)
    picture += np.float32(0.5 + brightness) - 0.5 * gain
    np.clip(picture, 0, 1, out=picture)
    np.power(picture, np.float32(np.exp(gamma)), out=picture)
    picture *= 255
    if blur:
        picture = cv2.GaussianBlur(picture, (0, 0), 0.7)
    picture += np.float32(noise) * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(picture, 0, 255, out=picture)


@dataclass(frozen=True)
class Weather:
    """Shading, fog and defocus of a scene, which change a little from frame to frame.

    Shading and fog are 4x4 grids, which are enlarged smoothly to the frame. Of shading, fog and
    defocus, the first element is the mean and the second is a change, which is multiplied by a phase from -1 to 1 and
    added.

    Attributes:
        shading: logarithms of brightness, (2, 4, 4), or None.
        fog: logits of the fog's density, (2, 4, 4), or None.
        fog_colour: (3,), 0..255, or None. It does not change.
        defocus: (2,), standard deviation of a Gaussian blur in pixels, or None.
    """

    shading: np.ndarray | None = None
    fog: np.ndarray | None = None
    fog_colour: np.ndarray | None = None
    defocus: np.ndarray | None = None

    @classmethod
    def draw(cls, config: SceneConfig, rng: np.random.Generator) -> "Weather":
        """Draw each effect with its probability in the configuration. A probability of 0 uses no random number."""
        shading = fog = fog_colour = defocus = None
        if chance(config.shading, rng):
            shading = rng.normal(0, 1, (2, 4, 4)) * rng.uniform(0.05, 0.5) * np.array([1, 0.3])[:, None, None]
        if chance(config.fog, rng):
            fog = rng.normal(0, 1, (2, 4, 4)) * np.array([0.8, 0.2])[:, None, None]
            fog[0] += rng.uniform(-2.5, 0.5)
            fog_colour = rng.uniform(120, 250) + rng.normal(0, 10, 3)
        if chance(config.defocus, rng):
            defocus = rng.uniform(0.5, 1.8) * np.array([1, rng.normal(0, 0.2)])
        return cls(shading, fog, fog_colour, defocus)

    def apply(self, frame: np.ndarray, phase: float) -> np.ndarray:
        """Return the frame, (H, W, 3) float32, as it looks in this weather at a phase from -1 to 1."""
        size = frame.shape[1::-1]
        if self.shading is not None:
            frame = frame * np.exp(_enlarge(self.shading, phase, size))[..., None]
        if self.fog is not None and self.fog_colour is not None:
            density = 1 / (1 + np.exp(-_enlarge(self.fog, phase, size)))[..., None]
            frame = frame + density * (self.fog_colour.astype(np.float32) - frame)
        if self.defocus is not None:
            sigma = max(float(self.defocus[0] + phase * self.defocus[1]), 0.2)
            frame = cv2.GaussianBlur(frame, (0, 0), sigma)
        return np.clip(frame, 0, 255)


def _enlarge(fields: np.ndarray, phase: float, size: tuple[int, int]) -> np.ndarray:
    coarse = (fields[0] + phase * fields[1]).astype(np.float32)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
