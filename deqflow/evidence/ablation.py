"""What buys an equilibrium that attracts: short trainings of the shipped model that each change one setting.

All runs begin with the shipped weights, with frozen encoders, and see the same pairs in the same order for the same
number of steps. What is compared is the error and how the fixed point attracts afterwards, on held-out pairs.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deqflow.data.synthetic import HELD_OUT_SEED, SyntheticPairs
from deqflow.evidence.attraction import attraction_of, summarise_attraction
from deqflow.evidence.provenance import digest, provenance
from deqflow.evidence.results import save_results
from deqflow.model import checkpoints
from deqflow.model.estimator import FlowEstimator
from deqflow.training import TrainConfig, Trainer
from deqflow.training.files import plain
from deqflow.training.recipes import RECIPES
from deqflow.training.validation import measure_pairs, summarise

MODEL = "deqflow-small"
SEEDS = (0, 1)
EVALS = (12, 96)
_STAGE_5 = RECIPES[MODEL][4]
CONFIG = replace(
    _STAGE_5,
    start_from=MODEL,
    bfloat16=None,
    steps=60,
    validate_every=60,
    validation_pairs=1,
    scenes=replace(_STAGE_5.scenes, height=128, width=176, largest=40.0),
)
VARIANTS: dict[str, dict[str, Any]] = {
    "as stage 5": {},
    "way back, weight 0.6": {"return_weight": 0.6},
    "way back, weight 3": {"return_weight": 3.0},
    "consistency": {"consistency_weight": 30.0},
    "loss on the coarse flow": {"coarse_weight": 1.0},
    "Jacobian penalty": {"jacobian_weight": 1.0},
    "mixture loss": {"loss": "mixture"},
    "own starts only": {"other_starts": 0.0},
    "corrections over the whole way": {"corrections_from": 0.0},
    "one-step gradients": {"phantom_steps": 1},
    "reversible gradients": {"phantom_steps": 1, "gradient": "reversible"},
    "always 12 evaluations": {"evals": (12, 12)},
    "no smoothness term": {"attraction": "none"},
    "learned smoothness": {"attraction": "learned"},
    "leak": {"attraction": "leak", "attraction_strength": 0.02},
}


def measure_ablation(estimator: FlowEstimator, pairs: SyntheticPairs, attracted: int) -> dict[str, Any]:
    """Error and movement in px by evaluations on all pairs, and on the first ``attracted`` of them how ends attract."""
    samples = (pairs[i] for i in range(len(pairs)))
    found = summarise(measure_pairs(estimator.eval(), samples, EVALS).sum(0), len(pairs), EVALS)
    first = SyntheticPairs(attracted, seed=HELD_OUT_SEED, config=pairs.config)
    return {
        "error_px": {str(k): found.errors[k] for k in EVALS},
        "residual_px": {str(k): found.residuals[k] for k in EVALS},
        "attraction": summarise_attraction(attraction_of(estimator, first, radius_steps=20)),
    }


def run_ablation(
    out: str | Path,
    folder: str | Path = "runs/ablation",
    config: TrainConfig = CONFIG,
    variants: Mapping[str, Mapping[str, Any]] = VARIANTS,
    held_out: int = 16,
    attracted: int = 4,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train each variant with two seeds, measure it and write a results file. Interrupted trainings are continued.

    Args:
        out: results file (.json).
        folder: gets a folder for each run.
        config: of every run, but for the seed and what the variant changes.
        variants: the changed fields of the configuration, by name.
        held_out: number of procedural pairs on which errors are taken.
        attracted: number of these on which the attraction is measured.
        say: takes a line for each run.
    """
    pairs = SyntheticPairs(held_out, seed=HELD_OUT_SEED, config=config.scenes)
    start = checkpoints.load(config.start_from)
    results: dict[str, Any] = {"experiment": "ablation", "config": plain(config), "held_out": held_out}
    results |= {"attracted": attracted, "variants": {name: dict(fields) for name, fields in variants.items()}}
    results |= {"start_sha256": digest(start), "provenance": provenance(Path(__file__).parent)}
    results |= {"start": measure_ablation(start, pairs, attracted), "runs": []}
    for seed in SEEDS:
        for name, fields in variants.items():
            trainer = Trainer(replace(config, seed=seed, **fields), Path(folder) / f"{name}-{seed}")
            row = {"variant": name, "seed": seed} | measure_ablation(trainer.run(), pairs, attracted)
            results["runs"].append(row)
            save_results(results, out)
            left = row["attraction"]["smooth_after_5_px"]["median"]
            say(f"{name}, seed {seed}: {row['error_px'][str(EVALS[0])]:.3f} px, {left:.3f} px left of smooth noise")
    return results
