"""Textures of the layers: photographs from common Python packages or a folder, noise, and plain shading."""

from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from deqflow.data.flow_files import image_files, read_image
from deqflow.data.synthetic.motions import chance
from deqflow.data.synthetic.scenes import Package, SceneConfig

# The photographs of scikit-image that have enough detail to match. Its motorcycle pair is kept for testing.
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

# Module, folder inside it, files. scikit-learn's two files are CC BY 2.0, matplotlib's file is in the public domain.
_PACKAGES: dict[Package, tuple[str, str, tuple[str, ...]]] = {
    "scikit-image": ("skimage", "data", PHOTOGRAPHS),
    "scikit-learn": ("sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
    "matplotlib": ("matplotlib", "mpl-data/sample_data", ("grace_hopper.jpg",)),
}
_LONGEST_SIDE = 800


class Texture(NamedTuple):
    """An image, how it lies on the layer's plane, and how its colours are changed.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        to_image: 3x3, pixels of the layer's plane -> pixels of ``image``.
        colours: (3, 4), multiplies (red, green, blue, 1), where colours are 0..255; None leaves them unchanged.
    """

    image: np.ndarray
    to_image: np.ndarray
    colours: np.ndarray | None = None


@cache
def photograph_files(packages: Sequence[Package] = ("scikit-image",), folder: str | None = None) -> tuple[Path, ...]:
    """The photographs of installed packages, then those of a folder and the folders inside it, sorted by name.

    Raises:
        ModuleNotFoundError: a package is not installed.
        FileNotFoundError: a package lacks one of its files, the folder does not exist, or it holds no photograph.
    """
    files: list[Path] = []
    for package in packages:
        files += _package_files(package)
    if folder:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"Expected a folder of photographs, got {folder}, which is none.")
        own = image_files(Path(folder), recursive=True)
        if not own:
            raise FileNotFoundError(f"Expected photographs such as .jpg or .png in {folder}, found none.")
        files += own
    return tuple(files)


def _package_files(package: Package) -> list[Path]:
    module, place, names = _PACKAGES[package]
    found = find_spec(module)  # this does not import the module
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            f"The scenes take photographs from {package}, which is not installed: pip install {package}, or leave it "
            "out of SceneConfig's packages (which makes other scenes)."
        )
    files = [Path(found.origin).parent / place / name for name in names]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{package} is expected to bring {file}, but it is not there: reinstall {package}.")
    return files


@lru_cache(maxsize=128)
def read_photograph(path: Path) -> np.ndarray:
    """Read a photograph as uint8 RGB (H, W, 3), reduced to sides of at most 800 px. The last 128 are kept in memory."""
    image = read_image(path)[0].permute(1, 2, 0).byte().numpy()
    scale = min(1.0, _LONGEST_SIDE / max(image.shape))
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def random_texture(config: SceneConfig, rng: np.random.Generator, *, plain: float = 0.0) -> Texture:
    """Draw a texture at a random position, angle and size. It is plain with the probability ``plain``."""
    colours = None
    if chance(plain, rng):
        image = plain_texture(rng)
    elif rng.random() < config.noise:
        image = noise_texture(rng)
    else:
        files = photograph_files(config.packages, config.photographs)
        image = read_photograph(files[rng.integers(len(files))])
        if rng.random() < 0.5:
            colours = np.eye(3, 4)[rng.permutation(3)]
        if chance(config.recolour, rng):
            colours = random_colours(rng) @ np.vstack([np.eye(3, 4) if colours is None else colours, [0, 0, 0, 1]])
    step = np.exp(rng.uniform(*np.log(config.texture_step)))
    turn = rng.uniform(0, 2 * np.pi)
    to_image = np.eye(3)
    to_image[:2, :2] = step * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    to_image[:2, 2] = rng.uniform(0, 1, 2) * image.shape[1::-1]
    return Texture(image, to_image, colours)


def random_colours(rng: np.random.Generator) -> np.ndarray:
    """Draw a change of hue, saturation, contrast (sometimes inverted) and brightness: (3, 4), as in Texture."""
    turn, saturation, contrast = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 1.6), np.exp(rng.normal(0, 0.25))
    if rng.random() < 0.15:
        contrast = -contrast
    grey = np.full((3, 3), 1 / 3)  # projects on the axis of greys, about which the hue turns
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    hue = np.cos(turn) * (np.eye(3) - grey) + np.sin(turn) * across
    linear = contrast * (grey + saturation * hue)
    middle = 127.5 + rng.normal(0, 20, 3)
    return np.column_stack([linear, middle - linear @ np.full(3, 110.0)])


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
