"""Netpbm images (.pgm, .ppm, .pnm, .pam), scaled by the largest value that their header names.

OpenCV ignores that value, for instance in images of 10 or 12 bits, and exchanges red and blue in .pam files.
"""

import re

import numpy as np

_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"  # white space and comments
# Kind, width, height, largest value, and one character of white space, as in b"P5\n640 480\n1023\n".
_HEADER = re.compile(rb"P([2356])" + 3 * (_GAP + rb"(\d{1,9})") + rb"(?:#[^\r\n]*)?\s")
_PAM = re.compile(rb"P7\s(.*?)ENDHDR\r?\n", re.S)
_CHANNELS = {b"2": 1, b"5": 1, b"3": 3, b"6": 3}


def decode_netpbm(content: bytes) -> np.ndarray | None:
    """Decode a grey or colour image of the Netpbm family.

    Args:
        content: the bytes of the file.

    Returns:
        (H, W, 3) float32, RGB, 0..255: value x 255 / largest value. None if the bytes are not such an image.
        Bitmaps (.pbm) have no largest value, so they give None as well.

    Raises:
        ValueError: the header makes no sense, pixels are missing, or a value is above the largest.
    """
    if content[:2] == b"P7":
        width, height, channels, largest, start = _pam_header(content)
        plain = False
    elif content[:2] in (b"P2", b"P3", b"P5", b"P6"):
        header = _HEADER.match(content)
        if header is None:
            raise ValueError("expected a width, a height and a largest value at its beginning")
        width, height, largest = (int(header[i]) for i in (2, 3, 4))
        channels, start, plain = _CHANNELS[header[1]], header.end(), header[1] in b"23"
    else:
        return None
    if min(width, height) < 1 or not 1 <= largest <= 65535 or not 1 <= channels <= 4:
        raise ValueError(
            f"expected a size from 1x1, 1 to 4 channels and a largest value from 1 to 65535, got {width}x{height}, "
            f"{channels} and {largest}"
        )
    count = width * height * channels
    values = _plain_values(content[start:]) if plain else _binary_values(content, start, count, largest)
    if len(values) < count:
        raise ValueError(f"an image of {width}x{height} with {channels} channels has {count} values, got {len(values)}")
    pixels = values[:count].reshape(height, width, channels)
    if pixels.max() > largest:
        raise ValueError(f"expected values of at most {largest}, got {pixels.max()}")
    colours = pixels[..., :3] if channels >= 3 else pixels[..., :1].repeat(3, 2)  # drops transparency
    return (colours.astype(np.float64) * 255 / largest).astype(np.float32)


def _pam_header(content: bytes) -> tuple[int, int, int, int, int]:
    """Return width, height, channels, the largest value, and the position where the pixels begin."""
    header = _PAM.match(content)
    lines = header[1].splitlines() if header else []
    fields = dict(line.split(maxsplit=1) for line in lines if len(line.split()) > 1 and not line.startswith(b"#"))
    numbers = [fields.get(name, b"") for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL")]
    if header is None or not all(re.fullmatch(rb"\d{1,9}\s*", number) for number in numbers):
        raise ValueError("expected WIDTH, HEIGHT, DEPTH, MAXVAL and ENDHDR at its beginning")
    width, height, channels, largest = map(int, numbers)
    return width, height, channels, largest, header.end()


def _binary_values(content: bytes, start: int, count: int, largest: int) -> np.ndarray:
    dtype = np.dtype("u1" if largest < 256 else ">u2")
    # A header with Windows line ends is one character longer than it should be.
    if content[start - 1 : start + 1] == b"\r\n" and len(content) == start + 1 + count * dtype.itemsize:
        start += 1
    return np.frombuffer(content, dtype, min(count, (len(content) - start) // dtype.itemsize), start)


def _plain_values(body: bytes) -> np.ndarray:
    words = re.sub(rb"#[^\r\n]*", b"", body).split()
    if not all(word.isdigit() and len(word) < 10 for word in words):
        raise ValueError("expected whole numbers for the pixels")
    return np.array(words, np.int64)
