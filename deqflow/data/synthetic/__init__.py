"""Procedural pairs and videos with exact flow and occlusion, in the manner of FlyingChairs and AutoFlow.

A scene is a stack of layers, the first of which fills the image. Each layer has a texture (a photograph, noise or plain
shading), a shape, and a motion. All frames are rendered from the layers directly, so the flow is known exactly: at each
pixel it is the motion of the topmost layer. A scene depends on its configuration, seed and index only, not on the
process that makes it.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from deqflow.data.synthetic.layers import Layer, random_layers
    from deqflow.data.synthetic.light import Weather, change_light
    from deqflow.data.synthetic.motions import Pose, Waves, random_motion
    from deqflow.data.synthetic.pairs import SyntheticPairs, make_pair
    from deqflow.data.synthetic.rendering import out_of_frame, render, true_flow
    from deqflow.data.synthetic.scenes import HELD_OUT_SEED, RICH_SCENES, SceneConfig
    from deqflow.data.synthetic.shapes import random_shape
    from deqflow.data.synthetic.textures import (
        PHOTOGRAPHS,
        Texture,
        noise_texture,
        photograph_files,
        photographs,
        plain_texture,
        random_texture,
    )
    from deqflow.data.synthetic.videos import SyntheticVideo, VideoFrame

__all__ = [
    "HELD_OUT_SEED",
    "PHOTOGRAPHS",
    "RICH_SCENES",
    "Layer",
    "Pose",
    "SceneConfig",
    "SyntheticPairs",
    "SyntheticVideo",
    "Texture",
    "VideoFrame",
    "Waves",
    "Weather",
    "change_light",
    "make_pair",
    "noise_texture",
    "out_of_frame",
    "photograph_files",
    "photographs",
    "plain_texture",
    "random_layers",
    "random_motion",
    "random_shape",
    "random_texture",
    "render",
    "true_flow",
]
# Each name is imported when it is used, so that the command line's help is fast.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "layers": ["Layer", "random_layers"],
        "light": ["Weather", "change_light"],
        "motions": ["Pose", "Waves", "random_motion"],
        "pairs": ["SyntheticPairs", "make_pair"],
        "rendering": ["out_of_frame", "render", "true_flow"],
        "scenes": ["HELD_OUT_SEED", "RICH_SCENES", "SceneConfig"],
        "shapes": ["random_shape"],
        "textures": [
            "PHOTOGRAPHS",
            "Texture",
            "noise_texture",
            "photograph_files",
            "photographs",
            "plain_texture",
            "random_texture",
        ],
        "videos": ["SyntheticVideo", "VideoFrame"],
    },
)
