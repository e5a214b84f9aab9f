"""The starts of the solves of a training step: some samples do not begin at the model's own start.

The model so learns to reach the same equilibrium from any start, and such a model profits from more evaluations (Anil
et al. 2022, path independence).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from deqflow.model.problem import FlowProblem
from deqflow.model.state import FlowState

StartName = Literal["random", "truth", "other", "noise"]
STARTS: tuple[StartName, ...] = ("random", "truth", "other", "noise")
DISTURBANCE = (0.2, 5.0)  # px, RMS; least and greatest, drawn uniformly on a log scale


def coarse_truth(flow: Tensor, valid: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """The true flow at the state's size: the mean of the known vectors in each cell.

    Args:
        flow: true flow, (B, 2, s h, s w) in pixels.
        valid: (B, s h, s w) booleans, true where the flow is known.
        stride: s, image pixels per coarse pixel.

    Returns:
        The flow, (B, 2, h, w) in coarse pixels, zero where nothing is known; and (B, h, w) booleans, true where half
        of the cell or more is known.
    """
    known = valid[:, None].to(flow.dtype)
    share = F.avg_pool2d(known, stride)
    mean = F.avg_pool2d(torch.where(valid[:, None], flow, 0.0), stride) / share.clamp_min(1e-6)
    return torch.where(share > 0, mean, 0.0) / stride, share[:, 0] >= 0.5


def draw_starts(
    problem: FlowProblem, truth: Tensor, share: float, generator: torch.Generator, kinds: tuple[StartName, ...] = STARTS
) -> Tensor:
    """The packed start of each sample: the model's own, or with probability ``share`` one of ``kinds``.

    - "random": the hidden state is the tanh of normal numbers, the flow is normal with a deviation of 8 px;
    - "truth": the true flow, disturbed by smooth or white noise of 0.2 to 5 px, and the model's own hidden state;
    - "other": another sample's true flow and a random hidden state;
    - "noise": the model's own start with a disturbed flow.

    Args:
        problem: the problem of the batch.
        truth: true flow, (B, 2, h, w) in coarse pixels.
        share: probability of another start, from 0 to 1.
        generator: a generator on the CPU.
        kinds: the other starts to draw from.
    """
    if share == 0:
        return problem.z0
    own = FlowState.unpack(problem.z0)
    chosen = torch.rand(len(truth), generator=generator) < share
    which = torch.randint(len(kinds), (len(truth),), generator=generator)
    hidden, flow = own.hidden.clone(), own.flow.clone()
    stride = problem.estimator.stride
    for row in chosen.nonzero().flatten().tolist():
        kind = kinds[int(which[row])]
        if kind in ("random", "other"):
            hidden[row] = torch.randn(hidden[row].shape, generator=generator).tanh().to(hidden)
        if kind == "random":
            flow[row] = torch.randn(flow[row].shape, generator=generator).to(flow)
        elif kind == "other":
            flow[row] = truth[(row + 1) % len(truth)].to(flow)
        else:
            base = truth[row] if kind == "truth" else flow[row]
            flow[row] = base.to(flow) + disturbance(flow[row : row + 1], stride, generator)[0]
    return FlowState(hidden, flow).pack()


def disturbance(
    flow: Tensor, stride: int, generator: torch.Generator, *, smooth: bool | None = None, size: float | None = None
) -> Tensor:
    """White or smooth noise in the shape of a flow, (B, 2, h, w), in coarse pixels.

    Args:
        flow: gives the shape, (B, 2, h, w).
        stride: image pixels per coarse pixel.
        generator: a generator on the CPU.
        smooth: whether the noise is smooth; drawn for each sample if not given.
        size: RMS in full-size pixels; if not given, drawn for each sample from 0.2 to 5, uniformly on a log scale.
    """
    least, greatest = DISTURBANCE
    sizes = least * (greatest / least) ** torch.rand(len(flow), 1, 1, 1, generator=generator)
    white = torch.randn(flow.shape, generator=generator)
    blurred = F.avg_pool2d(white, 5, stride=1, padding=2, count_include_pad=False)
    chosen = torch.rand(len(flow), 1, 1, 1, generator=generator) < 0.5 if smooth is None else torch.tensor(not smooth)
    noise = torch.where(chosen, white, blurred)
    length = noise.square().mean((1, 2, 3), keepdim=True).sqrt()
    return (noise * (sizes if size is None else size) / stride / length).to(flow)
