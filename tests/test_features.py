"""PretrainedCNNFeatures does what its documentation says, on a tiny network."""

import copy
import io
import os
import pickle
import re
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
import skops.io
import torch
from conftest import count_images, tiny_backbone, tiny_network
from PIL import Image
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import StackingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Bunch
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.fixes import parse_version
from torch.utils.data import DataLoader

from skdeepfeat import (
    Backbone,
    FeatureStore,
    FineTunedClassifier,
    ImageError,
    ImageWarning,
    OutputTooLarge,
    PretrainedCNNFeatures,
    PretrainedTextFeatures,
    clear_caches,
    list_layers,
    register_backbone,
)

OLD = parse_version(sklearn.__version__) < parse_version("1.7")
not_in_sklearn_16 = pytest.mark.skipif(OLD, reason="scikit-learn 1.6 cannot do this")
FRAMES = [pd.DataFrame, pytest.param(pl.DataFrame, marks=not_in_sklearn_16)]


def features(**parameters):
    return PretrainedCNNFeatures("tiny", **{"cache": None, **parameters})


@pytest.fixture
def count_forwards(monkeypatch):
    """Counts the images that reach the first convolution of the tiny network."""
    seen = count_images(monkeypatch)
    return lambda: seen[0]


# Rows are independent and exact -----------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_rows_do_not_depend_on_their_neighbours(photos, batch_size):
    est = features(batch_size=batch_size)
    many = np.concatenate([photos] * 3)
    many = np.stack([np.roll(image, i, 0) for i, image in enumerate(many)])
    whole = est.transform(many)
    order = np.random.default_rng(0).permutation(len(many))
    np.testing.assert_array_equal(est.transform(many[order]), whole[order])
    np.testing.assert_array_equal(est.transform(many[5:]), whole[5:])
    repeated = est.transform(many[[3, 3, 0, 3]])
    np.testing.assert_array_equal(repeated, whole[[3, 3, 0, 3]])


def test_single_rows_and_batch_sizes_agree(photos):
    whole = features().transform(photos)
    for batch_size in (1, 2, 5, 100):
        found = features(batch_size=batch_size).transform(photos)
        np.testing.assert_allclose(found, whole, rtol=1e-6, atol=1e-6)
    one_by_one = [features().transform(photo[None])[0] for photo in photos]
    np.testing.assert_allclose(one_by_one, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cache", [None, "memory", FeatureStore(name="own")])
def test_cache_does_not_change_a_bit(photos, cache):
    est = features(cache=cache)
    first = est.transform(photos)
    np.testing.assert_array_equal(first, features().transform(photos))
    np.testing.assert_array_equal(est.transform(photos[::-1]), first[::-1])


def test_output_is_contiguous_float32(photos):
    out = features().fit_transform(photos)
    assert out.dtype == np.float32 and out.flags.c_contiguous
    assert out.shape == (6, 10)


def test_layers_read_together_equal_layers_read_alone(photos):
    names = [layer.alias for layer in list_layers("tiny")]
    together = features(layer=tuple(names)).transform(photos)
    alone = [features(layer=name).transform(photos) for name in names]
    np.testing.assert_array_equal(together, np.concatenate(alone, axis=1))


@pytest.fixture
def double_precision():
    """The default dtype of torch, as other code may set it."""
    clear_caches()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    clear_caches()


@pytest.mark.parametrize("weights", ["default", None])
def test_the_default_dtype_changes_nothing(photos, weights, request):
    network = PretrainedCNNFeatures("mini", weights=weights, engine="torch", cache=None)
    rows = network.transform(photos)
    request.getfixturevalue("double_precision")
    np.testing.assert_array_equal(network.transform(photos), rows)
    assert torch.get_default_dtype() == torch.float64


def test_a_network_in_double_precision_is_computed_in_single(photos):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    rows = [
        PretrainedCNNFeatures(Backbone.from_module(one, image_size=32), cache=None)
        .set_params(engine="torch")
        .transform(photos)
        for one in (net, copy.deepcopy(net).double())
    ]
    np.testing.assert_array_equal(*rows)


def test_global_state_is_left_alone(photos):
    before = torch.random.get_rng_state(), torch.get_num_threads()
    random_net = PretrainedCNNFeatures("squeezenet1_1", weights=None, layer="stem")
    random_net.transform(photos)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


def test_input_is_not_written_and_may_be_read_only(photos):
    copied = photos.copy()
    copied.setflags(write=False)
    features().transform(copied)
    np.testing.assert_array_equal(copied, photos)


# The walk goes through the store ----------------------------------------------------


def test_an_image_is_computed_once(photos, count_forwards):
    est = features(cache="memory", batch_size=1)
    est.transform(photos)
    est.transform(np.concatenate([photos, photos[::-1]]))
    clone(est).set_params(layer="block1").transform(photos)
    assert count_forwards() == len(photos)


def test_without_cache_duplicates_are_computed_once(photos, count_forwards):
    features(batch_size=1).transform(np.concatenate([photos, photos]))
    assert count_forwards() == len(photos)


def test_settings_that_change_features_do_not_share_rows(photos):
    settings = [
        {},
        {"pooling": "max"},
        {"image_size": 12},
        {"value_range": (0, 300)},
        {"layer": "block2"},
        {"precision": "bfloat16"},
        {"backbone": tiny_backbone(seed=1)},
    ]
    shared = [
        features(cache="memory").set_params(**s).transform(photos) for s in settings
    ]
    fresh = [features().set_params(**s).transform(photos) for s in settings]
    for found, expected in zip(shared, fresh, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_grid_search_computes_each_image_once(photos, count_forwards):
    X, y = np.concatenate([photos, photos[:, ::-1]]), np.arange(12) % 2
    pipe = make_pipeline(features(cache="memory", batch_size=1), LogisticRegression())
    grid = {
        "pretrainedcnnfeatures__layer": ["penultimate", "block4", "block1"],
        "logisticregression__C": [0.1, 1],
    }
    uncached = clone(pipe).set_params(pretrainedcnnfeatures__cache=None)
    expected = GridSearchCV(uncached, grid, cv=3).fit(X, y)
    before = count_forwards()
    search = GridSearchCV(pipe, grid, cv=3, return_train_score=True).fit(X, y)
    assert count_forwards() - before == 12
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"]
    )


def test_threads_share_one_network_and_get_right_rows(photos, monkeypatch):
    from skdeepfeat._networks import building, sharing

    built = []
    build = building.build_network

    def counted(source):
        built.append(source)
        return build(source)

    monkeypatch.setattr(building, "build_network", counted)
    monkeypatch.setattr(sharing, "build_network", counted)
    expected = features().transform(photos)
    clear_caches()
    built.clear()
    results = []

    def work(i):
        layer = ["block1", "block4", "penultimate"][i % 3]
        out = features(layer=("penultimate", layer)).transform(photos)
        results.append(out[:, :10])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 2  # one runs, and its graph was compared with the other
    assert len(results) == 8
    for result in results:
        np.testing.assert_array_equal(result, expected)


# Preprocessing depends on dtype and parameters alone --------------------------------


def test_scaling_does_not_depend_on_other_rows(photos):
    dark, bright = photos[:1] / 255.0 / 10, photos[1:2] / 255.0
    np.testing.assert_array_equal(
        features().transform(np.concatenate([dark, bright]))[:1],
        features().transform(np.concatenate([dark, dark / 2]))[:1],
    )


def test_equal_pixels_of_any_dtype_agree(photos):
    expected = features().transform(photos)
    np.testing.assert_array_equal(features().transform(photos.astype(int)), expected)
    atol = 0.01 * np.abs(expected).max()
    for same in (photos / 255.0, photos.astype(np.uint16) * 257):
        np.testing.assert_allclose(features().transform(same), expected, atol=atol)
    scaled = features(value_range=(0, 16)).transform(photos / 255 * 16)
    np.testing.assert_allclose(scaled, expected, atol=atol)


def test_values_out_of_range_warn_once_and_are_not_clipped(photos):
    with pytest.warns(ImageWarning, match="value_range") as caught:
        out = features().transform(photos.astype(float))
    assert len(caught) == 1
    in_range = features().transform(photos / 255.0)
    assert np.abs(out).max() > 20 * np.abs(in_range).max()


def test_flat_rows_are_images_of_the_given_shape(photos):
    expected = features().transform(photos)
    flat = photos.reshape(6, -1)
    planar = photos.transpose(0, 3, 1, 2).reshape(6, -1)
    for rows, shape in [
        (flat, (24, 32, 3)),
        (flat, (24, -1, 3)),
        (planar, (3, 24, 32)),
        (flat.tolist(), (24, 32, 3)),
        (pd.DataFrame(flat), (24, 32, 3)),
    ]:
        np.testing.assert_array_equal(
            features(image_shape=shape).transform(rows), expected
        )
    with pytest.raises(ValueError, match="image_shape"):
        features().transform(flat)
    with pytest.raises(ValueError, match="does not fit rows of 2304"):
        features(image_shape=(7, 7)).transform(flat)


# Containers -------------------------------------------------------------------------


def encoded(photo):
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "PNG")
    return buffer.getvalue()


CONTAINERS = {
    "list of paths": lambda paths, photos: paths,
    "tuple of paths": lambda paths, photos: tuple(paths),
    "array of paths": lambda paths, photos: np.array(paths),
    "object array of paths": lambda paths, photos: np.array(paths, dtype=object),
    "column of paths": lambda paths, photos: np.array(paths)[:, None],
    "pandas Series": lambda paths, photos: pd.Series(paths, index=list("abcdef")),
    "polars Series": lambda paths, photos: pl.Series(paths),
    "pandas frame": lambda paths, photos: pd.DataFrame({"path": paths}),
    "polars frame": lambda paths, photos: pl.DataFrame({"path": paths}),
    "bytes": lambda paths, photos: [encoded(photo) for photo in photos],
    "Series of bytes": lambda paths, photos: pd.Series([encoded(p) for p in photos]),
    "dicts": lambda paths, photos: [{"bytes": None, "path": p} for p in paths],
    "PIL": lambda paths, photos: [Image.fromarray(photo) for photo in photos],
    "opened PIL": lambda paths, photos: [Image.open(path) for path in paths],
    "list of arrays": lambda paths, photos: list(photos),
    "array": lambda paths, photos: photos,
    "list of tensors": lambda paths, photos: [
        torch.from_numpy(photo).permute(2, 0, 1) for photo in photos
    ],
    "tensor": lambda paths, photos: torch.from_numpy(photos).permute(0, 3, 1, 2),
    "memmap": lambda paths, photos: np.memmap(
        paths[0] + ".raw", np.uint8, "w+", shape=photos.shape
    ),
    "mixture": lambda paths, photos: (
        [paths[0], photos[1], encoded(photos[2])]
        + [Image.fromarray(photo) for photo in photos[3:]]
    ),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_features(name, photo_files, photos):
    X = CONTAINERS[name](photo_files, photos)
    if name == "memmap":
        X[:] = photos
    est = features()
    np.testing.assert_array_equal(est.fit_transform(X), est.transform(photos))
    if name == "opened PIL":
        for image in X:
            image.close()


def test_arrow_tables_of_one_column(photo_files):
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"path": photo_files})
    expected = features().transform(photo_files)
    for X in (table, table.to_batches()[0], table["path"], table["path"].chunk(0)):
        np.testing.assert_array_equal(features().transform(X), expected)
    assert features().fit(table).get_feature_names_out()[0].startswith("path_")
    two = table.append_column("weight", arrow.array(range(6)))
    with pytest.raises(ValueError, match=r"Got 2 columns \['path', 'weight'\]"):
        features().transform(two)


def test_frames_and_series_of_narwhals(photo_files):
    narwhals = pytest.importorskip("narwhals")
    expected = features().transform(photo_files)
    for column in (pd.Series(photo_files, name="path"), pl.Series("path", photo_files)):
        for native in (column, column.to_frame()):
            X = narwhals.from_native(native, allow_series=True)
            est = features()
            np.testing.assert_array_equal(est.fit_transform(X), expected)
            assert list(est.feature_names_in_) == ["path"]


def test_columns_of_dask(photo_files):
    dask = pytest.importorskip("dask.dataframe")
    expected = features().transform(photo_files)
    frame = dask.from_pandas(pd.DataFrame({"path": photo_files}), npartitions=2)
    for X in (frame, frame["path"]):
        est = features()
        np.testing.assert_array_equal(est.fit_transform(X), expected)
        assert list(est.feature_names_in_) == ["path"]


def test_flat_rows_in_other_containers(photos):
    arrow, narwhals = map(pytest.importorskip, ("pyarrow", "narwhals"))
    flat = photos[:, :4, :4].reshape(6, -1)
    frame = pd.DataFrame(flat).rename(columns=str)
    est = features(image_shape=(4, 4, 3))
    expected = est.transform(flat)
    for X in (arrow.Table.from_pandas(frame), narwhals.from_native(frame)):
        np.testing.assert_array_equal(est.transform(X), expected)
    floats = torch.from_numpy(flat).div(255).bfloat16()
    rows = est.transform(floats)
    np.testing.assert_array_equal(rows, est.transform(floats.float().numpy()))


@pytest.mark.parametrize("kind", ["h5py", "zarr"])
def test_arrays_on_disk(kind, photos, tmp_path):
    module = pytest.importorskip(kind)
    if kind == "zarr":
        array = module.array(photos)
    else:
        array = module.File(tmp_path / "photos.h5", "w").create_dataset(
            "x", data=photos
        )
    expected = features().transform(photos)
    np.testing.assert_array_equal(features().fit_transform(array), expected)


@pytest.mark.parametrize("stacked", [True, False])
def test_bfloat16_tensors_are_cast(photos, stacked):
    tensor = torch.from_numpy(photos).permute(0, 3, 1, 2).div(255).bfloat16()
    expected = features().transform(tensor.float())
    X = tensor if stacked else list(tensor)
    np.testing.assert_array_equal(features().transform(X), expected)


def test_columns_may_have_any_name(photo_files):
    expected = features().transform(photo_files)
    for name in ("collect", "to_native", "column_names", "read", "data", "shape_"):
        X = pd.DataFrame({name: photo_files})
        np.testing.assert_array_equal(features().transform(X), expected)


def test_a_series_of_missing_photos_is_not_a_table():
    with pytest.raises(ImageError, match=r"row 0 .*no image in this row"):
        features().transform(pd.Series([np.nan, np.nan]))


def test_ragged_sizes(photos):
    ragged = [photos[0], photos[1][:10], photos[2][:, :7]]
    out = features().transform(ragged)
    np.testing.assert_array_equal(out[0], features().transform(photos[:2])[0])


@pytest.mark.parametrize("scalar", [True, False])
@pytest.mark.parametrize("frame", FRAMES, ids=["pandas", "polars"])
def test_photos_and_tabular_columns_combine(photo_files, frame, scalar):
    table = frame({"path": photo_files, "weight": [1.0, 2, 3, 4, 5, 6]})
    columns = make_column_transformer(
        (features(), "path" if scalar else ["path"]), (StandardScaler(), ["weight"])
    )
    out = columns.fit_transform(table)
    assert out.shape == (6, 11)
    expected = features().transform(photo_files)
    np.testing.assert_array_equal(out[:, :10].astype("f4"), expected)


def test_column_name_is_remembered(photo_files):
    est = features().fit(pd.DataFrame({"path": photo_files}))
    assert list(est.feature_names_in_) == ["path"] and est.n_features_in_ == 1
    with pytest.raises(ValueError, match="feature names"):
        est.transform(pd.DataFrame({"file": photo_files}))
    assert not hasattr(features().fit(photo_files), "n_features_in_")


@pytest.mark.parametrize("scalar", [True, False])
@pytest.mark.parametrize("frame", FRAMES, ids=["pandas", "polars"])
def test_two_columns_of_photos(photo_files, frame, scalar):
    table = frame({"front": photo_files, "back": photo_files[::-1]})
    kind = "pandas" if frame is pd.DataFrame else "polars"
    views = [name if scalar else [name] for name in ("front", "back")]
    columns = make_column_transformer(
        *[(features(), view) for view in views], verbose_feature_names_out=False
    ).set_output(transform=kind)
    out = columns.fit_transform(table)
    expected = [
        f"{view}_pretrainedcnnfeatures{i}"
        for view in ("front", "back")
        for i in range(10)
    ]
    assert list(out.columns) == expected
    assert list(columns.get_feature_names_out()) == expected
    rows = features().transform(photo_files)
    np.testing.assert_array_equal(out, np.hstack([rows, rows[::-1]]))
    np.testing.assert_array_equal(columns.transform(table), out)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("series", [pd.Series, pl.Series], ids=["pandas", "polars"])
def test_the_name_of_a_series_is_remembered(photo_files, series):
    column = series(photo_files)
    est = features().fit(column)
    assert not hasattr(est, "feature_names_in_")
    assert est.get_feature_names_out()[0] == "pretrainedcnnfeatures0"
    est.fit(column.rename("front"))
    assert list(est.feature_names_in_) == ["front"] and est.n_features_in_ == 1
    assert est.get_feature_names_out()[9] == "front_pretrainedcnnfeatures9"
    front, back = column.rename("front"), column.rename("back")
    for X in (column, photo_files, np.array(photo_files), back, front.to_frame()):
        assert est.transform(X).shape == (6, 10)
    with pytest.raises(ValueError, match="feature names should match"):
        est.transform(back.to_frame())
    est.fit(photo_files)
    assert not hasattr(est, "feature_names_in_") and not hasattr(est, "n_features_in_")


def test_names_of_features_follow_the_contract(photo_files):
    plain = [f"pretrainedcnnfeatures{i}" for i in range(10)]
    assert list(features().get_feature_names_out()) == plain
    assert list(features().fit(photo_files).get_feature_names_out(["any"])) == plain
    est = features().fit(pd.DataFrame({"path": photo_files}))
    names = est.get_feature_names_out(["path"])
    assert list(names) == [f"path_{name}" for name in plain] and names.dtype == object
    with pytest.raises(ValueError, match="not equal to feature_names_in_"):
        est.get_feature_names_out(["file"])
    pixels = pd.DataFrame(np.zeros((2, 12), np.uint8)).rename(columns=str)
    est = features(image_shape=(2, 2, 3)).fit(pixels)
    assert list(est.get_feature_names_out()) == plain


WRONG_X = {
    "a path": ("photo.jpg", r"pass \[X\]"),
    "an image": (Image.new("RGB", (4, 4)), r"pass \[X\]"),
    "one array": (np.zeros((8, 8, 3), np.uint8), r"X\[None\]"),
    "one tensor": (torch.zeros(3, 8, 8), r"X\[None\]"),
    "channels first": (np.zeros((2, 3, 8, 9), np.uint8), "transpose"),
    "channels last": (torch.zeros(2, 8, 9, 3), "permute"),
    "two columns": (pd.DataFrame({"a": ["x"], "b": ["y"]}), "one column"),
    "channels last in a list": ([torch.zeros(8, 9, 3)], r"permute\(2, 0, 1\)"),
    "many channels": ([torch.zeros(8, 9, 7)], r"1 to 4 channels, got \(8, 9, 7\)$"),
    "a query": (pl.LazyFrame({"a": ["x"]}), r"X\.collect\(\)"),
    "a set": ({"a.png"}, r"Got a set instead; pass list\(X\)"),
    "a generator": ((name for name in ["a.png"]), r"pass list\(X\)"),
    "values": ({"a": "a.png"}.values(), r"pass list\(X\)"),
    "a dict": ({"path": ["a.png"]}, r"keys \['path'\] instead; pass X\[key\]"),
    "a dict of data": ({"data": ["a.png"]}, r"keys \['data'\] instead; pass X\[key\]"),
    "a Bunch": (Bunch(data=["a.png"]), r"Got a Bunch instead; pass X\.data"),
    "another Bunch": (Bunch(images=["a.png"]), r"keys \['images'\]"),
    "a loader": (DataLoader(["a.png"]), r"Got a DataLoader instead; pass X\.dataset"),
    "a file": (io.BytesIO(b"x"), r"Got one BytesIO instead; pass \[X\]"),
    "no rows": ([], "0 sample"),
    "no array rows": (np.zeros((0, 8, 8, 3), np.uint8), "0 sample"),
    "pairs": ([(Image.new("L", (2, 2)), 1)], "image, label"),
    "byte strings": (np.array([b"abc"]), "dtype bytes"),
    "numbers": ([1.0, 2.0], "Expected 2D array"),
    "an object": ([object()], "row 0 .*not an image"),
}


@pytest.mark.parametrize("name", WRONG_X)
def test_errors_for_wrong_input_say_what_to_pass(name):
    X, sentence = WRONG_X[name]
    with pytest.raises(ValueError, match=sentence):
        features().transform(X)


# Row errors -------------------------------------------------------------------------


@pytest.fixture
def bad_files(photo_files, tmp_path):
    """Three good photos, and one of each kind of bad file between them."""
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image at all")
    buffer = io.BytesIO()
    Image.open(photo_files[3]).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:-100])
    (tmp_path / "folder").mkdir()
    names = ["empty.jpg", "text.jpg", "cut.jpg", "missing.jpg", "folder"]
    bad = [str(tmp_path / name) for name in names]
    return [photo_files[0], *bad[:3], photo_files[1], *bad[3:], None, photo_files[2]]


def test_bad_rows_become_nan_and_good_ones_stay(bad_files, photo_files):
    est = features(on_error="nan", batch_size=2)
    with pytest.warns(ImageWarning, match="6 of 9 images") as caught:
        out = est.transform(bad_files)
    assert len(caught) == 1
    good = [0, 4, 8]
    clean = features(batch_size=2).transform(photo_files[:3])
    np.testing.assert_array_equal(out[good], clean)
    assert np.isnan(np.delete(out, good, axis=0)).all()
    rows, sources, reasons = zip(*est.errors_, strict=True)
    assert rows == (1, 2, 3, 5, 6, 7)
    assert sources[0] == str(bad_files[1]) and sources[5] == "missing"
    expected = [
        "is empty",
        "no image",
        "truncated",
        "no such file",
        "folder",
        "no image",
    ]
    for reason, words in zip(reasons, expected, strict=True):
        assert words in reason


def test_a_bad_row_is_named_with_its_cause(bad_files):
    with pytest.raises(
        ImageError, match=r"row 1 \(.*text\.jpg\): is not an image"
    ) as e:
        features().transform([bad_files[0], bad_files[2]])
    assert e.value.row == 1 and e.value.__cause__ is not None
    with pytest.raises(ImageError, match=r"row 2 .*no such file"):
        features().transform([bad_files[0], bad_files[2], "missing.jpg"])
    with pytest.raises(ImageError, match=r"row 1 .*file is empty"):
        features().transform([bad_files[0], bad_files[1], "missing.jpg"])


def test_good_rows_are_kept_when_a_bad_one_raises(photos, photo_files, bad_files):
    est = features(cache="memory", batch_size=1)
    with pytest.raises(ImageError, match="truncated"):
        est.transform([*photo_files, bad_files[3]])
    assert FeatureStore().info()["rows"] >= 6


def test_bad_rows_twice_are_both_reported(bad_files):
    est = features(on_error="nan")
    with pytest.warns(ImageWarning):
        out = est.transform([bad_files[3], bad_files[0], bad_files[3]])
    assert [row for row, _, _ in est.errors_] == [0, 2]
    assert np.isnan(out[[0, 2]]).all() and np.isfinite(out[1]).all()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((4, 4, 3), np.nan), "NaN"),
        (np.zeros((4, 4, 3), complex), "complex"),
        (np.zeros((4, 4, 7), np.uint8), "channels"),
        (np.zeros((0, 4, 3), np.uint8), "no side of 0"),
        (np.array([["a"]]), "real numbers"),
    ],
)
def test_bad_pixels_are_row_errors(array, words, photos):
    with pytest.raises(ImageError, match=f"row 1 .*{words}"):
        features().transform([photos[0], array])


def test_nan_in_flat_rows_follows_on_error(photos):
    flat = photos.reshape(6, -1) / 255.0
    flat[2, 5] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        features(image_shape=(24, 32, 3)).transform(flat)
    est = features(image_shape=(24, 32, 3), on_error="nan")
    with pytest.warns(ImageWarning):
        out = est.transform(flat)
    assert [row for row, _, _ in est.errors_] == [2]
    assert np.isnan(out).any(1).tolist() == [False, False, True, False, False, False]


def test_errors_before_any_call():
    with pytest.raises(AttributeError, match="not computed anything"):
        _ = features().errors_


# scikit-learn's conventions ---------------------------------------------------------


def test_pickles_and_clones_are_light_and_share_the_network(photos, monkeypatch):
    est = PretrainedCNNFeatures("vgg16", weights=None, layer="stem")
    assert len(pickle.dumps(est.fit(photos))) < 4000
    before = vars(est).copy()
    out = est.transform(photos)
    assert vars(est) == before
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(est)).transform(photos), out
    )
    clones = [clone(est) for _ in range(100)]
    for one in clones:
        one.set_params(cache=None).transform(photos[:1])
    from skdeepfeat._networks import sharing

    assert len(sharing.networks_on("cpu")) == 1


def test_skops_round_trip(photos):
    est = features().fit(photos)
    blob = skops.io.dumps(est)
    trusted = skops.io.get_untrusted_types(data=blob)
    assert trusted == ["skdeepfeat.PretrainedCNNFeatures"]
    loaded = skops.io.loads(blob, trusted=trusted)
    np.testing.assert_array_equal(loaded.transform(photos), est.transform(photos))


def test_pickles_contain_a_custom_backbone(photos, tmp_path):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU())
    net.eval()
    est = PretrainedCNNFeatures(Backbone.from_module(net, image_size=8), layer="block2")
    (tmp_path / "est.pkl").write_bytes(pickle.dumps(est))
    np.save(tmp_path / "photos.npy", photos)
    np.save(tmp_path / "expected.npy", est.transform(photos))
    code = (
        "import pickle, numpy as np\n"
        "est = pickle.load(open('est.pkl', 'rb'))\n"
        "out = est.transform(np.load('photos.npy'))\n"
        "assert np.array_equal(out, np.load('expected.npy'))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_set_params_changes_the_network(photos):
    est = features()
    first = est.transform(photos)
    est.set_params(backbone=tiny_backbone(seed=1))
    assert not np.array_equal(est.transform(photos), first)
    est.set_params(backbone="squeezenet1_1", weights=None, layer="block1")
    assert est.transform(photos).shape == (6, 128)


def test_the_same_seed_is_the_same_network(photos):
    est = PretrainedCNNFeatures("squeezenet1_1", weights=None, layer="stem", cache=None)
    first = est.transform(photos)
    clear_caches()
    np.testing.assert_array_equal(est.transform(photos), first)
    assert not np.array_equal(est.set_params(random_state=1).transform(photos), first)


@pytest.mark.parametrize(
    "pooling", ["avg", "max", "avgmax", "gem", "stochastic", "flatten"]
)
def test_names_match_the_width(photos, pooling):
    for layer in list_layers("tiny"):
        est = features(layer=layer.alias, pooling=pooling)
        assert est.transform(photos[:2]).shape[1] == len(est.get_feature_names_out())
    est = features(layer="block1", pooling=pooling, image_size=16)
    assert est.transform(photos[:2]).shape[1] == len(est.get_feature_names_out())
    assert est.get_feature_names_out()[0] == "pretrainedcnnfeatures0"


@not_in_sklearn_16
def test_set_output_keeps_the_index(photo_files):
    series = pd.Series(photo_files, index=list("abcdef"))
    out = features().set_output(transform="pandas").fit_transform(series)
    assert list(out.index) == list("abcdef") and out.shape == (6, 10)
    out = features().set_output(transform="polars").fit_transform(photo_files)
    assert isinstance(out, pl.DataFrame)


def test_in_meta_estimators(photos):
    X, y = np.concatenate([photos] * 4), np.tile(["a", "b"], 12)
    X = np.stack([np.roll(image, i, 1) for i, image in enumerate(X)])
    head = make_pipeline(features(cache="memory"), LogisticRegression())
    for model in [
        CalibratedClassifierCV(head, cv=2),
        StackingClassifier([("a", head), ("b", clone(head))], cv=2),
        make_pipeline(make_union(features(), features(layer="block1")), GaussianNB()),
    ]:
        assert model.fit(X, y).predict(X).shape == (24,)


def test_under_loky_with_two_jobs(photos):
    X, y = np.concatenate([photos, photos[:, ::-1]]), np.arange(12) % 2
    pipe = make_pipeline(
        PretrainedCNNFeatures(tiny_backbone(), layer="block4"), LogisticRegression()
    )
    grid = {"logisticregression__C": [0.1, 1]}
    alone = GridSearchCV(pipe, grid, cv=2).fit(X, y)
    together = GridSearchCV(pipe, grid, cv=2, n_jobs=2).fit(X, y)
    np.testing.assert_allclose(
        together.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"]
    )


@not_in_sklearn_16
@pytest.mark.parametrize(
    "head", [LogisticRegression(), Ridge(solver="svd"), GaussianNB(), PCA()]
)
def test_torch_output_feeds_array_api_heads(photos, head):
    est = features(output="torch")
    out = est.fit_transform(photos)
    assert isinstance(out, torch.Tensor) and out.dtype == torch.float32
    np.testing.assert_array_equal(out.numpy(), features().transform(photos))
    with config_context(array_api_dispatch=True):
        make_pipeline(est, head).fit(photos, np.arange(6) % 2)


def test_progress_bar_on_request(photos, capsys):
    features(verbose=1).transform(photos)
    assert "6/6" in capsys.readouterr().err
    features().transform(photos)
    assert capsys.readouterr().err == ""


def test_batches_are_tasks_of_scikit_learns_callbacks(photos):
    callback = pytest.importorskip("sklearn.callback", reason="needs scikit-learn 1.9")

    class Counter:
        def __init__(self):
            self.tasks = []

        def setup(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context, *, X=None):
            self.tasks.append(context.task_name)

        def on_fit_task_end(self, estimator, context, *, X=None):
            return False

        def teardown(self, estimator, context):
            pass

    counter = Counter()
    assert isinstance(counter, callback.FitCallback)
    features(batch_size=2).set_callbacks(counter).fit_transform(photos)
    assert counter.tasks.count("batch") == 3


def test_html_repr_links_to_the_documentation():
    html = features()._repr_html_()
    assert "skdeepfeat.PretrainedCNNFeatures.html" in html


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"batch_size": 0}, "'batch_size' parameter"),
        ({"pooling": "median"}, "'pooling' parameter"),
        ({"on_error": "ignore"}, "'on_error' parameter"),
        ({"image_size": -3}, "'image_size' parameter"),
    ],
)
def test_parameters_are_checked_in_fit_and_transform(parameters, words, photos):
    for method in ("fit", "transform", "fit_transform"):
        with pytest.raises(InvalidParameterError, match=words):
            getattr(features(**parameters), method)(photos)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"backbone": "resnet_50"}, "Did you mean 'resnet50'"),
        ({"layer": "blok3"}, "Did you mean 'block3'"),
        ({"layer": 99}, r"0 \('block1'\)"),
        ({"layer": ()}, "at least one"),
        ({"weights": "IMAGENET"}, "has no published weights"),
        ({"backbone": "smallcnn"}, "Pass weights=None"),
        ({"backbone": "resnet50", "weights": "IMAGENET1K_V3"}, "IMAGENET1K_V"),
        ({"weights": "nowhere.pth"}, "No weights file"),
        ({"device": "gpu"}, "'device' parameter"),
    ],
)
def test_unknown_names_come_with_a_suggestion(parameters, words, photos):
    est = features().set_params(**parameters)
    with pytest.raises(ValueError, match=words):
        est.transform(photos)


@pytest.mark.parametrize(
    ("cache", "meant"),
    [
        ("memroy", "'memory'"),
        ("Memory", "'memory'"),
        ("memory ", "'memory'"),
        ("memry", "'memory'"),
        ("None", "None"),
        ("none", "None"),
    ],
)
def test_a_misspelt_cache_is_no_folder(cache, meant, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for est in (features(cache=cache), FineTunedClassifier("tiny", cache=cache)):
        with pytest.raises(ValueError, match=f"Did you mean {meant}") as error:
            est.fit(photos, [0, 1] * 3)
        assert repr(os.path.join(".", cache)) in str(error.value)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cache", ["./memroy", "features", "memory.store", "store"])
def test_other_names_are_folders(cache, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    features(cache=cache).fit_transform(photos)
    assert (tmp_path / cache).is_dir()


def test_a_folder_that_exists_is_meant(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Memory").mkdir()
    features(cache="Memory").fit_transform(photos)
    assert list((tmp_path / "Memory").iterdir())


def test_flatten_is_refused_above_its_limit(photos, monkeypatch):
    from skdeepfeat._networks import pooling

    est = features(pooling="flatten", layer="block1")
    assert est.transform(photos).shape == (6, 6 * 8 * 8)
    monkeypatch.setattr(pooling, "FLATTEN_LIMIT", 9000)
    with pytest.raises(OutputTooLarge, match="9,216 bytes; the limit is 9,000"):
        est.transform(photos)


def test_backbones_are_values():
    backbone = tiny_backbone()
    assert copy.deepcopy(backbone) is backbone
    assert backbone == tiny_backbone() and hash(backbone) == hash(tiny_backbone())
    assert backbone != tiny_backbone(seed=1)
    with pytest.raises(ValueError, match="overwrite=True"):
        register_backbone("tiny", tiny_backbone(seed=1))
    with pytest.raises(TypeError, match="from_module"):
        register_backbone("other", tiny_network())


def test_digits_of_scikit_learn():
    X, y = load_digits(return_X_y=True)
    est = PretrainedCNNFeatures(
        "tiny", image_shape=(8, 8), value_range=(0, 16), layer=("block2", "block4")
    )
    pipe = make_pipeline(est, StandardScaler(), LogisticRegression(max_iter=1000))
    assert pipe.fit(X[:1000], y[:1000]).score(X[1000:], y[1000:]) > 0.3


def test_prefetched_layers_are_stored(photos, count_forwards):
    est = features(cache="memory", layer="block1", prefetch_layers="all", batch_size=1)
    est.transform(photos)
    for layer in list_layers("tiny"):
        clone(est).set_params(layer=layer.alias).transform(photos)
    assert count_forwards() == len(photos)
    clear_caches()
    est.set_params(prefetch_layers=["block4"]).transform(photos)
    clone(est).set_params(layer="block4").transform(photos)
    assert count_forwards() == 2 * len(photos)


# What a call took -------------------------------------------------------------------


def test_stats_say_where_the_time_went(photos, capsys):
    est = features(cache="memory", verbose=1)
    with pytest.raises(AttributeError, match="nothing to report"):
        _ = est.stats_
    est.transform(np.concatenate([photos, photos]))
    first = est.stats_
    assert first["n_images"] == 12 and first["n_computed"] == 6
    assert first["device"] == "cpu" and first["engine"] == "torch"
    parts = {"hashing", "store", "reading", "decoding", "copying", "network"}
    assert set(first["shares"]) == parts | {"building"}
    assert 0 < sum(first["shares"].values()) <= 1
    assert first["images_per_second"] * first["seconds"] == pytest.approx(12)
    assert "12 images, 6 computed on cpu" in capsys.readouterr().out
    est.transform(photos)
    assert est.stats_["n_computed"] == 0
    assert set(est.stats_["shares"]) == {"hashing", "store"}


WHOLE = {
    PretrainedCNNFeatures: "layer image_size batch_size n_jobs random_state",
    PretrainedTextFeatures: "layer max_length batch_size random_state",
    FineTunedClassifier: "unfreeze head_epochs epochs batch_size n_iter_no_change "
    "image_size n_jobs",
}


@pytest.mark.parametrize(
    ("estimator", "name"), [(e, n) for e, names in WHOLE.items() for n in names.split()]
)
def test_true_is_not_1(estimator, name):
    with pytest.raises(InvalidParameterError, match=f"'{name}' .* Got True instead"):
        estimator(**{name: True})._validate_params()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer", ("block1", True)),
        ("prefetch_layers", [True]),
        ("prefetch_layers", [1.5]),
        ("image_shape", (True, 8)),
    ],
)
def test_true_is_not_1_in_a_list(photos, name, value):
    with pytest.raises(ValueError, match=f"'{name}' .* Got {re.escape(str(value))}"):
        features(**{name: value}).transform(photos)
