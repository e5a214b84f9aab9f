"""Commands that write models in other formats: published weights as deqflow's, graphs for other runtimes."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from torch import Tensor

import deqflow
from deqflow.commands.shared import load_model
from deqflow.data.synthetic import SceneConfig, SyntheticPairs
from deqflow.model.export import export, parity

PARITY_SIZES = ((128, 192), (141, 203))  # height and width; the second divides by nothing, and is padded
PARITY_SEED = 3_000_017


@dataclass(frozen=True)
class Convert:
    """Write a published checkpoint as one of deqflow's: safetensors, with its configuration inside.

    Attributes:
        source: the published file (.pth, .safetensors).
        target: where to, ending in .safetensors.
    """

    source: tyro.conf.Positional[Path]
    target: tyro.conf.Positional[Path]

    def __call__(self) -> int:
        """Run the command."""
        if self.target.suffix != ".safetensors":
            raise ValueError(f"convert expects a target that ends in .safetensors, got {self.target}.")
        estimator = deqflow.load_published(self.source)
        deqflow.save(estimator, self.target, recipe={"origin": estimator.origin, "file": self.source.name})
        count = sum(parameter.numel() for parameter in estimator.parameters())
        print(f"Found {estimator.origin}, {count / 1e6:.2f} M parameters.")
        print(f"Wrote {self.target}: use it with deqflow.load(path).")
        return 0


@dataclass(frozen=True)
class Export:
    """Write a model with a fixed number of evaluations as a graph for other runtimes, and compare it with the model.

    Attributes:
        model: a shipped model's name, a checkpoint of deqflow's (.safetensors), or a published one (.pth).
        evals: number of evaluations.
        size: height and width of the images; any from 128 px a side up if not given.
        out: where to, ONNX (.onnx) or torch.export's format (.pt2).
        tolerance: largest end-point difference in px that is accepted.
    """

    model: str = "deqflow-small"
    evals: int = 12
    size: tuple[int, int] | None = None
    out: Path = Path("model.onnx")
    tolerance: float = 0.01

    def __call__(self) -> int:
        """Run the command."""
        estimator = load_model(self.model)
        export(estimator, self.out, evals=self.evals, size=self.size, notes={"model": self.model})
        print(f"Wrote {self.out}.")
        pairs = (parity_pair(height, width) for height, width in ([self.size] if self.size else PARITY_SIZES))
        differences = parity(estimator, self.out, evals=self.evals, pairs=pairs)
        for (height, width), difference in differences.items():
            print(f"{width} x {height}: at most {difference:.1e} px from the model.")
        return int(not max(differences.values()) <= self.tolerance)


def parity_pair(height: int, width: int) -> tuple[Tensor, Tensor]:
    """A procedural pair of images, (1, 3, height, width) each, on which a graph and its model are compared."""
    pair = SyntheticPairs(1, seed=PARITY_SEED, config=SceneConfig(height=height, width=width))[0]
    return pair.image1[None], pair.image2[None]
