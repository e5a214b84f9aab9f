"""The devices on which to train or to share out many jobs: a CPU, one or several GPUs, several machines."""

from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor, nn

from deqflow.model.precision import choose_device

T = TypeVar("T")

DATA_PARALLEL = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class Processes:
    """The processes that work together: usually this one alone, more under ``accelerate launch``.

    In training each process has a part of every batch, and all have the same weights. All processes must call the
    methods marked "collective".

    Args:
        device: such as "cpu" or "cuda:1". "auto" takes a GPU where there is one; under ``accelerate launch`` it takes
            the device that was given to this process.
        patience: how long one process waits for the others; torch's default, 10 to 30 minutes, if not given.

    Raises:
        ValueError: a device is named under ``accelerate launch``, the device does not exist, or the launch asks for
            more than data parallelism.
    """

    def __init__(self, device: str | torch.device = "auto", *, patience: timedelta | None = None) -> None:
        # The configuration sets the precision, whatever the launch says; see Objective.
        settings = [] if patience is None else [InitProcessGroupKwargs(timeout=patience)]
        self._accelerator = Accelerator(mixed_precision="no", kwargs_handlers=list(settings))
        self.index, self.count = self._accelerator.process_index, self._accelerator.num_processes
        require_data_parallel(self._accelerator.distributed_type)
        if str(device) == "auto":
            self.device = self._accelerator.device
        elif self.count > 1:
            raise ValueError(f"accelerate launch gives each process its device, got {device}: leave it at auto.")
        else:
            self.device = choose_device(device)

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and prints."""
        return self.index == 0

    @property
    def description(self) -> str:
        """The device in words, such as "one GPU (NVIDIA H100)"."""
        if self.device.type == "cuda":
            name = f"GPU ({torch.cuda.get_device_name(self.device)})"
        else:
            name = "CPU" if self.device.type == "cpu" else self.device.type
        return f"one {name}" if self.count == 1 else f"{self.count} processes, each with one {name}"

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, wrapped so that its gradients are means over all processes (collective)."""
        return module if self.count == 1 else self._accelerator.prepare_model(module)

    def without_sync(self, module: nn.Module) -> AbstractContextManager[object]:
        """A context in which backward passes of a wrapped module add up the gradients of this process alone."""
        return nullcontext() if self.count == 1 else self._accelerator.no_sync(module)

    def mean(self, value: Tensor) -> Tensor:
        """Mean over processes (collective)."""
        return value if self.count == 1 else self._reduce(value, "mean")

    def sum(self, value: Tensor) -> Tensor:
        """Sum over processes (collective)."""
        return value if self.count == 1 else self._reduce(value, "sum")

    def any(self, value: bool) -> bool:
        """Whether the value is true in any process (collective)."""
        return value if self.count == 1 else bool(self.sum(torch.tensor(float(value))))

    def gather(self, value: T) -> list[T]:
        """The objects of all processes, in the order of the processes (collective)."""
        return [value] if self.count == 1 else gather_object([value])

    def from_first(self, value: T) -> T:
        """The first process's object (collective)."""
        return value if self.count == 1 else broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Wait until all processes have called this (collective)."""
        self._accelerator.wait_for_everyone()

    def _reduce(self, value: Tensor, how: str) -> Tensor:
        reduced = self._accelerator.reduce(value.to(self.device), how)
        assert isinstance(reduced, Tensor)
        return reduced


def require_data_parallel(kind: DistributedType) -> None:
    """Raise an error unless each process has the whole model.

    Raises:
        ValueError: the launch asks for another kind of parallelism.
    """
    if kind not in DATA_PARALLEL:
        raise ValueError(
            f"deqflow expects data parallelism (--multi_gpu, or --cpu), got {kind.value}: choose it with "
            "accelerate config, or on the command line."
        )
