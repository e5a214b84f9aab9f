"""What several commands do alike."""

import deqflow


def load_model(model: str) -> deqflow.FlowEstimator:
    """A model by its name, or from a file: of deqflow's (.safetensors), or a published one (.pth)."""
    return deqflow.load_published(model) if model.endswith(".pth") else deqflow.load(model)


def print_line(text: str) -> None:
    """Print at once, also where the output goes into a file: runs take hours, and somebody may follow them."""
    print(text, flush=True)
