"""A model's prediction of its own error: at each pixel a mixture of two Laplace distributions (SEA-RAFT, section 3).

A mixture is (B, 4, H, W): two logits, then two log scales, as the head gives them. The first component's log scale is
clamped to 0..10: it is for large errors. The second's is replaced by 0: it is for ordinary errors, 1 px wide. Both
components of the flow share one mixture.
"""

import torch
from torch import Tensor, nn

MIXTURE_CHANNELS = 4
WIDEST = 10.0  # upper bound of the first component's log scale: e^10 px


class MixtureHead(nn.Module):
    """Hidden state -> mixture, for models whose update operator has no such head of its own.

    Args:
        hidden: channels of the hidden state.
        width: channels of the layer between.
    """

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, MIXTURE_CHANNELS, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, Ch, h, w) -> (B, 4, h, w)."""
        return self.conv2(self.conv1(hidden).relu())


def components(mixture: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithms of the two components' weights and scales in px, (B, 2, H, W) each, of a mixture (B, 4, H, W)."""
    logits, log_scales = mixture.tensor_split([2], 1)
    wide, narrow = log_scales.tensor_split([1], 1)
    return logits.log_softmax(1), torch.cat([wide.clamp(0, WIDEST), torch.zeros_like(narrow)], 1)


def expected_error(mixture: Tensor) -> Tensor:
    """Expected absolute error of each of the flow's two components in px: (B, 4, H, W) -> (B, H, W).

    The mean absolute deviation of a Laplace distribution is its scale; that of a mixture is the weighted mean of its
    components' scales.
    """
    log_weights, log_scales = components(mixture)
    return (log_weights + log_scales).exp().sum(1)
