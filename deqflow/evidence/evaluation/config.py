"""How to measure."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from deqflow.model.scales import check_scales


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How to measure.

    Attributes:
        evals: numbers of evaluations to measure the error at, without early stop.
        scales: factors by which the pictures are resized, see :func:`deqflow.model.scales.estimate_at_scales`.
            ``evals`` are those at the last one; solves at the others are stopped by the model's own tolerance.
        precision: of the encoders and the update; bfloat16 is by autocast.
        device: to run models on; "auto" takes a GPU where there is one.
        procedural: how many pairs in each procedural set.
        most: of a benchmark's pairs, evenly spread over it; all if not given.
    """

    evals: tuple[int, ...] = (12, 24, 48, 96)
    scales: tuple[float, ...] = (1.0,)
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    procedural: int = 32
    most: int | None = None

    def __post_init__(self) -> None:
        if not self.evals or min(self.evals) < 1 or list(self.evals) != sorted(set(self.evals)):
            raise ValueError(f"evals expects numbers of evaluations in ascending order, from 1, got {self.evals}.")
        check_scales(self.scales)
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision expects float32 or bfloat16, got {self.precision!r}.")
        if self.procedural < 1 or (self.most is not None and self.most < 1):
            raise ValueError(f"Expected at least 1 pair, got procedural={self.procedural} and most={self.most}.")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"No device {self.device}: torch finds no GPU here. Use auto, or cpu.")

    @property
    def torch_device(self) -> torch.device:
        """The device that is meant."""
        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        return torch.device(chosen)

    def autocast(self) -> AbstractContextManager[object]:
        """The context of the chosen precision."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.torch_device.type, torch.bfloat16)
