"""Sequences that put each row into the memory of the one before."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from skdeepfeat import PretrainedCNNFeatures
from skdeepfeat._images.buffers import Keeper

N = 9
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 12, 16, 3), np.uint8)


class Reader:
    """A sequence that is no list, and makes its rows."""

    def __init__(self, read):
        self.read = read

    def __len__(self):
        return N

    def __getitem__(self, row):
        return self.read(row)


def array(n_buffers=1, view=lambda buffer: buffer):
    buffers = np.empty((n_buffers, *IMAGES.shape[1:]), np.uint8)

    def read(row):
        buffers[row % n_buffers] = IMAGES[row]
        return view(buffers[row % n_buffers])

    return read


def tensor():
    buffer = torch.empty(3, 12, 16, dtype=torch.uint8)
    return lambda row: buffer.copy_(torch.from_numpy(IMAGES[row]).permute(2, 0, 1))


def encoded(row):
    file = io.BytesIO()
    Image.fromarray(IMAGES[row]).save(file, "PNG")
    return file.getvalue()


def byte_array():
    buffer = bytearray()

    def read(row):
        buffer[:] = encoded(row)
        return buffer

    return read


def file():
    buffer = io.BytesIO()

    def read(row):
        buffer.seek(0)
        buffer.truncate()
        buffer.write(encoded(row))
        return buffer

    return read


def canvas():
    image = Image.new("RGB", (16, 12))

    def read(row):
        image.paste(Image.fromarray(IMAGES[row]))
        return image

    return read


def pages():
    first, *others = map(Image.fromarray, IMAGES)
    first.save(data := io.BytesIO(), "TIFF", save_all=True, append_images=others)
    image = Image.open(data)

    def read(row):
        image.seek(row)
        return image

    return read


def features(X):
    return PretrainedCNNFeatures("tiny", cache=None).transform(X)


READERS = {
    "array": array(),
    "three arrays": array(3),
    "views": array(2, lambda buffer: buffer[:, ::-1][:, ::-1]),
    "memoryview": array(1, memoryview),
    "tensor": tensor(),
    "bytearray": byte_array(),
    "file": file(),
    "image": canvas(),
    "pages": pages(),
}


@pytest.mark.parametrize("kind", READERS)
def test_each_row_is_its_own_image(kind):
    found = features(Reader(READERS[kind]))
    np.testing.assert_array_equal(found, features(IMAGES))


def test_rows_with_memory_of_their_own_are_not_copied_once_some_were_tried():
    keeper, rows = Keeper(), [image.copy() for image in IMAGES]
    kept = [keeper.keep(row) for row in rows]
    assert [a is b for a, b in zip(kept, rows, strict=True)] == [False] * 4 + [True] * 5
    np.testing.assert_array_equal(kept, rows)


def test_one_object_for_several_rows_is_several_equal_rows():
    image = Image.fromarray(IMAGES[0])
    rows = features(Reader(lambda row: image))
    np.testing.assert_array_equal(rows, features(IMAGES[:1].repeat(N, axis=0)))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_pages_of_more_than_8_bits_keep_their_range(dtype):
    tifffile = pytest.importorskip("tifffile")
    deep = (IMAGES[..., 0] / 255 * (1023 if dtype == np.uint16 else 1)).astype(dtype)
    tifffile.imwrite(data := io.BytesIO(), deep, photometric="miniswhite")
    image = Image.open(data)

    def read(row):
        image.seek(row)
        return image

    found = features(Reader(read))
    for row in range(N):
        image.seek(row)
        np.testing.assert_array_equal(found[row : row + 1], features([image]))


def test_a_damaged_page_is_an_error_of_its_row():
    cut = Image.open(io.BytesIO(encoded(0)[:300]))
    with pytest.raises(ValueError, match="truncated"):
        features(Reader(lambda row: cut))


def test_a_tensor_without_places_is_an_error_of_its_row():
    sparse = torch.eye(8).to_sparse()
    with pytest.raises(ValueError, match=r"row 0 \(tensor of shape .*dense\(\)"):
        features(Reader(lambda row: sparse))
