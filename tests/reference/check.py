"""Load every published layout and compare with what the published programs computed; leave a results file.

Run from the checkout: ``PYTHONPATH=tests python -m reference.check``. A program with an ``.npz`` beside its list of
names is checked by its outputs, one with a list alone by its names and shapes.
"""

from pathlib import Path

import numpy as np
import torch
from reference.weights_from_names import published_state_dict

import deqflow
from deqflow.evidence.provenance import provenance
from deqflow.evidence.results import published, save_results
from deqflow.model.checkpoints import SHIPPED
from deqflow.model.published import from_published
from deqflow.solvers import Picard, Stop

HERE = Path(__file__).parent
SIZES_ALONE = "the paper's table of sizes"  # no weights are known to be published
# Where the weights are to be had, by how the programs' names begin; the first that fits.
SOURCES = {
    "deqflow2_tiny": SIZES_ALONE,
    "deqflow1": "DEQ-Flow's repository, first version",
    "deqflow2": "DEQ-Flow's repository, TorchDEQ's model zoo",
    "raft": "RAFT's repository",
    "gma": "GMA's repository",
    "searaft": "SEA-RAFT's repository, BSD-3",
    "torchvision": "torchvision, BSD-3",
}
# Sizes whose lists are not here: same names, other shapes.
OTHERS = {"large": None, "gigantic": None, "huge": "gma"}


def largest_difference(estimator: deqflow.FlowEstimator, program: str) -> float | None:
    """How far the flow after 12 evaluations is from the published program's, in px; None if nothing is known of it."""
    path = HERE / f"{program}.npz"
    if not path.exists():
        return None
    with np.load(HERE / "raft_basic.npz") as shared, np.load(path) as file:
        frames = file if "frame1" in file else shared
        images = [torch.from_numpy(frames[name]).permute(2, 0, 1)[None].float() for name in ("frame1", "frame2")]
        expected = torch.from_numpy(file["up_12"])
    with torch.no_grad():
        flow = estimator(*images, rule=Picard(), stop=Stop(max_evals=12, atol=0.0)).flow[0]
    step = flow.shape[-1] // expected.shape[-1]  # some files hold every fourth pixel
    return (flow[:, ::step, ::step] - expected).abs().max().item()


def row(estimator: deqflow.FlowEstimator, name: str, source: str, difference: float | None) -> dict:
    """One estimator's entry."""
    assert estimator.config is not None
    return {
        "name": name,
        "model": estimator.config.description,
        "parameters": sum(parameter.numel() for parameter in estimator.parameters()),
        "source": source,
        "checked": "names" if difference is None else "outputs",
        "largest_difference_px": difference,
    }


def main() -> None:
    """Check all and write ``reports/published/estimators.json``."""
    torch.set_num_threads(1)
    rows = []
    for path in sorted(HERE.glob("*.keys.json")):
        program = path.name.removesuffix(".keys.json")
        estimator = from_published(published_state_dict(path))
        source = next(source for start, source in SOURCES.items() if program.startswith(start))
        rows.append(row(estimator, estimator.origin, source, largest_difference(estimator, program)))
    for size, update in OTHERS.items():
        gma = " + GMA" if update else ""
        with torch.device("meta"):
            estimator = deqflow.build(size, update)
        rows.append(
            row(estimator, f"DEQ-Flow version 2, {size}{gma}", SOURCES["deqflow2"] if update else SIZES_ALONE, None)
        )
    for name in SHIPPED:
        rows.append(row(deqflow.load(name), name, "this package, trained here", None) | {"checked": "ours"})
    save_results({"rows": rows, "provenance": provenance(HERE)}, published("estimators"))
    print(f"Wrote {published('estimators')}.")


if __name__ == "__main__":
    main()
