"""Estimators for other runtimes: a fixed number of evaluations as one graph, of torch.export (.pt2) or ONNX (.onnx).

A graph gives what ``estimator(image1, image2, stop=Stop(max_evals=evals, atol=0.0)).flow`` gives, for batches of images
of any size from :func:`smallest_side` up, or of one size. It checks nothing and never stops early. The evaluations are
a loop in the graph, so that many take no longer to write than two, and no more space.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UncapturedHigherOrderOpError
from torch._higher_order_ops.while_loop import while_loop
from torch.export import Dim, ExportedProgram

from deqflow.model.checkpoints import replace_file
from deqflow.model.estimator import FlowEstimator
from deqflow.model.images import SMALLEST_SIDE
from deqflow.model.state import STRIDE
from deqflow.solvers import Picard, Stop

SUFFIXES = (".onnx", ".pt2")
LARGEST_SIDE = 4096  # the upper bound of symbolic sizes; the volume of all pairs is too large long before
LARGEST_BATCH = 1024


class FixedEvaluations(nn.Module):
    """An estimator as one graph: pad, encode, evaluate ``evals`` times, upsample, crop.

    Args:
        estimator: its solver must be :class:`deqflow.solvers.Picard`, damped or not.
        evals: number of evaluations.
        loop: trace them as one loop; otherwise each is written out.

    Raises:
        ValueError: the estimator has another solver, or there is less than one evaluation.
    """

    def __init__(self, estimator: FlowEstimator, evals: int, *, loop: bool = True) -> None:
        super().__init__()
        rule = estimator.equilibrium.rule
        if not isinstance(rule, Picard):
            raise ValueError(
                f"Export expects plain iteration, got an estimator with {type(rule).__name__}: a graph of the others "
                "would have to solve systems. Set estimator.equilibrium.rule = Picard()."
            )
        if evals < 1:
            raise ValueError(f"Export expects at least 1 evaluation, got {evals}.")
        self.estimator, self.evals, self.damping, self.loop = estimator, evals, rule.damping, loop

    def forward(self, image1: Tensor, image2: Tensor) -> Tensor:
        """(B, 3, H, W), RGB, 0..255 -> the flow, (B, 2, H, W), in pixels."""
        padding: Any = IndexedPadding(*image1.shape[-2:], stride=self.estimator.stride)
        features = (self.estimator.encode(image, padding=padding) for image in (image1, image2))
        problem = self.estimator.problem(*features)
        f, z = problem.f, problem.z0

        def next_state(z: Tensor) -> Tensor:
            return torch.lerp(z, f(z), self.damping) if self.damping < 1 else f(z)

        if self.loop and torch.compiler.is_exporting() and self.evals > 1:
            z = _loop(next_state, z, self.evals - 1)
        else:
            for _ in range(self.evals - 1):
                z = next_state(z)
        return problem.flow(f(z))


def _loop(step: Callable[[Tensor], Tensor], z: Tensor, times: int) -> Tensor:
    """The state after so many steps, as one loop of the graph that is traced."""
    _, z = while_loop(
        lambda count, _: count < times,
        lambda count, z: (count + 1, step(z)),
        (torch.zeros((), dtype=torch.int64, device=z.device), z.contiguous()),
    )
    return z


class IndexedPadding:
    """As :class:`~deqflow.model.geometry.Padding`, for sizes that are not yet known.

    Args:
        height, width: of the images to come, numbers or symbols.
        stride: what the padded sides divide by.
    """

    def __init__(self, height: int, width: int, stride: int = STRIDE) -> None:
        self.height, self.width, self.stride = height, width, stride

    def pad(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W') with H' and W' divisible."""
        rows, columns = (padded_index(side, image.device, self.stride) for side in (self.height, self.width))
        return image[:, :, rows][..., columns]

    def crop(self, image: Tensor) -> Tensor:
        """(B, C, H', W') -> (B, C, H, W), undoing :meth:`pad`."""
        rows, columns = (cropped_index(side, image.device, self.stride) for side in (self.height, self.width))
        return image[:, :, rows][..., columns]


def padded_index(side: int, device: torch.device, stride: int = STRIDE) -> Tensor:
    """Which pixel stands at each place of a padded side, for sizes not yet known."""
    padded = (side + stride - 1) // stride * stride
    return (torch.arange(padded, device=device) - (padded - side) // 2).clamp(0, side - 1)


def cropped_index(side: int, device: torch.device, stride: int = STRIDE) -> Tensor:
    """Where the pixels of a side stand once it is padded."""
    padded = (side + stride - 1) // stride * stride
    return torch.arange(side, device=device) + (padded - side) // 2


def smallest_side(levels: int, stride: int = STRIDE) -> int:
    """The smallest side of images in a graph for any size: the coarsest scale must keep two pixels."""
    return stride * 2**levels


def trace(estimator: FlowEstimator, *, evals: int = 12, size: tuple[int, int] | None = None) -> ExportedProgram:
    """Trace an estimator with :func:`torch.export.export`.

    Args:
        estimator: in evaluation mode, on the CPU; its weights become the graph's. It is not changed.
        evals: number of evaluations.
        size: height and width of the images; any from :func:`smallest_side` up if not given.

    Raises:
        ValueError: the estimator is in training mode or has another solver than plain iteration, there is less than
            one evaluation, or the size is too small.
    """
    if estimator.training:
        raise ValueError("Export expects an estimator in evaluation mode, got one in training: call .eval().")
    if size is not None and min(size) < SMALLEST_SIDE:
        raise ValueError(f"Export expects images of at least 16 px a side, got {size[1]}x{size[0]} (width x height).")
    warped = estimator.correlation == "warped"  # warped features have no scales
    smallest = SMALLEST_SIDE if warped else smallest_side(estimator.levels, estimator.stride)
    shape = (2, 3, *(size or (smallest + 13, smallest + 45)))  # two samples: with one, the batch would be fixed at one
    examples = torch.zeros(shape), torch.zeros(shape)  # the same tensor twice would become one input
    free = {0: Dim("batch", min=1, max=LARGEST_BATCH)}
    if size is None:
        free |= {2 + i: Dim(name, min=smallest, max=LARGEST_SIDE) for i, name in enumerate(("height", "width"))}
    shapes: Any = {"image1": free, "image2": free}
    kept = estimator.correlation
    if not warped:
        estimator.correlation = "volume"  # the operations of "sampled" depend on where the flow points

    def traced(loop: bool) -> ExportedProgram:
        return torch.export.export(
            FixedEvaluations(estimator, evals, loop=loop).eval(),
            examples,
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )

    try:
        with torch.no_grad():
            try:
                return traced(loop=True)
            except UncapturedHigherOrderOpError:
                warnings.warn(
                    "This model's evaluations cannot be traced as a loop, for instance because two tensors that its "
                    f"update operator prepares share memory: each of the {evals} evaluations is written out, which "
                    "takes longer and makes a larger file.",
                    stacklevel=2,
                )
                return traced(loop=False)
    finally:
        estimator.correlation = kept


def export(
    estimator: FlowEstimator,
    path: str | Path,
    *,
    evals: int = 12,
    size: tuple[int, int] | None = None,
    notes: dict[str, str] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Path:
    """Write an estimator as a graph: inputs ``image1, image2`` (B, 3, H, W), RGB, 0..255, float32; output ``flow``.

    The configuration, the evaluations and the notes go into the file: ``metadata_props`` of ONNX, the extra file
    ``deqflow.json`` of torch.export.

    Args:
        estimator, evals, size: as for :func:`trace`.
        path: file to write, ending in .onnx or .pt2.
        notes: further strings to store.
        on_progress: told in words which part of the work begins.

    Raises:
        ValueError: the path has another suffix, or as for :func:`trace`.
        ImportError: ONNX is asked for and its packages are missing.
    """
    path = Path(path)
    _check_suffix(path)
    say = on_progress or (lambda _: None)
    say("Tracing the model, half a minute or less.")
    program = trace(estimator, evals=evals, size=size)
    say(f"Writing the graph in the format of {path.suffix}, half a minute or less.")
    config = "" if estimator.config is None else json.dumps(asdict(estimator.config))
    stored = {"deqflow": version("deqflow"), "evals": str(evals), "config": config, **(notes or {})}
    content = _onnx_bytes(program, stored) if path.suffix.lower() == ".onnx" else _pt2_bytes(program, stored)
    return replace_file(path, content)


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"Export expects a file that ends in {' or '.join(SUFFIXES)}, got {path}.")


def _needs(error: ImportError) -> ImportError:
    return ImportError(f"ONNX needs packages that are not installed ({error}): pip install 'deqflow[export]'.")


def _pt2_bytes(program: ExportedProgram, stored: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"deqflow.json": json.dumps(stored)})
    return buffer.getvalue()


def _onnx_bytes(program: ExportedProgram, stored: dict[str, str]) -> bytes:
    try:
        from onnx_ir.passes.common import RemoveUnusedNodesPass  # pyright: ignore[reportMissingImports] - of the extra

        # It warns of operations of torchvision, which no model here has.
        logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
        made: Any = torch.onnx.export(program, dynamo=True, output_names=["flow"], verbose=False)
    except ImportError as error:
        raise _needs(error) from error
    RemoveUnusedNodesPass()(made.model)  # constants that the loop has left over, of which runtimes warn
    model = made.model_proto
    for name, text in stored.items():
        model.metadata_props.add(key=name, value=text)
    return model.SerializeToString()


class ExportedEstimator:
    """A written graph, run by onnxruntime (.onnx) or by torch (.pt2): images (B, 3, H, W) -> the flow (B, 2, H, W).

    Args:
        path: file to read, ending in .onnx or .pt2.

    Raises:
        ValueError: the path has another suffix.
        FileNotFoundError: there is no such file.
        ImportError: onnxruntime is needed and missing.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        _check_suffix(path)
        if not path.is_file():
            raise FileNotFoundError(f"No file at {path}: write it with python -m deqflow export.")
        self._session: Any = None
        if path.suffix.lower() == ".onnx":
            try:
                import onnxruntime  # pyright: ignore[reportMissingImports] - only who runs such a file needs it
            except ImportError as error:
                raise _needs(error) from error
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        else:
            self._module = torch.export.load(path).module()

    def __call__(self, image1: Tensor, image2: Tensor) -> Tensor:
        """Estimate the flow, on the CPU."""
        if self._session is None:
            with torch.no_grad():
                return self._module(image1, image2)
        (flow,) = self._session.run(None, {"image1": image1.numpy(), "image2": image2.numpy()})
        return torch.from_numpy(flow)


def parity(
    estimator: FlowEstimator,
    path: str | Path,
    *,
    evals: int,
    pairs: Iterable[tuple[Tensor, Tensor]],
) -> dict[tuple[int, int], float]:
    """Largest end-point difference in pixels between a written graph and its estimator, by height and width.

    Args:
        estimator: the estimator that the graph was made from.
        path: file of the graph.
        evals: the graph's number of evaluations.
        pairs: images to compare on, (1, 3, H, W) each, RGB, 0..255; each pair has a different size.
    """
    run, differences = ExportedEstimator(path), {}
    stop = Stop(max_evals=evals, atol=0.0)
    for image1, image2 in pairs:
        with torch.no_grad():
            expected = estimator(image1, image2, stop=stop).flow
        height, width = image1.shape[-2:]
        differences[height, width] = float(torch.linalg.vector_norm(run(image1, image2) - expected, dim=1).max())
    return differences
