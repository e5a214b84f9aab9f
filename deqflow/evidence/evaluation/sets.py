"""The sets of an evaluation: procedural pairs, scikit-image's motorcycle, and every benchmark under a folder.

A benchmark also has *subsets*: the few pairs of it that are freely available, on which everybody can compare figures.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Subset

from deqflow.data.datasets import FlowDataset, available_benchmarks, motorcycle
from deqflow.data.datasets.mixtures import Samples
from deqflow.data.synthetic import RICH_SCENES, SceneConfig, SyntheticPairs
from deqflow.evidence.evaluation.config import EvaluationConfig, Place
from deqflow.training import HELD_OUT_SEED

POOLED = ("sintel", "spring", "things")  # benchmarks whose end-point error is the mean over all pixels of all pairs

# Name of a subset: its benchmark, and the pairs of it, by the names of their flow files.
SUBSETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "chairs-9": ("chairs-samples", tuple(f"{number:07d}-gt.flo" for number in range(9))),
    "sintel-alley_1-1-clean": ("sintel-clean", ("alley_1/frame_0001.flo",)),
    "sintel-alley_1-1-final": ("sintel-final", ("alley_1/frame_0001.flo",)),
    "kitti-000010": ("kitti-2015", ("000010_10.png",)),
    "middlebury-4": ("middlebury", tuple(f"{s}/flow10.flo" for s in ("RubberWhale", "Dimetrodon", "Venus", "Grove2"))),
}


class EvaluationSet(NamedTuple):
    """Pairs with known flow, and how their benchmark treats them.

    Attributes:
        pairs: the samples.
        pooled: whether the end-point error is the mean over all pixels of all pairs (Sintel), or the mean over the
            pairs of each pair's own mean (KITTI).
        place: of an image in the padded one in the published programs.
    """

    pairs: Samples
    pooled: bool = False
    place: Place = "centre"


def evaluation_sets(root: str | Path, config: EvaluationConfig | None = None) -> dict[str, EvaluationSet]:
    """Return every available set by name: two procedural ones, the motorcycle, and the benchmarks under a root.

    A benchmark comes after its subset. If only the subset's pairs are there, the set has the subset's name.

    Raises:
        FileNotFoundError, ValueError: as for :func:`deqflow.data.datasets.available_benchmarks`.
    """
    config = config or EvaluationConfig()
    sets = {
        "procedural": EvaluationSet(procedural_pairs(config.procedural)),
        "procedural-rich": EvaluationSet(procedural_pairs(config.procedural, RICH_SCENES)),
        "motorcycle": EvaluationSet([motorcycle()]),
    }
    for name, pairs in available_benchmarks(root).items():
        whole = EvaluationSet(pairs, name.startswith(POOLED), "top" if name.startswith("kitti") else "centre")
        chosen = {label: subset(pairs, files) for label, (benchmark, files) in SUBSETS.items() if benchmark == name}
        sets |= {label: whole._replace(pairs=part) for label, part in chosen.items() if part}
        if all(len(part or ()) < len(pairs) for part in chosen.values()):
            sets[name] = whole
    return {name: chosen._replace(pairs=_spread(chosen.pairs, config.most)) for name, chosen in sets.items()}


def procedural_pairs(count: int, scenes: SceneConfig | None = None) -> SyntheticPairs:
    """Procedural pairs that no training has seen, with scikit-image's photographs, which are installed everywhere."""
    return SyntheticPairs(
        count, seed=HELD_OUT_SEED, config=replace(scenes or SceneConfig(), packages=("scikit-image",))
    )


def subset(pairs: FlowDataset, files: Sequence[str]) -> Samples | None:
    """The pairs of a benchmark with these flow files, in their order; None if one of them is missing.

    Args:
        pairs: the benchmark.
        files: the last parts of the paths of the flow files.
    """
    found = []
    for name in files:
        parts = tuple(name.split("/"))
        found += [i for i, pair in enumerate(pairs.files) if pair.flow.parts[-len(parts) :] == parts][:1]
    return Subset(pairs, found) if len(found) == len(files) else None


def _spread(pairs: Samples, most: int | None) -> Samples:
    """At most ``most`` of the pairs, evenly spread over them."""
    if most is None or len(pairs) <= most:
        return pairs
    dataset: Any = pairs  # torch's Subset asks for its own class, and needs a length and items
    return Subset(dataset, [round((i + 0.5) * len(pairs) / most - 0.5) for i in range(most)])
