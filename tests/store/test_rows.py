"""The rows of X are read once, in windows; what fails is an error of its row."""

import base64
import http.server
import io
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import traceback
import warnings
import weakref
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_backbone, tiny_network
from fakes import FakeTable
from PIL import Image

from skdeepfeat import (
    Backbone,
    FeatureStore,
    FineTunedClassifier,
    ImageError,
    ImageWarning,
    PretrainedCNNFeatures,
    StoreWarning,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "0.1.0.dev0"


def features(**parameters):
    return PretrainedCNNFeatures(**{"backbone": tiny_backbone(), **parameters})


def encoded(photo, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(photo).save(file, kind)
    return file.getvalue()


# Sequences that make their rows when asked -------------------------------------------


class Recorder:
    """A sequence of arrays that are made anew, and counted, each time."""

    def __init__(self, photos, failing=()):
        self.photos, self.failing, self.asked = photos, failing, []
        self.n_alive = self.most_alive = 0

    def __len__(self):
        return len(self.photos)

    def __getitem__(self, row):
        self.asked.append(row)
        if row in self.failing:
            raise self.failing[row]
        made = Image.fromarray(self.photos[row])
        self.n_alive += 1
        self.most_alive = max(self.most_alive, self.n_alive)
        weakref.finalize(made, self._died)
        return made

    def _died(self):
        self.n_alive -= 1


@pytest.mark.parametrize("cache", [None, "memory"])
def test_each_row_of_a_lazy_sequence_is_asked_for_once(photos, cache):
    rows = Recorder(photos)
    out = features(cache=cache).transform(rows)
    assert sorted(rows.asked) == list(range(len(photos)))
    np.testing.assert_array_equal(out, features().transform(photos))


def test_few_rows_of_a_lazy_sequence_are_held(monkeypatch):
    monkeypatch.setattr("skdeepfeat._images.windows.BYTES_HELD", 20_000)
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (64, 24, 32, 3), np.uint8)
    rows = Recorder(photos)
    out = features(cache=None).transform(rows)
    assert rows.most_alive < 40  # two windows of 16 rows, and what is being computed
    assert rows.asked == list(range(64))
    np.testing.assert_array_equal(out, features().transform(photos))


def test_arrays_in_files_are_read_in_slices(photos, tmp_path):
    h5py = pytest.importorskip("h5py")
    expected = features().transform(photos)
    with h5py.File(tmp_path / "photos.h5", "w") as file:
        stored = file.create_dataset("photos", data=photos)
        np.testing.assert_array_equal(features(cache=None).transform(stored), expected)
        grey = file.create_dataset("grey", data=photos[..., 0])
        np.testing.assert_array_equal(
            features(cache=None).transform(grey), features().transform(photos[..., 0])
        )
        planar = file.create_dataset("planar", data=np.moveaxis(photos, -1, 1))
        with pytest.raises(ValueError, match="must have the shape"):
            features().transform(planar)


def test_an_array_of_which_a_part_cannot_be_read(photos):
    class Damaged:
        shape, dtype = photos.shape, photos.dtype

        def __len__(self):
            return len(photos)

        def __getitem__(self, rows):
            asked = range(len(photos))[rows] if isinstance(rows, slice) else [rows]
            if 2 in asked:
                raise OSError("the chunk is damaged")
            return photos[rows]

    with pytest.raises(ImageError, match=r"row 2 \(row of a Damaged\).*damaged"):
        features(cache=None).transform(Damaged())
    with pytest.warns(ImageWarning, match="1 of 6"):
        out = features(on_error="nan").transform(Damaged())
    assert np.flatnonzero(np.isnan(out).any(1)).tolist() == [2]


def test_columns_of_hugging_face_data_sets(photos, photo_files):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"image": photo_files})
    decoded = table.cast_column("image", datasets.Image())["image"]
    as_bytes = table.cast_column("image", datasets.Image(decode=False))["image"]
    expected = features().transform(photos)
    for column in (decoded, as_bytes):
        np.testing.assert_array_equal(features(cache=None).transform(column), expected)


@pytest.mark.parametrize("error", [OSError("gone"), KeyError("no key"), IndexError()])
@pytest.mark.parametrize("row", [0, 3])
def test_what_indexing_raises_is_an_error_of_the_row(photos, error, row):
    rows = Recorder(photos, {row: error})
    with pytest.raises(ImageError, match=rf"row {row} \(row of a Recorder\)") as caught:
        features().transform(rows)
    assert caught.value.__cause__ is error
    with pytest.warns(ImageWarning, match="1 of 6"):
        out = features(on_error="nan").transform(Recorder(photos, {row: error}))
    good = np.arange(6) != row
    np.testing.assert_array_equal(out[good], features().transform(photos)[good])
    assert np.isnan(out[row]).all()


def test_a_lack_of_memory_is_no_error_of_the_row(photos, monkeypatch):
    with pytest.raises(MemoryError):
        features(on_error="nan").transform(Recorder(photos, {1: MemoryError()}))

    def too_large(*arguments):
        raise MemoryError

    monkeypatch.setattr("skdeepfeat._images.preparing.prepare", too_large)
    with pytest.raises(MemoryError):
        features(on_error="nan", cache=None).transform(photos)


def test_a_fine_tuned_classifier_reads_lazy_rows_once(photos):
    y = np.arange(6) % 2
    model = FineTunedClassifier(tiny_backbone(), epochs=1, head_epochs=1)
    rows = Recorder(photos)
    model.fit(rows, y)
    assert sorted(rows.asked) == list(range(6))
    rows = Recorder(photos)
    scores = model.predict_proba(rows)
    assert sorted(rows.asked) == list(range(6))
    np.testing.assert_array_equal(scores, model.predict_proba(photos))
    with pytest.raises(ImageError, match="row 4"):
        model.fit(Recorder(photos, {4: OSError("gone")}), y)


# Files, uploads, URIs ----------------------------------------------------------------


def test_open_files_and_uploads(photos):
    class Upload:
        """As FastAPI hands files over: its own `read` is a coroutine."""

        def __init__(self, content):
            self.file = io.BytesIO(content)

        async def read(self):
            return self.file.read()

    expected = features().transform(photos)
    files = [io.BytesIO(encoded(photo)) for photo in photos]
    files[1].seek(5)
    rows = [*files[:3], *(Upload(encoded(photo)) for photo in photos[3:])]
    np.testing.assert_array_equal(features(cache=None).transform(rows), expected)
    assert files[1].tell() == 5
    model = FineTunedClassifier(tiny_backbone(), epochs=1).fit(photos, [0, 1] * 3)
    np.testing.assert_array_equal(
        model.predict_proba(rows), model.predict_proba(photos)
    )


def test_open_files_on_disk(photos, photo_files):
    handles = [open(path, "rb") for path in photo_files]
    try:
        out = features(cache=None).transform(handles)
    finally:
        for handle in handles:
            handle.close()
    np.testing.assert_array_equal(out, features().transform(photos))
    with pytest.raises(ImageError, match=r"row 1 .*photo ä 0.png.*closed file"):
        features().transform([photo_files[1], handles[0]])
    with (
        open(photo_files[0], encoding="latin-1") as text,
        pytest.raises(ImageError, match="mode 'rb'"),
    ):
        features().transform([text])


@pytest.mark.parametrize("in_memory", [False, True])
def test_members_of_an_archive(photos, tmp_path, in_memory):
    file = io.BytesIO() if in_memory else tmp_path / "photos.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for row, photo in enumerate(photos):
            archive.writestr(f"ä/{row}.png", encoded(photo))
    with zipfile.ZipFile(file) as archive:
        folder = zipfile.Path(archive, "ä/")
        members = [folder / f"{row}.png" for row in range(len(photos))]
        for X in (members, pd.Series(members), np.array(members, object)):
            out = features(cache=None).transform(X)
            np.testing.assert_array_equal(out, features().transform(photos))
        with pytest.raises(ImageError, match=r"row 1 .*9.png.*no such file"):
            features().transform([members[0], folder / "9.png"])
        with pytest.raises(ImageError, match=r"row 0 .*ä.*is a folder"):
            features().transform([folder])


def column(array):
    return array[:, None]


@pytest.mark.parametrize("shaped", [np.asarray, column, torch.from_numpy])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_encoded_images_in_arrays(photos, kind, shaped):
    files = [encoded(photo, kind) for photo in photos]
    rows = [shaped(np.frombuffer(bytearray(file), np.uint8)) for file in files]
    if shaped is column:
        rows = pd.Series(rows)
    out = features(cache=None).transform(rows)
    np.testing.assert_array_equal(out, features(cache=None).transform(files))


def test_arrays_that_only_begin_like_a_file_are_pixels():
    grey = np.random.default_rng(0).integers(0, 256, (40, 1), np.uint8)
    grey[:2, 0] = list(b"BM")
    assert np.isfinite(features().transform([grey])).all()
    flat = np.full((3, 64), 66, np.uint8)
    flat[:, 1] = 77
    shaped = features(image_shape=(8, 8))
    out = shaped.transform(list(flat))
    np.testing.assert_array_equal(out, shaped.transform(flat))


def test_flat_bytes_that_are_no_file_say_what_to_type(photos):
    rows = [photos[0].ravel(), photos[1]]
    with pytest.raises(ImageError, match=r"row 0 .*tobytes\(\).*image_shape"):
        features().transform(rows)


def test_columns_of_files_and_names_in_hdf5(photos, photo_files, tmp_path):
    h5py = pytest.importorskip("h5py")
    expected = features().transform(photos)
    with h5py.File(tmp_path / "photos.h5", "w") as file:
        kind = h5py.vlen_dtype(np.uint8)
        files = file.create_dataset("files", (6,), kind)
        for row, photo in enumerate(photos):
            files[row] = np.frombuffer(encoded(photo), np.uint8)
        np.testing.assert_array_equal(features(cache=None).transform(files), expected)
        files[2] = np.frombuffer(b"no image", np.uint8)
        with pytest.raises(ImageError, match=r"row 2 .*tobytes"):
            features().transform(files)
        files[0] = np.frombuffer(b"no image", np.uint8)
        with pytest.raises(ImageError, match=r"row 0 .*tobytes"):
            features().transform(files)
        names = file.create_dataset("names", data=photo_files)
        with pytest.raises(ImageError, match=r"row 0 .*X\.asstr\(\)"):
            features().transform(names)
        out = features(cache=None).transform(names.asstr())
        np.testing.assert_array_equal(out, expected)
    for closed in (files, file):
        with pytest.raises(ValueError, match="X must be open"):
            features().transform(closed)


def test_names_in_zarr(photos, photo_files):
    zarr = pytest.importorskip("zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is no dtype of its specification yet
        names = zarr.array(np.array(photo_files))
    out = features(cache=None).transform(names)
    np.testing.assert_array_equal(out, features().transform(photos))


def test_memoryviews_of_pixels_and_of_any_numbers(photos):
    expected = features().transform(photos)
    stack = memoryview(photos)
    np.testing.assert_array_equal(features(cache=None).transform(stack), expected)
    file = encoded(photos[1], "BMP")
    file += bytes(-len(file) % 4)
    twice = np.repeat(np.frombuffer(encoded(photos[2]), np.uint8), 2)
    rows = [memoryview(photos[0]), memoryview(file).cast("I"), memoryview(twice)[::2]]
    np.testing.assert_array_equal(features(cache=None).transform(rows), expected[:3])


def test_tensors_that_numpy_does_not_know(photos):
    planes = torch.from_numpy(np.moveaxis(photos, -1, 1).copy())
    expected = features().transform(photos)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it is a prototype
        nested = torch.nested.nested_tensor([*planes])
    np.testing.assert_array_equal(features(cache=None).transform(nested), expected)
    floats = planes[0].float() / 255
    zeros = torch.zeros_like(floats)
    negative = torch.complex(zeros, -floats).conj().imag
    assert negative.is_neg()
    small = planes[0].div(255).to(torch.float8_e4m3fn)
    rows = [negative, floats, small, small.float()]
    out = features(cache=None).transform(rows)
    np.testing.assert_array_equal(out[[0, 2]], out[[1, 3]])


@pytest.mark.parametrize("X", ["photo.png", "", b"photo"])
def test_an_array_without_axes_is_a_single_image(X):
    with pytest.raises(ValueError, match=r"one ndarray .* pass \[X\]"):
        features().transform(np.array(X))


class Hostile:
    """A path that has none."""

    def __fspath__(self):
        raise RuntimeError("the mount is gone")


class HalfClosed(io.BytesIO):
    """A file that does not even say its name."""

    @property
    def name(self):
        raise OSError("the handle is stale")


class Stream(io.RawIOBase):
    """What can be read once, from where it is."""

    def read(self, n=-1):
        return b""


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (Hostile(), "the mount is gone"),
        (HalfClosed(), "the handle is stale"),
        (Stream(), "cannot be read from its start; pass its bytes"),
        (np.ma.masked_array(np.zeros((8, 8), np.uint8), True), "a masked array"),
        (np.zeros((8, 8, 3), object), r"real numbers, got dtype object; .*astype"),
    ],
)
def test_a_strange_cell_is_an_error_of_its_row(photos, cell, reason):
    with pytest.raises(ImageError, match=rf"row 1 \(.*\): .*{reason}"):
        features().transform([photos[0], cell])
    with pytest.warns(ImageWarning, match="1 of 2"):
        out = features(on_error="nan").transform([photos[0], cell])
    assert np.isnan(out[1]).all() and np.isfinite(out[0]).all()


def test_a_binary_file_that_is_open_as_text(photo_files):
    with (
        open(photo_files[0], encoding="utf-8") as text,
        pytest.raises(ImageError, match="mode 'rb'"),
    ):
        features().transform([text])


def test_file_uris_name_the_very_file(photos, tmp_path):
    names = ["a#b.png", "a?b.png", "a%20b.png", "a;b.png", "ü b.png", "a\nb.png"]
    for name, photo in zip(names, photos, strict=True):
        (tmp_path / name).write_bytes(encoded(photo))
    (tmp_path / "a").write_bytes(encoded(photos[0]))
    (tmp_path / "ab.png").write_bytes(encoded(photos[0]))
    uris = [(tmp_path / name).as_uri() for name in names]
    expected = features().transform(photos)
    np.testing.assert_array_equal(features(cache=None).transform(uris), expected)
    other = [f"FILE://localhost{tmp_path}/ü b.png", f"file://{tmp_path}/a\nb.png"]
    out = features(cache=None).transform(other)
    np.testing.assert_array_equal(out, expected[4:])


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("file://{}/a#b.png", "%23"),
        ("file://{}/a?b.png", "%3F"),
        ("file://otherhost{}/a", "host 'otherhost'"),
        ("file://a", "three slashes"),
    ],
)
def test_file_uris_of_something_else_are_refused(photos, tmp_path, uri, reason):
    (tmp_path / "a").write_bytes(encoded(photos[0]))
    with pytest.raises(ImageError, match=reason):
        features().transform([uri.format(tmp_path)])


def test_base64_of_any_spelling(photos):
    content = encoded(photos[0])
    plain, safe = base64.b64encode(content), base64.urlsafe_b64encode(content)
    assert plain != safe
    lines = "\n".join(textwrap.wrap(plain.decode(), 60))
    uris = [
        f"DATA:image/png;BASE64,{plain.decode()}",
        f"data:image/png;name=x; base64,{safe.decode()}",
        f"data:;base64,{plain.decode().rstrip('=')}",
        f"data:;base64,{lines}",
    ]
    out = features(cache=None).transform(uris)
    np.testing.assert_array_equal(out, features().transform(photos[[0] * 4]))
    with pytest.raises(ImageError, match='base64 of this "data:" URI is damaged'):
        features().transform([uris[0].replace("+", " ")])


def test_file_and_data_uris(photos, photo_files):
    uris = [Path(path).as_uri() for path in photo_files[:3]]
    assert uris[0].startswith("file:///") and "%20" in uris[0]
    content = base64.b64encode(encoded(photos[3])).decode()
    uris += [
        f"data:image/png;base64,{content}",
        "data:image/png;base64," + content.replace("=", "%3D"),
    ]
    out = features(cache=None).transform(uris)
    expected = features().transform(photos)[[0, 1, 2, 3, 3]]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("data:image/png;base64,AAAA" + 100_000 * "A", "not an image"),
        ("data:image/png", "comma"),
        (100_000 * "iVBORw0KGgo", "base64"),
        ("https://localhost/a.png", r"protocols=\('https',\)"),
        ("simplecache::s3://bucket/a.png", r"protocols=\('simplecache', 's3'\)"),
        ("FTP://localhost/a.png", "not opened"),
    ],
)
def test_texts_that_are_no_images_are_named_shortly(text, reason):
    with pytest.raises(ImageError, match=reason) as caught:
        features().transform([text])
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("url", "words", "typed"),
    [
        ("https://localhost/a.png", 'requires "aiohttp"', True),
        ("simplecache::http://localhost/a.png", 'requires "aiohttp"', True),
        ("s3://bucket/a.png", "Install s3fs to access S3", False),
    ],
)
def test_without_a_client_the_error_says_what_to_type(url, words, typed, monkeypatch):
    core = pytest.importorskip("fsspec.core")

    def lacking(*arguments, **options):
        raise ImportError(words)

    monkeypatch.setattr(core, "url_to_fs", lacking)
    schemes = ("https", "http", "s3", "simplecache")
    with pytest.raises(ImageError, match=words) as caught:
        features(protocols=schemes).transform([url])
    assert ("pip install 'skdeepfeat[remote]'" in str(caught.value)) == typed


def test_a_pipe_is_not_waited_for(tmp_path, photo_files):
    os.mkfifo(tmp_path / "pipe.png")
    rows = [photo_files[0], tmp_path / "pipe.png"]
    with pytest.raises(ImageError, match=r"row 1 .* is a pipe"):
        features().transform(rows)
    model = FineTunedClassifier(tiny_backbone(), epochs=1)
    with pytest.raises(ImageError, match=r"row 1 .* is a pipe"):
        model.fit(rows, [0, 1])


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs files of Linux")
def test_files_that_the_system_makes_are_not_read(photo_files):
    """Some, such as /proc/kmsg, block whoever reads them; none states its size."""
    rows = ["/proc/version", photo_files[0], "file:///proc/version"]
    found = features(on_error="nan")
    with pytest.warns(ImageWarning, match="2 of 3 images"):
        out = found.transform(rows)
    assert np.isnan(out).all(1).tolist() == [True, False, True]
    assert [reason for *_, reason in found.errors_] == ["the file is empty"] * 2


@pytest.mark.parametrize("on_error", ["raise", "nan"])
def test_names_that_are_no_utf_8_work_with_a_store_on_disk(photos, tmp_path, on_error):
    name = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    with open(name, "wb") as file:
        file.write(encoded(photos[0]))
    store = features(cache=tmp_path / "store", on_error=on_error)
    expected = features().transform(photos[:1])
    for _ in range(2):
        out = store.transform([os.fsdecode(name)])
        np.testing.assert_array_equal(out, expected)
    assert FeatureStore(tmp_path / "store").info()["hits"] == 1


# What is another computation ---------------------------------------------------------


class Hooked(torch.nn.Module):
    """A network that has no description: torch.fx cannot trace it."""

    def __init__(self):
        super().__init__()
        self.net = tiny_network()

    def forward(self, x):
        return self.net(x) if float(x.sum()) > -1e9 else x


def test_what_cannot_be_described_is_kept_in_memory_unless_it_is_named(
    photos, tmp_path
):
    store = FeatureStore(tmp_path / "store")
    unnamed = Backbone.from_module(Hooked(), image_size=8)
    with pytest.warns(StoreWarning, match="version='1'") as caught:
        rows = features(backbone=unnamed, cache=store)
        out = rows.transform(photos)
        rows.transform(photos)
    assert caught[0].filename == __file__
    assert rows.stats_["n_computed"] == 0 and store.info()["rows"] == 0
    named = Backbone.from_module(Hooked(), image_size=8, version="3")
    np.testing.assert_array_equal(
        features(backbone=named, cache=store).transform(photos), out
    )
    assert store.info()["rows"] > 0
    again = features(
        backbone=Backbone.from_module(Hooked(), image_size=8, version="3"), cache=store
    )
    again.transform(photos)
    assert again.stats_["n_computed"] == 0


def test_rows_made_under_autocast_are_the_same(photos):
    expected = features(cache=None).transform(photos)
    with torch.autocast("cpu", torch.bfloat16):
        out = features().transform(photos)
    np.testing.assert_array_equal(out, expected)


def test_rows_made_by_lenient_decoding_are_not_served_to_others(photos, monkeypatch):
    cut = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    cut = cut[: len(cut) // 2]
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    assert np.isfinite(features().transform([cut])).all()
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", False)
    with pytest.raises(ImageError, match="row 0"):
        features().transform([cut])


# URLs --------------------------------------------------------------------------------


@pytest.fixture
def server():
    """A web server on this machine; what it serves, sends as headers, and was asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.server.asked.append(self.path)
            content = self.answer(self.server.broken)
            if content is not None:
                self.wfile.write(content)

        def answer(self, statuses=()):
            content = self.server.content.get(self.path)
            status = 200 if content is not None else 404
            status = {**self.server.statuses, **dict(statuses)}.get(self.path, status)
            headers = {"Content-Length": str(len(content or b""))}
            self.send_response(status)
            for header in {**headers, **self.server.headers.get(self.path, {})}.items():
                self.send_header(*header)
            self.end_headers()
            return content

        def log_message(self, *arguments):
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.content, made.headers, made.asked = {}, {}, []
    made.statuses, made.broken = {}, {}  # by path; of GET alone
    made.url = f"http://127.0.0.1:{made.server_port}"
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def aiohttp():
    pytest.importorskip("fsspec")
    return pytest.importorskip("aiohttp")


def test_urls_that_are_allowed_are_read_once(photos, server, aiohttp):
    urls = [f"{server.url}/{i}.png" for i in range(6)]
    server.content = {f"/{i}.png": encoded(photo) for i, photo in enumerate(photos)}
    expected = features().transform(photos)
    out = features(cache=None, protocols=("http",)).transform(urls)
    np.testing.assert_array_equal(out, expected)
    assert sorted(server.asked) == sorted(server.content)
    model = FineTunedClassifier(tiny_backbone(), epochs=1, protocols=["http"])
    model.fit(urls, [0, 1] * 3)
    np.testing.assert_array_equal(
        model.predict_proba(urls), model.predict_proba(photos)
    )


@pytest.mark.parametrize(
    ("before", "after", "n_fetched"),
    [
        ({"ETag": '"1"'}, {"ETag": '"2"'}, 1),
        ({"Content-MD5": "1"}, {"Content-MD5": "2"}, 1),
        (
            {"Last-Modified": "Wed, 25 Nov 2026 10:00:00 GMT"},
            {"Last-Modified": "Wed, 25 Nov 2026 10:00:01 GMT"},
            1,
        ),
        ({"ETag": 'W/"1"'}, {"ETag": 'W/"1"'}, 2),
        ({}, {}, 2),
    ],
)
def test_urls_are_remembered_only_as_long_as_they_stay(
    photos, server, aiohttp, before, after, n_fetched, tmp_path
):
    first, second = encoded(photos[0]), encoded(photos[1])
    store = features(cache=tmp_path / "store", protocols=("http",))
    server.content, server.headers = {"/a.png": first}, {"/a.png": before}
    expected = features().transform(photos[:2])
    for _ in range(2):
        out = store.transform([f"{server.url}/a.png"])
        np.testing.assert_array_equal(out, expected[:1])
    assert len(server.asked) == n_fetched
    server.content, server.headers = {"/a.png": second}, {"/a.png": after}
    out = store.transform([f"{server.url}/a.png"])
    np.testing.assert_array_equal(out, expected[1:])


def test_a_failed_read_names_its_url(photos, server, aiohttp):
    server.content = {"/a.png": encoded(photos[0])}
    urls = [f"{server.url}/a.png", f"{server.url}/gone.png"]
    with pytest.warns(ImageWarning, match="1 of 2"):
        remote = features(protocols=("http",), on_error="nan")
        out = remote.transform(urls)
    assert np.isnan(out[1]).all() and np.isfinite(out[0]).all()
    ((row, source, reason),) = remote.errors_
    assert (row, source) == (1, urls[1]) and reason
    with pytest.raises(ImageError, match="URLs of 'http' are not opened"):
        features().transform(urls)
    assert server.asked.count("/a.png") == 1


def test_a_row_that_cannot_be_read_again_takes_the_content_of_an_equal_one(
    photos, server, aiohttp
):
    content = encoded(photos[0])
    url = f"{server.url}/a.png"
    server.content, server.headers = {"/a.png": content}, {"/a.png": {"ETag": '"1"'}}
    remote = features(protocols=("http",), on_error="nan", cache=None)
    expected = remote.transform([url])
    server.broken = {"/a.png": 500}
    for rows in ([url, content], [content, url], [url, url, content, url]):
        out = remote.transform(rows)
        np.testing.assert_array_equal(out, np.repeat(expected, len(rows), 0))
        assert remote.errors_ == [] and remote.stats_["n_computed"] == 1


def test_equal_rows_that_cannot_be_read_have_errors_of_their_own(
    photos, server, aiohttp, tmp_path
):
    content, headers = encoded(photos[0]), {"ETag": '"1"'}
    urls = [f"{server.url}/{name}.png" for name in "ab"]
    server.content = {"/a.png": content, "/b.png": content}
    server.headers = {"/a.png": headers, "/b.png": headers}
    remote = features(protocols=("http",), on_error="nan", cache=None)
    remote.transform(urls)
    server.broken = {"/a.png": 500, "/b.png": 503}
    with pytest.warns(ImageWarning, match="2 of 2"):
        remote.transform(urls)
    assert remote.errors_ == [
        (0, urls[0], "the server answered 500"),
        (1, urls[1], "the server answered 503"),
    ]
    (tmp_path / "damaged.png").write_bytes(content[:100])
    rows = [tmp_path / "damaged.png", content[:100]]
    with pytest.warns(ImageWarning, match="2 of 2"):
        remote.transform(rows)
    sources = [source for _, source, _ in remote.errors_]
    assert sources == [str(rows[0]), "100 bytes"]


def test_a_row_of_a_later_window_is_tried_where_an_equal_one_failed(
    photos, server, aiohttp, monkeypatch
):
    monkeypatch.setattr("skdeepfeat._images.windows.ROWS_HELD", 1)
    monkeypatch.setattr("skdeepfeat._images.sequences.Held.at_once", 1)
    content, url = encoded(photos[0]), f"{server.url}/a.png"
    server.content, server.headers = {"/a.png": content}, {"/a.png": {"ETag": '"1"'}}
    remote = features(protocols=("http",), on_error="nan", cache=None)
    expected = remote.transform([url])
    server.broken = {"/a.png": 500}
    with pytest.warns(ImageWarning, match="1 of 3"):
        out = remote.transform([url, content, content])
    assert np.isnan(out[0]).all()
    np.testing.assert_array_equal(out[1:], expected[[0, 0]])


@pytest.mark.parametrize("call", ["transform", "store"])
def test_passwords_and_tokens_in_urls_are_kept_secret(
    photos, server, aiohttp, tmp_path, call
):
    url = server.url.replace("http://", "http://user:s3cr3t@") + "/a.png?sig=t0ken"
    shown = f"{server.url}/a.png?..."
    if call == "store":
        server.content = {"/a.png?sig=t0ken": encoded(photos[0])}
        server.headers = {"/a.png?sig=t0ken": {"ETag": '"1"'}}
        features(protocols=("http",), cache=tmp_path).transform([url])
        stored = b"".join(path.read_bytes() for path in tmp_path.glob("*.sqlite*"))
        assert b"s3cr3t" not in stored and b"t0ken" not in stored
        assert shown.encode() in stored
        return
    for path, statuses in [("403", {"/a.png?sig=t0ken": 403}), ("404", {})]:
        server.statuses = statuses
        remote = features(protocols=("http",), on_error="nan")
        with pytest.warns(ImageWarning) as caught:
            remote.transform([url])
        assert remote.errors_ == [(0, shown, f"the server answered {path}")]
        assert shown in str(caught[0].message)
        with pytest.raises(ImageError) as raised:
            features(protocols=("http",)).transform([url])
        text = "".join(traceback.format_exception(raised.value))
        assert "s3cr3t" not in text + str(caught[0].message)
        assert "t0ken" not in text + str(caught[0].message)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": 403}, "the server answered 403"),
        ({"status": 500}, "the server answered 500"),
        ({"status": 302, "Location": "/a.png"}, "redirects without end"),
        (
            {"status": 302, "Location": "file:///etc/hostname"},
            "to what is not HTTP",
        ),
        ({"status": 200, "Content-Length": "9999"}, "sent less than it announced"),
    ],
)
def test_what_a_server_answers_is_said(photos, server, aiohttp, answer, reason):
    server.content = {"/a.png": encoded(photos[0])}
    server.statuses = {"/a.png": answer.pop("status")}
    server.headers = {"/a.png": answer}
    with pytest.raises(ImageError, match=rf"/a\.png\): .*{reason}") as caught:
        features(protocols=("http",)).transform([f"{server.url}/a.png"])
    assert len(str(caught.value)) < 120


def test_a_server_that_is_not_there_or_speaks_no_http(aiohttp):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        with pytest.raises(ImageError, match="there is no connection to the server"):
            features(protocols=("http",)).transform([url])
        listener.listen()

        def answer():
            for _ in range(2):
                connection = listener.accept()[0]
                connection.recv(10_000)
                connection.sendall(b"220 mail.example ESMTP ready\r\n\r\n" * 50)
                connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(ImageError, match="is not valid HTTP"):
            features(protocols=("http",)).transform([url])
        thread.join(10)


def test_schemes_may_be_written_in_capitals(photos, server, aiohttp):
    server.content = {"/a.png": encoded(photos[0])}
    url = server.url.replace("http", "HTTP") + "/a.png"
    expected = features().transform(photos[:1])
    for allowed in ("http", "HTTP"):
        out = features(protocols=(allowed,), cache=None).transform([url])
        np.testing.assert_array_equal(out, expected)


def test_any_file_system_of_fsspec(photos):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    try:
        for round_ in range(2):  # the second time with another content
            memory.pipe("/photos/a.png", encoded(photos[round_]))
            out = features(protocols=("memory",)).transform(["memory://photos/a.png"])
            expected = features().transform(photos[round_][None])
            np.testing.assert_array_equal(out, expected)
    finally:
        memory.rm("/photos", recursive=True)


# What a row is marked with -----------------------------------------------------------


def float_tiff(photo):
    file = io.BytesIO()
    Image.fromarray(photo[..., 0].astype(np.float32)).save(file, "TIFF")
    return file.getvalue()


def warned_of_range(function, *arguments):
    """The files that warnings about the range of values point at."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*arguments)
    return [w.filename for w in caught if "outside the range" in str(w.message)]


@pytest.mark.parametrize("on_disk", [False, True])
def test_values_out_of_range_warn_in_every_call_at_the_users_line(
    photos, tmp_path, on_disk
):
    cache = tmp_path / "store" if on_disk else "memory"
    store = features(cache=cache)
    blob = float_tiff(photos[0])
    (tmp_path / "a.tiff").write_bytes(blob)
    kinds = {
        "array": photos[0].astype(np.float32),
        "bytes": blob,
        "path": tmp_path / "a.tiff",
        "pil": Image.fromarray(photos[1][..., 0].astype(np.float32)),
    }
    for cell in kinds.values():
        for _ in range(3):
            assert warned_of_range(store.transform, [cell]) == [__file__]
    assert warned_of_range(store.warm, [blob]) == [__file__]
    assert warned_of_range(store.fit_transform, [blob, photos[0]]) == [__file__]
    assert warned_of_range(store.transform, [photos[0]]) == []


def test_warnings_in_a_pool_of_threads_point_at_code_of_this_package(photos):
    rows = photos.astype(np.float32)
    with ThreadPoolExecutor(1) as pool:

        def transform(X):
            pool.submit(features().transform, X).result()

        (filename,) = warned_of_range(transform, rows)
    assert Path(filename).name == "_walk.py"
    with ThreadPoolExecutor(1) as pool:

        def nested(X):
            pool.submit(lambda: features().transform(X)).result()

        assert warned_of_range(nested, rows) == [__file__]


def test_a_later_process_warns_of_stored_values_out_of_range(photos, tmp_path):
    (tmp_path / "a.tiff").write_bytes(float_tiff(photos[0]))
    code = textwrap.dedent(
        """
        import sys, warnings
        from skdeepfeat import PretrainedCNNFeatures
        store = PretrainedCNNFeatures(engine="torch", cache=sys.argv[1])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            store.transform([sys.argv[2]])
        told = ["outside the range" in str(w.message) for w in caught]
        print(store.stats_["n_computed"], told)
        """
    )
    command = [sys.executable, "-c", code, tmp_path / "store", tmp_path / "a.tiff"]
    for n_computed in (1, 0):
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == f"{n_computed} [True]"


def test_a_fine_tuned_classifier_warns_of_values_out_of_range(photos):
    model = FineTunedClassifier(tiny_backbone(), epochs=1, head_epochs=1)
    rows, y = photos.astype(np.float32), [0, 1] * 3
    assert warned_of_range(model.fit, rows, y) == [__file__]
    assert warned_of_range(model.predict, rows) == [__file__]
    assert warned_of_range(model.predict, photos) == []


# Numbers that are none ----------------------------------------------------------------


def test_features_that_are_not_finite_are_errors_of_their_rows(photos, tmp_path):
    rows = photos.astype(np.float32) / 255
    rows[2] = 1e38
    rows[2, ::2] = -1e38
    expected = features().transform(rows[[0, 1, 3, 4, 5]])
    for cache in ("memory", tmp_path / "store"):
        store = features(cache=cache, on_error="nan", prefetch_layers="all")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)
            out = store.transform(rows)
            again = store.transform(rows)
        assert np.isnan(out[2]).all()
        np.testing.assert_array_equal(out[[0, 1, 3, 4, 5]], expected)
        np.testing.assert_array_equal(out, again)
        for row, _, reason in store.errors_:
            assert row == 2 and "not finite" in reason and "value_range" in reason
    with (
        warnings.catch_warnings(),
        pytest.raises(ImageError, match=r"row 2 .* not finite"),
    ):
        warnings.simplefilter("ignore", ImageWarning)
        features().transform(rows)


def test_a_prefetched_layer_that_overflows_is_not_kept(photos):
    net = tiny_network()
    with torch.no_grad():
        net[8].weight.fill_(3e38)
    store = FeatureStore(name="overflow")
    shallow = PretrainedCNNFeatures(
        Backbone.from_module(net, image_size=8),
        layer="block1",
        cache=store,
        prefetch_layers="all",
    )
    assert np.isfinite(shallow.transform(photos)).all()
    deep = PretrainedCNNFeatures(shallow.backbone, layer="logits", cache=store)
    with pytest.raises(ImageError, match="not finite"):
        deep.transform(photos)


def test_a_fine_tuned_classifier_refuses_rows_that_are_not_finite(photos):
    model = FineTunedClassifier(tiny_backbone(), epochs=1).fit(photos, [0, 1] * 3)
    rows = photos.astype(np.float32) / 255
    rows[1] = 1e38
    with (
        warnings.catch_warnings(),
        pytest.raises(ImageError, match=r"row 1 .* not finite"),
    ):
        warnings.simplefilter("ignore", ImageWarning)
        model.predict(rows)


# Depths in any order ----------------------------------------------------------------

DEPTHS = ["block1", "block4", "block5", "penultimate"]
ORDERS = [DEPTHS, DEPTHS[::-1], ["block4", "penultimate", "block1", "block5"]]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("on_disk", [False, True])
def test_any_order_of_depths_costs_two_passes_at_most(photos, tmp_path, order, on_disk):
    store = FeatureStore(tmp_path / "store" if on_disk else None, name="orders")
    alone = {n: features(layer=n, cache=None).transform(photos) for n in order}
    for name in order:
        out = features(layer=name, cache=store).transform(photos)
        np.testing.assert_array_equal(out, alone[name])
    assert store.info()["misses"] <= 2 * len(photos)


@pytest.fixture
def table(monkeypatch):
    """The only table that estimators open."""
    made = FakeTable()
    monkeypatch.setattr("skdeepfeat._walk.open_table", lambda *arguments: made)
    return made


def test_deepest_first_costs_one_pass(photos, table):
    for name in DEPTHS[::-1]:
        features(layer=name).transform(photos)
    assert table.misses == len(photos)


def test_one_stored_image_is_enough_to_store_all_depths_of_a_call(photos, table):
    features(layer="block1").transform(photos[:1])
    features(layer="block4").transform(photos)
    assert table.misses == 1 + len(photos)
    features(layer="penultimate").transform(photos)
    assert table.misses == 1 + len(photos)


def test_a_single_row_computes_only_what_is_asked(photos, table):
    features(layer="block1").transform(photos[:1])
    features(layer="block4").transform(photos[:1])
    assert "tiny penultimate none" not in table.info()["layers"]
    assert len(table.info()["layers"]) == 4  # block1 to block4


def test_all_depths_are_stored_if_another_worker_was_faster(photos, table):
    real = table.claim

    def late(*arguments):
        table.claim = real
        features(layer="block1").transform(photos)
        return real(*arguments)

    table.claim = late
    features(layer="block4").transform(photos)
    features(layer="penultimate").transform(photos)
    assert table.misses == 2 * len(photos)


def test_a_list_of_layers_is_never_widened(photos, table):
    for name in DEPTHS[:3]:
        features(layer=name, prefetch_layers=[]).transform(photos)
    assert table.misses == 3 * len(photos)
    assert len(table.info()["layers"]) == 3


def test_claims_end_when_a_call_fails(photos, table, monkeypatch):
    def fail(self, *arguments):
        assert table.claims
        raise RuntimeError("the network fails")

    monkeypatch.setattr("skdeepfeat._engines.running.Engine._start", fail)
    with pytest.raises(RuntimeError, match="the network fails"):
        features().transform(photos)
    assert not table.claims and not table.rows


def test_a_store_that_grants_nothing_and_has_nothing_is_done_without(photos, table):
    table.claim = lambda *arguments: []
    out = features().transform(photos)
    assert out.shape == (len(photos), 10) and np.isfinite(out).all()


def test_workers_side_by_side_keep_the_bound(photos, tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (200, 8, 8, 3), np.uint8)
    store = FeatureStore(tmp_path / "store")

    def work(order):
        for name in order:
            features(layer=name, cache=store, batch_size=4).transform(rows)

    threads = [threading.Thread(target=work, args=(order,)) for order in ORDERS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 200 <= store.info()["misses"] <= 400


# Bounds -----------------------------------------------------------------------------


def test_a_full_store_says_once_what_it_would_need(photos, tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (60, 8, 8, 3), np.uint8)
    small = FeatureStore(name="full", max_bytes=10_000)
    with pytest.warns(StoreWarning, match=r"60 images .* max_bytes=") as caught:
        features(cache=small, prefetch_layers="all").transform(rows)
        features(cache=small, prefetch_layers="all").transform(rows)
    assert [w.filename for w in caught] == [__file__]
    _, _, typed = str(caught[0].message).partition("max_bytes=")
    needed = int(typed.partition(")")[0])
    enough = FeatureStore(name="enough", max_bytes=needed)
    features(cache=enough, prefetch_layers="all").transform(rows)
    assert enough.info()["bytes"] <= needed


@pytest.mark.parametrize("in_folder", [False, True])
def test_each_store_says_that_it_is_full_and_again_at_another_limit(
    in_folder, tmp_path
):
    rows = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    names = [f"{tmp_path}/{name}" for name in "ab"]
    full = [{"path": name if in_folder else None, "name": name} for name in names]
    floor = 70_000 * in_folder  # less than a folder takes without rows
    with warnings.catch_warnings(record=True, action="default") as caught:
        for limit in (5_000, 5_001):
            for _ in range(2):
                for place in full:
                    store = FeatureStore(**place, max_bytes=limit + floor)
                    features(cache=store, prefetch_layers="all").transform(rows)
    assert len(caught) == 4


@pytest.mark.parametrize("in_folder", [False, True])
def test_the_store_that_a_full_one_advises_is_large_enough(in_folder, tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    path = str(tmp_path / "store") if in_folder else None
    store = FeatureStore(path, f"{tmp_path}", max_bytes=5_000 + 70_000 * in_folder)
    with pytest.warns(StoreWarning, match="max_bytes=") as caught:
        features(cache=store, prefetch_layers="all").transform(rows)
    typed = re.search(r"FeatureStore\(.*?\)", str(caught[0].message))[0]
    enough = eval(typed, {"FeatureStore": FeatureStore})
    for _ in range(2):
        again = features(cache=enough, prefetch_layers="all")
        again.transform(rows)
    assert enough.open() is store.open() and again.stats_["n_computed"] == 0


def test_a_merge_into_a_full_store_does_not_hide_that_calls_find_it_full(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    other = FeatureStore(name=f"other {tmp_path}")
    features(cache=other).transform(rows)
    full = FeatureStore(name=f"full {tmp_path}", max_bytes=5_000)
    with pytest.warns(StoreWarning, match="keeps only"):
        full.merge(other)
    with pytest.warns(StoreWarning, match="rows are removed and computed again"):
        features(cache=full).transform(rows)


def test_what_was_only_prefetched_leaves_first(photos):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (20, 8, 8, 3), np.uint8)
    store = FeatureStore(name="spare", max_bytes=20 * 400)
    with pytest.warns(StoreWarning, match="limit"):
        features(cache=store, prefetch_layers="all").transform(rows)
    again = features(cache=store)
    again.transform(rows)
    assert again.stats_["n_computed"] == 0


def test_a_store_of_an_earlier_version_is_left_alone_and_said(tmp_path):
    old = GOLDEN / "store" / "features.v1.sqlite"
    (tmp_path / old.name).write_bytes(old.read_bytes())
    rows = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    store = features(cache=tmp_path)
    with pytest.warns(StoreWarning, match=r"features.v1.sqlite.*left alone"):
        out = store.transform(rows)
    np.testing.assert_array_equal(store.transform(rows), out)
    assert store.stats_["n_computed"] == 0
    assert (tmp_path / old.name).read_bytes() == old.read_bytes()
