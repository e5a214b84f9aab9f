"""Procedural pairs and videos with exact flow and occlusion, in the manner of FlyingChairs and AutoFlow."""

from .layers import Layer, random_layers
from .light import Weather, change_light
from .motions import Pose, Waves, random_motion
from .pairs import SyntheticPairs, make_pair
from .rendering import out_of_frame, render, true_flow
from .scenes import HELD_OUT_SEED, RICH_SCENES, SceneConfig
from .shapes import random_shape
from .textures import PHOTOGRAPHS, Texture, noise_texture, photograph_files, photographs, plain_texture, random_texture
from .videos import SyntheticVideo, VideoFrame

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
