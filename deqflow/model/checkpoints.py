"""Loading and saving models: our checkpoints (safetensors with the configuration inside), shipped and published."""

import contextlib
import dataclasses
import difflib
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from deqflow.model.build import build
from deqflow.model.compiled import compile_estimator
from deqflow.model.estimator import FlowEstimator
from deqflow.model.hub import PUBLISHED, fetched
from deqflow.model.published import from_published
from deqflow.model.sizes import SIZES, EstimatorConfig
from deqflow.model.tensor_files import CheckpointError, is_safetensors, plain_names, read_tensors, safetensors_metadata

SHIPPED = ("deqflow-small", "raft-small-twin")
FORMAT = "deqflow-1"


def save(estimator: FlowEstimator, path: str | Path, *, recipe: dict[str, Any] | None = None) -> Path:
    """Write weights, configuration and recipe to one safetensors file; an old file stays until the new one is complete.

    Args:
        estimator: made by :func:`deqflow.build` (a model put together by hand has no configuration to store). The
            wrappers of torch.compile and of data parallelism are removed.
        path: file to write, usually ``*.safetensors``.
        recipe: how the weights were made, in anything that json can hold.

    Raises:
        ValueError: the estimator has no configuration.
        OSError: the folder can't be written to, or the disk is full.
    """
    for wrapper in ("_orig_mod", "module", "_orig_mod"):  # of torch.compile, data parallelism, or one inside the other
        estimator = getattr(estimator, wrapper, estimator)
    config = getattr(estimator, "config", None)
    if config is None:
        got = "one without a configuration" if isinstance(estimator, FlowEstimator) else type(estimator).__name__
        raise ValueError(f"save expects an estimator made by deqflow.build, got {got}.")
    path = Path(path)
    metadata = {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(config)),
        "recipe": json.dumps(recipe or {}),
    }
    named = plain_names(estimator.state_dict())
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    return replace_file(path, to_bytes(tensors, metadata=metadata))


def replace_file(path: Path, content: bytes) -> Path:
    """Write a model's file under a temporary name, then rename it: an old file stays until the new one is complete.

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
        CheckpointError: the file is damaged or is not one of ours.
    """
    path = _locate(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at {path}: expected a .safetensors file written by deqflow.")
    metadata = safetensors_metadata(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file, but none of deqflow's: use deqflow.load_published for published weights."
        )
    try:
        return EstimatorConfig(**json.loads(metadata["config"])), json.loads(metadata["recipe"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({error}): download or save it again."
        ) from error


def read_recipe(path: str | Path) -> dict[str, Any]:
    """How the weights of any checkpoint file were made: the recipe in one of ours, the origin of a published one.

    Raises:
        FileNotFoundError, CheckpointError: as for :func:`load_published`.
    """
    path = Path(path)
    return read_metadata(path)[1] if path.is_file() and _is_ours(path) else {"origin": load_published(path).origin}


def load(name_or_path: str | Path, *, compile: bool = False) -> FlowEstimator:
    """Load a shipped or a published model by name, or any checkpoint by path, ready for evaluation on the CPU.

    Args:
        name_or_path: the name of a shipped model, or of published weights (:mod:`deqflow.model.hub`: "raft-large",
            "raft-small", "sea-raft-s", "sea-raft-m"), which are downloaded on first use; or the path of a checkpoint
            that deqflow wrote, or of one that :func:`load_published` knows.
        compile: compile encoders and update operator with torch.compile, for evaluation alone: their weights must not
            change any more. The first pair waits for it, and so does the first one of a second image size; measured at
            436x1024 on two cores that had other work: 165 s. After that the encoder took 0.82 and an evaluation's
            update 0.92 of their time (deqflow-small, float32, one thread), so it pays for thousands of pairs.

    Raises:
        TypeError: the argument is neither a name nor a path.
        FileNotFoundError: the argument is neither a known name nor a file, or there is no network; or ``compile`` is
            set and there is no C++ compiler.
        CheckpointError: the file or the download is damaged, does not fit its own configuration, or fits no model.
    """
    path = _locate(name_or_path, fetch=True)
    if not path.is_file():
        near = difflib.get_close_matches(str(name_or_path).lower(), (*SHIPPED, *PUBLISHED), 1)
        raise FileNotFoundError(
            f"No model {str(name_or_path)!r}, and no file of this name: expected one of {', '.join(SHIPPED)}, which "
            f"are shipped, one of {', '.join(PUBLISHED)}, which are downloaded, or the path of a checkpoint."
            + (f" Did you mean {near[0]}?" if near else "")
        )
    if is_safetensors(path):
        safetensors_metadata(path)  # raises where the file is damaged
    return compile_estimator(load_published(path)) if compile else load_published(path)


def load_published(path: str | Path) -> FlowEstimator:
    """Load a published checkpoint, ready for evaluation on the CPU; the estimator's ``origin`` says what it is.

    The known checkpoints are those of DEQ-Flow (versions 1 and 2 in all sizes, with and without GMA, and TorchDEQ's),
    RAFT and RAFT-small, GMA, SEA-RAFT S and M (L has M's weights), and torchvision's raft_large and raft_small. The
    model is recognised by its tensors' names and shapes, and loaded strictly. Pickled code is never run. A checkpoint
    that deqflow wrote is read by its own configuration.

    Args:
        path: a file of torch.save or safetensors, whatever its suffix. The tensors may be under "model", "state_dict"
            or "model_state_dict", and their names may have the prefixes "module.", "_orig_mod." and "model.".

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, holds more than tensors, or fits no known model; the error message
            then names the nearest model and what differs.
    """
    path = Path(path)
    if path.is_file() and _is_ours(path):
        return _load_ours(path)
    return from_published(read_tensors(path), source=str(path))


def _is_ours(path: Path) -> bool:
    """Whether any version of deqflow wrote a file; False where the file is too damaged to tell."""
    with contextlib.suppress(CheckpointError):
        return is_safetensors(path) and safetensors_metadata(path).get("format", "").startswith("deqflow-")
    return False


def _load_ours(path: Path) -> FlowEstimator:
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


def _locate(name_or_path: str | Path, *, fetch: bool = False) -> Path:
    if not isinstance(name_or_path, str | os.PathLike):
        raise TypeError(
            f"A model is expected as a name or a path, got {type(name_or_path).__name__}: use it as it is if it is a "
            "FlowEstimator."
        )
    if fetch and str(name_or_path) in PUBLISHED and not Path(name_or_path).is_file():
        return fetched(str(name_or_path))
    if str(name_or_path) in SHIPPED:
        return Path(str(resources.files("deqflow") / "weights" / f"{name_or_path}.safetensors"))
    return Path(name_or_path)
