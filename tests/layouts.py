"""Tiny copies of the published sets, a few pairs of 96 x 128 each, laid out as the real ones.

Every sequence shows one smooth texture under one affine motion, so that the flow is true: warping shows it.
Each ``write_...(root)`` makes a set's folder under a root such as ``data`` and returns it; ``write_all(root)``
makes all of them, which is what ``stage_mixture`` and ``available_benchmarks`` look for.
"""

import shutil
from pathlib import Path

import cv2
import numpy as np
import torch

from deqflow.data.flow_files import write_flow, write_image

HEIGHT, WIDTH = 96, 128


class Sequence:
    """Frames of a texture that moves by an affine map from each to the next, and their flow.

    Args:
        seed: of the texture and the motion.
    """

    def __init__(self, seed: int, height: int = HEIGHT, width: int = WIDTH) -> None:
        self.size = (width, height)
        rng = np.random.default_rng(seed)
        coarse = rng.uniform(0, 255, (height // 8 + 20, width // 8 + 20, 3)).astype(np.float32)
        self.texture = cv2.resize(coarse, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC).clip(0, 255)
        turn, zoom = rng.uniform(-0.02, 0.02), 1 + rng.uniform(-0.02, 0.02)
        self.motion = np.eye(3)
        self.motion[:2, :2] = zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        self.motion[:2, 2] = rng.uniform(-5, 5, 2)

    def frame(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8."""
        to_texture = np.eye(3)
        to_texture[:2, 2] = 80  # the texture reaches 80 px beyond the frame
        to_texture = to_texture @ np.linalg.matrix_power(np.linalg.inv(self.motion), number)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(self.texture, to_texture[:2], self.size, flags=flags).round().astype(np.uint8)

    def flow(self, *, back: bool = False, fine: int = 1) -> torch.Tensor:
        """(2, fine H, fine W): to the next frame, or to the one before; with several vectors a pixel."""
        motion = np.linalg.inv(self.motion) if back else self.motion
        y, x = np.mgrid[: self.size[1] * fine, : self.size[0] * fine] / fine
        ends = np.einsum("ij,jhw->ihw", motion, np.stack([x, y, np.ones_like(x)]))
        return torch.from_numpy(ends[:2] - np.stack([x, y])).float()


def write_chairs(root: Path, labels: str = "1121") -> Path:
    """The release, with its split file: a pair for each label, 1 for train, 2 for validation."""
    folder = root / "FlyingChairs_release"
    for number in range(1, len(labels) + 1):
        scene, start = Sequence(number), f"{folder}/data/{number:05d}"
        write_image(f"{start}_img1.ppm", scene.frame(0))
        write_image(f"{start}_img2.ppm", scene.frame(1))
        write_flow(f"{start}_flow.flo", scene.flow())
    (folder / "FlyingChairs_train_val.txt").write_text("\n".join(labels) + "\n")
    return folder


def write_chairs_samples(root: Path, pairs: int = 2) -> Path:
    """The samples that came with FlowNet 2, under their own names."""
    folder = root / "FlyingChairs"
    for number in range(pairs):
        scene, start = Sequence(100 + number), f"{folder}/{number:07d}"
        write_image(f"{start}-img0.ppm", scene.frame(0))
        write_image(f"{start}-img1.ppm", scene.frame(1))
        write_flow(f"{start}-gt.flo", scene.flow())
    return folder


def write_things(root: Path, frames: int = 3) -> Path:
    """Both passes and both directions of one scene of TRAIN and one of TEST; the outermost flows, too."""
    folder = root / "FlyingThings3D"
    for part, seed in (("TRAIN", 10), ("TEST", 11)):
        scene = Sequence(seed)
        for number in range(6, 6 + frames):
            for render in ("clean", "final"):
                write_image(
                    folder / f"frames_{render}pass/{part}/A/0000/left/{number:04d}.png", scene.frame(number - 6)
                )
            flows = folder / f"optical_flow/{part}/A/0000"
            for way, back in (("Future", False), ("Past", True)):
                name = f"into_{way.lower()}/left/OpticalFlowInto{way}_{number:04d}_L.pfm"
                write_flow(flows / name, scene.flow(back=back))
    return folder


def write_sintel(root: Path, scenes: tuple[str, ...] = ("alley_1", "market_2"), frames: int = 3) -> Path:
    """Three passes, flow and occlusions of the training part; two passes of the test part."""
    folder = root / "Sintel"
    for seed, name in enumerate(scenes, 20):
        scene = Sequence(seed)
        for number in range(1, frames + 1):
            for render in ("clean", "final", "albedo"):
                write_image(folder / f"training/{render}/{name}/frame_{number:04d}.png", scene.frame(number))
            for render in ("clean", "final"):
                write_image(folder / f"test/{render}/{name}_test/frame_{number:04d}.png", scene.frame(number))
            if number < frames:
                write_flow(folder / f"training/flow/{name}/frame_{number:04d}.flo", scene.flow())
                mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
                mask[40:50, 60:80] = 255
                write_image(folder / f"training/occlusions/{name}/frame_{number:04d}.png", mask)
    return folder


def write_kitti(root: Path, year: int = 2015, pairs: int = 2) -> Path:
    """Training part with sparse flow of all and of visible pixels, and the test part."""
    folder, pictures = root / f"KITTI-{year}", {2012: "colored_0", 2015: "image_2"}[year]
    for number in range(pairs):
        scene = Sequence(year + number)
        for part in ("training", "testing"):
            for frame in (10, 11):
                write_image(folder / f"{part}/{pictures}/{number:06d}_{frame}.png", scene.frame(frame - 10))
        known = torch.from_numpy(np.random.default_rng(number).random((HEIGHT, WIDTH)) < 0.3)
        visible = known.clone()
        visible[:, :8] = False
        write_flow(folder / f"training/flow_occ/{number:06d}_10.png", scene.flow(), known)
        write_flow(folder / f"training/flow_noc/{number:06d}_10.png", scene.flow(), visible)
    return folder


def write_hd1k(root: Path, frames: int = 3) -> Path:
    """Two sequences with sparse flow; the last picture of each has flow, too, and no picture to lead to."""
    folder = root / "HD1K"
    for sequence in range(2):
        scene = Sequence(30 + sequence)
        known = torch.from_numpy(np.random.default_rng(sequence).random((HEIGHT, WIDTH)) < 0.3)
        for number in range(frames):
            name = f"{sequence:06d}_{number:04d}.png"
            write_image(folder / "hd1k_input/image_2" / name, scene.frame(number))
            write_flow(folder / "hd1k_flow_gt/flow_occ" / name, scene.flow(), known)
    return folder


def write_spring(root: Path, frames: int = 3) -> Path:
    """One scene, both cameras and both directions, four vectors a pixel."""
    folder = root / "Spring"
    for seed, camera in enumerate(("left", "right"), 40):
        scene = Sequence(seed)
        for number in range(1, frames + 1):
            place = folder / "train/0001"
            write_image(place / f"frame_{camera}/frame_{camera}_{number:04d}.png", scene.frame(number))
            for way, exists in (("FW", number < frames), ("BW", number > 1)):
                name = f"flow_{way}_{camera}"
                if exists:
                    write_flow(place / name / f"{name}_{number:04d}.flo5", scene.flow(back=way == "BW", fine=2))
    return folder


def write_middlebury(root: Path) -> Path:
    """Two scenes with public truth, part of which is unknown, and one without."""
    folder = root / "Middlebury"
    for seed, name in enumerate(("RubberWhale", "Venus", "Beanbags"), 50):
        scene = Sequence(seed)
        for number in (10, 11):
            write_image(folder / f"other-data/{name}/frame{number}.png", scene.frame(number - 10))
        if name != "Beanbags":
            known = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
            known[:4] = False
            write_flow(folder / f"other-gt-flow/{name}/flow10.flo", scene.flow(), known)
    return folder


def write_all(root: Path) -> Path:
    """Every set."""
    for write in (write_chairs, write_things, write_sintel, write_hd1k, write_spring, write_middlebury):
        write(root)
    write_kitti(root, 2012)
    write_kitti(root, 2015)
    return root


def without(folder: Path, *parts: str) -> Path:
    """Remove files or folders of a set, and return it."""
    for part in parts:
        path = folder / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder
