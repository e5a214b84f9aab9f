"""The published data sets, in the folder layouts in which they are published. data/README.md shows each layout."""

import re
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path

from torch import Tensor

from deqflow.data.datasets.files import (
    ADVICE,
    FlowDataset,
    PairFiles,
    SetNotFoundError,
    expected_files,
    expected_folder,
    one_of,
    some_of,
)
from deqflow.data.flow_files import read_flow

CHAIRS_SPLIT = "FlyingChairs_train_val.txt"
KITTI_FRAMES = {2012: "colored_0", 2015: "image_2"}
FOUR_DIGITS = "[0-9]" * 4
RELEASED = re.compile(r"\d{5}_flow\.flo")


class FlyingChairs(FlowDataset):
    """FlyingChairs (Dosovitskiy et al. 2015): 22872 rendered pairs of 512 x 384.

    Two releases can be read, from ``root/data`` or, if that folder does not exist, from ``root``: the set itself,
    ``NNNNN_img1.ppm, NNNNN_img2.ppm, NNNNN_flow.flo``, and the samples that came with FlowNet 2,
    ``NNNNNNN-img0.ppm, NNNNNNN-img1.ppm, NNNNNNN-gt.flo``.

    Args:
        root: the folder of the set.
        split: "train" or "validation" of the set itself, "samples" for the samples, or "all" for all pairs.
            ``FlyingChairs_train_val.txt`` in ``root`` defines the first two: line N is 1 (train) or 2 (validation) for
            pair N.

    Raises:
        FileNotFoundError: the folder, a file of a pair, or the split file is missing.
        ValueError: the split is unknown, the split file is damaged, or the name of a file is unexpected.
    """

    def __init__(self, root: str | Path, split: str = "all") -> None:
        one_of(split, ("train", "validation", "samples", "all"), "split")
        root = Path(root)
        folder = root / "data" if (root / "data").is_dir() else root
        what = "FlyingChairs' pairs, such as 00001_img1.ppm, 00001_img2.ppm and 00001_flow.flo,"
        flows = expected_files(folder, "*.flo", what)
        if split == "samples":
            flows = [path for path in flows if path.name.endswith("-gt.flo")]
        elif split != "all":
            flows = self._of_split([path for path in flows if RELEASED.fullmatch(path.name)], split, root)
        if not flows:
            raise SetNotFoundError(f"No pair of the split {split!r} in {folder}: expected {what} there. {ADVICE}")
        super().__init__(self._pair(path) for path in flows)

    @staticmethod
    def _pair(path: Path) -> PairFiles:
        for flow, first, second in (("_flow.flo", "_img1.ppm", "_img2.ppm"), ("-gt.flo", "-img0.ppm", "-img1.ppm")):
            if path.name.endswith(flow):
                start = path.name.removesuffix(flow)
                return PairFiles(image1=path.with_name(start + first), image2=path.with_name(start + second), flow=path)
        raise ValueError(f"Expected a name like 00001_flow.flo or 0000001-gt.flo in FlyingChairs, got {path}.")

    @staticmethod
    def _of_split(flows: list[Path], split: str, root: Path) -> list[Path]:
        path, wanted = root / CHAIRS_SPLIT, {"train": "1", "validation": "2"}[split]
        if not path.is_file():
            raise SetNotFoundError(
                f"No file at {path}: expected FlyingChairs' official split there, a line of 1 (train) or 2 "
                f'(validation) for each pair. Put it there, or take all pairs with split="all". {ADVICE}'
            )
        labels = path.read_text(errors="replace").split()
        for line, label in enumerate(labels, 1):
            if label not in ("1", "2"):
                raise ValueError(f"{path} is damaged: expected 1 or 2 in line {line}, got {label[:20]!r}.")
        numbers = [int(flow.name[:5]) for flow in flows]  # these begin at 1
        if numbers and not 1 <= min(numbers) <= max(numbers) <= len(labels):
            raise ValueError(f"{path} has {len(labels)} lines: expected one for each pair, of 1 to {max(numbers)}.")
        return [flow for flow, number in zip(flows, numbers, strict=True) if labels[number - 1] == wanted]


class FlyingThings3D(FlowDataset):
    """FlyingThings3D (Mayer et al. 2016), the full set of 960 x 540, left camera.

    Args:
        root: the folder that holds ``frames_cleanpass`` or ``frames_finalpass``, and ``optical_flow``.
        split: "train" or "test".
        render: "clean" or "final".
        directions: "into_future" for flow to the next frame, "into_past" for flow to the previous frame, or both.

    Raises:
        FileNotFoundError: a folder, or a file of a pair, is missing.
        ValueError: the split, the render or a direction is unknown.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        render: str = "clean",
        directions: tuple[str, ...] = ("into_future", "into_past"),
    ) -> None:
        root, part = Path(root), one_of(split, ("train", "test"), "split").upper()
        one_of(render, ("clean", "final"), "render")
        some_of(directions, ("into_future", "into_past"), "directions")
        frames = expected_folder(root / f"frames_{render}pass" / part, f"FlyingThings3D's frames of the {render} pass")
        flows = expected_folder(root / "optical_flow" / part, "FlyingThings3D's flow")
        super().__init__(pair for direction in directions for pair in self._pairs(frames, flows, direction))

    @staticmethod
    def _pairs(frames: Path, flows: Path, direction: str) -> Iterator[PairFiles]:
        step, name = (1, "Future") if direction == "into_future" else (-1, "Past")
        pattern = f"*/*/{direction}/left/OpticalFlowInto{name}_{FOUR_DIGITS}_L.pfm"
        what = f"folders such as A/0000/{direction}/left with OpticalFlowInto{name}_0006_L.pfm and so on"
        found = expected_files(flows, pattern, what)
        for folder, members in groupby(found, key=lambda path: path.parent):
            scene = frames / folder.relative_to(flows).parents[1] / "left"
            numbers = sorted(((int(path.stem.split("_")[1]), path) for path in members), key=lambda entry: entry[0])
            outermost = numbers[-1 if step > 0 else 0][0]
            for number, flow in numbers:
                second = scene / f"{number + step:04d}.png"
                # The outermost flow of a scene leads to a frame that was not published.
                if number != outermost or second.is_file():
                    yield PairFiles(image1=scene / f"{number:04d}.png", image2=second, flow=flow)


class Sintel(FlowDataset):
    """MPI Sintel's training part (Butler et al. 2012): 1041 pairs of 1024 x 436 in 23 scenes.

    ``occluded`` is read from ``training/occlusions`` if that folder exists. Otherwise it is true only where the known
    flow leaves the frame.

    Args:
        root: the folder that holds ``training``.
        render: the render pass, "clean", "final" or "albedo".

    Raises:
        FileNotFoundError: a folder, or a file of a pair, is missing.
        ValueError: the render is unknown.
    """

    def __init__(self, root: str | Path, render: str = "clean") -> None:
        training = Path(root) / "training"
        one_of(render, ("clean", "final", "albedo"), "render")
        frames = expected_folder(training / render, f"Sintel's frames of the {render} pass")
        masks = training / "occlusions"
        what = "Sintel's flow, a folder a scene with frame_0001.flo and so on,"
        flows = expected_files(training / "flow", f"*/frame_{FOUR_DIGITS}.flo", what)
        super().__init__(self._pair(path, frames, masks if masks.is_dir() else None) for path in flows)

    @staticmethod
    def _pair(flow: Path, frames: Path, masks: Path | None) -> PairFiles:
        scene, number = flow.parent.name, int(flow.stem.removeprefix("frame_"))
        image1, image2 = (frames / scene / f"frame_{n:04d}.png" for n in (number, number + 1))
        occlusion = masks / scene / f"{flow.stem}.png" if masks else None
        return PairFiles(image1=image1, image2=image2, flow=flow, occlusion=occlusion)


class Kitti(FlowDataset):
    """KITTI's training part of 2012 (Geiger et al., 194 pairs) or 2015 (Menze and Geiger, 200 pairs), sparse truth.

    The images are in ``training/image_2`` (2015) or ``training/colored_0`` (2012), and the flow of all pixels is in
    ``training/flow_occ``. If ``training/flow_noc`` exists, ``occluded`` is where only ``flow_occ`` has a vector: nearly
    all of these pixels leave the frame.

    Args:
        root: the folder that holds ``training``.
        year: 2012 or 2015.

    Raises:
        FileNotFoundError: a folder, or a file of a pair, is missing.
        ValueError: the year is neither 2012 nor 2015.
    """

    sparse = True

    def __init__(self, root: str | Path, year: int = 2015) -> None:
        one_of(str(year), ("2012", "2015"), "year")
        training = Path(root) / "training"
        what = f"KITTI {year}'s {{}}, 000000_10.png and so on,"
        frames = expected_folder(training / KITTI_FRAMES[year], what.format("pictures"))
        flows = expected_files(training / "flow_occ", "*_10.png", what.format("flow"))
        visible = training / "flow_noc"
        super().__init__(
            PairFiles(
                image1=frames / flow.name,
                image2=frames / f"{flow.name.removesuffix('_10.png')}_11.png",
                flow=flow,
                occlusion=visible / flow.name if visible.is_dir() else None,
            )
            for flow in flows
        )

    def _occluded(self, path: Path, valid: Tensor) -> Tensor:
        visible = read_flow(path)[1]
        return valid & ~visible if visible.shape == valid.shape else visible  # the caller reports another size


class HD1K(FlowDataset):
    """HD1K (Kondermann et al. 2016): 36 sequences of street scenes of 2560 x 1080, sparse truth.

    Each image with flow forms a pair with the next image of its sequence. The last image of a sequence forms none.

    Args:
        root: the folder that holds ``hd1k_input`` and ``hd1k_flow_gt``.

    Raises:
        FileNotFoundError: a folder, or a file of a pair, is missing.
    """

    sparse = True

    def __init__(self, root: str | Path) -> None:
        what = "HD1K's {}, 000000_0000.png and so on,"
        frames = expected_files(Path(root) / "hd1k_input" / "image_2", "*_*.png", what.format("pictures"))
        flows = expected_files(Path(root) / "hd1k_flow_gt" / "flow_occ", "*_*.png", what.format("flow"))
        after = {first.name: second for first, second in pairwise(frames) if sequence(first) == sequence(second)}
        last = {path.name for path in frames} - after.keys()
        super().__init__(
            # A missing image has no next one. It takes the place of the next one, and the check reports it as missing.
            PairFiles(image1=(first := frames[0].parent / flow.name), image2=after.get(flow.name, first), flow=flow)
            for flow in flows
            if flow.name not in last
        )


def sequence(path: Path) -> str:
    """The number of the sequence that a file of HD1K belongs to."""
    return path.name.split("_")[0]


class Spring(FlowDataset):
    """Spring's training part (Mehl et al. 2023): 37 scenes of 1920 x 1080, left and right camera.

    The truth has four vectors for each pixel of the images, in pixels of the images. The upper left one is used, as in
    the authors' own loader. The set's flow files do not say which pixels are occluded, so ``occluded`` is where the
    known flow leaves the frame. Reading needs h5py: ``pip install 'deqflow[data]'``.

    Args:
        root: the folder that holds ``train``.
        cameras: "left", "right", or both.
        directions: "FW" for flow to the next frame, "BW" for flow to the previous frame, or both.

    Raises:
        FileNotFoundError: a folder, or a file of a pair, is missing.
        ValueError: a camera or a direction is unknown.
    """

    def __init__(
        self, root: str | Path, *, cameras: tuple[str, ...] = ("left",), directions: tuple[str, ...] = ("FW", "BW")
    ) -> None:
        some_of(cameras, ("left", "right"), "cameras")
        some_of(directions, ("FW", "BW"), "directions")
        scenes = expected_folder(Path(root) / "train", "Spring's scenes, the folders 0001 and so on,")
        super().__init__(pair for camera in cameras for way in directions for pair in self._pairs(scenes, camera, way))

    @staticmethod
    def _pairs(scenes: Path, camera: str, way: str) -> Iterator[PairFiles]:
        name = f"flow_{way}_{camera}"
        what = f"folders such as 0001/{name} with {name}_0002.flo5 and so on"
        for flow in expected_files(scenes, f"*/{name}/{name}_{FOUR_DIGITS}.flo5", what):
            number, frames = int(flow.stem[-4:]), flow.parents[1] / f"frame_{camera}"
            after = number + (1 if way == "FW" else -1)
            image1, image2 = (frames / f"frame_{camera}_{n:04d}.png" for n in (number, after))
            yield PairFiles(image1=image1, image2=image2, flow=flow)

    def _flow(self, path: Path) -> tuple[Tensor, Tensor]:
        flow, valid = read_flow(path)
        return flow[:, ::2, ::2].contiguous(), valid[::2, ::2].contiguous()


class Middlebury(FlowDataset):
    """Middlebury's pairs with public truth (Baker et al. 2011): from frame 10 to frame 11 of 8 scenes.

    Args:
        root: the folder that holds ``other-data`` and ``other-gt-flow``.

    Raises:
        FileNotFoundError: a folder, or a file of a pair, is missing.
    """

    def __init__(self, root: str | Path) -> None:
        frames = expected_folder(Path(root) / "other-data", "Middlebury's pictures, a folder a scene,")
        what = "Middlebury's flow, a folder a scene with flow10.flo,"
        flows = expected_files(Path(root) / "other-gt-flow", "*/flow10.flo", what)
        super().__init__(
            PairFiles(
                image1=frames / flow.parent.name / "frame10.png",
                image2=frames / flow.parent.name / "frame11.png",
                flow=flow,
            )
            for flow in flows
        )
