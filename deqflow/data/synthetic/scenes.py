"""Options of procedural scenes, and a preset that uses almost all of them."""

from dataclasses import dataclass
from typing import Literal

Package = Literal["scikit-image", "scikit-learn", "matplotlib"]

_SHARES = (
    *("sideways", "noise", "plain", "struts", "similarity", "projective", "nonrigid", "tail", "stereo"),
    *("holes", "wires", "recolour", "motion_blur", "shading", "fog", "defocus"),
)


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What scenes look like.

    At their defaults, the options from ``similarity`` on draw nothing from the random generator, so they do not
    change the scenes of a seed.

    Attributes:
        height, width: size of the frames, in pixels.
        objects: least and greatest number of moving shapes.
        camera: mean displacement of the background, in pixels; displacements are exponentially distributed.
        motion: mean displacement of a shape relative to the background, in pixels.
        largest: the greatest displacement, in pixels; greater ones are reduced to it.
        motion_scales: one of these factors is drawn for each scene and multiplies all of its motion, so that small
            displacements are as common as large ones.
        sideways: share of scenes whose motion is mostly horizontal, as from a vehicle or a stereo rig.
        texture_step: least and greatest size of a frame's pixel in pixels of the texture; above 1, the texture is
            reduced and looks sharper.
        noise: share of textures that are noise instead of a photograph.
        plain: share of shapes that have one colour with a smooth shading.
        struts: share of shapes that have thin bars, like the legs of a chair.
        photometric: strength of the changes of brightness, contrast, colour, noise and blur; 0 turns them off.
        similarity: share of motions without shear, which only shift, turn and zoom.
        projective: share of motions that are homographies, as of planes seen at an angle.
        nonrigid: share of motions that also bend smoothly, as cloth and water do.
        tail: share of displacements whose logarithm is uniformly distributed, from the mean to largest.
        stereo: share of scenes that are rectified stereo pairs: every layer is a slanted plane that moves along the
            rows, and nearer layers move faster.
        holes: share of shapes with several holes, like fences and wheels.
        wires: share of shapes that consist of thin curves only.
        recolour: share of photographs whose hue, saturation, brightness and contrast are changed.
        motion_blur: share of scenes with motion blur; the flow is that between the middles of the exposures.
        shading: share of scenes with uneven light, which differs a little between the frames.
        fog: share of scenes behind uneven fog.
        defocus: share of scenes out of focus.
        packages: the packages whose photographs are used as textures; each must be installed.
        photographs: a folder of your own photographs, used in addition to those of packages.
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
    similarity: float = 0.0
    projective: float = 0.0
    nonrigid: float = 0.0
    tail: float = 0.0
    stereo: float = 0.0
    holes: float = 0.0
    wires: float = 0.0
    recolour: float = 0.0
    motion_blur: float = 0.0
    shading: float = 0.0
    fog: float = 0.0
    defocus: float = 0.0
    packages: tuple[Package, ...] = ("scikit-image",)
    photographs: str | None = None

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 16:
            raise ValueError(f"SceneConfig expects frames of at least 16x16 px, got {self.width}x{self.height}.")
        if not 0 <= self.objects[0] <= self.objects[1]:
            raise ValueError(f"SceneConfig expects objects as (least, greatest), got {self.objects}.")
        for name in _SHARES:
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ValueError(f"SceneConfig expects {name} as a share from 0 to 1, got {share}.")
        if not self.packages and not self.photographs and self.noise < 1:
            raise ValueError(
                "SceneConfig expects packages or a folder of photographs to take textures from, got neither: "
                "name one, or set noise=1."
            )


HELD_OUT_SEED = 1_000_003  # seed of the scenes for validation and measurements; no training set uses it

# Scenes of every kind, for training: half of the motions are rigid and affine, the others are of all other kinds.
RICH_SCENES = SceneConfig(
    objects=(3, 11),
    camera=13.0,
    motion=12.0,
    motion_scales=(0.05, 0.15, 0.4, 1.0, 1.0, 1.0),
    sideways=0.2,
    texture_step=(0.45, 1.6),
    noise=0.1,
    similarity=0.2,
    projective=0.25,
    nonrigid=0.25,
    tail=0.1,
    stereo=0.15,
    holes=0.1,
    wires=0.12,
    recolour=0.5,
    motion_blur=0.15,
    shading=0.2,
    fog=0.08,
    defocus=0.08,
    packages=("scikit-image", "matplotlib"),
)
