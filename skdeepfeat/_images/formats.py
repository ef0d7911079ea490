"""Which file formats are read, and the messages for all others.

Pillow reads many more. Some start programs (Ghostscript for PostScript), others are
not photos (HDF5, MPEG), so their readers never see bytes of unknown origin.
"""

import contextlib
import io
import os
import sys

from PIL import Image, UnidentifiedImageError

# Pillow's name of each format that is read → its common name. HEIF is there once a
# plugin has registered it.
FORMATS = {
    "JPEG": "JPEG",
    "MPO": "MPO",
    "PNG": "PNG",
    "WEBP": "WebP",
    "TIFF": "TIFF",
    "BMP": "BMP",
    "GIF": "GIF",
    "PPM": "PPM",
    "JPEG2000": "JPEG 2000",
    "AVIF": "AVIF",
    "HEIF": "HEIF",
}

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
DAMAGED = "looks like {}, but is damaged or of a kind that Pillow does not read"
EMPTY = "the file is empty"
FOREIGN = "is not an image in a supported format ({})"
BASE64 = "base64 text; pass base64.b64decode(text)"
LONGEST_PATH = 4096
NAME = (
    "is not an image but the name of one; pass the path as a str, for instance with "
    "X.asstr() of an h5py column"
)

# How files begin: (offset, bytes, name), of formats that are read and of others.
READ_STARTS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WebP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"BM", "BMP"),
    (0, b"GIF8", "GIF"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"jP  ", "JPEG 2000"),
    (4, b"ftypavi", "AVIF"),
)
FOREIGN_STARTS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"%PDF", "PDF"),
    (0, b"\x89HDF", "HDF5"),
    (0, b"GRIB", "GRIB"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"\0\0\1\0", "an icon (ICO)"),
    (0, b"\0\0\1\xb3", "MPEG video"),
    (0, b"\0\0\1\xba", "MPEG video"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"),
    (40, b" EMF", "EMF"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (8, b"AVI ", "AVI video"),
    (4, b"ftyp", "a video or another file of the MP4 family"),
    (0, b"\x93NUMPY", "a NumPy file; pass numpy.load(path)"),
    (128, b"DICM", "DICOM; pass pydicom.dcmread(path).pixel_array"),
    (0, b"version https://git-lfs", "a Git LFS pointer; run 'git lfs pull'"),
    (0, b"PK\3\4", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"data:", "a data URI; pass the decoded bytes"),
    (0, b"/9j/", BASE64),
    (0, b"iVBORw0KGgo", BASE64),
    (0, b"R0lGOD", BASE64),
    (0, b"UklGR", BASE64),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML or SVG"),
    (0, b"<!doctype", "HTML, perhaps an error page that was saved as an image"),
    (0, b"<html", "HTML, perhaps an error page that was saved as an image"),
)


def readable_formats() -> list[str]:
    """Pillow's names of the formats whose readers are loaded."""
    return [name for name in FORMATS if name in Image.OPEN]


def is_image_name(path) -> bool:
    """Whether files with this ending are in a format that is read."""
    ending = os.path.splitext(os.fsdecode(path))[1].lower()
    return Image.registered_extensions().get(ending) in FORMATS


def open_image(data) -> Image.Image | None:
    """A PIL image of encoded bytes, not yet decoded; None if Pillow cannot open it."""
    if len(data) == 0:
        raise ValueError(EMPTY)
    for load_readers in (Image.preinit, Image.init):  # the common ones, then all
        load_readers()
        with contextlib.suppress(UnidentifiedImageError):
            return Image.open(io.BytesIO(data), formats=readable_formats())
    return None


def begins_like(data, starts) -> str | None:
    """The name in a table of what bytes look like by their first ones."""
    head = bytes(data[:256])
    plain = head.lstrip().lower() if head.lstrip().startswith(b"<") else head
    matches = (name for at, start, name in starts if plain.startswith(start, at))
    return next(matches, None)


def is_encoded(head: bytes) -> bool:
    """Whether these bytes are certainly the start of a file that can be read."""
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        return True
    if head.startswith(b"BM"):  # two letters alone may be two pixels
        return head[6:10] == bytes(4)
    return begins_like(head, READ_STARTS) is not None


def is_tiff(data) -> bool:
    """Whether bytes are a TIFF, also if Pillow cannot open it."""
    return begins_like(data, READ_STARTS) == "TIFF"


def refusal(data) -> str:
    """Why bytes cannot be read, and what to do about it."""
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:
        return DAMAGED.format("HEIF") if "HEIF" in Image.OPEN else _without_heif()
    if name := begins_like(data, READ_STARTS):
        return DAMAGED.format(name)
    if len(data) < LONGEST_PATH and is_image_name(bytes(data)):
        return NAME
    reason = FOREIGN.format(", ".join(FORMATS[name] for name in readable_formats()))
    name = begins_like(data, FOREIGN_STARTS)
    line = bytes(data[:40]).strip().split(b"\n")[0].strip()
    if name is None and line and line.isascii() and line.decode().isprintable():
        name = f"text, {line.decode()!r}"
    return f"{reason}; it looks like {name}" if name else reason


def _without_heif() -> str:
    """What to type if HEIF is not registered."""
    return (
        "is HEIC (HEIF), which Pillow reads with a plugin only. Type: pip install "
        "pillow-heif, and call pillow_heif.register_heif_opener() first"
    )


# What changes the pixels that Pillow makes of a file: (module, setting, its default).
SETTINGS: tuple[tuple[str, str, object], ...] = (
    ("PIL.ImageFile", "LOAD_TRUNCATED_IMAGES", False),
    ("PIL.GifImagePlugin", "LOADING_STRATEGY", 0),
    ("PIL.TiffImagePlugin", "READ_LIBTIFF", False),
    ("PIL.BmpImagePlugin", "USE_RAW_ALPHA", False),
    ("PIL.AvifImagePlugin", "DECODE_CODEC_CHOICE", "auto"),
    ("pillow_heif.options", "PREFERRED_DECODER", {"AVIF": "", "HEIF": ""}),
)


def switches() -> dict[str, str]:
    """Settings of Pillow that change pixels, if they differ from the defaults.

    They include readers with which another package has replaced Pillow's own. A module
    that is not imported has its defaults; nothing is imported here.
    """
    found = {}
    for module, name, usual in SETTINGS:
        value = getattr(sys.modules.get(module), name, usual)
        if value != usual:
            found[f"{module}.{name}"] = f"{value}"
    for name in FORMATS.keys() & Image.OPEN.keys():
        reader = getattr(Image.OPEN[name][0], "__module__", "")
        if name != "HEIF" and not reader.startswith("PIL."):
            found[f"reader of {name}"] = reader
    return dict(sorted(found.items()))
