"""What procedural scenes look like: their options, and a preset that has some of everything."""

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

    Options from ``similarity`` on draw nothing from the random generator at their defaults, so that they leave the
    scenes as they are without them.

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
        similarity: share of motions without shear: they shift, turn and zoom.
        projective: share of motions that are homographies, as of planes seen aslant.
        nonrigid: share of motions that also bend smoothly, as cloth and water do.
        tail: share of displacements spread evenly in their logarithm from the mean to largest.
        stereo: share of scenes that are rectified stereo pairs: every layer a slanted plane that moves along
            the rows, the nearer the faster.
        holes: share of the shapes with several holes, like fences and wheels.
        wires: share of the shapes that are nothing but thin curves.
        recolour: share of the photographs whose hue, saturation, brightness and contrast are changed.
        motion_blur: share of scenes taken with an open shutter; the flow is that at the middle of the exposure.
        shading: share of scenes lit unevenly, a little differently in both frames.
        fog: share of scenes behind uneven fog.
        defocus: share of scenes out of focus.
        packages: whose photographs are textures; each must be installed.
        photographs: a folder of your own photographs, used beside those of packages.
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


HELD_OUT_SEED = 1_000_003  # scenes to validate and measure on; no training set uses it

# Some of everything, for training: half of the motion rigid and affine, the rest of every other kind.
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
