"""The pairs of a run, and which process gets which of them."""

from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import Dataset, Sampler

from deqflow.data.datasets import FlowSample, stage_mixture
from deqflow.data.synthetic import SyntheticPairs
from deqflow.training.config import TrainConfig


def training_pairs(config: TrainConfig) -> Dataset[FlowSample]:
    """The pairs of all steps of a run, by index. Each pair depends only on the seed and its index.

    Procedural pairs are all different. A published stage begins a new epoch at its end, with another order and other
    augmentations.

    Raises:
        FileNotFoundError: a data set of the stage, or a file of one, is missing.
        ValueError: the crop is too small.
    """
    if config.stage:
        return stage_mixture(config.stage, Path(config.data_root), crop=config.crop, seed=config.seed)
    return SyntheticPairs(config.steps * config.batch, seed=config.seed, config=config.scenes)


class Shares(Sampler[list[int]]):
    """Indices of one process's pairs, step by step. No pair is used twice, whatever the number of processes.

    Args:
        config: the run's configuration.
        first: step to begin with.
        process, processes: index of this process, and their number; all take equally many pairs of a step.
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
        """Indices of this process's pairs in a step."""
        start = step * self.batch + self.offset
        return list(range(start, start + self.share))
