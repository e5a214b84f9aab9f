"""Procedural pairs and videos with exact flow and occlusion, in the manner of FlyingChairs and AutoFlow."""

from .layers import Layer as Layer
from .layers import random_layers as random_layers
from .light import Weather as Weather
from .light import change_light as change_light
from .motions import Pose as Pose
from .motions import Waves as Waves
from .motions import random_motion as random_motion
from .pairs import SyntheticPairs as SyntheticPairs
from .pairs import make_pair as make_pair
from .rendering import out_of_frame as out_of_frame
from .rendering import render as render
from .rendering import true_flow as true_flow
from .scenes import HELD_OUT_SEED as HELD_OUT_SEED
from .scenes import RICH_SCENES as RICH_SCENES
from .scenes import SceneConfig as SceneConfig
from .shapes import random_shape as random_shape
from .textures import PHOTOGRAPHS as PHOTOGRAPHS
from .textures import Texture as Texture
from .textures import noise_texture as noise_texture
from .textures import photograph_files as photograph_files
from .textures import plain_texture as plain_texture
from .textures import random_texture as random_texture
from .videos import SyntheticVideo as SyntheticVideo
from .videos import VideoFrame as VideoFrame
