"""Cells become the very pixels that torchvision's presets make of them."""

import io
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision import models

from skdeepfeat import ImageError
from skdeepfeat._backbones.registry import resolve_backbone
from skdeepfeat._engines.torch import Normalise
from skdeepfeat._images import batches as batching
from skdeepfeat._images import preparing, recipe
from skdeepfeat._images.batches import read_batches
from skdeepfeat._images.budget import Budget
from skdeepfeat._images.containers import read_images
from skdeepfeat._images.decoding import Pixels, open_array, open_bytes, open_pil
from skdeepfeat._images.preparing import Preparation, read_row
from skdeepfeat._images.recipe import InputSpec, prepare

ODD = ["resnet50", "efficientnet_b3", "vit_l_16", "inception_v3", "swin_t"]


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(blob):
    return np.asarray(open_bytes(blob, None).image)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("size", [(500, 375), (120, 300), (31, 33)])
def test_eight_bit_images_take_the_published_path(name, size, photos):
    image = Image.fromarray(photos[0]).resize(size)
    for version in models.get_model_weights(name):
        backbone = resolve_backbone(name)
        spec = next(w.input for w in backbone.weights if w.name == version.name)
        (batch,) = read_batches(
            read_images([image]), [0], Preparation(spec), 8, 1, True
        )
        pixels = torch.from_numpy(batch.pixels).permute(0, 3, 1, 2).float()
        expected = version.transforms()(image)
        got = Normalise(spec)(pixels)[0]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ODD)
def test_floats_keep_their_precision(name, photos):
    spec = resolve_backbone(name).input
    eight_bit = prepare(open_array(photos[0], None), spec).astype(np.float32)
    floats = prepare(open_array(photos[0] / 255, None), spec)
    assert floats.dtype == np.float32
    # 8 bits are rounded after each of the two directions of the resize.
    assert 0 < np.abs(floats - eight_bit).max() < 2
    assert np.abs(floats - eight_bit).mean() < 0.5


def test_other_input_sizes_keep_the_ratio_of_resize_and_crop():
    spec = InputSpec(224, 256).scaled(112)
    assert (spec.image_size, spec.resize) == (112, 128)
    assert InputSpec(224, None).scaled(64).resize is None


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB"])
def test_opaque_modes(mode, photos):
    image = Image.fromarray(photos[0]).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(open_pil(image, None).image, expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_pixels_show_white(mode, photos):
    image = Image.fromarray(photos[0]).convert("L").convert("RGBA")
    image.putalpha(0)
    found = np.asarray(open_pil(image.convert(mode), None).image)
    assert (found == 255).all()
    image.putalpha(255)
    np.testing.assert_array_equal(
        open_pil(image.convert(mode), None).image, image.convert("RGB")
    )


def test_palette_with_transparency_shows_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30] * 2)
    assert (pixels(encode(image, transparency=1)) == 255).all()
    assert (pixels(encode(image)) == [10, 20, 30]).all()


def test_formats(photos):
    image = Image.fromarray(photos[0])
    for kind, options in [("BMP", {}), ("WEBP", {"lossless": True}), ("TIFF", {})]:
        np.testing.assert_array_equal(pixels(encode(image, kind, **options)), photos[0])


def test_exif_orientation_is_applied(photos):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned right
    image = Image.fromarray(photos[0])
    turned = pixels(encode(image, "PNG", exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(photos[0], -1))


def test_first_frame_of_an_animation(photos):
    frames = [Image.fromarray(photo).convert("P") for photo in photos[:3]]
    blob = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    still = encode(frames[0], "GIF")
    np.testing.assert_array_equal(pixels(blob), pixels(still))


def test_sixteen_bits_are_not_rounded(photos):
    fine = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    blob = encode(Image.fromarray(fine))
    from_file, from_array = open_bytes(blob, None), open_array(fine, None)
    np.testing.assert_allclose(from_file.image[..., 0], fine / 65535, atol=1e-6)
    np.testing.assert_array_equal(from_file.image, from_array.image)
    assert len(np.unique(from_array.image)) == 64 * 64
    big_endian = open_array(fine.astype(">u2"), None)
    np.testing.assert_array_equal(big_endian.image, from_array.image)


@pytest.mark.parametrize(
    ("dtype", "white"),
    [(bool, 1), (np.uint8, 255), (np.int64, 255), (np.uint16, 65535), (np.float64, 1)],
)
@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
def test_white_is_white_in_every_dtype(dtype, white, channels):
    array = np.full((5, 6, *channels), white, dtype=dtype)
    image = open_array(array, None).image
    top = 255 if isinstance(image, Image.Image) else 1
    assert np.asarray(image).shape == (5, 6, 3)
    assert (np.asarray(image) == top).all()


def test_a_decompression_bomb_is_refused(monkeypatch, photos):
    from skdeepfeat import ImageError, PretrainedCNNFeatures

    blob = encode(Image.fromarray(photos[0]))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="decompression bomb"):
        PretrainedCNNFeatures("tiny").transform([blob])


@pytest.mark.parametrize("meanwhile", [True, False])
def test_batches_keep_order_shape_and_bound(photos, meanwhile):
    X = np.concatenate([photos] * 5)
    spec = InputSpec(8, None)
    batches = list(
        read_batches(read_images(X), range(30), Preparation(spec), 8, 2, meanwhile)
    )
    assert [b.rows for b in batches] == [
        list(range(a, min(a + 8, 30))) for a in range(0, 30, 8)
    ]
    assert all(b.pixels.shape == (8, 8, 8, 3) for b in batches)
    assert (batches[-1].pixels[6:] == 0).all()


def test_images_are_decoded_only_a_little_ahead(photos):
    opened = []

    class Counting(list):
        def __getitem__(self, row):
            opened.append(row)
            return super().__getitem__(row)

    images = read_images(Counting([photos[0]] * 500))
    batches = read_batches(
        images, range(500), Preparation(InputSpec(8, None)), 4, 2, True
    )
    next(batches)
    assert len(set(opened)) < 30
    batches.close()


def test_images_are_decoded_between_computations_and_files_read_ahead(
    photos, monkeypatch, tmp_path
):
    paths = [str(tmp_path / f"{row}.png") for row in range(50)]
    for path in paths:
        Image.fromarray(photos[0]).save(path)
    monkeypatch.setattr(batching, "BURST", 14)  # which is no whole number of batches
    images, opened, announced = read_images(paths), [], []
    read, read_ahead = images.read, images.read_ahead
    monkeypatch.setattr(images, "read", lambda row: (opened.append(row), read(row))[1])
    monkeypatch.setattr(
        images, "read_ahead", lambda row: (read_ahead(row), announced.append(row))
    )
    batches = read_batches(
        images, range(50), Preparation(InputSpec(8, None)), 4, 2, False
    )
    for n_batches in range(1, 5):
        batch = next(batches)
        assert batch.rows == list(range(4 * n_batches - 4, 4 * n_batches))
        deadline = time.monotonic() + 10
        while len(announced) < 16 and time.monotonic() < deadline:
            time.sleep(0.01)  # of computing
        assert sorted(opened) == list(range(16))
        assert sorted(announced) == list(range(16, 32))
    next(batches)
    assert sorted(opened) == list(range(32))
    batches.close()


def test_a_file_that_is_not_there_is_no_trouble_before_its_turn(
    photos, monkeypatch, tmp_path
):
    monkeypatch.setattr(batching, "BURST", 4)
    there = tmp_path / "there.png"
    Image.fromarray(photos[0]).save(there)
    images = read_images([str(there)] * 9 + [str(tmp_path / "gone.png")])
    batches = read_batches(
        images, range(10), Preparation(InputSpec(8, None)), 1, 2, False
    )
    found = list(batches)
    assert [batch.rows for batch in found] == [[row] for row in range(9)] + [[]]
    assert [error.row for batch in found for error in batch.errors] == [9]


def test_decoding_raises_no_warning(photos):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photos.setflags(write=False)
        prepare(open_array(photos[0], None), InputSpec(16, 20))


# "fast" -------------------------------------------------------------------------------


def large_photo(kind="RGB", size=(1600, 1200)):
    china = load_sample_image("china.jpg")
    return Image.fromarray(china).resize(size, Image.BICUBIC).convert(kind)


@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK"])
def test_fast_shows_the_same_picture(kind):
    spec = InputSpec(224, 256)
    images = read_images([encode(large_photo(kind), "JPEG", quality=90)])
    exact, fast = (
        read_row(images, 0, Preparation(spec, None, decode)).pixels.astype(float)
        for decode in ("exact", "fast")
    )
    assert exact.shape == fast.shape == (224, 224, 3)
    assert 0 < np.abs(exact - fast).mean() < 2  # of 255


def test_fast_decodes_no_more_than_it_needs():
    blob = encode(large_photo(), "JPEG")
    assert open_bytes(blob, None, 256).image.size == (400, 300)
    assert open_bytes(blob, None, 301).image.size == (800, 600)
    assert open_bytes(blob, None, 4000).image.size == (1600, 1200)


def test_fast_changes_nothing_in_small_images(photos):
    spec = InputSpec(224, 256)
    images = read_images([encode(Image.fromarray(photos[0]), "JPEG")])
    np.testing.assert_array_equal(
        read_row(images, 0, Preparation(spec, None, "fast")).pixels,
        read_row(images, 0, Preparation(spec)).pixels,
    )


# Memory ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_narrow_image_takes_no_more_memory_than_a_photo():
    code = textwrap.dedent(
        """
        import io
        import numpy as np
        from PIL import Image
        from skdeepfeat import PretrainedCNNFeatures

        def peak():
            status = open("/proc/self/status").read()
            return int(status.partition("VmHWM:")[2].split()[0]) // 1024

        features = PretrainedCNNFeatures(engine="torch", cache=None)
        features.transform([np.zeros((50, 50, 3), np.uint8)])
        idle = peak()
        for width in (1_000, 5_000, 20_000, 60_000, 300_000):
            for size in ((width, 1), (1, width)):
                file = io.BytesIO()
                Image.new("RGB", size, "red").save(file, "PNG")
                out = features.transform([file.getvalue()] * 4 + [np.zeros((9, 9))])
                assert np.isfinite(out).all()
        print(peak() - idle)
        """
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(found.stdout) < 250  # MB


@pytest.mark.parametrize("size", [(20_000, 60), (60, 20_000), (9_000, 400), (7, 1501)])
@pytest.mark.parametrize("spec", [InputSpec(224, 256), InputSpec(96, 110, "bicubic")])
def test_the_middle_of_a_narrow_image_is_that_of_the_whole(size, spec, monkeypatch):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8))
    for pixels in (image, np.asarray(image, np.float32) / 255):
        monkeypatch.setattr(recipe, "LARGEST_RESIZED", 2**40)
        whole = prepare(Pixels(pixels), spec).astype(float)
        monkeypatch.setattr(recipe, "LARGEST_RESIZED", 0)
        middle = prepare(Pixels(pixels), spec).astype(float)
        assert np.abs(middle - whole).max() <= 1
        assert (np.abs(middle - whole) > 0.01).mean() < 1e-2


@pytest.mark.parametrize("size", [(2**25, 1), (1, 2**25)])
def test_the_middle_of_an_extremely_narrow_image_is_in_its_place(size, capsys):
    """Places of so many pixels cannot be told apart in single precision."""
    values = np.zeros(2**25, np.uint8)
    values[2**24 :] = 255
    image = Image.fromarray(np.repeat(values.reshape(size[::-1])[..., None], 3, -1))
    found = prepare(Pixels(image), InputSpec(8, 8))
    along = (found if size[1] == 1 else found.swapaxes(0, 1))[0, :, 0]
    expected = 255 * (np.arange(8) + 0.5) / 8  # between the two pixels in the middle
    assert np.abs(along - expected).max() <= 1


def test_threads_share_a_budget_of_pixels(photos, monkeypatch):
    running, most, lock = set(), [0], threading.Lock()
    budget = Budget(2 * 24 * 32)  # two of these photos
    monkeypatch.setattr(preparing, "decoded", budget)
    real = preparing.prepare

    def slowly(*arguments):
        with lock:
            running.add(threading.get_ident())
            most[0] = max(most[0], len(running))
        time.sleep(0.02)
        with lock:
            running.discard(threading.get_ident())
        return real(*arguments)

    monkeypatch.setattr(preparing, "prepare", slowly)
    spec = InputSpec(8, None)
    large = np.zeros((200, 300, 3), np.uint8)  # more than the budget: alone
    for rows, expected in ((list(photos), 2), ([large] * 3, 1)):
        most[0], images = 0, read_images(rows)
        settings = (Preparation(spec), 4, 6, True)
        list(read_batches(images, range(len(rows)), *settings))
        assert most == [expected]


def test_what_fails_gives_its_share_of_the_budget_back(monkeypatch):
    budget = Budget(100)
    monkeypatch.setattr(preparing, "decoded", budget)
    spec = InputSpec(8, None)
    images = read_images([np.full((40, 50), np.nan)])
    for _ in range(3):
        assert isinstance(read_row(images, 0, Preparation(spec)), ImageError)
    with budget.share(100):
        pass


def test_a_forked_child_has_the_whole_budget():
    code = """
import os
from skdeepfeat._images.preparing import decoded

with decoded.share(2**27):
    child = os.fork()
    if not child:
        with decoded.share(2**27):
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
