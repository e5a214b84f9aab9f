import errno
import os
import re
import struct
import threading
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from deqflow.data.flow_files import (
    FLOW_SUFFIXES,
    NAMES_OF_FLOW_FILES,
    UNKNOWN_FLOW,
    read_flow,
    read_image,
    write_flow,
    write_image,
)

ODD_NAME = Path("ordner mit lücke") / "bild ünï 画像 1"


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def image_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float()


def png(width: int, height: int, *, bits: int = 8) -> bytes:
    """A PNG file of three channels whose header claims a size and whose pixels are missing."""

    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"few")) + chunk(b"IEND", b"")


def flo(width: int, height: int, *vectors: float, tag: bytes = b"PIEH") -> bytes:
    return tag + struct.pack(f"<ii{len(vectors)}f", width, height, *vectors)


@pytest.mark.parametrize("suffix", [".png", ".ppm", ".bmp", ".tiff", ".PNG"])
def test_an_image_comes_back_with_the_same_bits(tmp_path, picture, suffix):
    path = write_image(tmp_path / f"a{suffix}", picture)
    image = read_image(path)
    assert image.dtype == torch.float32
    assert torch.equal(image, image_tensor(picture))


def test_red_is_the_first_channel(tmp_path):
    red = np.zeros((2, 3, 3), np.uint8)
    red[..., 0] = 200
    path = write_image(tmp_path / "red.png", red)
    assert cv2.imread(str(path))[0, 0].tolist() == [0, 0, 200]  # OpenCV's order is blue, green, red
    assert read_image(path)[0, :, 0, 0].tolist() == [200, 0, 0]


def test_a_jpeg_is_near(tmp_path):
    smooth = np.broadcast_to(np.linspace(0, 255, 64)[None, :, None], (48, 64, 3)).astype(np.uint8)
    image = read_image(write_image(tmp_path / "a.jpg", smooth))
    assert (image - image_tensor(smooth)).abs().max() < 6


def test_paths_may_have_any_letters_and_folders_are_made(tmp_path, picture):
    path = write_image(tmp_path / ODD_NAME.with_suffix(".png"), picture)
    assert path == tmp_path / ODD_NAME.with_suffix(".png")
    assert torch.equal(read_image(str(path)), image_tensor(picture))
    flow = torch.randn(2, 3, 4)
    assert torch.equal(read_flow(write_flow(str(tmp_path / ODD_NAME.with_suffix(".flo")), flow))[0], flow)


def test_a_grey_image_gets_three_equal_channels(tmp_path, picture):
    cv2.imwrite(str(tmp_path / "grey.png"), picture[..., 0])
    expected = torch.from_numpy(picture[..., 0]).float().expand(1, 3, 5, 7)
    assert torch.equal(read_image(tmp_path / "grey.png"), expected)


def test_transparency_is_dropped(tmp_path, picture):
    alpha = np.arange(35, dtype=np.uint8).reshape(5, 7, 1)
    cv2.imwrite(str(tmp_path / "alpha.png"), np.concatenate([picture[..., ::-1], alpha], 2))
    assert torch.equal(read_image(tmp_path / "alpha.png"), image_tensor(picture))


def test_the_range_of_sixteen_bits_is_scaled_to_that_of_eight(tmp_path, picture):
    deep = picture[..., ::-1].astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    assert torch.equal(read_image(tmp_path / "deep.png"), image_tensor(picture))
    cv2.imwrite(str(tmp_path / "deeper.png"), deep // 2)
    torch.testing.assert_close(read_image(tmp_path / "deeper.png"), image_tensor(picture) / 2, rtol=0, atol=0.002)


def test_an_image_may_come_through_a_pipe(tmp_path):
    path = write_image(tmp_path / "a.png", np.full((4, 5, 3), 7, np.uint8))
    os.mkfifo(tmp_path / "pipe")
    sender = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(path.read_bytes()))
    sender.start()
    assert torch.equal(read_image(tmp_path / "pipe"), read_image(path))
    sender.join()


@pytest.mark.parametrize("suffix", [".pfm", ".hdr"])
def test_an_image_of_floats_is_neither_read_nor_written_for_its_range_is_unknown(tmp_path, picture, suffix):
    with pytest.raises(ValueError, match=rf"Can't write the image .*a\{suffix}: expected a suffix such as \.png"):
        write_image(tmp_path / f"a{suffix}", picture)
    cv2.imwrite(str(tmp_path / f"a{suffix}"), picture.astype(np.float32) / 255)
    with pytest.raises(ValueError, match="8 or 16 bits, got float32, and its pixel range is unknown: convert it"):
        read_image(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("read", [read_image, read_flow])
@pytest.mark.parametrize("name", ["missing.png", "a folder.png"])
def test_a_missing_file_is_named(tmp_path, read, name):
    (tmp_path / "a folder.png").mkdir()
    with pytest.raises(FileNotFoundError, match=f"No file at .*{name}: check the path"):
        read(tmp_path / name)


@pytest.mark.parametrize("suffix", [".flo", ".pfm", ".flo5"])
def test_a_missing_flow_is_named(tmp_path, suffix):
    with pytest.raises(FileNotFoundError, match=rf"missing\{suffix}"):
        read_flow(tmp_path / f"missing{suffix}")


@pytest.mark.parametrize("content", [b"", b"no image", png(4, 3), png(20_000, 20_000), png(200_000, 200_000)])
def test_what_is_no_image_is_told(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png can't be read: expected an image such as"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("content", [b"", b"no image", png(4, 3, bits=16), png(200_000, 200_000, bits=16)])
def test_what_is_no_flow_image_is_told(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png can't be read: expected a 16-bit flow image"):
        read_flow(tmp_path / "a.png")


def test_half_an_image_is_damaged(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in (".png", ".jpg"):
        whole = write_image(tmp_path / f"whole{suffix}", noise).read_bytes()
        (tmp_path / f"half{suffix}").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="damaged"):
            read_image(tmp_path / f"half{suffix}")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 5, 3), np.float32),
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((1, 4, 5, 3), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
    ],
)
def test_only_colour_pictures_are_written(tmp_path, array):
    with pytest.raises(ValueError, match=r"expects \(H, W, 3\) uint8, got"):
        write_image(tmp_path / "a.png", array)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["picture", "picture.xyz", "picture.flo", ".png"])
def test_the_suffix_must_name_a_format(tmp_path, picture, name):
    with pytest.raises(ValueError, match=f"Can't write .*{name}: expected a suffix such as"):
        write_image(tmp_path / name, picture)
    assert list(tmp_path.iterdir()) == []


SHAPES = st.tuples(st.just(2), st.integers(1, 9), st.integers(1, 9))


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(-1e8, 1e8, width=32)))
def test_a_flow_comes_back_with_the_same_bits(tmp_path_factory, values):
    for suffix, size in ((".flo", 12 + 4 * values.size), (".pfm", len("PF\n9 9\n-1.0\n") + 6 * values.size)):
        path = write_flow(tmp_path_factory.getbasetemp() / f"round trip{suffix}", torch.from_numpy(values))
        flow, valid = read_flow(path)
        assert flow.numpy().tobytes() == values.tobytes()
        assert valid.shape == values.shape[1:]
        assert valid.all()
        assert path.stat().st_size == size


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.uint16, SHAPES), st.data())
def test_kittis_format_holds_multiples_of_a_64th(tmp_path_factory, steps, data):
    valid = data.draw(hnp.arrays(np.bool_, steps.shape[1:]))
    exact = (steps.astype(np.float32) - 2**15) / 64
    near = exact + data.draw(
        hnp.arrays(np.float32, steps.shape, elements=st.floats(-0.0078125 + 2**-12, 0.0078125 - 2**-12, width=32))
    )
    near = near.clip(-512, 511.984375)
    path = tmp_path_factory.getbasetemp() / "round trip.png"
    for flow in (exact, near):
        read, known = read_flow(write_flow(path, torch.from_numpy(flow), torch.from_numpy(valid)))
        assert torch.equal(known, torch.from_numpy(valid))
        assert np.array_equal(read.numpy(), exact * valid)


def test_a_flo_is_written_byte_by_byte_as_middlebury_says(tmp_path):
    flow = torch.tensor([[[1.0, -2.0, 3.5]], [[0.25, 0.5, -7.0]]])
    path = write_flow(tmp_path / "a.flo", flow)
    assert path.read_bytes() == flo(3, 1, 1.0, 0.25, -2.0, 0.5, 3.5, -7.0)


def test_a_flo_made_by_hand_is_read(tmp_path):
    (tmp_path / "a.flo").write_bytes(flo(1, 2, 1.0, 2.0, 3.0, 4.0))
    flow, valid = read_flow(tmp_path / "a.flo")
    assert flow.tolist() == [[[1.0], [3.0]], [[2.0], [4.0]]]
    assert flow.dtype == torch.float32
    assert valid.tolist() == [[True], [True]]


def test_a_flow_of_any_kind_is_written_as_float32(tmp_path):
    flow = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    read, _ = read_flow(write_flow(tmp_path / "a.flo", flow[:, ::2, 1:]))
    assert torch.equal(read, flow[:, ::2, 1:].detach().float())
    half = torch.randn(2, 3, 5).bfloat16()
    assert torch.equal(read_flow(write_flow(tmp_path / "b.flo", half))[0], half.float())


@pytest.mark.parametrize("unknown", [UNKNOWN_FLOW, 1.67e9, -2e9, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("component", [0, 1])
def test_unknown_vectors_are_zero_and_not_valid(tmp_path, unknown, component):
    flow = torch.full((2, 2, 2), 9e8)
    flow[component, 1, 0] = unknown
    read, valid = read_flow(write_flow(tmp_path / "a.flo", flow))
    assert valid.tolist() == [[True, True], [False, True]]
    assert read[:, 1, 0].tolist() == [0.0, 0.0]
    assert (read[:, valid] == 9e8).all()


@pytest.mark.parametrize(
    "content", [b"", b"PIEH", b"PIEH\x04\0\0\0\x03\0", flo(1, 1, 0.0, 0.0, tag=b"HEIP"), png(4, 3)]
)
def test_what_is_no_flo_is_told(tmp_path, content):
    (tmp_path / "a.flo").write_bytes(content)
    with pytest.raises(ValueError, match=r"is not a \.flo file: expected the tag PIEH"):
        read_flow(tmp_path / "a.flo")


@pytest.mark.parametrize(
    "content",
    [
        flo(2, 2, *[0.0] * 7),
        flo(2, 2, *[0.0] * 9),
        flo(2, 2, *[0.0] * 8)[:-1],
        flo(2**31 - 1, 2**31 - 1, 0.0, 0.0),
        flo(100_000, 100_000),
        flo(-1, -1, 0.0, 0.0),
        flo(0, 0),
        flo(0, 5),
        flo(2**16, 2**16),  # 8 * 2**32 bytes are none in 32 bits
    ],
)
def test_a_false_size_in_a_flo_is_told_before_anything_is_allocated(tmp_path, monkeypatch, content):
    monkeypatch.setattr(cv2, "readOpticalFlow", lambda path: pytest.fail("OpenCV was asked"))
    (tmp_path / "a.flo").write_bytes(content)
    with pytest.raises(ValueError, match=rf"damaged: a flow of .* bytes, the file has {len(content)}\. Copy it again"):
        read_flow(tmp_path / "a.flo")


def write_kitti(path: Path, u: np.ndarray, v: np.ndarray, valid: np.ndarray) -> Path:
    """As KITTI's development kit says: 64 u + 2^15, 64 v + 2^15, valid as red, green, blue of 16 bits."""
    rgb = np.stack([64 * u + 2**15, 64 * v + 2**15, valid], -1).astype(np.uint16)
    assert cv2.imwrite(str(path), np.ascontiguousarray(rgb[..., ::-1]))
    return path


def test_a_flow_image_of_kitti_is_read(tmp_path):
    u = np.array([[0.0, 1.5, -511.984375], [300.25, -0.015625, 12.0]])
    v = np.array([[511.984375, -2.0, 0.5], [0.0, 7.75, -512.0]])
    known = np.array([[1, 1, 1], [1, 1, 0]])
    flow, valid = read_flow(write_kitti(tmp_path / "000000_10.png", u, v, known))
    assert flow.dtype == torch.float32
    assert torch.equal(valid, torch.from_numpy(known).bool())
    assert torch.equal(flow, torch.from_numpy(np.stack([u, v]) * known).float())


def test_a_flow_image_is_written_as_kitti_says(tmp_path):
    flow = torch.tensor([[[1.5, -512.0, float("nan")]], [[-2.0, 511.984375, 9e9]]])
    path = write_flow(tmp_path / "a.png", flow, torch.tensor([[True, True, False]]))
    bgr = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert bgr.dtype == np.uint16
    assert bgr.tolist() == [[[1, 2**15 - 128, 2**15 + 96], [1, 2**16 - 1, 0], [0, 0, 0]]]


@pytest.mark.parametrize("wrong", [512.0, -512.01, 1e9, float("nan"), float("inf")])
@pytest.mark.parametrize("component", [0, 1])
def test_kittis_format_refuses_what_it_cannot_hold(tmp_path, wrong, component):
    flow = torch.zeros(2, 2, 3)
    flow[component, 1, 2] = wrong
    with pytest.raises(ValueError, match=r"holds -512 to 511\.984375 px, got 1 vectors out of range.*clamp\(-512, 511"):
        write_flow(tmp_path / "a.png", flow)
    assert list(tmp_path.iterdir()) == []
    valid = torch.ones(2, 3, dtype=torch.bool)
    valid[1, 2] = False
    assert torch.equal(read_flow(write_flow(tmp_path / "a.png", flow, valid))[1], valid)
    clamped = flow.nan_to_num().clamp(-512, 511.984375)
    assert torch.equal(read_flow(write_flow(tmp_path / "a.png", clamped))[0], clamped)


def pfm(header: bytes, *rows: list[float], order: str = "<") -> bytes:
    values = [value for row in rows for value in row]
    return header + struct.pack(f"{order}{len(values)}f", *values)


@pytest.mark.parametrize(("order", "scale"), [("<", b"-1.0"), (">", b"1.0"), ("<", b"-2"), (">", b"+.5e0")])
def test_a_pfm_made_by_hand_is_read_from_the_lowest_row_up(tmp_path, order, scale):
    rows = [5.0, 6.0, 0.0, 7.0, 8.0, 0.0], [1.0, 2.0, 0.0, float("inf"), 4.0, 0.0]
    (tmp_path / "a.pfm").write_bytes(pfm(b"PF\n2 2\n" + scale + b"\n", *rows, order=order))
    flow, valid = read_flow(tmp_path / "a.pfm")
    assert flow.dtype == torch.float32
    assert flow.is_contiguous()
    assert flow.tolist() == [[[1.0, 0.0], [5.0, 7.0]], [[2.0, 0.0], [6.0, 8.0]]]
    assert valid.tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("header", [b"PF\r\n2 1\r\n-1.0\r\n", b"PF\r\n2 1\n-1\r\n", b"PF 2 1 -1.0\r"])
def test_a_pfm_with_windows_line_ends_is_read(tmp_path, header):
    (tmp_path / "a.pfm").write_bytes(pfm(header, [1.0, 2.0, 0.0, 3.0, 4.0, 0.0]))
    flow, valid = read_flow(tmp_path / "a.pfm")
    assert flow.tolist() == [[[1.0, 3.0]], [[2.0, 4.0]]]
    assert valid.all()


def test_a_pfm_is_written_byte_by_byte_as_things_has_it(tmp_path):
    flow = torch.tensor([[[1.0], [3.0]], [[2.0], [4.0]]])
    path = write_flow(tmp_path / "a.pfm", flow)
    assert path.read_bytes() == pfm(b"PF\n1 2\n-1.0\n", [3.0, 4.0, 0.0], [1.0, 2.0, 0.0])
    assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[:, 0, ::-1].tolist() == [[1.0, 2.0, 0.0], [3.0, 4.0, 0.0]]


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"PF",
        b"PF\n1 1\n",
        b"Pf\n1 1\n-1.0\n",
        b"PF\n1 1\n0\n",
        b"PF\n1 1\nnan\n",
        b"PF\n-1 1\n-1.0\n",
        b"PF\n1.5 1\n-1.0\n",
        b"PF\n" + b"9" * 90 + b" 1\n-1.0\n",
        b"PF\n1 1\n-1.0" + b"0" * 200 + b"\n",
        b"PIEH\1\0\0\0\1\0\0\0",
    ],
)
def test_what_is_no_flow_in_pfm_is_told(tmp_path, header):
    (tmp_path / "a.pfm").write_bytes(pfm(header, [0.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match=r"is not a flow in \.pfm: expected the tag PF \(three channels\)"):
        read_flow(tmp_path / "a.pfm")


@pytest.mark.parametrize(
    "size", [b"1 2", b"2 1", b"0 1", b"1 0", b"0 0", b"999999999 999999999", b"65536 65536", b"40000 1"]
)
def test_a_false_size_in_a_pfm_is_told_before_anything_is_allocated(tmp_path, monkeypatch, size):
    monkeypatch.setattr(np, "fromfile", lambda *_, **__: pytest.fail("memory was asked for"))
    content = pfm(b"PF\n" + size + b"\n-1.0\n", [0.0, 0.0, 0.0])
    (tmp_path / "a.pfm").write_bytes(content)
    with pytest.raises(ValueError, match=rf"damaged: a flow of .* bytes, the file has {len(content)}\. Copy it again"):
        read_flow(tmp_path / "a.pfm")


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(
        [
            b"",
            b"PF\n",
            b"PF\n1 1\n-1.0\n",
            b"PIEH",
            png(2, 2, bits=16)[:40],
            b"\x89HDF\r\n\x1a\n",
            b"\x93NUMPY",
            b"PK\x03\x04",
        ]
    ),
    st.binary(max_size=60),
)
def test_any_bytes_end_in_a_flow_or_a_sentence(tmp_path_factory, start, rest):
    for suffix in (".flo", ".pfm", ".png", ".flo5", ".npy", ".npz"):
        path = tmp_path_factory.getbasetemp() / f"any bytes{suffix}"
        path.write_bytes(start + rest)
        try:
            flow, valid = read_flow(path)
        except ValueError as error:
            told = str(error)
        else:
            told = ""
        sentence = (
            r"any bytes\.(flo5|flo|pfm|png|npy|npz) (is not a flow|is not a \.flo|is damaged|can't be read|expects)"
        )
        if told:
            assert re.search(sentence, told)
        else:
            assert torch.isfinite(flow).all()
            assert valid.shape == flow.shape[1:]


FLOW = torch.arange(2 * 12 * 16).reshape(2, 12, 16) / 4 - 40
PICTURE = np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([".flo", ".pfm", ".png", ".flo5", ".npy", ".npz", ".ppm", ".jpg"]),
    st.floats(0, 1, exclude_max=True),
)
def test_a_file_that_was_cut_off_anywhere_is_told(tmp_path_factory, suffix, share):
    path = tmp_path_factory.getbasetemp() / f"cut{suffix}"
    picture = suffix in (".ppm", ".jpg")
    content = (write_image(path, PICTURE) if picture else write_flow(path, FLOW)).read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=rf"cut\{suffix} (is|can't be read)"):
        read_image(path) if picture else read_flow(path)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(sorted(FLOW_SUFFIXES)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=20),
)
def test_changed_bytes_end_in_a_flow_or_a_sentence(tmp_path_factory, suffix, changes):
    path = tmp_path_factory.getbasetemp() / f"changed{suffix}"
    content = bytearray(write_flow(path, FLOW).read_bytes())
    for place, value in changes:
        content[int(place * len(content))] = value
    path.write_bytes(content)
    try:
        flow, valid = read_flow(path)
    except ValueError as error:
        assert re.search(rf"changed\{suffix} (is|can't be read|expects)", str(error))  # noqa: PT017, either may come
    else:
        assert torch.isfinite(flow).all()
        assert valid.shape == flow.shape[1:]


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("middlebury/other-gt-flow/RubberWhale/flow10.flo", 1.256),
        ("middlebury/other-gt-flow/Dimetrodon/flow10.flo", 2.058),
        ("kitti/training/flow_occ/000010_10.png", 9.03),
    ],
)
def test_published_files_have_their_known_mean_length(shared_data, name, length):
    flow, valid = read_flow(shared_data / name)
    assert 0 < valid.sum() < valid.numel()
    assert (flow[:, ~valid] == 0).all()
    assert abs(torch.linalg.vector_norm(flow, dim=0)[valid].mean().item() - length) < 0.005


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 4)])
def test_a_flow_image_must_have_three_channels(tmp_path, shape):
    cv2.imwrite(str(tmp_path / "a.png"), np.ones(shape, np.uint16))
    with pytest.raises(ValueError, match=r"expects 16 bits and three channels .*got uint16"):
        read_flow(tmp_path / "a.png")


def test_a_picture_is_no_flow_image(tmp_path, picture):
    with pytest.raises(ValueError, match=r"expects 16 bits .*got uint8 \(5, 7, 3\)"):
        read_flow(write_image(tmp_path / "a.png", picture))


@pytest.mark.parametrize("name", ["a.flo6", "a.jpg", "a", "a.flo.txt"])
def test_other_formats_hold_no_flow(tmp_path, name):
    with pytest.raises(ValueError, match=rf"read_flow expects {NAMES_OF_FLOW_FILES}, got"):
        read_flow(tmp_path / name)
    with pytest.raises(ValueError, match=rf"write_flow expects a path that ends in {NAMES_OF_FLOW_FILES}"):
        write_flow(tmp_path / name, torch.zeros(2, 3, 4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", sorted(FLOW_SUFFIXES | {suffix.upper() for suffix in FLOW_SUFFIXES}))
def test_valid_comes_back_and_what_is_not_valid_is_zero(tmp_path, suffix):
    flow = torch.arange(24).reshape(2, 3, 4) / 4
    valid = torch.arange(12).reshape(3, 4) % 5 != 1
    read, known = read_flow(write_flow(tmp_path / f"a{suffix}", flow, valid))
    assert torch.equal(known, valid)
    assert torch.equal(read, flow * valid)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("valid", [torch.ones(3, 4), torch.ones(4, 3).bool(), torch.ones(1, 3, 4).bool()])
def test_valid_must_be_booleans_of_the_flows_size(tmp_path, valid):
    with pytest.raises(ValueError, match=r"expects valid to be booleans of shape \(3, 4\), got torch\."):
        write_flow(tmp_path / "a.flo", torch.zeros(2, 3, 4), valid)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(1, 2, 3, 4), (3, 4), (3, 4, 5), (4, 5, 2), (2, 0, 5), (2, 5, 0)])
def test_only_flows_are_written(tmp_path, shape):
    with pytest.raises(ValueError, match=r"shape \(2, H, W\), got"):
        write_flow(tmp_path / "a.flo", torch.zeros(shape))
    assert list(tmp_path.iterdir()) == []


def full(path: Path, content: bytes) -> int:
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("there_before", [True, False])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, picture, there_before):
    flow = torch.randn(2, 3, 4)
    before: dict[Path, bytes] = {}
    if there_before:
        write_image(tmp_path / "a.png", picture)
        for name in ("a.flo", "a.pfm", "flow.png", "a.flo5"):
            write_flow(tmp_path / name, flow)
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(Path, "write_bytes", full)
    for write in (
        lambda: write_image(tmp_path / "a.png", 255 - picture),
        lambda: write_flow(tmp_path / "a.flo", -flow),
        lambda: write_flow(tmp_path / "a.pfm", -flow),
        lambda: write_flow(tmp_path / "flow.png", -flow),
        lambda: write_flow(tmp_path / "a.flo5", -flow),
    ):
        with pytest.raises(OSError, match=r"Writing .* failed: check that its folder .*\(No space left on device\)"):
            write()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_are_written_aside_and_leave_nothing_behind(tmp_path, monkeypatch, picture):
    places = []
    written = Path.write_bytes

    def watch(path: Path, content: bytes) -> int:
        places.append(path)
        return written(path, content)

    monkeypatch.setattr(Path, "write_bytes", watch)
    for _ in range(2):
        write_image(tmp_path / "a.png", picture)
    write_flow(tmp_path / "a.flo", torch.zeros(2, 3, 4))
    assert all(place.parent == tmp_path and place.name != "a.png" for place in places)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.flo", "a.png"]


def test_a_picture_that_its_format_cannot_hold_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"wide\.jpg: its format can't hold an image of 70000x1"):
        write_image(tmp_path / "wide.jpg", np.zeros((1, 70_000, 3), np.uint8))  # JPEG ends at 65535
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tiff"])
def test_an_animation_is_not_read_as_its_first_image(tmp_path, suffix):
    frames = [Image.fromarray(np.full((20, 24, 3), value, np.uint8)) for value in (10, 90, 200)]
    path = tmp_path / f"film{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=rf"film{suffix} expects one image, got 3 in one file: save each in a file"):
        read_image(path)
    frames[0].save(tmp_path / f"one{suffix}")
    assert read_image(tmp_path / f"one{suffix}").shape == (1, 3, 20, 24)
