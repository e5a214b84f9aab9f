"""What the parts of the bench share: rows of the table, images, models, precision."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import skimage
import torch
import torch.nn.functional as F
from reference.weights_from_names import published_state_dict
from torch import Tensor

import deqflow
from deqflow.data.datasets import FlowSample, available_benchmarks, motorcycle
from deqflow.data.synthetic import SyntheticPairs
from deqflow.model.published import from_published
from deqflow.training import HELD_OUT_SEED

REFERENCE = Path(__file__).parents[1] / "reference"
DATA = Path(__file__).parents[3] / "shared" / "data"  # real pairs with truth, where there are any


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: what was measured, and what was to be reached ("at least" or "at most")."""

    quantity: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target was reached; None where there is none."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(dtype: torch.dtype):
    """Automatic mixed precision, off for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device().type, dtype=dtype)


def reference_base() -> deqflow.FlowEstimator:
    """DEQ-Flow base with the reference's weights: any will do for time, and these leave a flow that can be compared."""
    return from_published(published_state_dict(REFERENCE / "deqflow2_base.keys.json")).to(device()).eval()


def photographs(height: int, width: int, *, batch: int = 1) -> tuple[Tensor, Tensor]:
    """The motorcycle pair at any size, (B, 3, height, width) each."""
    folder = Path(skimage.__file__).parent / "data"
    pair = [deqflow.read_image(folder / f"motorcycle_{side}.png") for side in ("left", "right")]
    scaled = [F.interpolate(image, (height, width), mode="bilinear", antialias=True) for image in pair]
    return tuple(image.expand(batch, -1, -1, -1).contiguous().to(device()) for image in scaled)


def real_pairs() -> list[FlowSample]:
    """Pairs with truth: the motorcycle, and those of the benchmarks that lie at hand."""
    benchmarks = available_benchmarks(DATA) if DATA.is_dir() else {}
    return [motorcycle(), *(dataset[i] for dataset in benchmarks.values() for i in range(len(dataset)))]


def held_out(count: int) -> list[FlowSample]:
    """Procedural pairs that no training has seen."""
    pairs = SyntheticPairs(count, seed=HELD_OUT_SEED)
    return [pairs[i] for i in range(count)]
