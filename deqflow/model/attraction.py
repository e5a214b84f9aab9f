"""Modules that draw the flow back before each evaluation, so that the fixed point attracts.

An update operator adds an increment to the flow, so that the flow keeps whatever the increment does not correct:
above all fine noise, which convex upsampling averages out of the loss. Each module here maps (hidden, flow) to the
flow that the evaluation begins with. ``prepare(context)`` runs once a pair, as an update operator's does.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deqflow.model.sizes import AttractionName

Draw = Callable[[Tensor, Tensor], Tensor]  # hidden (B, Ch, h, w), flow (B, 2, h, w) -> flow (B, 2, h, w)


class Attraction(Protocol):
    """The interface of what a :class:`deqflow.model.estimator.FlowEstimator` takes as its ``attraction``."""

    def prepare(self, context: Tensor) -> Draw:
        """Return the map for a pair, from the context features (B, C, h, w)."""
        ...


def check_strength(strength: float) -> None:
    """Raise unless ``strength`` is at least 0 and less than 1."""
    if not 0 <= strength < 1:
        raise ValueError(f"A smoothness term expects a strength of at least 0 and less than 1, got {strength!r}.")


class MeanSmoothing(nn.Module):
    """A smoothness term: flow <- (1 - s) flow + s (mean of its 3x3 neighbourhood inside the image).

    Args:
        strength: s, from 0 (nothing) to less than 1.
    """

    def __init__(self, strength: float = 0.3) -> None:
        super().__init__()
        check_strength(strength)
        self.strength = strength

    def prepare(self, context: Tensor) -> Draw:
        """Return the map for a pair; the context is not needed."""
        return lambda hidden, flow: torch.lerp(flow, mean_of_neighbours(flow), self.strength)


class ContextSmoothing(nn.Module):
    """An edge-aware smoothness term: neighbours that look alike count more.

    The weights are a softmax over the nine pixels of -|c_i - c_j|^2 / t, where c is the context divided by its
    standard deviation.

    Args:
        strength: the share of the flow that is replaced, from 0 to less than 1.
        temperature: t; from 3 on the weights are nearly equal.
    """

    def __init__(self, strength: float = 0.3, temperature: float = 1.0) -> None:
        super().__init__()
        check_strength(strength)
        if not temperature > 0:
            raise ValueError(f"A smoothness term expects a temperature above 0, got {temperature!r}.")
        self.strength, self.temperature = strength, temperature

    def prepare(self, context: Tensor) -> Draw:
        """Return the map for a pair, with weights computed from the context."""
        with torch.no_grad():
            scaled = context.float() / context.float().std((1, 2, 3), keepdim=True).clamp_min(1e-6)
            distance = (neighbours(scaled) - scaled[:, :, None]).square().sum(1)  # (B, 9, h, w)
            inside = neighbours(torch.ones_like(scaled[:, :1]))[:, 0] > 0
            weights = (-distance / self.temperature).masked_fill(~inside, -torch.inf).softmax(1)
        return lambda hidden, flow: torch.lerp(flow, weighted(flow, weights), self.strength)


class LearnedSmoothing(nn.Module):
    """A smoothness term whose weights and strength are predicted from the hidden state, as in convex upsampling.

    Args:
        hidden: channels of the hidden state.
        strength: initial value of the learned strength, at all pixels; the weights are equal at first.
    """

    def __init__(self, hidden: int, strength: float = 0.3) -> None:
        super().__init__()
        check_strength(strength)
        self.head = nn.Conv2d(hidden, 10, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.bias[9] = torch.logit(torch.tensor(max(strength, 1e-4)))

    def prepare(self, context: Tensor) -> Draw:
        """Return the map for a pair."""
        inside = neighbours(torch.ones_like(context[:, :1].float()))[:, 0] > 0

        def draw(hidden: Tensor, flow: Tensor) -> Tensor:
            logits, strength = self.head(hidden).float().tensor_split([9], 1)
            weights = logits.masked_fill(~inside, -torch.inf).softmax(1)
            return flow + (strength.sigmoid() * (weighted(flow, weights) - flow)).to(flow.dtype)

        return draw


class Leak(nn.Module):
    """A leak towards a flow that is predicted from the hidden state: flow <- (1 - a) flow + a g(hidden).

    Args:
        hidden: channels of the hidden state.
        width: channels of the head that predicts the flow and the share a.
        share: initial value of a, at all pixels.
    """

    def __init__(self, hidden: int, width: int = 64, share: float = 0.02) -> None:
        super().__init__()
        check_strength(share)
        self.head = nn.Sequential(nn.Conv2d(hidden, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1))
        last = self.head[2]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        with torch.no_grad():
            last.bias[2] = torch.logit(torch.tensor(max(share, 1e-4)))

    def prepare(self, context: Tensor) -> Draw:
        """Return the map for a pair; the context is not needed."""

        def draw(hidden: Tensor, flow: Tensor) -> Tensor:
            target, share = self.head(hidden).to(flow.dtype).tensor_split([2], 1)
            return torch.lerp(flow, target, share.sigmoid())

        return draw


def mean_of_neighbours(flow: Tensor) -> Tensor:
    """Mean over the part of the 3x3 neighbourhood inside the image: (B, 2, h, w) -> the same shape."""
    return F.avg_pool2d(flow, 3, stride=1, padding=1, count_include_pad=False)


def neighbours(x: Tensor) -> Tensor:
    """The 3x3 neighbourhood of each pixel, zero outside: (B, C, h, w) -> (B, C, 9, h, w)."""
    batch, channels, height, width = x.shape
    return F.unfold(x, 3, padding=1).view(batch, channels, 9, height, width)


def weighted(flow: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over the 3x3 neighbourhood: flow (B, 2, h, w), weights (B, 9, h, w) -> (B, 2, h, w)."""
    return (neighbours(flow) * weights[:, None].to(flow.dtype)).sum(2)


def make_attraction(name: AttractionName, *, hidden: int, strength: float, temperature: float) -> Attraction | None:
    """The module that a configuration names; None for "none".

    Raises:
        ValueError: there is no such name, or a number is out of its range.
    """
    makers: dict[str, Callable[[], Attraction | None]] = {
        "none": lambda: None,
        "mean": lambda: MeanSmoothing(strength),
        "context": lambda: ContextSmoothing(strength, temperature),
        "learned": lambda: LearnedSmoothing(hidden, strength),
        "leak": lambda: Leak(hidden, share=strength),
    }
    if name not in makers:
        raise ValueError(f"Unknown attraction {name!r}: expected one of {', '.join(makers)}.")
    return makers[name]()
