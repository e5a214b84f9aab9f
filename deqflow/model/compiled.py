"""Compiled estimators: encoders and update operator as machine code of their own, by torch.compile."""

import os
import shutil
import sys
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from deqflow.model.estimator import FlowEstimator


def compile_estimator(estimator: "FlowEstimator") -> "FlowEstimator":
    """Let torch.compile (inductor) compile an estimator's encoders and update operator, in place.

    Weights are frozen: compiled code holds them, so they must not change any more. Names in checkpoints stay.

    Raises:
        FileNotFoundError: there is no C++ compiler, which code for a CPU needs.
    """
    require_compiler()
    estimator.requires_grad_(requires_grad=False)
    for module in (estimator.feature_encoder, estimator.context_encoder, estimator.update):
        if isinstance(module, torch.nn.Module):
            module.compile(options={"freezing": True})
    return estimator


def require_compiler() -> None:
    """Raise unless there is a C++ compiler, by the name that torch uses.

    Raises:
        FileNotFoundError: there is none.
    """
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    name = os.environ.get("CXX", usual)
    if shutil.which(name) is None:
        raise FileNotFoundError(
            f"compile=True needs a C++ compiler, got none called {name}: install one, name yours in the environment "
            "variable CXX, or leave out compile=True."
        )
