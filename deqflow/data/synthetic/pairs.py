"""Procedural pairs of frames, as a data set."""

import cv2
import numpy as np
import torch

from deqflow.data.datasets import FlowSample
from deqflow.data.synthetic.layers import random_layers
from deqflow.data.synthetic.light import Weather, change_light
from deqflow.data.synthetic.rendering import render, true_flow
from deqflow.data.synthetic.scenes import SceneConfig
from deqflow.data.synthetic.textures import photograph_files


class SyntheticPairs(torch.utils.data.Dataset[FlowSample]):
    """Procedural pairs, made on demand. Item i depends only on i, the seed and the configuration.

    Args:
        length: the number of items.
        seed: the seed of the whole set.
        config: what the scenes look like.

    Raises:
        ValueError: the length is less than 1, or the seed less than 0.
        ModuleNotFoundError, FileNotFoundError: a photograph is missing.
    """

    def __init__(self, length: int, *, seed: int = 0, config: SceneConfig | None = None) -> None:
        if length < 1:
            raise ValueError(f"SyntheticPairs expects a length of at least 1, got {length}.")
        if seed < 0:
            raise ValueError(f"SyntheticPairs expects a seed of at least 0, got {seed}.")
        self.length, self.seed, self.config = length, seed, config or SceneConfig()
        require_photographs(self.config)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> FlowSample:
        if not 0 <= index < self.length:
            raise IndexError(f"Expected an index from 0 to {self.length - 1}, got {index}.")
        keep_to_one_thread()
        return make_pair(self.config, np.random.default_rng([self.seed, index]))


def require_photographs(config: SceneConfig) -> None:
    """Raise an error now if a photograph is missing, not later in a loader's worker."""
    if config.noise < 1:
        photograph_files(config.packages, config.photographs)


def keep_to_one_thread() -> None:
    """Limit OpenCV to one thread in a loader's worker, so that it leaves the other cores to the training."""
    if torch.utils.data.get_worker_info() is not None and cv2.getNumThreads() != 1:
        cv2.setNumThreads(0)


def make_pair(config: SceneConfig, rng: np.random.Generator) -> FlowSample:
    """Draw a scene at random and render it.

    ``occluded`` marks what is hidden or out of frame in the second frame. To tell the two apart, apply
    :func:`~deqflow.data.synthetic.out_of_frame` to the flow.
    """
    layers = random_layers(config, rng)
    frame1, ids1 = render(layers, config, second=False)
    frame2, ids2 = render(layers, config, second=True)
    flow, occluded = true_flow(layers, ids1, ids2)
    weather = Weather.draw(config, rng)
    frame1, frame2 = weather.apply(frame1, -1.0), weather.apply(frame2, 1.0)
    if config.photometric > 0:
        frame1, frame2 = change_light(frame1, frame2, config.photometric, rng)
    return FlowSample(
        image1=torch.from_numpy(frame1).permute(2, 0, 1).contiguous(),
        image2=torch.from_numpy(frame2).permute(2, 0, 1).contiguous(),
        flow=torch.from_numpy(flow).permute(2, 0, 1).contiguous(),
        valid=torch.ones(config.height, config.width, dtype=torch.bool),
        occluded=torch.from_numpy(occluded),
    )
