"""How an evaluation is made: budgets, scales, padding, precision, device, and how many pairs of each set.

The command line's help reads this module, so that torch is imported only where it is used.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Place = Literal["centre", "top"]  # of an image in the padded one, see deqflow.model.geometry.Padding


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How an evaluation is made.

    Attributes:
        evals: numbers of evaluations after which the error is taken, without early stop.
        scales: factors by which the images are resized, one solve after another. Evaluations are counted at the last
            scale; solves at the others end at the model's own tolerance.
        padding: how images are enlarged until both sides divide by 8. "centre" splits new rows and columns between
            both sides, as the estimator does by itself. "published" does what RAFT's and DEQ-Flow's programs do, set
            by set: the same, but on KITTI all new rows go below the image.
        precision: of the encoders and the update; bfloat16 is by autocast, and "auto" is what the device is fast in.
        device: where models run; "auto" takes a GPU where there is one.
        procedural: number of pairs in each procedural set.
        most: greatest number of pairs taken from each set, evenly spread over it; all if not given.
    """

    evals: tuple[int, ...] = (12, 24, 48, 96)
    scales: tuple[float, ...] = (1.0,)
    padding: Literal["centre", "published"] = "centre"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    procedural: int = 32
    most: int | None = None

    def __post_init__(self) -> None:
        if not self.evals or min(self.evals) < 1 or list(self.evals) != sorted(set(self.evals)):
            raise ValueError(f"evals expects numbers of evaluations in ascending order, from 1, got {self.evals}.")
        if self.scales != (1.0,):
            from deqflow.model.scales import check_scales

            check_scales(self.scales)
        if self.padding not in ("centre", "published"):
            raise ValueError(f"padding expects centre or published, got {self.padding!r}.")
        if self.padding == "published" and len(self.scales) > 1:
            raise ValueError(
                f"padding expects centre where there are several scales, got published with scales {self.scales}: "
                "the published programs solve at one scale."
            )
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"precision expects auto, float32 or bfloat16, got {self.precision!r}.")
        if self.procedural < 1 or (self.most is not None and self.most < 1):
            raise ValueError(f"Expected at least 1 pair, got procedural={self.procedural} and most={self.most}.")
        if self.device != "auto":
            _ = self.torch_device  # raises if there is no such device

    @property
    def torch_device(self) -> "torch.device":
        """The chosen device."""
        from deqflow.model.precision import choose_device

        return choose_device(self.device)

    @property
    def chosen_precision(self) -> Literal["float32", "bfloat16"]:
        """The chosen precision; "auto" asks the device once."""
        if self.precision != "auto":
            return self.precision
        import torch

        from deqflow.model.precision import fast_precision

        return "bfloat16" if fast_precision(self.torch_device) == torch.bfloat16 else "float32"

    def autocast(self) -> AbstractContextManager[object]:
        """The context of the chosen precision."""
        if self.chosen_precision == "float32":
            return nullcontext()
        import torch

        return torch.autocast(self.torch_device.type, torch.bfloat16)
