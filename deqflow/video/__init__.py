"""The flow of videos by fixed-point reuse: consecutive frames have nearly the same equilibrium (paper section 3.4).

>>> video = VideoFlow(deqflow.load("deqflow-small"), policy="warp")
>>> for image, step in video.run(read_frames("clip.mp4")):
...     step.flow, step.evaluations
"""

from deqflow.video.estimation import VideoFlow, VideoStep
from deqflow.video.filming import FileFormat, film_flow
from deqflow.video.policies import CutDetector, CutRule, Policy, carry, photometric_error
from deqflow.video.reading import Frames, ahead, read_frames
from deqflow.video.writing import Drawing, FlowFolder, Movie, Statistics, draw_flow

__all__ = [
    "CutDetector",
    "CutRule",
    "Drawing",
    "FileFormat",
    "FlowFolder",
    "Frames",
    "Movie",
    "Policy",
    "Statistics",
    "VideoFlow",
    "VideoStep",
    "ahead",
    "carry",
    "draw_flow",
    "film_flow",
    "photometric_error",
    "read_frames",
]
