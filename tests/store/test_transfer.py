"""Stores are merged, and one layer is exported, without computing anything."""

import csv
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from skdeepfeat import FeatureStore, PretrainedCNNFeatures, StoreWarning
from skdeepfeat._store import transfer
from skdeepfeat._store.database import FILE


@pytest.fixture
def make(tmp_path):
    """A function that fills a store with some files, and returns both."""

    def make(name, files, **settings):
        store = FeatureStore(tmp_path / name)
        features = PretrainedCNNFeatures("tiny", cache=store, **settings)
        return store, features.warm(files)

    return make


@pytest.fixture
def layer(make, photo_files):
    """The name of the layer that is requested."""
    store, _ = make("named", photo_files[:1], prefetch_layers=[])
    return next(iter(store.info()["layers"]))


def test_merged_stores_contain_each_image_once(make, photo_files):
    first, features = make("first", photo_files[:4])
    second, _ = make("second", photo_files[2:])
    n_layers = len(first.info()["layers"])
    assert first.merge(second) == 4 * n_layers
    assert set(first.info()["layers"].values()) == {6}
    assert first.info()["misses"] == 4  # nothing was computed
    alone = PretrainedCNNFeatures("tiny", cache=None).transform(photo_files)
    np.testing.assert_array_equal(features.transform(photo_files), alone)
    assert features.stats_["n_computed"] == 0


@pytest.mark.parametrize("mine", ["memory", "disk"])
@pytest.mark.parametrize("other", ["memory", "disk"])
def test_stores_of_both_kinds_merge(tmp_path, photo_files, mine, other):
    stores = [
        FeatureStore(tmp_path / place)
        if kind == "disk"
        else FeatureStore(name=f"{place} of {tmp_path.name}")
        for kind, place in ((mine, "mine"), (other, "other"))
    ]
    for store, files in zip(stores, (photo_files[:3], photo_files[3:]), strict=True):
        PretrainedCNNFeatures("tiny", cache=store).warm(files)
    stores[0].merge(stores[1])
    features = PretrainedCNNFeatures("tiny", cache=stores[0])
    features.transform(photo_files)
    assert features.stats_["n_computed"] == 0


def test_files_known_to_one_store_are_not_hashed_again(make, photo_files, monkeypatch):
    second, _ = make("second", photo_files)
    first, _ = make("first", photo_files[:1])
    first.merge(second.path)
    known = {name for name, _, _ in first.open().all_files()}
    assert known == set(photo_files)


def test_damaged_rows_are_not_merged(make, photo_files):
    first, features = make("first", photo_files[:1])
    second, _ = make("second", photo_files, prefetch_layers=[])
    with sqlite3.connect(f"{second.path}/{FILE}") as db:
        db.execute("UPDATE rows SET data = zeroblob(40) WHERE rowid = 3")
    db.close()
    with pytest.warns(StoreWarning, match="has damaged rows, which are left out"):
        assert first.merge(second) == 5
    features.transform(photo_files)
    assert features.stats_["n_computed"] == 1


def test_a_merge_keeps_to_the_bound(make, photo_files, tmp_path):
    second, _ = make("second", photo_files)
    small = FeatureStore(name="small", max_bytes=1500)
    with pytest.warns(StoreWarning, match="limit of 1,500 bytes.*max_bytes="):
        small.merge(second)
    assert small.info()["bytes"] <= 1500


def test_stores_that_cannot_be_merged_are_refused(make, photo_files, tmp_path):
    first, _ = make("first", photo_files[:1])
    (tmp_path / "link").symlink_to(first.path)
    for same in (first, FeatureStore(tmp_path / "link")):
        with pytest.raises(ValueError, match="is this store itself"):
            first.merge(same)
    with pytest.raises(ValueError, match=r"no store to merge in .*absent"):
        first.merge(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_npy_has_the_rows_of_the_paths_beside(make, photo_files, tmp_path, layer):
    store, features = make("store", photo_files)
    path = tmp_path / "rows.npy"
    assert store.export(path, layer) == 6
    rows = np.load(path)
    with open(tmp_path / "rows.csv", newline="", encoding="utf-8") as file:
        paths = [line["path"] for line in csv.DictReader(file)]
    assert sorted(paths) == sorted(photo_files)
    np.testing.assert_array_equal(rows, features.transform(paths))
    assert not list(tmp_path.glob("*.partial"))


def test_parquet_has_paths_keys_and_features(
    make, photo_files, photos, tmp_path, layer
):
    store, features = make("store", photo_files)
    features.warm(photos[:2] // 2)  # images that are no files
    assert store.export(tmp_path / "rows.parquet", layer) == 8
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.column_names == ["path", "key", "features"]
    known = {row["path"]: row["features"] for row in table.to_pylist()}
    assert known.keys() == {None, *photo_files}
    rows = [known[path] for path in photo_files]
    np.testing.assert_array_equal(rows, features.transform(photo_files))


def test_each_path_of_an_image_has_a_row(make, photo_files, tmp_path, layer):
    copy = tmp_path / "copy.png"
    copy.write_bytes(Path(photo_files[0]).read_bytes())
    store, _ = make("store", [photo_files[0], copy])
    assert store.export(tmp_path / "rows.npy", layer) == 2
    rows = np.load(tmp_path / "rows.npy")
    np.testing.assert_array_equal(rows[0], rows[1])


def test_the_only_layer_needs_no_name(make, photo_files, tmp_path):
    store, _ = make("store", photo_files, prefetch_layers=[])
    assert store.export(tmp_path / "rows.npy") == 6


def test_what_cannot_be_exported_is_refused(make, photo_files, tmp_path, layer):
    store, _ = make("store", photo_files)
    with pytest.raises(ValueError, match=r"must end in \.npy or \.parquet"):
        store.export(tmp_path / "rows.txt", layer)
    with pytest.raises(ValueError, match=r"must name a stored layer\. Stored are: '"):
        store.export(tmp_path / "rows.npy")
    with pytest.raises(ValueError, match=f"Did you mean {layer!r}"):
        store.export(tmp_path / "rows.npy", layer[:-1])
    make("store", photo_files, value_range=(0, 200))
    with pytest.raises(ValueError, match="2 kinds of features called"):
        store.export(tmp_path / "rows.npy", layer)
    assert not list(tmp_path.glob("rows*"))


def test_rows_that_vanish_during_an_export_are_an_error(
    make, photo_files, tmp_path, layer, monkeypatch
):
    store, _ = make("store", photo_files)
    names_of = transfer._names_of

    def late(table, name):
        found = names_of(table, name)
        with sqlite3.connect(f"{store.path}/{FILE}") as db:
            db.execute("DELETE FROM rows WHERE rowid % 2")
        db.close()
        return found

    monkeypatch.setattr(transfer, "_names_of", late)
    with pytest.raises(RuntimeError, match="try again"):
        store.export(tmp_path / "rows.npy", layer)
    assert not list(tmp_path.glob("rows*"))
