"""The header of a file → the largest value that a sample can have: 255, or more.

Pillow reports how it opens a file, not how many bits the file has.
"""

import re
from collections.abc import Callable

from PIL import Image

HEAD = 1 << 16  # bytes of a file, among which its header is found
BITS = 258  # a tag of TIFF


def _white_of_ppm(head) -> int:
    """The third number of the header, comments left out."""
    fields = re.sub(rb"#[^\r\n]*", b"", head[:HEAD]).split(None, 4)
    return int(fields[3]) if fields[0] in (b"P2", b"P3", b"P5", b"P6") else 1


def _white_of_jpeg2000(head) -> int:
    """The bits of its components, from the marker SIZ."""
    start = head.find(b"\xff\x4f\xff\x51")
    n = int.from_bytes(head[start + 40 : start + 42], "big") if start >= 0 else 0
    components = head[start + 42 : start + 42 + 3 * n : 3]
    return 2 ** max((1 + (bits & 0x7F) for bits in components), default=8) - 1


def _white_by_box(head, box: bytes, bits: Callable[[bytes], int]) -> int:
    """The bits in the boxes of decoder settings among the metadata."""
    start = max(0, head.find(b"meta"))
    size = int.from_bytes(head[max(0, start - 4) : start], "big")
    meta = head[start : start + size]
    found = (bits(meta[match.end() :]) for match in re.finditer(box, meta))
    return 2 ** max(found, default=8) - 1


# Format → the largest sample of a file, from its first bytes; 255 in other formats.
WHITES: dict[str | None, Callable[[bytes], int]] = {
    "PNG": lambda head: 2 ** head[24] - 1,
    "PPM": _white_of_ppm,
    "JPEG2000": _white_of_jpeg2000,
    "AVIF": lambda head: _white_by_box(
        head, b"av1C", lambda box: 8 + 2 * (box[2] >> 6 & 1) + 2 * (box[2] >> 5 & 1)
    ),
    "HEIF": lambda head: _white_by_box(head, b"hvcC", lambda box: 8 + (box[17] & 7)),
}


def white_of(image: Image.Image, data) -> int:
    """The largest sample that a file can hold, at least 255, by its first bytes."""
    if tags := getattr(image, "tag_v2", None):
        return 2 ** max(8, *tags.get(BITS, (1,))) - 1
    read = WHITES.get(image.format)
    return max(255, read(bytes(data))) if read else 255
