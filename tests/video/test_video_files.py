import errno
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import deqflow
from deqflow.__main__ import main
from deqflow.data.colors import flow_to_rgb
from deqflow.evidence.results import load_results
from deqflow.evidence.video_reuse import RUBBERWHALE, SINTEL, procedural_clips, real_clips, run_benchmark
from deqflow.solvers import Stop
from deqflow.video import (
    FlowFolder,
    Movie,
    Statistics,
    VideoFlow,
    ahead,
    draw_flow,
    film_flow,
    filming,
    read_frames,
)
from deqflow.video.containers import is_whole
from deqflow.video.reading import Behind, ShortVideoError


def pictures(count: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    """Smooth pictures that differ, (H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    return [np.stack([5 * x + 3 * i, 6 * y, 255 - 4 * x], -1).clip(0, 255).astype(np.uint8) for i in range(count)]


def full(path: Path, content: bytes) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def clip(tmp_path) -> str:
    path = tmp_path / "ein Film ä" / "clip.avi"
    with Movie(path, rate=12.0) as movie:
        for picture in pictures(6):
            movie.add(picture)
    return str(path)


@pytest.fixture
def video() -> VideoFlow:
    return VideoFlow(deqflow.load("deqflow-small"), stop=Stop(max_evals=2, atol=0.0))


def count_of(path) -> int:
    return sum(1 for _ in read_frames(path))


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".webm", ".mkv", ".mov"])
def test_a_film_comes_back(tmp_path, suffix):
    path = tmp_path / f"film{suffix}"
    with Movie(path, rate=12.0) as movie:
        for picture in pictures(5, 31, 47):
            movie.add(picture)
        assert not path.exists()
    frames = read_frames(path)
    assert frames.rate == pytest.approx(12)
    images = list(frames)
    assert len(images) == 5
    assert images[0].shape == (1, 3, 32, 48)  # even sides
    expected = torch.from_numpy(pictures(5, 31, 47)[2]).permute(2, 0, 1).float()
    assert (images[2][0, :, :31, :47] - expected).abs().mean() < 12
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert len(list(frames)) == 5  # once more


def test_a_film_that_an_error_ends_is_whole(tmp_path):
    def write():
        with Movie(tmp_path / "film.mp4") as movie:
            for picture in pictures(3):
                movie.add(picture)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert count_of(tmp_path / "film.mp4") == 3


def test_ctrl_c_while_a_film_is_finished_leaves_it_whole(tmp_path, monkeypatch):
    release = cv2.VideoWriter.release

    def interrupted(self: cv2.VideoWriter) -> None:
        release(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(cv2.VideoWriter, "release", interrupted)
    movie = Movie(tmp_path / "film.mp4")
    movie.add(pictures(1)[0])
    with pytest.raises(KeyboardInterrupt):
        movie.close()
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
    assert count_of(tmp_path / "film.mp4") == 1


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".webm", ".mkv", ".mov"])
def test_a_film_is_whole_with_its_last_byte_and_not_before(tmp_path, suffix):
    path = tmp_path / f"film{suffix}"
    with Movie(path) as movie:
        for picture in pictures(2):
            movie.add(picture)
    content = path.read_bytes()
    assert is_whole(path)
    for size in range(len(content) - 1, -1, -1):
        with path.open("r+b") as file:
            file.truncate(size)
        assert not is_whole(path), f"{size} of {len(content)} bytes"
    path.write_bytes(content + b"\0")
    assert not is_whole(path)


@pytest.mark.parametrize(("end", "whole"), [(5_000_000_000, True), (4_999_999_999, False)])
def test_films_past_four_gigabytes_have_longer_sizes(tmp_path, end, whole):
    path = tmp_path / "film.mp4"
    with path.open("wb") as file:  # takes no room: what is not written does not, on most systems
        file.write(b"\0\0\0\1mdat" + (5_000_000_000 - 16).to_bytes(8, "big"))
        file.seek(end - 16)
        file.write(b"\0\0\0\x10moov12345678")
    assert is_whole(path) == whole


def test_a_film_without_pictures_is_none(tmp_path):
    with Movie(tmp_path / "film.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_film_says_what_it_takes(tmp_path):
    with pytest.raises(ValueError, match=r"a film expects a suffix of .mp4"):
        Movie(tmp_path / "film.gif")
    with pytest.raises(ValueError, match="positive number of frames a second"):
        Movie(tmp_path / "film.mp4", rate=0)
    with Movie(tmp_path / "film.mp4") as movie:
        with pytest.raises(ValueError, match=r"images \(H, W, 3\) uint8, got float64"):
            movie.add(np.zeros((4, 4, 3)))
        movie.add(pictures(1)[0])
        with pytest.raises(ValueError, match="one size"):
            movie.add(pictures(1, 16, 16)[0])


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi", ".webm"])
@pytest.mark.parametrize("rate", [0.002, 0.5, 23.976, 29.97, 66.667, 99.999, 196.263, 211.222, 599.999])
def test_a_film_has_the_nearest_rate_that_its_format_holds(tmp_path, suffix, rate):
    path = tmp_path / f"film{suffix}"
    with Movie(path, rate=rate) as movie:
        for picture in pictures(3):
            movie.add(picture)
    assert movie.rate == pytest.approx(rate, abs=0.005)
    reader = cv2.VideoCapture(str(path))
    assert reader.get(cv2.CAP_PROP_FPS) == pytest.approx(movie.rate, rel=0.001)
    reader.release()
    assert count_of(path) == 3


@pytest.mark.parametrize("rate", [66.667, 211.222])
def test_a_video_of_an_odd_rate_becomes_a_film(tmp_path, video, rate):
    with Movie(tmp_path / "clip.avi", rate=rate) as movie:
        for picture in pictures(3):
            movie.add(picture)
    film_flow(tmp_path / "clip.avi", tmp_path / "flow.mp4", video, progress=False)
    assert read_frames(tmp_path / "flow.mp4").rate == pytest.approx(rate, abs=0.005)
    assert count_of(tmp_path / "flow.mp4") == 2


@pytest.mark.parametrize("rate", [0, -1, 0.0019, 65536, float("inf"), float("nan")])
def test_a_rate_that_no_film_has_is_refused(tmp_path, rate):
    told = f"positive number of frames a second, from 0.002 to 65535, got {rate!r}"
    with pytest.raises(ValueError, match=told):
        Movie(tmp_path / "film.mp4", rate=rate)


def test_a_film_that_cant_be_written_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2.VideoWriter, "isOpened", lambda self: False)
    told = r"OpenCV can't write .*film\.mp4 with 48x32 px at 24 frames a second: its format .* Try \.avi, or smaller"
    with pytest.raises(ValueError, match=told):
        Movie(tmp_path / "film.mp4").add(pictures(1)[0])
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"check that its folder can be written to .*\(No space left on device\)"):
            Movie(tmp_path / "film.mp4").add(pictures(1)[0])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"file is a file, where a folder is needed: choose another name"):
        Movie(tmp_path / "file" / "film.mp4").add(pictures(1)[0])


def test_pictures_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 100):
        picture = np.full((20, 24, 3), number, np.uint8)
        deqflow.write_image(tmp_path / f"frame{number}.png", picture)
    (tmp_path / "notes.txt").write_text("no picture")
    frames = read_frames(tmp_path)
    assert frames.count == 3
    assert [int(image[0, 0, 0, 0]) for image in frames] == [9, 10, 100]
    listed = read_frames([tmp_path / "frame100.png", tmp_path / "frame9.png"])
    assert [int(image[0, 0, 0, 0]) for image in listed] == [100, 9]


def test_what_is_no_video_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="No video and no folder at"):
        read_frames(tmp_path / "missing.mp4")
    (tmp_path / "a.mp4").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="can't be read as a video"):
        read_frames(tmp_path / "a.mp4")
    picture = deqflow.write_image(tmp_path / "a.png", pictures(1)[0])
    with pytest.raises(ValueError, match="can't be read as a video"):
        read_frames(picture)
    with pytest.raises(ValueError, match=r"at least two images in .*, got 1"):
        read_frames(tmp_path)
    deqflow.write_image(tmp_path / "b.png", pictures(1, 16, 16)[0])
    with pytest.raises(ValueError, match=r"b\.png has 16x16 px, the frames before it 48x32"):
        list(read_frames(tmp_path))


def test_frames_are_read_ahead_on_a_thread():
    made, threads = [], set()

    def items():
        for i in range(10):
            made.append(i)
            threads.add(threading.current_thread().name)
            yield i

    got = ahead(items(), buffer=2)
    assert next(got) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(made) == 4  # one taken, two in the buffer, one in hand
    assert list(got) == list(range(1, 10))
    assert threads == {"frames ahead"}


def test_the_thread_ends_with_who_asked_and_errors_come_through():
    def items():
        yield 1
        raise ValueError("damaged")

    got = ahead(items())
    assert next(got) == 1
    with pytest.raises(ValueError, match="damaged"):
        next(got)
    endless = ahead(iter(int, 1))
    next(endless)
    endless.close()
    assert all(thread.name != "frames ahead" for thread in threading.enumerate())


def test_items_are_worked_off_behind_on_a_thread_and_few_wait():
    seen, threads, go = [], set(), threading.Event()

    def work(item):
        go.wait(5)
        seen.append(item)
        threads.add(threading.current_thread().name)

    handed = []
    with Behind(work, buffer=2) as behind:

        def hand_over():
            for i in range(10):
                behind(i)
                handed.append(i)

        other = threading.Thread(target=hand_over)
        other.start()
        deadline = time.monotonic() + 5
        while len(handed) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert handed == [0, 1, 2]  # one in work, two that wait; the fourth has no room
        go.set()
        other.join()
    assert seen == list(range(10))
    assert threads == {"frames behind"}
    assert all(thread.name != "frames behind" for thread in threading.enumerate())


def test_an_error_behind_comes_through_and_drops_the_rest():
    seen = []

    def work(item):
        seen.append(item)
        if item == 1:
            raise OSError("disk full")

    def hand_over(items, error=None):
        with Behind(work) as behind:
            for i in items:
                behind(i)
                time.sleep(0.01)
            if error is not None:
                raise error

    with pytest.raises(OSError, match="disk full"):
        hand_over(range(100))
    assert seen == [0, 1]
    with pytest.raises(OSError, match="disk full"):
        hand_over([1], ValueError("which came later"))


@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_works_off_what_was_handed_over_unless_it_is_pressed_again(again, monkeypatch):
    seen, join = [], threading.Thread.join

    def work(item):
        time.sleep(0.05)
        seen.append(item)

    def interrupted(self):
        monkeypatch.undo()
        raise KeyboardInterrupt

    def hand_over():
        with Behind(work) as behind:
            for i in range(3):
                behind(i)
            if again:
                monkeypatch.setattr(threading.Thread, "join", interrupted)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hand_over()
    assert threading.Thread.join is join
    assert len(seen) < 3 if again else seen == [0, 1, 2]
    assert all(thread.name != "frames behind" for thread in threading.enumerate())


def test_a_film_is_drawn_on_one_thread_and_solved_on_another(clip, tmp_path, video, monkeypatch):
    threads, step = {"draw": set(), "solve": set()}, VideoFlow.step

    def drawn(*arguments, **options):
        threads["draw"].add(threading.current_thread().name)
        return draw_flow(*arguments, **options)

    def solved(self, *images):
        threads["solve"].add(threading.current_thread().name)
        return step(self, *images)

    monkeypatch.setattr(filming, "draw_flow", drawn)
    monkeypatch.setattr(VideoFlow, "step", solved)
    film_flow(clip, tmp_path / "flow.avi", video, progress=False)
    assert threads == {"draw": {"frames behind"}, "solve": {threading.current_thread().name}}


def test_a_film_that_cant_be_written_to_its_end_ends_with_an_error_message(clip, tmp_path, video, monkeypatch):
    def fails(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("deqflow.video.writing.write_flow", fails)
    with pytest.raises(OSError, match="No space left on device"):
        film_flow(clip, tmp_path / "out", video, progress=False)
    assert all("frames" not in thread.name for thread in threading.enumerate())


def test_drawings(generator):
    image = 255 * torch.rand(3, 40, 60, generator=generator)
    flow = torch.zeros(2, 40, 60)
    flow[0, :, 30:] = 6.0
    colors = draw_flow(image, flow, largest=6.0)
    assert np.array_equal(colors, flow_to_rgb(flow, largest=6.0))
    side = draw_flow(image, flow, "side", largest=6.0)
    assert side.shape == (40, 120, 3)
    assert np.array_equal(side[:, 60:], colors)
    assert np.abs(side[:, :60].astype(float) - image.permute(1, 2, 0).numpy()).max() <= 1
    arrows = draw_flow(image, flow, "arrows", largest=6.0)
    assert arrows.shape == (40, 60, 3)
    changed = np.abs(arrows.astype(int) - side[:, :60] // 2).sum(2) > 30
    assert changed[:, 30:].sum() > 100
    assert not changed[:, :28].any()  # nothing moves there
    flow[:, 4, 4] = torch.nan
    draw_flow(image, flow, "arrows")


@pytest.mark.parametrize("drawing", ["colors", "arrows", "side"])
def test_a_video_becomes_a_film(clip, tmp_path, video, drawing):
    numbers, interrupted = film_flow(clip, tmp_path / "flow.mp4", video, drawing=drawing, progress=False)
    assert not interrupted
    frames = list(read_frames(tmp_path / "flow.mp4"))
    assert len(frames) == len(numbers.rows) == 5
    assert frames[0].shape == (1, 3, 32, 96 if drawing == "side" else 48)
    assert read_frames(tmp_path / "flow.mp4").rate == pytest.approx(12)


@pytest.mark.parametrize(
    ("files", "suffix", "within"),
    [
        *(("flo", ".flo", 0.0), ("pfm", ".pfm", 0.0), ("kitti", ".png", 1 / 128)),
        *(("npy", ".npy", 0.0), ("npz", ".npz", 0.0)),
    ],
)
def test_a_video_becomes_a_file_a_frame(clip, tmp_path, video, files, suffix, within):
    film_flow(clip, tmp_path / "out", video, files=files, progress=False)
    paths = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in paths] == [f"frame_{i:06d}{suffix}" for i in range(1, 6)]
    video.reset()
    for path, (_, step) in zip(paths, video.run(read_frames(clip)), strict=True):
        flow, valid = deqflow.read_flow(path)
        assert valid.all()
        assert (flow - step.flow[0]).abs().max() <= within


def test_a_gif_is_read_and_told_if_it_is_cut_short(tmp_path, video):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)) for _ in range(8)]
    images[0].save(tmp_path / "whole.gif", save_all=True, append_images=images[1:], duration=100)
    assert len(list(read_frames(tmp_path / "whole.gif"))) == 8
    content = (tmp_path / "whole.gif").read_bytes()
    for share in (0.4, 0.9):
        (tmp_path / "cut.GIF").write_bytes(content[: round(share * len(content))])
        with pytest.raises(ShortVideoError, match=r"cut\.GIF is cut short or damaged: \d+ frames can be read"):
            list(read_frames(tmp_path / "cut.GIF"))


def test_statistics_may_have_a_suffix_in_capitals(tmp_path, video):
    with Movie(tmp_path / "film.avi") as movie:
        for shade in (0, 20, 40):
            movie.add(np.full((32, 48, 3), shade, np.uint8))
    film_flow(tmp_path / "film.avi", tmp_path / "out.avi", video, statistics=tmp_path / "S.NPZ", progress=False)
    assert len(np.load(tmp_path / "S.NPZ")["evaluations"]) == 2


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_video_that_is_cut_short_ends_with_an_error_message(tmp_path, video, suffix, share):
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    rng = np.random.default_rng(0)
    with Movie(whole) as movie:
        for _ in range(20):
            movie.add(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8))
    assert count_of(whole) == 20
    content = whole.read_bytes()
    if suffix == ".mp4":  # with its table at the end there would be nothing to read: frames are lost before it
        start = content.index(b"mdat") + 4
        end = content.rindex(b"moov") - 4
        kept = start + round(share * (end - start))
        content = content[:kept] + bytes(end - kept) + content[end:]
    else:
        content = content[: round(share * len(content))]
    cut.write_bytes(content)
    frames = read_frames(cut)
    read = []
    with pytest.raises(ShortVideoError, match=rf"cut\{suffix} is cut short or damaged: \d+ of its 20 frames"):
        read.extend(frames)
    assert 2 < len(read) < 20
    told = f"{len(read)} of its 20 frames can be read. The flow of the {len(read) - 1} pairs before that is in "
    with pytest.raises(ShortVideoError, match=told):
        film_flow(cut, tmp_path / "flow.avi", video, statistics=tmp_path / "s.npz", progress=False)
    assert count_of(tmp_path / "flow.avi") == len(np.load(tmp_path / "s.npz")["evaluations"]) == len(read) - 1


def test_a_sound_file_may_have_a_frame_less_than_it_says(clip, monkeypatch):
    get = cv2.VideoCapture.get
    for more, short in ((1, False), (2, True)):
        with monkeypatch.context() as patch:
            patch.setattr(cv2.VideoCapture, "get", lambda self, what, more=more: get(self, what) + more)
            if short:
                with pytest.raises(ShortVideoError, match="6 of its 8 frames"):
                    list(read_frames(clip))
            else:
                assert count_of(clip) == 6


def test_a_film_has_a_key_on_request(clip, tmp_path, video):
    film_flow(clip, tmp_path / "plain.avi", video, progress=False, largest=5.0)
    film_flow(clip, tmp_path / "key.avi", video, progress=False, largest=5.0, key=True)
    plain, keyed = (list(read_frames(tmp_path / name)) for name in ("plain.avi", "key.avi"))
    assert keyed[0].shape[3] > plain[0].shape[3] + 40
    assert keyed[0].shape[2] >= plain[0].shape[2]
    # JPEG's blocks of 16 are alike but for the last column of them.
    assert (keyed[2][..., :32, :32] - plain[2][..., :32, :32]).abs().mean() < 4


def test_statistics_are_those_of_the_steps(clip, tmp_path, video):
    numbers, _ = film_flow(clip, tmp_path / "flow.avi", video, statistics=tmp_path / "s.npz", progress=False)
    with np.load(tmp_path / "s.npz") as saved:
        assert set(saved) == set(Statistics.QUANTITIES)
        for name in saved:
            assert np.array_equal(saved[name], numbers[name])
    assert numbers["evaluations"].tolist() == [2] * 5
    assert numbers["reset"].tolist() == [True, False, False, False, False]
    with pytest.raises(ValueError, match=r"written as .npz"):
        numbers.save(tmp_path / "s.csv")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file is a file, where a folder is needed"):
        numbers.save(tmp_path / "file" / "s.npz")
    assert not list(tmp_path.glob(".*"))


def test_ctrl_c_leaves_a_film_and_statistics(clip, tmp_path, video, monkeypatch, capsys):
    step, calls = VideoFlow.step, []

    def interrupted(self: VideoFlow, image1: Tensor, image2: Tensor):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, image1, image2)

    monkeypatch.setattr(VideoFlow, "step", interrupted)
    out, statistics = tmp_path / "flow.mp4", tmp_path / "s.npz"
    code = main(["flow", clip, "--out", str(out), "--statistics", str(statistics), "--max-evals", "1"])
    assert code == 130
    assert count_of(out) == 3
    assert len(np.load(statistics)["evaluations"]) == 3
    assert f"Interrupted; what is done is in {out}." in capsys.readouterr().out
    assert all(thread.name != "frames ahead" for thread in threading.enumerate())


def test_the_bar_tells_evaluations_a_frame(clip, tmp_path, video, capsys):
    film_flow(clip, tmp_path / "flow.avi", video)
    said = capsys.readouterr().err
    assert "5/5" in said
    assert "frames/s" in said
    assert "2.0 evaluations a frame" in said


def test_colours_keep_one_scale_through_the_film(clip, tmp_path, video, monkeypatch):
    seen = []
    draw = draw_flow
    monkeypatch.setattr(filming, "draw_flow", lambda *a, largest: seen.append(largest) or draw(*a, largest=largest))
    film_flow(clip, tmp_path / "flow.avi", video, progress=False)
    assert len(seen) == 5
    assert len(set(seen)) == 1
    film_flow(clip, tmp_path / "flow.avi", video, progress=False, largest=7.0)
    assert seen[5:] == [7.0] * 5


def test_what_cant_be_filmed_says_so(clip, tmp_path, video):
    with pytest.raises(ValueError, match="expected a film"):
        film_flow(clip, tmp_path / "flow.xyz", video)
    with pytest.raises(ValueError, match="would replace it: choose another --out"):
        film_flow(clip, clip, video)
    for name, link in (("symbolic.avi", "symlink_to"), ("hard.avi", "hardlink_to")):
        getattr(tmp_path / name, link)(clip)
        with pytest.raises(ValueError, match="would replace it"):
            film_flow(clip, tmp_path / name, video)
    assert count_of(clip) == 6
    with pytest.raises(ValueError, match=r"written as .npz"):
        film_flow(clip, tmp_path / "flow.avi", video, statistics="s.csv")
    with Movie(tmp_path / "one.avi") as movie:
        movie.add(pictures(1)[0])
    with pytest.raises(ValueError, match="fewer than two frames"):
        film_flow(tmp_path / "one.avi", tmp_path / "flow.avi", video, progress=False)


def test_a_folder_of_flow_counts(tmp_path):
    folder = FlowFolder(tmp_path / "new", ".pfm")
    flow = torch.ones(2, 16, 16)
    assert folder.add(flow).name == "frame_000001.pfm"
    assert folder.add(flow).name == "frame_000002.pfm"
    assert folder.count == 2


def test_the_command_line_makes_a_clip_and_its_flow(tmp_path, capsys):
    clip, out = tmp_path / "clip.mp4", tmp_path / "flow.mp4"
    size = ["--height", "32", "--width", "48"]
    assert main(["clip", "--out", str(clip), "--frames", "4", "--cuts", "2", *size]) == 0
    assert count_of(clip) == 4
    options = ["--policy", "reuse", "--scales", "1", "1.5", "--atol", "0.5", "--max-evals", "3", "--drawing", "side"]
    assert main(["flow", str(clip), "--out", str(out), *options]) == 0
    assert count_of(out) == 3
    said = capsys.readouterr().out
    assert "3 flow fields" in said
    assert f"Wrote {out}." in said
    assert main(["flow", str(tmp_path / "missing.mp4")]) == 1


@pytest.mark.parametrize(
    ("options", "policy"),
    [([], "warp"), (["--model", "raft-small-twin"], "flow"), (["--policy", "flow"], "flow")],
)
def test_the_command_line_takes_the_policy_that_suits_the_model(tmp_path, monkeypatch, options, policy):
    clip, made = tmp_path / "clip.mp4", []
    assert main(["clip", "--out", str(clip), "--frames", "3", "--height", "32", "--width", "48"]) == 0
    monkeypatch.setattr("deqflow.video.VideoFlow", lambda *a, **k: made.append(VideoFlow(*a, **k)) or made[-1])
    assert main(["flow", str(clip), "--out", str(tmp_path / "flow.mp4"), "--max-evals", "2", *options]) == 0
    assert [video.policy for video in made] == [policy]


def test_the_benchmark_writes_a_row_for_each_clip_tolerance_and_policy(tmp_path):
    clips = procedural_clips(length=6, seeds=(7,), height=32, width=48)
    assert list(clips) == ["slow", "ordinary", "fast", "with cuts"]
    assert clips["with cuts"][0].cuts == (3,)
    assert procedural_clips(length=9, seeds=(7,), height=32, width=48)["with cuts"][0].cuts == (4, 7)
    chosen = {name: clips[name] for name in ("slow", "with cuts")}
    seen = []
    out = tmp_path / "video.json"
    results = run_benchmark(out, clips=chosen, tolerances=(1.0, 0.5), on_row=seen.append)
    assert load_results(out) == results
    assert results["rows"] == seen
    keys = [(row["clip"], row["atol_px"], row["policy"]) for row in seen]
    assert keys == [(c, a, p) for c in chosen for a in (1.0, 0.5) for p in ("reset", "reuse", "warp")]
    assert all(row["residual_px"] <= row["atol_px"] for row in seen)
    assert "commit" in results["provenance"]


def test_real_clips_join_where_they_are(tmp_path, shared_data):
    assert real_clips(tmp_path) == {}
    found = real_clips(shared_data)
    assert len(found["Sintel alley_1"][0].images) == len(list((shared_data / SINTEL).glob("frame_00[12]?.png")))
    assert len(found["RubberWhale"][0].images) == len(list((shared_data / RUBBERWHALE).glob("*.png")))
    flows = found["RubberWhale"][0].flows
    assert [i for i, flow in enumerate(flows) if flow is not None] == [3]  # of frame 10, the fourth
    assert 0.5 < torch.nanmean(flows[3].norm(dim=0)) < 3
