"""The lookup at the end of the flow: correlation in a window there (RAFT, section 3.2), or the features themselves.

There are three kinds: a volume of all inner products, only the inner products that a window needs, and warped
features. The first two give the same numbers; the third gives others and needs a model that was made for it.
"""

from typing import Protocol, get_args

from torch import Tensor

from deqflow.model.correlation.sampled import SampledCorrelation
from deqflow.model.correlation.volume import CorrelationPyramid, all_pairs, window
from deqflow.model.correlation.warped import WarpedFeatures
from deqflow.model.sizes import CorrelationName

VOLUME_LIMIT = 2**30  # bytes


class Correlation(Protocol):
    """What the estimator needs of a correlation."""

    @property
    def channels(self) -> int:
        """Number of channels of a lookup."""
        ...

    def lookup(self, flow: Tensor) -> Tensor:
        """Flow (B, 2, h, w) in feature pixels -> (B, channels, h, w)."""
        ...

    def subset(self, rows: Tensor) -> "Correlation":
        """The correlation of some of the samples, (b,) integers."""
        ...


def correlate(
    features1: Tensor, features2: Tensor, *, levels: int = 4, radius: int = 4, kind: CorrelationName = "auto"
) -> Correlation:
    """Correlate two feature maps, (B, C, h, w), for lookups at several scales.

    Args:
        features1, features2: (B, C, h, w), any size from 1x1.
        levels: number of scales.
        radius: of the window, in pixels of each scale.
        kind: "volume" keeps all inner products: fast lookups, memory grows with the square of the pixels.
            "sampled" computes those that a lookup needs: slower, memory grows with the pixels. "auto" is the
            volume if it takes no more than 1 GiB (``VOLUME_LIMIT``, see :func:`volume_bytes`), else "sampled".
            "warped" gives the features of both images, those of the second at the end of the flow.

    Raises:
        ValueError: the kind is not known.
    """
    if kind not in get_args(CorrelationName):
        raise ValueError(f"Unknown correlation {kind!r}: expected one of {', '.join(get_args(CorrelationName))}.")
    if kind == "warped":
        return WarpedFeatures(features1, features2)
    # The size is compared for "auto" alone: in an exported graph a comparison would restrict the sizes.
    volume = kind == "volume" or (kind == "auto" and volume_bytes(features1, levels) <= VOLUME_LIMIT)
    make = CorrelationPyramid if volume else SampledCorrelation
    return make(features1, features2, levels=levels, radius=radius)


def volume_bytes(features: Tensor, levels: int = 4) -> int:
    """Bytes of the volume of feature maps like this one, (B, C, h, w), at all scales."""
    batch, _, height, width = features.shape
    pictures = sum(max(1, height >> level) * max(1, width >> level) for level in range(levels))
    return batch * height * width * pictures * features.element_size()


__all__ = [
    "VOLUME_LIMIT",
    "Correlation",
    "CorrelationName",
    "CorrelationPyramid",
    "SampledCorrelation",
    "WarpedFeatures",
    "all_pairs",
    "correlate",
    "volume_bytes",
    "window",
]
