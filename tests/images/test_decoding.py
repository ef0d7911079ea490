"""Every file is read as it was meant: its depth, its orientation, its format."""

import io
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from skdeepfeat import (
    FeatureStore,
    ImageError,
    ImageWarning,
    PretrainedCNNFeatures,
)
from skdeepfeat._finetuning.data import read_pixels
from skdeepfeat._images import containers
from skdeepfeat._images.containers import read_images
from skdeepfeat._images.decoding import open_array, open_bytes, open_pil
from skdeepfeat._images.formats import FORMATS, is_image_name, switches
from skdeepfeat._images.kinds import digest_array, digest_pil
from skdeepfeat._images.preparing import Preparation, read_row
from skdeepfeat._images.recipe import InputSpec

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 65536, (11, 14), dtype=np.uint16)
RGB = RNG.integers(0, 65536, (11, 14, 3), dtype=np.uint16)
RGBA = RNG.integers(0, 65536, (11, 14, 4), dtype=np.uint16)
LA = RGBA[:, :, :2]
ORIENTATION = 0x0112


# Files that no encoder here writes ---------------------------------------------------


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(array, *chunks, interlaced=False):
    """A PNG of 16 bits, each row filtered by its left neighbour."""
    array = array.reshape(*array.shape[:2], -1)
    (h, w, channels), n = array.shape, 2 * array.shape[2]

    def chunk(name, data):
        crc = struct.pack(">L", zlib.crc32(name + data))
        return struct.pack(">L", len(data)) + name + data + crc

    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
        passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = []
    for top, left, down, right in passes:
        for row in array[top::down, left::right]:
            raw = np.frombuffer(row.astype(">u2").tobytes(), np.uint8)
            before = np.concatenate([np.zeros(n, np.uint8), raw[:-n]])
            rows.append(b"\1" + (raw - before).tobytes())
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">LLBBBBB", w, h, 16, kind, 0, 0, interlaced)
    middle = b"".join(chunk(*c) for c in chunks)
    idat = chunk(b"IDAT", zlib.compress(b"".join(rows)))
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    return head + middle + idat + chunk(b"IEND", b"")


def tiff(data, w, h, bits, photometric, order="<", **more):
    """A TIFF of one strip, or of one for each sample; `more` are tags by number."""
    tags = {256: [w], 257: [h], 258: bits, 259: [1], 262: [photometric]}
    tags |= {277: [len(bits)], 278: [h]} | {int(k[1:]): v for k, v in more.items()}
    n_strips = len(bits) if tags.get(284) == [2] else 1
    size = len(data) // n_strips
    at = 8 + 2 + 12 * (len(tags) + 2) + 4
    strips, outside = at, b""
    tags |= {273: [0] * n_strips, 279: [size] * n_strips}
    strips += sum(2 * len(v) for v in tags.values() if len(v) > 2)
    tags[273] = [strips + i * size for i in range(n_strips)]
    entries = b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}H", *values)
        if len(packed) > 4:
            place, outside = at + len(outside), outside + packed
            packed = struct.pack(f"{order}L", place)
        entries += struct.pack(f"{order}HHL", tag, 3, len(values))
        entries += packed.ljust(4, b"\0")
    magic = {"<": b"II", ">": b"MM"}[order]
    head = magic + struct.pack(f"{order}HLH", 42, 8, len(tags)) + entries
    return head + b"\0" * 4 + outside + data


def tiff_of(array, order="<", planar=False, photometric=None, kind=None, **more):
    """A TIFF of an array of whole bytes."""
    channels = array.shape[2] if array.ndim == 3 else 1
    photometric = (2 if channels > 2 else 1) if photometric is None else photometric
    array = np.moveaxis(array, -1, 0) if planar else array
    h, w = array.shape[-2:] if planar or array.ndim == 2 else array.shape[:2]
    data = array.astype(array.dtype.newbyteorder(order)).tobytes()
    kind = kind or {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    more = {"t284": [2 if planar else 1], "t339": [kind] * channels} | more
    bits = [8 * array.dtype.itemsize] * channels
    return tiff(data, w, h, bits, photometric, order, **more)


def packed_tiff(values, bits):
    """A grey TIFF of values that are packed without gaps between bits."""
    h, w = values.shape
    each = values[:, :, None] >> np.arange(bits - 1, -1, -1) & 1
    rows = np.packbits(each.reshape(h, -1).astype(np.uint8), axis=1)
    return tiff(rows.tobytes(), w, h, [bits], 1)


def pixels(data, value_range=None):
    return np.asarray(open_bytes(data, value_range).image)


def assert_read_as(data, array, white, **close):
    """The file and an array of its values are one image, also in a given range."""
    expected = np.broadcast_to(
        array.reshape(*array.shape[:2], -1) / np.float64(white), (*array.shape[:2], 3)
    )
    np.testing.assert_allclose(pixels(data), expected, atol=1e-6)
    in_range = pixels(data, (0, white / 16))
    np.testing.assert_allclose(in_range, 16 * expected, atol=2e-5)


# Depth: PNG ---------------------------------------------------------------------------


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("array", [GREY, RGB], ids=["grey", "rgb"])
def test_png_of_16_bits_is_exact(array, interlaced):
    assert_read_as(png(array, interlaced=interlaced), array, 65535)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("array", [LA, RGBA], ids=["grey", "rgb"])
def test_alpha_of_16_bits_shows_white(array, interlaced):
    colour, alpha = array[..., :-1] / 65535, array[..., -1:] / 65535
    found = pixels(png(array, interlaced=interlaced))
    expected = np.broadcast_to(colour * alpha + (1 - alpha), found.shape)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("array", [LA, RGBA], ids=["grey", "rgb"])
def test_a_range_holds_for_colours_and_not_for_alpha(array):
    colour, opaque = array[..., :-1] // 16, np.full_like(GREY, 65535)
    expected = open_array(colour, (0, 4095))
    found = open_bytes(png(np.dstack([colour, opaque])), (0, 4095))
    np.testing.assert_allclose(found.image, expected.image, atol=1e-6)
    assert found.in_range


@pytest.mark.parametrize("array", [GREY, RGB], ids=["grey", "rgb"])
def test_a_transparent_colour_of_16_bits_shows_white(array):
    low_byte = array.copy()
    low_byte[1] = array[0, 0] ^ 1  # differs from it in the last bit only
    colour = np.atleast_1d(array[0, 0]).astype(">u2").tobytes()
    found = pixels(png(low_byte, (b"tRNS", colour)))
    assert (found[0, 0] == 1).all()
    assert (found[1] < 1).any()
    np.testing.assert_allclose(found[1, 0], (array[0, 0] ^ 1) / 65535, atol=1e-6)


# Depth: TIFF --------------------------------------------------------------------------


def test_white_of_a_tiff_of_12_bits_is_4095():
    values = GREY >> 4
    assert_read_as(packed_tiff(values, 12), values, 4095)


@pytest.mark.parametrize("bits", [9, 10, 11, 13, 14, 15])
def test_white_of_a_tiff_is_in_its_header(bits):
    pytest.importorskip("imagecodecs")
    values = GREY >> (16 - bits)
    assert_read_as(packed_tiff(values, bits), values, 2**bits - 1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [False, True])
def test_colour_tiff_of_16_bits_is_exact(order, planar):
    if planar:
        pytest.importorskip("tifffile")
    assert_read_as(tiff_of(RGB, order, planar), RGB, 65535)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", None])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_colour_tiff_is_exact_in_every_layout(compression, planar, tile, order):
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    array, buffer = np.tile(RGB, (2, 2, 1)), io.BytesIO()
    tifffile.imwrite(
        buffer,
        array if planar == "contig" else np.moveaxis(array, -1, 0),
        photometric="rgb",
        planarconfig=planar,
        compression=compression,
        predictor=compression is not None,
        byteorder=order,
        tile=tile,
    )
    assert_read_as(buffer.getvalue(), array, 65535)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("kind", ["none", "multiplied in", "apart", "undeclared"])
def test_alpha_of_a_tiff_is_what_its_header_says(planar, kind):
    if planar:
        pytest.importorskip("tifffile")
    number = {"none": 0, "multiplied in": 1, "apart": 2}.get(kind)
    more = {} if number is None else {"t338": [number]}
    alpha = RGBA[..., 3:] / np.float64(65535)
    colour = RGBA[..., :3] / np.float64(65535)
    expected = colour if kind == "none" else colour * alpha + (1 - alpha)
    stored = RGBA.copy()
    if kind == "multiplied in":
        stored[..., :3] = np.rint(RGBA[..., :3] * alpha)
    found = pixels(tiff_of(stored, planar=planar, **more))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_low_values_are_white_where_a_tiff_says_so():
    expected = 1 - np.dstack([GREY] * 3) / 65535
    found = pixels(tiff_of(GREY, photometric=0))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    twelve = open_bytes(tiff_of(GREY >> 4, photometric=0), (0, 4095))
    np.testing.assert_allclose(
        twelve.image, 1 - np.dstack([GREY >> 4] * 3) / 4095, atol=1e-6
    )
    assert twelve.in_range


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.float32])
def test_other_numbers_in_a_tiff_are_as_in_an_array(dtype, order):
    pytest.importorskip("tifffile")
    floats = np.dtype(dtype).kind == "f"
    values = GREY / 65535 if floats else (GREY >> 8).astype(np.int64) * 2 - 100
    values = values.astype(np.int64 if not floats else float).astype(dtype)
    found, expected = open_bytes(tiff_of(values, order)), open_array(values)
    np.testing.assert_array_equal(found.image, expected.image)
    assert found.in_range == expected.in_range == floats


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("array", [LA, RGB, RGBA], ids=["la", "rgb", "rgba"])
def test_floats_in_a_tiff_may_have_colours_and_alpha(dtype, array):
    pytest.importorskip("tifffile")
    array = (array / 65535).astype(dtype)
    more = {} if array.shape[2] == 3 else {"t338": [2]}
    found = open_bytes(tiff_of(array, **more))
    np.testing.assert_allclose(found.image, open_array(array).image, atol=1e-6)


@pytest.mark.parametrize(
    ("array", "more"),
    [
        (RGB, {"photometric": 1}),  # three samples that are not said to be colours
        (RGBA, {"photometric": 5, "planar": True}),
        (np.dstack([RGBA, RGBA]), {"t338": [0] * 5}),
    ],
    ids=["undeclared", "CMYK", "many"],
)
def test_a_tiff_that_may_be_no_picture_is_refused_in_a_sentence(array, more):
    pytest.importorskip("tifffile")
    with pytest.raises(ValueError, match=r"kind of TIFF that is not read.*array"):
        open_bytes(tiff_of(array, **more))


@pytest.mark.parametrize(
    "data",
    [tiff_of(RGB, planar=True), packed_tiff(GREY >> 6, 10), tiff_of(LA, t338=[2])],
    ids=["planar", "10 bits", "grey with alpha"],
)
def test_without_tifffile_the_error_says_what_to_type(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match=r"pip install 'skdeepfeat\[tiff\]'"):
        open_bytes(data)


def test_tifffile_keeps_to_the_limit_of_pixels(monkeypatch):
    pytest.importorskip("tifffile")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(Image.DecompressionBombError):
        open_bytes(tiff_of(LA, t338=[2]))


@pytest.mark.parametrize("planar", [False, True])
def test_a_truncated_tiff_is_an_error(planar):
    if planar:
        pytest.importorskip("tifffile")
    with pytest.raises((OSError, ValueError), match=r"truncated|failed to read"):
        open_bytes(tiff_of(RGB, planar=planar)[:-50])


def test_cmyk_of_16_bits_is_reduced_only_where_no_range_is_given():
    data = tiff_of(RGBA, photometric=5)
    eight = Image.fromarray((RGBA >> 8).astype(np.uint8), "CMYK").convert("RGB")
    np.testing.assert_array_equal(pixels(data), eight)
    with pytest.raises(ValueError, match="value_range"):
        open_bytes(data, (0, 4095))


# Depth: other formats -----------------------------------------------------------------


def pnm(magic, array, maxval):
    h, w = array.shape[:2]
    head = f"{magic}\n# 1 2 3\n{w} {h}\n{maxval}\n".encode()
    if magic in ("P2", "P3"):
        return head + " ".join(map(str, array.ravel())).encode()
    return head + array.astype(">u2").tobytes()


@pytest.mark.parametrize("magic", ["P2", "P5"])
@pytest.mark.parametrize("maxval", [300, 1000, 4095, 65535])
def test_white_of_a_grey_map_is_in_its_header(magic, maxval):
    values = (GREY.astype(int) % (maxval + 1)).astype(np.uint16)
    assert_read_as(pnm(magic, values, maxval), values, maxval)


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("kind", ["j2k", "jp2"])
def test_white_of_grey_jpeg_2000_is_in_its_header(bits, kind):
    codecs = pytest.importorskip("imagecodecs")
    values = GREY >> (16 - bits)
    data = codecs.jpeg2k_encode(
        values, level=0, bitspersample=bits, codecformat=kind, reversible=True
    )
    assert_read_as(data, values, 2**bits - 1)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
@pytest.mark.parametrize("data", [png(RGB), tiff_of(RGB), pnm("P5", GREY >> 4, 4095)])
def test_encoded_bytes_may_be_of_any_type(kind, data):
    np.testing.assert_array_equal(pixels(kind(data)), pixels(data))


def reduced(kind, array):
    """A file of 12 bits (HEIF: 10) in colour that Pillow reads as 8."""
    if kind == "PPM":
        return pnm("P6", array, 4095)
    if kind == "HEIF":
        heif = pytest.importorskip("pillow_heif")
        size, buffer = array.shape[1::-1], io.BytesIO()
        sixteen = (array << 4).tobytes()
        heif.from_bytes("RGB;16", size, sixteen).save(buffer, quality=-1)
        return buffer.getvalue()
    codecs = pytest.importorskip("imagecodecs")
    return codecs.avif_encode(array, level=100, bitspersample=12)


@pytest.fixture
def heif_reader(monkeypatch):
    """Pillow with the plugin for HEIF, until the end of the test."""
    heif = pytest.importorskip("pillow_heif")
    Image.init()  # what Pillow registers once has to remain after the test
    for name in ("OPEN", "SAVE", "SAVE_ALL", "MIME", "EXTENSION"):
        monkeypatch.setattr(Image, name, dict(getattr(Image, name)))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    heif.register_heif_opener()


@pytest.mark.parametrize("kind", ["PPM", "AVIF", "HEIF"])
def test_colour_that_pillow_reduces_takes_no_range(kind, request):
    if kind == "HEIF":
        request.getfixturevalue("heif_reader")
    array = np.zeros((64, 64, 3), np.uint16)
    array[:, 32:] = 4095
    data = reduced(kind, array)
    if kind not in Image.OPEN:
        pytest.skip("this Pillow does not read the format")
    found = pixels(memoryview(data)).astype(int)
    assert found[:, :16].max() <= 2
    assert found[:, -16:].min() >= 253  # white stays white
    with pytest.raises(ValueError, match=r"values up to (4095|1023).*value_range"):
        open_bytes(data, (0, 4095))
    eight = encode(Image.fromarray((array >> 4).astype(np.uint8)), "PPM")
    open_bytes(eight, (0, 4095))


def test_colour_that_pillow_reduces_wrongly_is_refused():
    """Pillow makes black of the white of a JPEG 2000 of more than 8 bits."""
    codecs = pytest.importorskip("imagecodecs")
    for bits, options in [(12, {}), (16, {}), (12, {"codecformat": "j2k"})]:
        white = np.full((64, 64, 3), 2**bits - 1, np.uint16)
        data = codecs.jpeg2k_encode(white, level=0, bitspersample=bits, **options)
        with pytest.raises(ValueError, match=r"values up to .* PNG or TIFF"):
            open_bytes(data)
    eight = codecs.jpeg2k_encode(white.astype(np.uint8), level=0)
    assert pixels(eight).min() == 255


def test_grey_heif_of_10_bits_has_its_own_white(heif_reader):
    heif, buffer = pytest.importorskip("pillow_heif"), io.BytesIO()
    grey = np.zeros((64, 64), np.uint16)
    grey[:, 32:] = 65535
    heif.from_bytes("I;16", (64, 64), grey.tobytes()).save(buffer, quality=-1)
    found = pixels(buffer.getvalue())
    assert (found.min(), found.max()) == (0, 1)
    assert pixels(buffer.getvalue(), (0, 2046)).max() == 0.5


# PIL images ---------------------------------------------------------------------------


def test_mode_i_is_an_array_of_integers():
    values = (GREY >> 8).astype(np.int32)
    expected = np.asarray(open_array(values).image)
    for image in (
        Image.fromarray(values),
        Image.fromarray(values.astype(np.uint8)).convert("I"),
        Image.open(io.BytesIO(encode(Image.fromarray(values), "TIFF"))),
    ):
        assert image.mode == "I"
        np.testing.assert_array_equal(open_pil(image).image, expected)
    found = pixels(encode(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(found, expected)


def test_sixteen_bits_stay_16_bits_where_pillow_holds_them_in_32():
    data = pnm("P5", GREY, 65535)
    image = Image.open(io.BytesIO(data))
    assert image.mode == "I"
    np.testing.assert_allclose(open_pil(image).image, pixels(data), atol=1e-6)
    old = Image.fromarray(GREY.astype(np.int32))  # as PNG in Pillow before 11
    old.format = "PNG"
    np.testing.assert_array_equal(open_pil(old).image, open_array(GREY).image)


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_flags_of_pil_images_out_of_range(mode):
    values = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
    image = Image.fromarray(np.array([[0, 1], [1, 5000]], values))
    assert not open_pil(image, (0, 4095)).in_range
    assert open_pil(image, (0, 5000)).in_range
    assert open_pil(image).in_range == (mode == "I;16")


def big_endian_floats(values):
    """A TIFF of floats whose bytes are differences, as GDAL may write it."""
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    options = {"compression": "zlib", "predictor": 3, "byteorder": ">"}
    tifffile.imwrite(buffer, values.astype(np.float32), **options)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_signed_bytes_in_a_tiff_are_as_in_an_array(channels):
    pytest.importorskip("tifffile")
    signed = RNG.integers(-128, 128, (11, 14, channels)).astype(np.int8)
    array = signed[:, :, 0] if channels == 1 else signed
    assert array.min() < 0
    for value_range in (None, (-128, 127)):
        expected = open_array(array, value_range).image
        found = pixels(tiff_of(array), value_range)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_floats_of_a_big_endian_tiff_with_a_predictor_are_exact():
    values = np.linspace(0.2, 0.8, 11 * 14, dtype=np.float32).reshape(11, 14)
    found = pixels(big_endian_floats(values))
    np.testing.assert_allclose(found[:, :, 0], values, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiff_of(RGB, planar=True),
        lambda: tiff_of(GREY.astype(np.int8)),
        lambda: big_endian_floats(GREY / 65535),
    ],
    ids=["planes", "signed bytes", "swapped floats"],
)
def test_a_pil_image_of_a_tiff_that_pillow_misreads_is_refused(make, tmp_path):
    (tmp_path / "a.tiff").write_bytes(make())
    image = Image.open(tmp_path / "a.tiff")
    open_bytes((tmp_path / "a.tiff").read_bytes())  # by tifffile
    for _ in range(2):
        with pytest.raises(ValueError, match="pass the path"):
            open_pil(image)
        with pytest.raises(ValueError, match="pass the path"):
            digest_pil(image)


@pytest.mark.parametrize("offset", [-1e9, 1e5, 1e8])
@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_a_range_far_from_zero_keeps_its_grey_values(offset, dtype):
    values = np.arange(256).reshape(16, 16)
    far = (values + offset).astype(dtype)
    found = open_array(far, (offset, offset + 255)).image
    np.testing.assert_allclose(found[:, :, 0] * 255, values, atol=1e-4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype, order", [("u1", "<"), ("u2", "<"), ("u2", ">")])
@pytest.mark.parametrize("is_square", [False, True])
def test_a_pil_image_of_a_turned_tiff_is_right_or_refused(
    tmp_path, orientation, dtype, order, is_square
):
    """Pillow maps such a file, and takes its height for its width."""
    values = np.random.default_rng(0).integers(0, 256, (12, 12 if is_square else 17))
    data = tiff_of(values.astype(dtype), order, t274=[orientation])
    (tmp_path / "a.tif").write_bytes(data)
    image, expected = Image.open(tmp_path / "a.tif"), pixels(data)
    for _ in range(2):
        try:
            found = open_pil(image).image
        except ValueError as error:
            assert "pass the path" in str(error)
            assert orientation >= 5 and not is_square
        else:
            np.testing.assert_array_equal(np.asarray(found), expected)
    in_memory = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(np.asarray(open_pil(in_memory).image), expected)


@pytest.mark.parametrize("kind", ["png", "jpegxl", "lerc"])
@pytest.mark.parametrize("array", [GREY, RGB], ids=["grey", "rgb"])
def test_bytes_in_a_tiff_are_read_in_any_compression(kind, array):
    tifffile = pytest.importorskip("tifffile")
    array, buffer = array.astype(np.uint8), io.BytesIO()
    photometric = "rgb" if array.ndim == 3 else "minisblack"
    try:
        tifffile.imwrite(buffer, array, compression=kind, photometric=photometric)
    except ValueError as error:
        pytest.skip(f"the codec is not built: {error}")
    expected = open_array(array).image
    np.testing.assert_array_equal(pixels(buffer.getvalue()), np.asarray(expected))


def small_png(values, bits, transparent):
    """A grey PNG of few bits in which one value is transparent."""
    each = values[:, :, None] >> np.arange(bits - 1, -1, -1) & 1
    rows = np.packbits(each.reshape(len(values), -1).astype(np.uint8), axis=1)
    h, w = values.shape
    chunks = {
        b"IHDR": struct.pack(">LLBBBBB", w, h, bits, 0, 0, 0, 0),
        b"tRNS": struct.pack(">H", transparent),
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(data)) + name + data + struct.pack(">L", crc)
        for name, data in chunks.items()
        for crc in [zlib.crc32(name + data)]
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_grey_of_few_bits_shows_white(bits, tmp_path):
    top = 2**bits - 1
    values = RNG.integers(0, top + 1, (11, 14))
    values[0, 0] = transparent = 0 if bits == 1 else min(3, top - 1)
    data = small_png(values, bits, transparent)
    expected = np.where(values == transparent, 255, values * 255 // top)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    lazy = [Image.open(path), Image.open(io.BytesIO(data))]
    keys = {digest_pil(image) for image in lazy}
    found = [open_bytes(data).image, *(open_pil(image).image for image in lazy)]
    for image in found:
        np.testing.assert_array_equal(np.asarray(image)[:, :, 1], expected)
    assert keys == {digest_array(np.asarray(found[0]))}


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16", "F"])
def test_a_pil_image_without_pixels_is_refused(mode, size):
    with pytest.raises(ImageError, match=r"row 0 .* has no pixels"):
        PretrainedCNNFeatures("tiny").transform([Image.new(mode, size)])


def test_a_lost_depth_is_an_error_of_that_row_alone(tmp_path):
    (tmp_path / "deep.png").write_bytes(png(RGB))
    rows = {
        "opened": Image.open(tmp_path / "deep.png"),
        "copied": Image.open(tmp_path / "deep.png").copy(),
    }
    for value_range in [(0, 4095), (0, 255)]:
        for order in (["opened", "copied"], ["copied", "opened"]):
            net = PretrainedCNNFeatures(
                "tiny", value_range=value_range, on_error="nan", cache="memory"
            )
            with pytest.warns(ImageWarning, match="1 of 2"):
                out = net.transform([rows[name] for name in order])
            failed = [
                name
                for name, row in zip(order, out, strict=False)
                if np.isnan(row).any()
            ]
            assert failed == ["opened"]


@pytest.mark.parametrize("data", [png(RGB), png(LA), tiff_of(RGB)])
def test_no_range_for_a_pil_image_that_has_lost_the_bits_of_its_file(data, tmp_path):
    (tmp_path / "deep").write_bytes(data)
    lazy = Image.open(tmp_path / "deep")
    assert open_pil(lazy).image.mode == "RGB"
    with pytest.raises(ValueError, match="pass the path"):
        open_pil(lazy, (0, 4095))
    eight = tmp_path / "eight.png"
    Image.open(tmp_path / "deep").save(eight)
    open_pil(Image.open(eight), (0, 4095))


def test_a_closed_pil_image_is_an_error_in_a_sentence(photo_files):
    with Image.open(photo_files[0]) as closed:
        pass
    with open(photo_files[0], "rb") as file:
        lazy = Image.open(file)
    for image in (closed, lazy):
        with pytest.raises(ImageError, match=r"closed before its pixels were read"):
            PretrainedCNNFeatures("tiny").transform([image])


# Keys ---------------------------------------------------------------------------------


def with_orientation(number):
    exif = Image.Exif()
    exif[ORIENTATION] = number
    return exif


def test_the_key_of_a_plain_pil_image_is_that_of_its_array(photos):
    grey = photos[0][:, :, 0].copy()
    assert digest_pil(Image.fromarray(photos[0])) == digest_array(photos[0])
    assert digest_pil(Image.fromarray(grey)) == digest_array(grey)


def test_two_images_that_differ_in_what_is_still_to_turn_have_two_rows(photos):
    """Pillow turns a TIFF while it loads; a PNG copied from it keeps the tag."""
    scan = encode(Image.fromarray(photos[0]), "TIFF", exif=with_orientation(6))
    tags = Image.open(io.BytesIO(scan)).getexif().tobytes()
    copy = encode(Image.open(io.BytesIO(scan)), "PNG", exif=tags)
    alone = PretrainedCNNFeatures("tiny", cache=None).transform([scan, copy])
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    for order in ([0, 1], [1, 0]):
        lazy = [Image.open(io.BytesIO(data)) for data in (scan, copy)]
        store = FeatureStore(name=f"turned {order}")
        features = PretrainedCNNFeatures("tiny", cache=store)
        found = features.transform([lazy[i] for i in order])
        np.testing.assert_array_equal(found, alone[order])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GIF"])
def test_the_key_is_the_same_before_and_after_decoding(kind, photos):
    options = {} if kind == "GIF" else {"exif": with_orientation(8)}
    data = encode(Image.fromarray(photos[0]), kind, **options)
    lazy, loaded = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data))
    loaded.load()
    keys = {digest_pil(image) for image in (lazy, loaded, lazy)}
    assert keys == {digest_array(pixels(data))}


def test_samples_of_more_bits_never_have_the_key_of_an_array():
    twelve = GREY >> 4
    images = [
        Image.fromarray(twelve),
        Image.open(io.BytesIO(packed_tiff(twelve, 12))),
        Image.open(io.BytesIO(tiff_of(twelve, photometric=0))),
        Image.open(io.BytesIO(png(twelve, (b"tRNS", b"\0\7")))),
    ]
    keys = [digest_pil(image) for image in images] + [digest_array(twelve)]
    assert len(set(keys)) == len(keys)


# Orientation --------------------------------------------------------------------------

TURNED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}
exif_of = {n: b"II*\0\10\0\0\0\1\0\x12\1\3\0\1\0\0\0%c\0\0\0" % n for n in TURNED}
TURNABLE = {
    "8-bit PNG": lambda n: png8(n),
    "grey PNG": lambda n: png(GREY, (b"eXIf", exif_of[n] + b"\0" * 4)),
    "colour PNG": lambda n: png(RGB, (b"eXIf", exif_of[n] + b"\0" * 4)),
    "8-bit TIFF": lambda n: tiff_of((RGB >> 8).astype(np.uint8), t274=[n]),
    "grey TIFF": lambda n: tiff_of(GREY, t274=[n]),
    "colour TIFF": lambda n: tiff_of(RGB, t274=[n]),
    "planar TIFF": lambda n: tiff_of(RGB, planar=True, t274=[n]),
    "XMP": lambda n: png8(n, xmp=True),
}


def png8(number, xmp=False):
    """An 8-bit PNG with its orientation in EXIF, or in XMP alone."""
    image = Image.fromarray((RGB >> 8).astype(np.uint8))
    if not xmp:
        return encode(image, exif=with_orientation(number))
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="{number}"/>')
    return encode(image, pnginfo=info)


@pytest.mark.parametrize("number", TURNED)
@pytest.mark.parametrize("kind", TURNABLE)
def test_every_kind_of_file_is_turned_upright_once(kind, number):
    if kind == "planar TIFF":
        pytest.importorskip("tifffile")
    expected = TURNED[number](pixels(TURNABLE[kind](1)))
    np.testing.assert_array_equal(pixels(TURNABLE[kind](number)), expected)
    if kind not in ("colour PNG", "colour TIFF", "planar TIFF"):
        lazy = Image.open(io.BytesIO(TURNABLE[kind](number)))
        np.testing.assert_array_equal(open_pil(lazy).image, expected)


@pytest.mark.parametrize("kind", ["MPO", "WEBP", "AVIF", "HEIF"])
def test_what_a_decoder_has_turned_is_not_turned_again(kind, request):
    if kind == "HEIF":
        request.getfixturevalue("heif_reader")
    half = np.zeros((64, 96, 3), np.uint8)
    half[:, :48] = 255  # white on the left
    if kind not in (*Image.OPEN, "MPO"):
        pytest.skip("this Pillow does not read the format")
    image = Image.fromarray(half)
    options = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    exif = with_orientation(6).tobytes()
    data = encode(image, kind, quality=95, exif=exif, **options)
    found = pixels(data)
    assert found.shape == (96, 64, 3)
    assert found[:30].min() > 200  # white above
    assert found[-30:].max() < 60


def jpeg_with_exif(exif):
    data = encode(Image.new("RGB", (12, 8), "red"), "JPEG")
    exif = b"Exif\0\0" + exif
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


TAGS = [0x100, 0x101, 0x102, 0x103, 0x106, 0x10E, 0x10F, 0x110, 0x115, 0x11A, 0x11B]
TAGS += [
    0x128,
    0x131,
    0x132,
    0x13B,
    0x213,
    0x8298,
    0x9C9B,
    0x8769,
    0x8825,
    0x14A,
    0x2BC,
]
VALUES = {
    1: b"\1\2\3",
    2: b"abc\0",
    3: struct.pack("<H", 7),
    4: struct.pack("<L", 7),
    5: struct.pack("<LL", 72, 1),
    6: b"\xff",
    7: b"abcd",
    8: struct.pack("<h", -7),
    9: struct.pack("<l", -7),
    10: struct.pack("<ll", -72, 1),
    11: struct.pack("<f", 72.0),
    12: struct.pack("<d", 72.0),
}
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("tag", TAGS, ids=hex)
def test_an_odd_tag_beside_the_orientation_does_no_harm(tag, kind):
    value, outside = VALUES[kind], b""
    if len(value) > 4:
        value, outside = struct.pack("<L", 38), value
    entries = sorted([(0x112, 3, 1, b"\6\0"), (tag, kind, 0, value)])
    n = len(VALUES[kind]) // SIZES[kind]
    ifd = b"".join(
        struct.pack("<HHL", t, k, count or n) + v.ljust(4, b"\0")
        for t, k, count, v in entries
    )
    exif = b"II*\0\10\0\0\0\2\0" + ifd + b"\0" * 4 + outside
    assert pixels(jpeg_with_exif(exif)).shape == (12, 8, 3)


BROKEN = [b"garbage!", b"IIU\0\x18\0\0\0", b"II*\0", b"Exif\0\0II*\0\10\0\0\0\0\0", b""]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's own
@pytest.mark.parametrize("exif", BROKEN)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_broken_exif_block_does_no_harm(kind, exif):
    red = Image.new("RGB", (12, 8), "red")
    plain = png(RGB) if kind == "PNG" else encode(red, kind)
    damaged = {
        "JPEG": jpeg_with_exif(exif),
        "PNG": png(RGB, (b"eXIf", exif)),
        "WEBP": encode(red, "WEBP", exif=b"Exif\0\0" + exif),
    }[kind]
    np.testing.assert_array_equal(pixels(damaged), pixels(plain))
    found, expected = (
        np.asarray(open_pil(Image.open(io.BytesIO(data))).image)
        for data in (damaged, plain)
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "chunk",
    [
        (b"tEXt", b"Raw profile type exif\0\nexif\n      20\nzzzz\n"),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"\xff\xfe"),
        (b"iCCP", b"x\0\0" + zlib.compress(b"no profile")),
    ],
)
def test_other_broken_metadata_do_no_harm(chunk):
    np.testing.assert_array_equal(pixels(png(RGB, chunk)), pixels(png(RGB)))


# Formats ------------------------------------------------------------------------------

FOREIGN = {
    b"%!PS-Adobe-3.0\n": "PostScript",
    b"%PDF-1.4\n": "PDF",
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"GRIB\0\0\0\1": "GRIB",
    b"SIMPLE  =                    T": "FITS",
    b"\0\0\1\xb3\0\0\0\0": "MPEG",
    b"8BPS\0\1": "Photoshop",
    b"\0\0\1\0\1\0\x10\x10": "icon",
    b"\xc5\xd0\xd3\xc6\0\0": "PostScript",
    b"\xd7\xcd\xc6\x9a\0\0": "WMF",
    b"\0\0\0\x18ftypmp42\0\0": "MP4",
    b"PK\3\4\0": "ZIP",
    b"version https://git-lfs.github.com/spec/v1\n": "git lfs pull",
    b"/9j/4AAQSkZJRgABAQ": r"base64\.b64decode",
    b"iVBORw0KGgoAAAANSUhEUg": r"base64\.b64decode",
    b"data:image/png;base64,iVBOR": "data URI",
    b"\n <!DOCTYPE html><html>": "HTML",
    b"photos/ant 1.txt": "text, 'photos/ant 1.txt'",
    b"photos/ant 1.jpg": r"not an image but the name of one; .* X\.asstr\(\)",
    b"path,label\nant 1.jpg,0\n": "text, 'path,label'",
    b"\x93NUMPY\1\0": r"numpy\.load",
    b"\xff\xd8\xff\xc0\0\x11\x0c\0\x10\0\x10": "looks like JPEG, but is damaged",
    b"\x89PNG\r\n\x1a\n\0\0\0\1IHXX\0": "looks like PNG, but is damaged",
    b"\1\2\3\4\5\6\7\xff\xfe": r"not an image in a supported format \(JPEG, .*\)$",
}


@pytest.mark.parametrize("start", FOREIGN, ids=lambda data: repr(data)[:20])
def test_what_is_no_photo_reaches_no_other_reader(start, monkeypatch):
    Image.init()
    reached = []

    def spy(file, name):
        reached.append(file)
        raise SyntaxError

    for name in Image.OPEN.keys() - FORMATS:
        monkeypatch.setitem(Image.OPEN, name, (spy, lambda prefix: True))
    data = start.ljust(300, b"\0") if b"\0" in start else start
    with pytest.raises(ImageError, match=FOREIGN[start]) as error:
        PretrainedCNNFeatures("tiny").transform([data])
    assert len(str(error.value)) < 300
    assert not reached


def test_an_empty_file_is_said_to_be_empty():
    with pytest.raises(ImageError, match="the file is empty"):
        PretrainedCNNFeatures("tiny").transform([b""])


def test_heic_without_its_plugin_says_what_to_type(monkeypatch):
    Image.init()
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(ImageError, match=r"pip install pillow-heif.*register_heif"):
        data = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + b"\0" * 50
        PretrainedCNNFeatures("tiny").transform([data])


def test_names_of_photos():
    yes = "a.jpg a.JPEG a.png a.webp a.tif a.TIFF a.bmp a.gif a.ppm a.pgm a.jp2 a.mpo"
    no = "a.pdf a.h5 a.hdf a.mpg a.mpeg a.grib a.fits a.eps a.ps a.psd a.ico a.wmf a b."
    assert all(map(is_image_name, yes.split()))
    assert not any(map(is_image_name, no.split()))


def test_heif_is_a_photo_once_it_is_registered(heif_reader):
    assert is_image_name("a.heic")
    data = encode(Image.new("RGB", (64, 64), "white"), "HEIF")
    assert pixels(data).min() > 250


# Settings of Pillow -------------------------------------------------------------------


def test_settings_that_change_pixels_are_found(monkeypatch):
    Image.init()
    assert switches() == {}
    for module, name, value in [
        ("PIL.ImageFile", "LOAD_TRUNCATED_IMAGES", True),
        ("PIL.TiffImagePlugin", "READ_LIBTIFF", True),
        ("PIL.BmpImagePlugin", "USE_RAW_ALPHA", True),
        ("PIL.GifImagePlugin", "LOADING_STRATEGY", 2),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(f"{module}.{name}", value)
            assert switches() == {f"{module}.{name}": str(value)}
    assert switches() == {}


def test_a_reader_in_the_place_of_pillows_own_is_found(monkeypatch):
    Image.init()

    def reader(file, name):
        raise SyntaxError

    monkeypatch.setitem(Image.OPEN, "WEBP", (reader, None))
    assert switches() == {"reader of WEBP": __name__}


def test_looking_for_settings_imports_nothing():
    code = (
        "import sys; from skdeepfeat._images.formats import switches\n"
        "assert switches() == {}\n"
        "assert 'PIL.TiffImagePlugin' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_truncated_image_is_read_only_where_pillow_is_told_to(photos, monkeypatch):
    data = encode(Image.fromarray(photos[0]))[:-300]
    with pytest.raises(OSError, match="truncated"):
        open_bytes(data)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    np.testing.assert_array_equal(pixels(data)[:4], photos[0][:4])
    np.testing.assert_array_equal(pixels(png(RGB)[:-200])[:4], pixels(png(RGB))[:4])


@pytest.mark.parametrize(("kind", "n_opened"), [("JPEG", 0), ("BMP", 0), ("PNG", 1)])
def test_the_file_of_a_pil_image_is_read_again_only_for_its_depth(
    kind, n_opened, tmp_path, monkeypatch
):
    """The key of an opened image costs no more than one look at its header."""
    path = tmp_path / "photo"
    Image.fromarray(RGB[..., :3].astype(np.uint8)).save(path, kind)
    with Image.open(path) as image:
        image.load()
        opened, real = [], open
        monkeypatch.setattr(
            "builtins.open", lambda *a, **k: (opened.append(a[0]), real(*a, **k))[1]
        )
        digest_pil(image)
    assert len([name for name in opened if str(name) == str(path)]) == n_opened


# Containers ---------------------------------------------------------------------------


def test_a_new_container_is_one_entry(photos, monkeypatch):
    class Album:
        def __init__(self, photos):
            self.pages = list(photos)

        def __len__(self):
            return len(self.pages)

        def __getitem__(self, row):
            raise AssertionError("an album has pages")

        to_pylist = None  # in memory

    entry = (lambda X: isinstance(X, Album), lambda X: X.pages)
    monkeypatch.setattr(containers, "CONTAINERS", (entry, *containers.CONTAINERS))
    images = read_images(Album(photos))
    assert [images.read(row).source for row in range(2)] == [
        "array of shape (24, 32, 3), uint8"
    ] * 2


# Both estimators ----------------------------------------------------------------------


@pytest.mark.parametrize("value_range", [None, (0.0, 4095.0)])
def test_training_reads_the_same_pixels(value_range):
    spec = InputSpec(8, None)
    cells = [png(RGB), tiff_of(RGB), packed_tiff(GREY >> 4, 12), png(RGBA)]
    images = read_images(cells)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained = read_pixels(images, [0, 1, 2, 3], spec, value_range, 1).pixels
    assert len(caught) == (value_range is not None)
    for row in range(4):
        found = read_row(images, row, Preparation(spec, value_range))
        np.testing.assert_array_equal(trained[row].permute(1, 2, 0), found.pixels)
        assert found.in_range == (value_range is None or row == 2)


def test_a_tiff_without_pages_is_called_damaged():
    with pytest.raises(ValueError, match="looks like TIFF, but is damaged"):
        open_bytes(b"II*\0\0\0\0\0")
