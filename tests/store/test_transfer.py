"""Stores are merged, and one layer is exported, without computing anything."""

import csv
import os
import re
import sqlite3
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from skdeepfeat import FeatureStore, PretrainedCNNFeatures, StoreWarning
from skdeepfeat._store import database, transfer
from skdeepfeat._store.database import FILE
from skdeepfeat._store.disk import DiskTable
from skdeepfeat._store.file_systems import Mount


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
    with first.open().snapshot() as stored:
        known = {name for name, _, _ in stored.files()}
    assert known == set(photo_files)


def test_damaged_rows_are_not_merged(make, photo_files):
    first, features = make("first", photo_files[:1])
    second, _ = make("second", photo_files, prefetch_layers=[])
    with sqlite3.connect(f"{second.path}/{FILE}") as db:
        db.execute("UPDATE rows SET data = zeroblob(40) WHERE rowid = 3")
    db.close()
    for _ in range(2):  # each time
        with pytest.warns(StoreWarning, match="1 damaged rows .* were left out"):
            assert first.merge(second) == 5
    features.transform(photo_files)
    assert features.stats_["n_computed"] == 1


def test_a_merge_keeps_to_the_bound(make, photo_files, tmp_path):
    second, _ = make("second", photo_files)
    small = FeatureStore(name=f"small {tmp_path}", max_bytes=1500)
    with pytest.warns(
        StoreWarning, match=r"limit of 1,500 bytes.*max_bytes="
    ) as caught:
        small.merge(second)
    assert small.info()["bytes"] <= 1500
    assert f"keeps only {small.info()['rows']} rows" in str(caught[0].message)


@pytest.mark.parametrize("place", [{}, {"path": "small"}])
def test_each_merge_into_a_full_store_warns(make, photo_files, tmp_path, place):
    if place:
        place = {"path": tmp_path / "small"}
    second, _ = make("second", photo_files)
    small = FeatureStore(name=f"full {tmp_path}", max_bytes=100, **place)
    for _ in range(2):
        with pytest.warns(StoreWarning, match="keeps only 0 rows"):
            small.merge(second)


@pytest.mark.parametrize("change", ["merge", "clear"])
def test_what_cannot_be_written_is_an_error_and_no_warning(
    make, photo_files, monkeypatch, change
):
    """Rows that seem to be merged, or removed, would be missed, or trusted."""
    first, features = make("first", photo_files[:1])
    second, _ = make("second", photo_files[2:])
    before = first.info()["rows"]
    monkeypatch.setattr(database, "BUSY_SECONDS", 0)
    first.open().close()
    other = sqlite3.connect(f"{first.path}/{FILE}", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.warns(StoreWarning, match="features are returned"):
        features.transform(photo_files[1:2])
    with pytest.raises(OSError, match=r"first' was locked by another program"):
        first.merge(second) if change == "merge" else first.clear()
    other.execute("ROLLBACK")
    other.close()
    assert first.info()["rows"] == before
    assert first.merge(second) and first.info()["rows"] > before
    first.clear()
    assert first.info()["rows"] == 0


def test_a_damaged_store_is_set_aside_and_then_cleared(make, photo_files):
    store, _ = make("store", photo_files[:1])
    store.open().close()
    (Path(store.path) / FILE).write_bytes(b"\xff" * 10_000)
    with pytest.raises(OSError, match=r"set aside as 'damaged-.*; try again"):
        store.clear()
    store.clear()
    assert not list(Path(store.path).glob("damaged*")) and store.info()["rows"] == 0


@pytest.mark.parametrize("place", [{}, {"path": "store"}])
@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_the_proposed_bound_is_enough_and_not_far_more(
    make, photo_files, tmp_path, monkeypatch, place, kind
):
    monkeypatch.chdir(tmp_path)
    source, _ = make("source", photo_files)
    if kind == "memory":
        source, disk = FeatureStore(name=f"source {tmp_path}"), source
        source.merge(disk)
    small = FeatureStore(**place, name=f"small {tmp_path}", max_bytes=1500)
    with pytest.warns(StoreWarning) as caught:
        small.merge(source)
    enough = int(re.search(r"max_bytes=(\d+)", str(caught[0].message))[1])
    assert enough < 102_000 + 2 * source.info()["bytes"]
    small.open().forget()
    large = FeatureStore(tmp_path / "large" if place else None, "large", enough)
    large.merge(source)
    assert large.info()["rows"] == source.info()["rows"]


def test_a_pipe_named_as_a_store_is_none(make, photo_files, tmp_path):
    first, _ = make("first", photo_files[:1])
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(ValueError, match=r"no feature store in .*no file 'features"):
        first.merge(tmp_path)


def test_stores_that_cannot_be_merged_are_refused(make, photo_files, tmp_path):
    first, _ = make("first", photo_files[:1])
    (tmp_path / "link").symlink_to(first.path)
    for same in (first, FeatureStore(tmp_path / "link")):
        with pytest.raises(ValueError, match="is this store itself"):
            first.merge(same)
    with pytest.raises(ValueError, match=r"no feature store in .*absent"):
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


@pytest.fixture
def meanwhile(monkeypatch):
    """A function that lets something happen in the middle of an export."""

    def meanwhile(happen):
        def late(*arguments):
            found = names_of(*arguments)
            happen()
            return found

        names_of = transfer._names_of
        monkeypatch.setattr(transfer, "_names_of", late)

    return meanwhile


def delete_half(store):
    with sqlite3.connect(f"{store.path}/{FILE}") as db:
        db.execute("DELETE FROM rows WHERE rowid % 2")
    db.close()


def test_an_export_does_not_see_what_changes_meanwhile(
    make, photo_files, tmp_path, layer, meanwhile
):
    store, features = make("store", photo_files[:4])
    other, _ = make("other", photo_files[2:])
    rows = features.transform(photo_files[:4])

    def change():
        store.merge(other)
        delete_half(store)

    meanwhile(change)
    assert store.export(tmp_path / "rows.npy", layer) == 4
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), rows)


def test_rows_that_vanish_on_a_shared_disk_during_an_export_are_an_error(
    make, photo_files, tmp_path, layer, meanwhile, monkeypatch
):
    monkeypatch.setattr(Mount, "is_shared", True)
    store, _ = make("store", photo_files)
    meanwhile(lambda: delete_half(store))
    with pytest.raises(RuntimeError, match="try again"):
        store.export(tmp_path / "rows.npy", layer)
    assert not list(tmp_path.glob("rows*"))


@pytest.mark.parametrize("is_shared", [False, True])
def test_stores_that_merge_each_other_read_each_row_once(
    make, photo_files, monkeypatch, is_shared
):
    monkeypatch.setattr(Mount, "is_shared", is_shared)
    monkeypatch.setattr("skdeepfeat._store.statements.AT_ONCE", 1)
    first, _ = make("first", photo_files[:4])
    second, _ = make("second", photo_files[2:])
    n_layers, add = len(first.info()["layers"]), DiskTable.add
    left = iter(range(4 * n_layers))  # so that a mistake is no endless loop

    def back(table, *arguments):
        next(left)
        monkeypatch.setattr(DiskTable, "add", add)
        second.merge(first)
        monkeypatch.setattr(DiskTable, "add", back)
        return add(table, *arguments)

    monkeypatch.setattr(DiskTable, "add", back)
    assert first.merge(second) == 4 * n_layers
    assert first.info()["layers"] == second.info()["layers"]


def test_equal_rows_are_not_written_again(make, photo_files):
    first, _ = make("first", photo_files[:4])
    second, _ = make("second", photo_files[2:])
    first.merge(second)
    before, log = rowids(first), log_of(first).stat().st_size
    first.merge(second)
    assert rowids(first) == before
    assert log_of(first).stat().st_size == log


def log_of(store):
    return Path(store.path) / f"{FILE}-wal"


def rowids(store):
    db = sqlite3.connect(f"{store.path}/{FILE}")
    found = db.execute("SELECT rowid, column, key FROM rows ORDER BY rowid").fetchall()
    db.close()
    return found


def halved(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_tables(file):
    with sqlite3.connect(file) as db:
        db.execute("DROP TABLE rows")
    db.close()


def misspelt(file):
    statement = b"CREATE TABLE rows"
    damaged = file.read_bytes().replace(statement, b"CREATE TABL\xe1 rows")
    file.write_bytes(damaged)


DAMAGES = {
    "misspelt": misspelt,
    "truncated": halved,
    "garbage": lambda file: file.write_bytes(b"garbage" * 999),
    "empty": lambda file: file.write_bytes(b""),
    "without tables": without_tables,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_an_error_and_left_as_it_is(
    make, photo_files, tmp_path, damage, layer
):
    second, _ = make("second", photo_files)
    second.open().close()
    file = Path(second.path) / FILE
    DAMAGES[damage](file)
    before = file.read_bytes()
    first, _ = make("first", photo_files[:1])
    with pytest.raises(ValueError, match=r"second' cannot be read .*left as it is"):
        first.merge(second)
    with pytest.raises(ValueError, match=r"second' cannot be read .*left as it is"):
        second.export(tmp_path / "rows.npy", layer)
    assert file.read_bytes() == before
    assert not list(file.parent.glob("damaged*"))
    assert not list(tmp_path.glob("rows*"))


@pytest.mark.parametrize("column", ["label", "fingerprint", "used"])
@pytest.mark.parametrize("value", ["CAST(x'ff41' AS TEXT)", "NULL", "7"])
def test_damage_to_the_name_of_a_column_is_no_other_error(
    make, photo_files, column, value
):
    first, _ = make("first", photo_files[:1])
    second, _ = make("second", photo_files)
    n_rows = second.info()["rows"]
    with sqlite3.connect(f"{second.path}/{FILE}") as db:
        db.execute(f"UPDATE columns SET {column} = {value} WHERE id = 1")
        db.execute("UPDATE files SET state = CAST(x'ff41' AS TEXT) WHERE rowid = 1")
    db.close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        n_merged = first.merge(second)
    n_lost = sum(int(str(one.message).split()[0]) for one in caught)
    assert n_merged + n_lost == n_rows
    second.info()


@pytest.mark.parametrize(
    "change", ["key = 7", "key = NULL", "in_range = 'a'", "checksum = NULL", "data = 7"]
)
def test_a_row_of_other_types_is_damaged(make, photo_files, change):
    first, _ = make("first", photo_files[:1])
    second, features = make("second", photo_files, prefetch_layers=[])
    with sqlite3.connect(f"{second.path}/{FILE}") as db:
        db.execute(f"UPDATE rows SET {change} WHERE rowid = 3")
    db.close()
    with pytest.warns(StoreWarning, match="1 damaged rows"):
        assert first.merge(second) == 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StoreWarning)
        features.transform(photo_files)
    assert features.stats_["n_computed"] == 1


NO_STORES = [3, None, b"store", ["a", "b"], PretrainedCNNFeatures()]


@pytest.mark.parametrize("other", NO_STORES)
def test_what_is_no_store_is_not_merged(make, photo_files, other):
    first, _ = make("first", photo_files[:1])
    with pytest.raises(ValueError, match="'other' parameter must be a FeatureStore, "):
        first.merge(other)


def test_a_store_of_another_version_is_named(make, photo_files, tmp_path):
    first, _ = make("first", photo_files[:1])
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "features.v1.sqlite").touch()
    with pytest.raises(ValueError, match=r"'features.v1.sqlite' .* another version"):
        first.merge(tmp_path / "old")


@pytest.mark.parametrize("path", [None, 3, b"rows.npy"])
def test_what_is_no_path_is_refused(make, photo_files, path):
    store, _ = make("store", photo_files[:1])
    with pytest.raises(ValueError, match="'path' parameter must be a str or a path"):
        store.export(path)
    with pytest.raises(ValueError, match="'path' parameter must be a str or a path"):
        PretrainedCNNFeatures("tiny").transform_to(path, photo_files)
    if path is not None:
        with pytest.raises(ValueError, match="'path' parameter must be a str or a"):
            FeatureStore(path)


def test_a_long_value_that_is_no_path_is_cut(photo_files):
    features = PretrainedCNNFeatures("tiny")
    with pytest.raises(ValueError, match="must be a str or a path") as refused:
        features.transform_to(photo_files * 100, "rows.npy")  # the wrong way round
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "path, said",
    [
        ("s3://bucket/a.npy", "Got the URL"),
        ("file:///a.npy", "Got the URL"),
        (Path("memory://a.npy"), "Got the URL"),
        ("a\0.npy", "zero byte"),
        ("~nobody of this name/a.npy", "user who is not known"),
    ],
)
def test_a_path_on_no_disk_is_refused(tmp_path, monkeypatch, photo_files, path, said):
    """It would become a folder of this name in the working directory."""
    monkeypatch.chdir(tmp_path)
    before = os.listdir(tmp_path)
    features = PretrainedCNNFeatures("tiny", cache=path)
    store = FeatureStore(name=f"any {tmp_path}")
    uses = {
        "FeatureStore": lambda: features.transform(photo_files),
        "FeatureStore ": lambda: store.merge(path),
        "export": lambda: store.export(path),
        "transform_to": lambda: features.transform_to(path, photo_files),
    }
    for what, use in uses.items():
        with pytest.raises(ValueError, match=f"path of .*{what.strip()} .*{said}"):
            use()
    assert os.listdir(tmp_path) == before


def test_an_empty_store_has_nothing_to_export(tmp_path):
    with pytest.raises(ValueError, match="no rows to export"):
        FeatureStore(name="nothing").export(tmp_path / "rows.npy")
    with pytest.raises(ValueError, match="no feature store in"):
        FeatureStore(tmp_path / "absent").export(tmp_path / "rows.npy")
    assert not list(tmp_path.iterdir())


def test_damaged_rows_are_reported_at_each_export(make, photo_files, tmp_path, layer):
    store, _ = make("store", photo_files, prefetch_layers=[])
    for n_sound, where in ((5, "rowid = 3"), (5, "rowid = 3"), (0, "1")):
        with sqlite3.connect(f"{store.path}/{FILE}") as db:
            db.execute(f"UPDATE rows SET checksum = 0 WHERE {where}")
        db.close()
        if not n_sound:
            with pytest.raises(ValueError, match=f"All stored rows of {layer!r} are"):
                store.export(tmp_path / "rows.npy")
            return
        with pytest.warns(StoreWarning, match="1 damaged rows .* left out"):
            assert store.export(tmp_path / "rows.npy") == n_sound


def test_files_beside_are_replaced_only_if_an_export_wrote_them(
    make, photo_files, tmp_path, layer
):
    store, _ = make("store", photo_files)
    (tmp_path / "rows.csv").write_text("my own table")
    with pytest.raises(ValueError, match=r"rows.csv.* not written by an export"):
        store.export(tmp_path / "rows.npy", layer)
    assert (tmp_path / "rows.csv").read_text() == "my own table"
    for _ in range(2):
        store.export(tmp_path / "features.NPY", layer)


@pytest.mark.parametrize("name", ["rows.npy", "rows.csv"])
def test_neither_file_is_written_if_one_cannot_be(
    make, photo_files, tmp_path, layer, name
):
    store, _ = make("store", photo_files)
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError, match=f"There is a folder at .*{name}"):
        store.export(tmp_path / "rows.npy", layer)
    assert [path.name for path in tmp_path.glob("rows*")] == [name]


def test_a_missing_folder_is_named(make, photo_files, tmp_path, layer):
    store, features = make("store", photo_files)
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent' .*'rows.npy'"):
        store.export(tmp_path / "absent" / "rows.npy", layer)
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent' .*'rows.npy'"):
        features.transform_to(tmp_path / "absent" / "rows.npy", photo_files)


def test_the_home_folder_may_be_abbreviated(
    make, photo_files, tmp_path, layer, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    store, features = make("store", photo_files)
    store.export("~/rows.parquet", layer)
    features.transform_to("~/rows.npy", photo_files)
    written = {path.name for path in tmp_path.glob("rows*")}
    assert written == {"rows.parquet", "rows.npy"}


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_paths_that_are_no_text_are_readable(make, photo_files, tmp_path, suffix):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.png")
    Path(odd).write_bytes(Path(photo_files[0]).read_bytes())
    store, _ = make("store", [odd], prefetch_layers=[])
    with pytest.warns(StoreWarning, match=r"1 paths are not valid UTF-8.*xff"):
        store.export(tmp_path / f"rows{suffix}")
    if suffix == ".npy":
        with open(tmp_path / "rows.csv", newline="", encoding="utf-8") as file:
            (line,) = csv.DictReader(file)
    else:
        (line,) = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert line["path"] == f"{tmp_path}/a\\xff.png"
