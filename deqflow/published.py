"""Reading the published checkpoints of RAFT and DEQ-Flow, strictly and by their names."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from deqflow.checkpoints import CheckpointError
from deqflow.estimator import SIZES, FlowEstimator, build

# Our name for each published one; the first pattern that fits is applied, piece by piece, from the left.
_ENCODERS = (
    (r"layer(\d)\.(\d)\.downsample\.", r"stages.\1.\2.shortcut."),
    (r"layer(\d)\.(\d)\.", r"stages.\1.\2."),
    (r"^conv1\.", "stem."),
    (r"^conv2\.", "head."),
    (r"^norm1\.", "stem_norm."),
)
_UPDATE = {
    "encoder.convc1": "motion.correlation.0",
    "encoder.convc2": "motion.correlation.1",
    "encoder.convf1": "motion.flow.0",
    "encoder.convf2": "motion.flow.1",
    "encoder.conv": "motion.merge",
    "flow_head.conv1": "head.conv1",
    "flow_head.conv2": "head.conv2",
}
_PARAMETERS = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
_GATES = "zrq"  # the order of ConvGRU's rows: update, reset, candidate


def load_published(path: str | Path) -> FlowEstimator:
    """Load RAFT, RAFT-small or DEQ-Flow from a published checkpoint, ready for evaluation on the CPU.

    The model is recognised by its tensors' names and shapes, and loaded strictly. Pickled code is never run.

    Args:
        path: a ``.pth`` file as published (names may carry the prefix ``module.``), or the same as safetensors.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, holds more than tensors, or fits no known model; then the nearest
            one is named with what differs.
    """
    return from_published(read_tensors(path), source=str(path))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint file by name, on the CPU, without running pickled code.

    Raises:
        FileNotFoundError, CheckpointError: as for :func:`load_published`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at {path}: expected a .pth or .safetensors file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler stumbles over damaged bytes in any way there is
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} can't be read as a checkpoint ({reason}): it is damaged, or holds code instead of plain tensors."
        ) from error
    named = isinstance(content, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    if not named:
        raise CheckpointError(f"{path} expects a dictionary of tensors by name, got {type(content).__name__}.")
    return content


def from_published(tensors: dict[str, Tensor], *, source: str = "the state dict") -> FlowEstimator:
    """Build the model that published tensors belong to and load them strictly; see :func:`load_published`."""
    try:
        ours = translate(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{source} has gates of different shapes, so it fits no model: {error}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in ours.items()}
    nearest, fewest = "", None
    for size in SIZES:
        for recurrent in (False, True):
            with torch.device("meta"):
                expected = {k: tuple(v.shape) for k, v in build(size, recurrent=recurrent).state_dict().items()}
            if expected == shapes:
                estimator = build(size, recurrent=recurrent)
                estimator.load_state_dict(ours, strict=True)
                return estimator.eval()
            differing = sorted(k for k in expected.keys() | shapes.keys() if expected.get(k) != shapes.get(k))
            if fewest is None or len(differing) < len(fewest):
                nearest, fewest = f"{'recurrent' if recurrent else 'equilibrium'} {size}", differing
    names = ", ".join((fewest or [])[:6])
    raise CheckpointError(
        f"{source} fits no model that is known. The nearest is {nearest}, from which {len(fewest or [])} tensors "
        f"differ in name or shape, among them (by deqflow's names) {names}."
    )


def translate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename published tensors to ours and join the three gates of each recurrent unit; unknown names stay."""
    ours: dict[str, Tensor] = {}
    gates: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("module.")
        gate = re.fullmatch(r"update_block\.gru\.conv([zrq])(\d?)\.(\w+)", name)
        if gate:
            unit = int(gate[2] or 1) - 1
            target = f"update.units.{unit}.gates.{_PARAMETERS.get(gate[3], gate[3])}"
            gates.setdefault(target, {})[gate[1]] = tensor
        elif not re.search(r"layer\d\.\d\.norm3\.", name):  # the same module as downsample.1, listed twice
            ours[_rename(name)] = tensor
    for target, parts in gates.items():
        ours[target] = torch.cat([parts[g] for g in _GATES if g in parts])
    return ours


def _rename(name: str) -> str:
    part, _, rest = name.partition(".")
    if part in ("fnet", "cnet"):
        for pattern, replacement in _ENCODERS:
            rest, count = re.subn(pattern, replacement, rest, count=1)
            if count:
                break
        # Published stages count from 1, ours from 0.
        rest = re.sub(r"^stages\.(\d)", lambda m: f"stages.{int(m[1]) - 1}", rest)
        return f"{'feature' if part == 'fnet' else 'context'}_encoder.{rest}"
    if part == "mask":
        return f"upsampler.{name}"
    if part == "update_block":
        if rest.startswith("mask."):
            return f"upsampler.{rest}"
        module, _, parameter = rest.rpartition(".")
        return f"update.{_UPDATE.get(module, module)}.{_PARAMETERS.get(parameter, parameter)}"
    return name
