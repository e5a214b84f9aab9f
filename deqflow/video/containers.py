"""Whether a film's file is whole, as the sizes in it tell.

OpenCV says nothing where its writing fails. A film's frames can't be counted on to tell either: what is cut off an .avi
may be its index alone, and the header of a short film promises all frames whether they are there or not. But the
formats are nests of boxes that each say their size, which is filled in when the box is finished, and what writes the
file (FFmpeg) drops everything after its first error. So a file is whole exactly if its outermost boxes fill it.
"""

from collections.abc import Callable
from pathlib import Path

Box = tuple[bytes, int]  # kind, and bytes of the whole box; 0 where that is not filled in


def is_whole(path: Path) -> bool:
    """Whether a film was written to its end; takes some microseconds, whatever its length.

    Args:
        path: a film that has just been written: .mp4, .mov, .mkv, .webm, .avi.

    Raises:
        OSError: it can't be read.
    """
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
    """ISO/IEC 14496-12, section 4.2: size and kind, 4 bytes each; size 1 says that 8 bytes of size follow."""
    size = int.from_bytes(head[:4], "big")
    return head[4:8], int.from_bytes(head[8:16], "big") if size == 1 else size


def _riff_chunk(head: bytes) -> Box:
    """Kind and size of what follows, 4 bytes each, little-endian; chunks begin at even positions."""
    size = int.from_bytes(head[4:8], "little")
    return head[:4], 8 + size + size % 2 if size else 0


def _matroska_element(head: bytes) -> Box:
    """RFC 8794, sections 4 to 6: kind and size of what follows; the leading zero bits of each say how long it is."""
    start = _integer_length(head)
    body = start + _integer_length(head[start:])
    bits = 7 * (body - start)
    size = int.from_bytes(head[start:body], "big") & ((1 << bits) - 1)
    unknown = len(head) < body or size == (1 << bits) - 1
    return head[:start], 0 if unknown else body + size


def _integer_length(head: bytes) -> int:
    return 9 - head[0].bit_length() if head else 1


# How to read a box of a format, and one without which there is no film, for what comes before it may fill the file.
FORMATS: dict[str, tuple[Callable[[bytes], Box], bytes]] = {
    ".mp4": (_iso_box, b"moov"),
    ".mov": (_iso_box, b"moov"),
    ".avi": (_riff_chunk, b"RIFF"),
    ".mkv": (_matroska_element, b"\x18\x53\x80\x67"),  # Segment
    ".webm": (_matroska_element, b"\x18\x53\x80\x67"),
}
