"""What to measure on: procedural pairs, scikit-image's motorcycle, and every benchmark that lies under a folder.

A benchmark is also measured on the few pairs of it that everyone has at hand, its *subsets*, so that figures can be
compared.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from deqflow.data.datasets import FlowDataset, FlowSample, available_benchmarks, motorcycle
from deqflow.data.synthetic import RICH_SCENES, SceneConfig, SyntheticPairs
from deqflow.evidence.evaluation.config import EvaluationConfig
from deqflow.training import HELD_OUT_SEED

POOLED = ("sintel", "spring", "things")  # benchmarks whose end-point error is the mean over all pixels, not of pairs

# Name of a subset: its benchmark, and the pairs of it, by the names of their flow files.
SUBSETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "chairs-9": ("chairs-samples", tuple(f"{number:07d}-gt.flo" for number in range(9))),
    "sintel-alley_1-1-clean": ("sintel-clean", ("alley_1/frame_0001.flo",)),
    "sintel-alley_1-1-final": ("sintel-final", ("alley_1/frame_0001.flo",)),
    "kitti-000010": ("kitti-2015", ("000010_10.png",)),
    "middlebury-4": ("middlebury", tuple(f"{s}/flow10.flo" for s in ("RubberWhale", "Dimetrodon", "Venus", "Grove2"))),
}


class Pairs(Protocol):
    """Samples by index: a list, or a data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> FlowSample: ...


class EvaluationSet(NamedTuple):
    """Pairs to measure on.

    Attributes:
        pairs: the samples.
        pooled: whether its end-point error is the mean over all pixels of all pairs (Sintel), or that of the pairs'
            own means (KITTI).
    """

    pairs: Pairs
    pooled: bool = False


def evaluation_sets(root: str | Path, config: EvaluationConfig | None = None) -> dict[str, EvaluationSet]:
    """Every set that can be measured on: two procedural ones, the motorcycle, the benchmarks under a root.

    A benchmark comes after its subset; one of which nothing but the subset is there goes by the subset's name.

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
        pooled = name.startswith(POOLED)
        chosen = {label: subset(pairs, files) for label, (benchmark, files) in SUBSETS.items() if benchmark == name}
        sets |= {label: EvaluationSet(part, pooled) for label, part in chosen.items() if part}
        if all(len(part or ()) < len(pairs) for part in chosen.values()):
            sets[name] = EvaluationSet(_spread(pairs, config.most), pooled)
    return sets


def procedural_pairs(count: int, scenes: SceneConfig | None = None) -> SyntheticPairs:
    """Procedural pairs that no training has seen; their photographs are scikit-image's, which every one has."""
    return SyntheticPairs(
        count, seed=HELD_OUT_SEED, config=replace(scenes or SceneConfig(), packages=("scikit-image",))
    )


def subset(pairs: FlowDataset, files: Sequence[str]) -> FlowDataset | None:
    """The pairs of a benchmark with these flow files, in their order; None if it lacks one of them.

    Args:
        pairs: the benchmark.
        files: how the paths of the flow files end, whole names.
    """
    found = []
    for name in files:
        parts = tuple(name.split("/"))
        found += [pair for pair in pairs.files if pair.flow.parts[-len(parts) :] == parts][:1]
    return _with_files(pairs, found) if len(found) == len(files) else None


def _spread(pairs: FlowDataset, most: int | None) -> FlowDataset:
    if most is None or len(pairs) <= most:
        return pairs
    return _with_files(pairs, [pairs.files[round((i + 0.5) * len(pairs) / most - 0.5)] for i in range(most)])


def _with_files(pairs: FlowDataset, files: Iterable[Any]) -> FlowDataset:
    chosen = type(pairs).__new__(type(pairs))  # what the set is told beside its files stays as it is
    chosen.__dict__.update(pairs.__dict__, files=tuple(files))
    return chosen
