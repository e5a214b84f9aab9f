"""The command that says what this machine is good for; bug reports contain what it prints."""

import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PACKAGES = ("numpy", "opencv-python-headless", "scikit-image", "scipy", "accelerate", "onnxruntime", "jupyterlab")
PROBE = (180, 320)  # height and width of the pair that is solved; 720p has 16 times as many pixels
HD = (720, 1280)


@dataclass(frozen=True)
class Doctor:
    """Show what this machine is good for.

    It prints versions, torch's build, threads and instruction sets, measured speeds, free memory, and how long a pair
    of 1280 x 720 px would take, from a solve of a small pair.

    Attributes:
        device: to look at, such as cpu or cuda; auto takes a GPU where there is one.
    """

    device: str = "auto"

    def __call__(self) -> int:
        """Run the command."""
        from deqflow.model.precision import choose_device

        for line in diagnosis(choose_device(self.device)):
            print(line, flush=True)
        return 0


def diagnosis(device: "torch.device") -> list[str]:
    """The lines of the report."""
    import psutil
    import torch

    from deqflow.evidence.provenance import hardware
    from deqflow.model.precision import fast_precision, product_speed

    machine = hardware()
    speeds = {dtype: product_speed(device, dtype, side=1024) / 1e9 for dtype in (torch.float32, torch.bfloat16)}
    memory = psutil.virtual_memory()
    single, double = expected_seconds(device)
    fast = str(fast_precision(device)).removeprefix("torch.")
    return [
        f"Versions: deqflow {version('deqflow')}, Python {platform.python_version()}, torch {torch.__version__}",
        f"Packages: {', '.join(f'{name} {_version(name)}' for name in PACKAGES)}",
        f"System: {platform.platform()}, {machine['processor']}, {machine['cores']} cores",
        f"torch: built for {_build()}, {torch.get_num_threads()} threads, "
        f"instructions {torch.backends.cpu.get_cpu_capability()}{_extensions()}",
        f"GPU: {', '.join(machine['gpus']) or 'none that torch finds'}",
        f"Matrix products on {device}: float32 {speeds[torch.float32]:.0f} GFLOP/s, "
        f"bfloat16 {speeds[torch.bfloat16]:.0f} GFLOP/s",
        f"Fast precision: {fast}",
        f"Memory: {memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}{_gpu_memory(device)}",
        f"A pair of {HD[1]}x{HD[0]} px with deqflow-small in float32: about {_rounded(single)} s at one scale, "
        f"{_rounded(double)} s at two (--scales 1 2)",
    ]


def expected_seconds(device: "torch.device") -> tuple[float, float]:
    """Seconds for a pair of 720p at one and at two scales, from a small pair whose time is scaled by the pixels."""
    import torch

    import deqflow
    from deqflow.data.datasets import motorcycle
    from deqflow.model.scales import resize_images
    from deqflow.solvers import Stop

    estimator = deqflow.load("deqflow-small").to(device)
    sample = motorcycle()
    scale = PROBE[0] / sample.image1.shape[-2]
    image1, image2 = (
        resize_images(image[None], scale)[..., : PROBE[1]].to(device) for image in (sample.image1, sample.image2)
    )
    factor = HD[0] * HD[1] / (image1.shape[-2] * image1.shape[-1])
    seconds = []
    with torch.no_grad():
        estimator(image1, image2, stop=Stop(max_evals=1))  # sets up memory and kernels
        for scales in ((1.0,), (1.0, 2.0)):
            started = time.perf_counter()
            float(deqflow.estimate_at_scales(estimator, image1, image2, scales).flow.sum())  # waits for a GPU
            seconds.append(factor * (time.perf_counter() - started))
    return seconds[0], seconds[1]


def _rounded(seconds: float) -> str:
    """Two digits, without an exponent."""
    return f"{float(f'{seconds:.2g}'):g}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _build() -> str:
    import torch

    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return f"ROCm {torch.version.hip}" if torch.version.hip else "the CPU alone"


def _extensions() -> str:
    """Instructions for bfloat16 beyond those that torch's own name for the processor includes."""
    import torch

    known = torch.cpu.get_capabilities()
    found = [name for name in ("avx512_bf16", "amx_bf16") if known.get(name)]
    return f" with {', '.join(found)}" if found else ""


def _gpu_memory(device: "torch.device") -> str:
    import torch

    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    return f"; on the GPU {free / 2**30:.1f} of {total / 2**30:.1f}"
