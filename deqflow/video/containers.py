"""Check whether the file of a film is whole, from the sizes that are stored in it.

OpenCV reports nothing when its writing fails. Counting frames does not help either: a truncated .avi may lack only its
index, and the header of a short film gives the number of all frames even if some are missing. But the formats are
nested boxes, each of which stores its size once it is finished, and the library that writes the file (FFmpeg) drops
everything after its first error. So a file is whole if and only if its outermost boxes fill it exactly.
"""

from collections.abc import Callable
from pathlib import Path

Box = tuple[bytes, int]  # kind, and size of the whole box in bytes; 0 if the size is not stored yet


def is_whole(path: Path) -> bool:
    """Whether a film was written to its end. The check takes some microseconds, whatever the film's length.

    Args:
        path: a film: .mp4, .mov, .m4v, .mkv, .webm or .avi; or a .gif, which ends with a semicolon.

    Raises:
        OSError: the file can't be read.
    """
    if path.suffix.lower() == ".gif":
        return path.read_bytes().rstrip(b"\0").endswith(b";")
    read_box, needed = FORMATS[path.suffix.lower()]
    size, position, kinds = path.stat().st_size, 0, set()
    with path.open("rb") as file:
        while position < size:
            file.seek(position)
            kind, length = read_box(file.read(16))
            if length == 0:
                return False
            kinds.add(kind)
            position += length
    return position == size and needed in kinds


def _iso_box(head: bytes) -> Box:
    """ISO/IEC 14496-12, section 4.2: size and kind, 4 bytes each; a size of 1 means that 8 bytes of size follow."""
    size = int.from_bytes(head[:4], "big")
    return head[4:8], int.from_bytes(head[8:16], "big") if size == 1 else size


def _riff_chunk(head: bytes) -> Box:
    """Kind and size of the content, 4 bytes each, little-endian; chunks begin at even positions."""
    size = int.from_bytes(head[4:8], "little")
    return head[:4], 8 + size + size % 2 if size else 0


def _matroska_element(head: bytes) -> Box:
    """RFC 8794, sections 4 to 6: kind and size of the content; the leading zero bits of each give its length."""
    start = _integer_length(head)
    body = start + _integer_length(head[start:])
    bits = 7 * (body - start)
    size = int.from_bytes(head[start:body], "big") & ((1 << bits) - 1)
    unknown = len(head) < body or size == (1 << bits) - 1
    return head[:start], 0 if unknown else body + size


def _integer_length(head: bytes) -> int:
    return 9 - head[0].bit_length() if head else 1


# For each format: how to read a box, and a box that every whole film has (the boxes before it may fill a cut-off file).
FORMATS: dict[str, tuple[Callable[[bytes], Box], bytes]] = {
    ".mp4": (_iso_box, b"moov"),
    ".mov": (_iso_box, b"moov"),
    ".m4v": (_iso_box, b"moov"),
    ".avi": (_riff_chunk, b"RIFF"),
    ".mkv": (_matroska_element, b"\x18\x53\x80\x67"),  # Segment
    ".webm": (_matroska_element, b"\x18\x53\x80\x67"),
}
