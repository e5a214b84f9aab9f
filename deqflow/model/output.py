"""What an estimator returns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deqflow.model.geometry import Padding
from deqflow.model.mixture import expected_error
from deqflow.model.state import STRIDE, FlowState
from deqflow.solvers import SolverResult, Status, rms

NUMBERS = (".flo", ".pfm", ".flo5", ".npy", ".npz")  # suffixes of files of numbers; a test holds them to the writers'


def movement_map(moved: Tensor, padding: Padding, stride: int) -> Tensor:
    """The length of a change of the coarse flow, (B, 2, h, w), at each pixel of the images, (B, H, W), in pixels."""
    length = stride * torch.linalg.vector_norm(moved, dim=1, keepdim=True)
    return padding.crop(F.interpolate(length, scale_factor=stride, mode="bilinear", align_corners=False))[:, 0]


@dataclass(frozen=True, repr=False)
class FlowOutput:
    """What an estimator returns, in training and in evaluation alike.

    Attributes:
        flow: (B, 2, H, W), from the first image to the second, x right, y down, in pixels.
        flows: the flow at each correction, oldest first; the last is ``flow``. One entry in evaluation.
        state: hidden state and flow at the coarse size, from f(z); another solve may start from it.
        solve: the solver's result; its residual is the RMS change of the flow in full-size pixels, (B,).
        padding: the padding of the images.
        stride: image pixels to a pixel of the state.
        mixtures: the mixture at each correction, (B, 4, H, W) each, as :attr:`mixture`; empty if the model has none.
        scale: factor by which the given images were resized before the solve: a mixture's scales are in pixels of the
            resized images.
    """

    flow: Tensor
    flows: tuple[Tensor, ...]
    state: FlowState
    solve: SolverResult
    padding: Padding
    stride: int = STRIDE
    mixtures: tuple[Tensor, ...] = ()
    scale: float = 1.0

    @property
    def mixture(self) -> Tensor | None:
        """The model's prediction of its error (:mod:`deqflow.model.mixture`), (B, 4, H, W); None if it has none.

        Two logits and two log scales at full size, as the head gives them, unclamped.
        """
        return self.mixtures[-1] if self.mixtures else None

    @property
    def expected_error(self) -> Tensor | None:
        """The mixture's expected absolute error of each of the flow's two components, (B, H, W), in pixels."""
        return None if self.mixture is None else expected_error(self.mixture) / self.scale

    @property
    def hidden_residual(self) -> Tensor:
        """RMS change of the hidden state in the reported evaluation, (B,), no unit."""
        return rms(self._moved.hidden)

    @property
    def residual_map(self) -> Tensor:
        """How far the reported evaluation moved the flow at each pixel, (B, H, W), in full-size pixels.

        It is bilinear between the coarse pixels. Its root mean square over them is ``solve.residual`` times the root
        of 2, because it measures the length of a vector and the residual measures single components.
        """
        return movement_map(self._moved.flow, self.padding, self.stride)

    @property
    def _moved(self) -> FlowState:
        return FlowState.unpack(self.solve.fz - self.solve.z)

    def __repr__(self) -> str:
        """The shapes and how the solve ended, in a few lines."""
        batch, _, height, width = self.flow.shape
        length = torch.linalg.vector_norm(self.flow.detach().float(), dim=1)
        endings = ", ".join(sorted({Status(int(status)).name.lower() for status in self.solve.status}))
        return (
            f"FlowOutput: {batch} flow field{'s' * (batch > 1)} of {width} x {height} px, "
            f"on {self.flow.device}, mean length {float(length.mean()):.3g} px, longest {float(length.max()):.3g} px\n"
            f"  solve: {endings} after {int(self.solve.evals.max())} evaluations; the last one moved the flow by "
            f"{float(self.solve.residual.max()):.2g} px (tolerance {self.solve.stop.atol:g} px)\n"
            f"  state: hidden {tuple(self.state.hidden.shape)}, flow {tuple(self.state.flow.shape)}; "
            f"{len(self.flows)} correction{'s' * (len(self.flows) > 1)}"
        )

    def numpy(self) -> np.ndarray:
        """The flow as an array, (H, W, 2) for one pair, else (B, H, W, 2), float32, in pixels."""
        flow = self.flow.detach().float().cpu().permute(0, 2, 3, 1).numpy()
        return flow[0] if len(flow) == 1 else flow

    def show(self) -> Any:
        """The flow of the first pair as a PIL image in Middlebury's colours; a notebook displays it."""
        from PIL import Image

        from deqflow import flow_to_rgb  # imported here: the model does not depend on colours

        return Image.fromarray(flow_to_rgb(self.flow[0].detach().float().cpu()))

    def save(self, path: str | Path) -> Path:
        """Write the flow of one pair to a file, as ``python -m deqflow flow`` does: the suffix names the format.

        Numbers go into .flo, .pfm, .flo5, .npy and .npz (:func:`deqflow.write_flow`, which writes KITTI's 16-bit .png
        too), colours into .png, .jpg and all other images, as :meth:`show` shows them.

        Raises:
            ValueError: the output holds several pairs, or the suffix is not known.
        """
        if len(self.flow) != 1:
            raise ValueError(
                f"save expects the output of one pair, got {len(self.flow)}: call deqflow.write_flow for each."
            )
        from deqflow import flow_to_rgb, write_flow, write_image  # the model does not depend on file formats

        flow, numbers = self.flow[0].detach().float().cpu(), Path(path).suffix.lower() in NUMBERS
        return write_flow(path, flow) if numbers else write_image(path, flow_to_rgb(flow))
