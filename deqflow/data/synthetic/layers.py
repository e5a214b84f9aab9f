"""Random scenes as stacks of layers: a background, then shapes. Each layer has a texture and a motion."""

from dataclasses import dataclass

import numpy as np

from deqflow.data.synthetic.motions import (
    Pose,
    Waves,
    chance,
    random_disparity,
    random_motion,
    random_tilt,
    random_waves,
)
from deqflow.data.synthetic.scenes import SceneConfig
from deqflow.data.synthetic.shapes import random_shape
from deqflow.data.synthetic.textures import random_texture


@dataclass(frozen=True)
class Layer:
    """A layer: its texture, its shape on an enlarged canvas, and its motion.

    The 3x3 matrices act on homogeneous pixel coordinates (x, y, 1).

    Attributes:
        texture: (H, W, 3) uint8.
        to_texture: 3x3, pixels of frame 1 -> pixels of the texture.
        shape: opacity 0..255 on the canvas; with None, the layer fills the image.
        motion: 3x3, frame 1 -> frame 2, a homography. It is applied after the bending by ``waves``.
        waves: smooth bending, or None.
        colours: the change of the texture's colours, as in :class:`~deqflow.data.synthetic.textures.Texture`.
        exposure: share of the time between the frames during which the shutter is open; 0 gives no motion blur.
    """

    texture: np.ndarray
    to_texture: np.ndarray
    shape: np.ndarray | None
    motion: np.ndarray
    waves: Waves | None = None
    colours: np.ndarray | None = None
    exposure: float = 0.0

    @property
    def poses(self) -> tuple[Pose, Pose]:
        """The layer's poses in the first and in the second frame. The layer's own plane is that of the first frame."""
        return Pose(np.eye(3)), Pose(self.motion, self.waves)


@dataclass(frozen=True)
class _SceneMotion:
    """What the motions of a scene have in common.

    ``disparities`` are those of the farthest and of the nearest layer in a stereo scene, and None in other scenes.
    """

    config: SceneConfig
    scale: float
    sideways: bool
    disparities: tuple[float, float] | None

    @classmethod
    def draw(cls, config: SceneConfig, rng: np.random.Generator) -> "_SceneMotion":
        scale = float(rng.choice(config.motion_scales))
        sideways = rng.random() < config.sideways
        if not chance(config.stereo, rng):
            return cls(config, scale, sideways, None)
        near = min(rng.exponential(2 * config.camera * scale), config.largest) * rng.choice([-1, 1])
        return cls(config, scale, sideways, (near * rng.uniform(0.1, 0.7), near))

    def move(
        self, centre: np.ndarray, mean: float, nearness: float, camera: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, Waves | None]:
        """Draw a layer's homography (its own motion, then the camera's) and perhaps waves.

        Args:
            centre: the centre of the layer, (2,), in pixels.
            mean: mean displacement relative to ``camera``, in pixels; the scene's scale multiplies it.
            nearness: from 0 for the background to 1 for the frontmost shape.
            camera: the background's homography.
            rng: source of the random numbers.
        """
        config, scale = self.config, self.scale
        if self.disparities is not None:
            far, near = self.disparities
            return random_disparity(centre, far + nearness * (near - far), rng), None
        shares = {"tail": config.tail, "similarity": config.similarity}
        own = random_motion(centre, mean * scale, scale, config.largest, self.sideways, rng, **shares)
        if chance(config.projective, rng):
            own = own @ random_tilt(centre, scale, config.height, config.width, rng)
        waves = random_waves(scale, config.height, config.width, rng) if chance(config.nonrigid, rng) else None
        return camera @ own, waves


def random_layers(config: SceneConfig, rng: np.random.Generator) -> list[Layer]:
    """Draw a background with the camera's motion, then shapes that move relative to the background."""
    scene = _SceneMotion.draw(config, rng)
    exposure = rng.uniform(0.1, 0.6) if chance(config.motion_blur, rng) else 0.0
    centre = np.array([config.width / 2, config.height / 2])
    camera, waves = scene.move(centre, config.camera, 0.0, np.eye(3), rng)
    texture = random_texture(config, rng)
    layers = [Layer(texture.image, texture.to_image, None, camera, waves, texture.colours, exposure)]
    count = int(rng.integers(config.objects[0], config.objects[1] + 1))
    for number in range(1, count + 1):
        centre = rng.uniform(-0.1, 1.1, 2) * [config.width, config.height]
        motion, waves = scene.move(centre, config.motion, number / count, camera, rng)
        texture = random_texture(config, rng, plain=config.plain)
        shape = random_shape(config, centre, rng)
        layers.append(Layer(texture.image, texture.to_image, shape, motion, waves, texture.colours, exposure))
    return layers
