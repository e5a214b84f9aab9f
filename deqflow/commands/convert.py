"""Commands that write models in other formats: published weights as deqflow's own, graphs for other runtimes."""

from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from deqflow.commands.shared import load_model, print_line, refuse_overwriting, require_suffix

if TYPE_CHECKING:
    from torch import Tensor

PARITY_SIZES = ((128, 192), (141, 203))  # height and width; the second does not divide by 8, so that it is padded
PARITY_SEED = 3_000_017
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Convert:
    """Write a published checkpoint as one of deqflow's own.

    Those are .safetensors files with the model's configuration inside.

    Attributes:
        source: the published file (.pth, .pt, .safetensors).
        target: where to write, ending in .safetensors.
    """

    source: tyro.conf.Positional[Path]
    target: tyro.conf.Positional[Path]

    def __call__(self) -> int:
        """Run the command."""
        import deqflow

        if self.target.suffix.lower() != ".safetensors":
            raise ValueError(f"convert expects a target that ends in .safetensors, got {self.target}.")
        refuse_overwriting(self.target, self.source, option="target")
        estimator = deqflow.load_published(self.source)
        deqflow.save(estimator, self.target, recipe={"origin": estimator.origin, "file": self.source.name})
        count = sum(parameter.numel() for parameter in estimator.parameters())
        print(f"Found {estimator.origin}, {count / 1e6:.2f} M parameters.")
        print(f"Wrote {self.target}: use it with deqflow.load(path).")
        return 0


@dataclass(frozen=True)
class Export:
    """Write a model as a graph for other runtimes, and compare it with the model.

    The graph makes a fixed number of evaluations.

    Attributes:
        model: name of a shipped model, or path of a checkpoint: deqflow's own or a published one.
        device: where the graph is made and compared, such as cpu or cuda; auto takes a GPU where there is one. A .pt2
            graph runs on the kind of device it was made on. ONNX graphs run anywhere, and are made on the CPU.
        evals: number of evaluations.
        size: height and width of the images; any size from 128 px a side if not given.
        out: where to write, ONNX (.onnx) or torch.export's format (.pt2).
        tolerance: largest accepted end-point difference in px between graph and model.
    """

    model: str = "deqflow-small"
    device: str = "auto"
    evals: int = 12
    size: tuple[int, int] | None = None
    out: Path = Path("model.onnx")
    tolerance: float = 0.01

    def __call__(self) -> int:
        """Run the command."""
        require_suffix(self.out, ".onnx", ".pt2")
        refuse_overwriting(self.out, Path(self.model))  # a checkpoint may have any suffix
        if not self.tolerance >= 0:
            raise ValueError(f"--tolerance expects a number of 0 or more in px, got {self.tolerance}.")
        if self.out.suffix.lower() == ".onnx":
            require_onnx()
        import torch

        from deqflow.model.export import export, parity
        from deqflow.model.precision import choose_device

        device = choose_device(self.device)
        if self.out.suffix.lower() == ".onnx":
            if self.device != "auto" and device.type != "cpu":
                raise ValueError(
                    f"--device {self.device} has no effect on ONNX, whose graphs run anywhere: leave it out."
                )
            device = torch.device("cpu")
        estimator = load_model(self.model, str(device))
        sizes = [self.size] if self.size else PARITY_SIZES
        # The examples that a graph is traced with are made on this device.
        with device if device.type != "cpu" else nullcontext():
            notes = {"model": self.model}
            export(estimator, self.out, evals=self.evals, size=self.size, notes=notes, on_progress=print_line)
        print(f"Wrote {self.out}. Comparing it with the model.", flush=True)
        pairs = [parity_pair(height, width) for height, width in sizes]
        on_device = ((image1.to(device), image2.to(device)) for image1, image2 in pairs)
        differences = parity(estimator, self.out, evals=self.evals, pairs=on_device)
        for (height, width), difference in differences.items():
            print(f"{width} x {height}: at most {difference:.1e} px from the model.")
        good = max(differences.values()) <= self.tolerance  # false for NaN
        if not good:
            print(f"That is more than the tolerance of {self.tolerance:g} px: do not use {self.out}.")
        return int(not good)


def require_onnx() -> None:
    """Raise unless what ONNX graphs need is installed, before any work is done.

    Raises:
        ImportError: a package is missing.
    """
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ONNX needs packages that are not installed ({', '.join(missing)}): pip install 'deqflow[export]', or "
            "write torch.export's format with --out model.pt2."
        )


def parity_pair(height: int, width: int) -> "tuple[Tensor, Tensor]":
    """A procedural pair of images, (1, 3, height, width) each, on which a graph and its model are compared."""
    from deqflow.data.synthetic import SceneConfig, SyntheticPairs

    pair = SyntheticPairs(1, seed=PARITY_SEED, config=SceneConfig(height=height, width=width))[0]
    return pair.image1[None], pair.image2[None]
