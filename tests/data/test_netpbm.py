import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deqflow
from deqflow.data.netpbm import decode_netpbm

RNG = np.random.default_rng(3)


def file_of(kind: int, values: np.ndarray, largest: int, *, end: bytes = b"\n") -> bytes:
    """A Netpbm file of values (H, W, C), as the format's own pages describe it."""
    height, width, channels = values.shape
    if kind == 7:
        fields = {"WIDTH": width, "HEIGHT": height, "DEPTH": channels, "MAXVAL": largest}
        lines = [b"P7", *(f"{name} {value}".encode() for name, value in fields.items()), b"TUPLTYPE X", b"ENDHDR"]
    else:
        lines = [f"P{kind}".encode(), b"# made by a camera", f"{width} {height}".encode(), str(largest).encode()]
    body = values.astype("u1" if largest < 256 else ">u2").tobytes()
    if kind in (2, 3):
        body = b" ".join(str(value).encode() for value in values.ravel()) + b"\n"
    return end.join(lines) + end + body


@pytest.mark.parametrize("largest", [1, 15, 100, 255, 256, 1023, 4095, 65535])
@pytest.mark.parametrize(("kind", "channels"), [(2, 1), (5, 1), (3, 3), (6, 3), (7, 1), (7, 2), (7, 3), (7, 4)])
def test_values_are_scaled_by_the_largest_that_the_file_names(tmp_path, kind, channels, largest):
    values = RNG.integers(0, largest + 1, (3, 5, channels))
    path = tmp_path / "a.pnm"
    path.write_bytes(file_of(kind, values, largest))
    image = deqflow.read_image(path)
    expected = np.repeat(values[..., :1], 3, 2) if channels < 3 else values[..., :3]
    assert image.dtype == torch.float32
    assert image.shape == (1, 3, 3, 5)
    torch.testing.assert_close(
        image[0].permute(1, 2, 0).double(), torch.from_numpy(expected * 255 / largest), rtol=1e-6, atol=1e-5
    )


@pytest.mark.parametrize("kind", [5, 6, 7])
def test_headers_with_windows_line_ends_are_read(kind):
    values = RNG.integers(0, 256, (2, 3, 1 if kind == 5 else 3))
    decoded = decode_netpbm(file_of(kind, values, 255, end=b"\r\n"))
    assert np.array_equal(decoded, np.broadcast_to(values, (2, 3, 3)))


def test_bitmaps_and_other_formats_are_left_to_opencv(tmp_path):
    for content in (b"", b"P", b"P1\n2 1\n0 1\n", b"P4\n2 1\n\x40", b"\x89PNG\r\n\x1a\n"):
        assert decode_netpbm(content) is None
    (tmp_path / "a.pbm").write_bytes(b"P1\n2 1\n0 1\n")
    assert deqflow.read_image(tmp_path / "a.pbm")[0, :, 0].tolist() == 3 * [[255.0, 0.0]]


def test_what_opencv_writes_comes_back(tmp_path):
    for name, dtype, factor in (("a.ppm", np.uint8, 1), ("b.ppm", np.uint16, 257), ("c.pgm", np.uint8, 1)):
        pixels = RNG.integers(0, 256, (4, 6, 3) if name != "c.pgm" else (4, 6, 1)).astype(dtype)
        cv2.imwrite(str(tmp_path / name), factor * pixels)
        image = deqflow.read_image(tmp_path / name)[0].permute(1, 2, 0).numpy()
        assert np.array_equal(image, np.broadcast_to(pixels[..., ::-1], (4, 6, 3)))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"P5\n2 x\n255\n..", "expected a width, a height and a largest value"),
        (b"P7\nWIDTH 1\nHEIGHT 1\nMAXVAL 255\nENDHDR\n.", "expected WIDTH, HEIGHT, DEPTH, MAXVAL and ENDHDR"),
        (b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 5\nMAXVAL 255\nENDHDR\n.....", "1 to 4 channels .*got 1x1, 5 and 255"),
        (b"P5\n0 1\n255\n", "expected a size from 1x1"),
        (b"P5\n1 1\n65536\n..", "a largest value from 1 to 65535"),
        (b"P5\n1 1\n0\n.", "a largest value from 1 to 65535"),
        (b"P5\n999999999 999999999\n255\n...", "channels has .* values, got 3"),
        (b"P6\n1 1\n1023\n.....", "has 3 values, got 2"),
        (b"P2\n2 1\n255\n7", "has 2 values, got 1"),
        (b"P2\n2 1\n255\n7 -1", "expected whole numbers"),
        (b"P5\n1 1\n100\n\xff", "expected values of at most 100, got 255"),
    ],
)
def test_damage_is_named(tmp_path, content, sentence):
    (tmp_path / "a.pgm").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.pgm can't be read: .*{sentence}"):
        deqflow.read_image(tmp_path / "a.pgm")


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([b"P2\n", b"P3 2 1 9\n", b"P5\n2 1\n", b"P6\n1 1\n9\n", b"P7\n"]), st.binary(max_size=40))
def test_any_bytes_end_in_an_image_or_an_error_message(start, rest):
    try:
        decoded = decode_netpbm(start + rest)
    except ValueError:
        return
    assert decoded is not None
    assert 0 <= decoded.min() <= decoded.max() <= 255
