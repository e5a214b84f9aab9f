"""The pairs of a run, and who gets which."""

from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import Dataset, Sampler

from deqflow.data.datasets import FlowSample, stage_mixture
from deqflow.data.synthetic import SyntheticPairs
from deqflow.training.config import TrainConfig


def training_pairs(config: TrainConfig) -> Dataset[FlowSample]:
    """Pairs for each step of a run, by index, each a function of the seed and its index alone.

    Procedural pairs are all different; a published stage begins another epoch, shuffled and augmented in another way.

    Raises:
        FileNotFoundError: a set of the stage, or a file of one, is missing.
        ValueError: the crop is too small.
    """
    if config.stage:
        return stage_mixture(config.stage, Path(config.data_root), crop=config.crop, seed=config.seed)
    return SyntheticPairs(config.steps * config.batch, seed=config.seed, config=config.scenes)


class Shares(Sampler[list[int]]):
    """Indices of one process's pairs, step by step: no pair twice, whoever takes which.

    Args:
        config: of the run.
        first: step to begin with.
        process, processes: which of how many; each takes as many pairs of a step.
    """

    def __init__(self, config: TrainConfig, *, first: int = 0, process: int = 0, processes: int = 1) -> None:
        self.batch, self.first, self.steps = config.batch, first, config.steps
        self.share = self.batch // processes
        self.offset = process * self.share

    def __len__(self) -> int:
        return self.steps - self.first

    def __iter__(self) -> Iterator[list[int]]:
        return (self.at(step) for step in range(self.first, self.steps))

    def at(self, step: int) -> list[int]:
        """Indices of a step's share."""
        start = step * self.batch + self.offset
        return list(range(start, start + self.share))
