"""Our own checkpoints: safetensors with the configuration inside, and the models that the package ships."""

import dataclasses
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from deqflow.model.build import build
from deqflow.model.estimator import FlowEstimator
from deqflow.model.sizes import SIZES, EstimatorConfig

SHIPPED = ("deqflow-small", "raft-small-twin")
FORMAT = "deqflow-1"


class CheckpointError(ValueError):
    """A checkpoint is damaged, or is not what it was taken for."""


def save(estimator: FlowEstimator, path: str | Path, *, recipe: dict[str, Any] | None = None) -> Path:
    """Write weights, configuration and recipe to one safetensors file; the old file stays until the new is whole.

    Args:
        estimator: made by :func:`deqflow.build` (a model put together by hand has no configuration to store).
        path: where to, usually ``*.safetensors``.
        recipe: anything json can hold on how the weights came about.

    Raises:
        ValueError: the estimator has no configuration.
        OSError: the folder can't be written to, or the disk is full.
    """
    if estimator.config is None:
        raise ValueError("save expects an estimator made by deqflow.build, got one without a configuration.")
    path = Path(path)
    metadata = {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(estimator.config)),
        "recipe": json.dumps(recipe or {}),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in estimator.state_dict().items()}
    return replace_file(path, to_bytes(tensors, metadata=metadata))


def replace_file(path: Path, content: bytes) -> Path:
    """Write a model's file under a temporary name and rename it, so that the old file stays until the new is whole.

    Raises:
        OSError: the folder can't be written to, or the disk is full.
    """
    unfinished = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        advice = "check that its folder can be written to and the disk is not full"
        raise OSError(error.errno, f"Writing {path} failed: {advice} ({error.strerror}).") from error
    return path


def read_metadata(name_or_path: str | Path) -> tuple[EstimatorConfig, dict[str, Any]]:
    """Return the configuration and the recipe stored in a shipped model, by name, or in one of our checkpoints.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged or none of ours.
    """
    path = _locate(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at {path}: expected a .safetensors file written by deqflow.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") == FORMAT:
            return EstimatorConfig(**json.loads(metadata["config"])), json.loads(metadata["recipe"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({error}): download or save it again."
        ) from error
    raise CheckpointError(
        f"{path} is a safetensors file, but none of deqflow's: use deqflow.load_published for published weights."
    )


def load(name_or_path: str | Path) -> FlowEstimator:
    """Load a shipped model by name, or one of our checkpoints by path, ready for evaluation on the CPU.

    Raises:
        FileNotFoundError: neither a known name nor a file.
        CheckpointError: the file is damaged, none of ours, or does not fit its own configuration.
    """
    path = _locate(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(
            f"No model {str(name_or_path)!r}: expected one of {', '.join(SHIPPED)}, or the path of a checkpoint."
        )
    config, recipe = read_metadata(path)
    if config.size not in tuple(SIZES):  # a damaged file's size may be of any type
        raise CheckpointError(f"{path} was made for an unknown size {config.size!r}: update deqflow.")
    try:
        estimator = build(**dataclasses.asdict(config))
        estimator.load_state_dict(load_file(path), strict=True)
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit its own configuration: {error}") from error
    estimator.origin = str(recipe.get("origin", "")) if isinstance(recipe, dict) else ""
    return estimator.eval()


def _locate(name_or_path: str | Path) -> Path:
    if str(name_or_path) in SHIPPED:
        return Path(str(resources.files("deqflow") / "weights" / f"{name_or_path}.safetensors"))
    return Path(name_or_path)
