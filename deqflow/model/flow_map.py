"""The map f whose fixed point is the flow: lookup and update operator on packed states (paper section 3.1)."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deqflow.model.attraction import Attraction
from deqflow.model.correlation import Correlation


class FlowMap:
    """f(z) for a batch of pairs: a pure function, which may be evaluated any number of times at any state.

    Args:
        correlation: the correlation of the pairs.
        context: (B, C, h, w).
        update: the update operator.
        attraction: what draws the flow back before each evaluation, if anything (:mod:`deqflow.model.attraction`).
        all_gradients: do not detach the flow inside the update.
        mask: what the lookup is multiplied by, (B, C, 1, 1), if anything.
        checkpoint: where a graph is recorded, keep only the state for backward, which evaluates again.
        dtype: precision of the update operator's weights, to which its inputs are cast; that of the context if None.
            The state keeps its own precision: in bfloat16, places beyond column 128 have no fractions.
    """

    def __init__(
        self,
        correlation: Correlation,
        context: Tensor,
        update: Any,
        *,
        all_gradients: bool,
        attraction: Attraction | None = None,
        mask: Tensor | None = None,
        checkpoint: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.correlation, self.context, self.mask = correlation, context, mask
        self.update, self.all_gradients, self.checkpoint = update, all_gradients, checkpoint
        self.prepared, self.dtype = update.prepare(context), dtype or context.dtype
        self.attraction = attraction
        self.draw = None if attraction is None else attraction.prepare(context)

    def __call__(self, z: Tensor) -> Tensor:
        """One evaluation: packed states (B, Ch + 2, h, w) -> the same."""
        if self.checkpoint and torch.is_grad_enabled():
            return checkpoint(self._evaluate, z, use_reentrant=False, preserve_rng_state=False)
        return self._evaluate(z)

    def _evaluate(self, z: Tensor) -> Tensor:
        hidden, flow = z[:, :-2].to(self.dtype), z[:, -2:]
        if not self.all_gradients:
            flow = flow.detach()
        device = z.device.type
        # Autocast must not keep casts made while no graph was recorded: later ones would lose their gradient.
        with torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,
        ):
            if self.draw is not None:
                flow = self.draw(hidden, flow)
            found = self.correlation.lookup(flow)
            if self.mask is not None:
                found = found * self.mask
            new_hidden, increment = self.update(hidden, flow.to(self.dtype), found, self.prepared)
        return torch.cat([new_hidden.to(z.dtype), flow + increment.to(z.dtype)], 1)

    def subset(self, rows: Tensor) -> "FlowMap":
        """The map of some of the samples, (b,) integers; their states are mapped as before."""
        return FlowMap(
            self.correlation.subset(rows),
            self.context[rows],
            self.update,
            all_gradients=self.all_gradients,
            attraction=self.attraction,
            mask=None if self.mask is None else self.mask[rows],
            checkpoint=self.checkpoint,
            dtype=self.dtype,
        )
