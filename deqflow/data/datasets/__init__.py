"""Pairs of images: your own, the motorcycle pair, the published data sets, and mixtures of them for training."""

from deqflow.data.datasets.augmentation import Augmentation, dense_augmentation, sparse_augmentation
from deqflow.data.datasets.benchmarks import HD1K, FlyingChairs, FlyingThings3D, Kitti, Middlebury, Sintel, Spring
from deqflow.data.datasets.files import FlowDataset, PairFiles, SetNotFoundError
from deqflow.data.datasets.folders import available_benchmarks, open_set, set_folders
from deqflow.data.datasets.mixtures import Mixture, Part, Stage, stage_mixture
from deqflow.data.datasets.photometric import Eraser, Jitter
from deqflow.data.datasets.samples import FlowSample, motorcycle, own_pair

__all__ = [
    "HD1K",
    "Augmentation",
    "Eraser",
    "FlowDataset",
    "FlowSample",
    "FlyingChairs",
    "FlyingThings3D",
    "Jitter",
    "Kitti",
    "Middlebury",
    "Mixture",
    "PairFiles",
    "Part",
    "SetNotFoundError",
    "Sintel",
    "Spring",
    "Stage",
    "available_benchmarks",
    "dense_augmentation",
    "motorcycle",
    "open_set",
    "own_pair",
    "set_folders",
    "sparse_augmentation",
    "stage_mixture",
]
