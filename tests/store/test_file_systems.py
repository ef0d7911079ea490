"""Disks that machines share are recognised; a store there is safe, or refused."""

import errno
import shutil
import sqlite3

import numpy as np
import pytest

from skdeepfeat import FeatureStore, PretrainedCNNFeatures, StoreWarning
from skdeepfeat._store import file_systems
from skdeepfeat._store.database import FILE
from skdeepfeat._store.file_systems import mount_of

LINES = {
    "nfs": "nfs4 server:/data rw,vers=4.2,local_lock=none",
    "nolock": "nfs server:/data rw,nolock,local_lock=all",
    "smb": "cifs //server/data rw,cache=strict",
    "nobrl": "cifs //server/data rw,nobrl",
    "lustre": "lustre mgs@tcp:/fs rw,flock,lazystatfs",
    "localflock": "lustre mgs@tcp:/fs rw,localflock",
    "sshfs": "fuse.sshfs me@server:/data rw,user_id=0",
    "s3": "fuse.s3fs s3fs rw",
    "bindfs": "fuse.bindfs bindfs rw",
    "glusterfs": "fuse.glusterfs server:/data rw",
    "unknown": "fuse.newfs something rw",
    "ntfs": "fuseblk /dev/sda1 rw",
    "ext4": "ext4 /dev/sda1 rw",
}


@pytest.fixture
def mounted(monkeypatch, tmp_path):
    """A function that lets a folder look like the mount of a file system."""

    def mounted(kind):
        folder = tmp_path / "a disk"
        folder.mkdir(exist_ok=True)
        table = tmp_path / "mountinfo"
        point = str(folder).replace(" ", r"\040")
        table.write_text(
            "22 1 0:20 / / rw,relatime shared:1 - overlay overlay rw\n"
            f"23 22 0:21 / {point} rw,relatime shared:2 - {LINES[kind]}\n"
        )
        monkeypatch.setattr(file_systems, "MOUNTS", table)
        return folder

    return mounted


def journal_of(store):
    db = store.open()._database.connect()
    return db.execute("PRAGMA journal_mode").fetchone()[0]


def test_the_last_of_the_longest_mounts_counts(mounted, tmp_path):
    folder = mounted("nfs")
    assert mount_of(folder / "not" / "there").kind == "nfs4"
    assert mount_of(tmp_path / "a disk2").kind == "overlay"
    with file_systems.MOUNTS.open("a") as file:
        point = str(folder).replace(" ", r"\040")
        file.write(f"24 23 0:22 / {point} rw - tmpfs tmpfs rw\n")
    assert mount_of(folder).kind == "tmpfs"


def test_without_a_list_of_mounts_a_disk_is_local(monkeypatch, tmp_path):
    monkeypatch.setattr(file_systems, "MOUNTS", tmp_path / "absent")
    assert not mount_of(tmp_path).is_shared


@pytest.mark.parametrize("kind", ["nfs", "smb", "lustre", "bindfs", "glusterfs"])
def test_a_shared_disk_has_no_write_ahead_log(mounted, kind, photos):
    store = FeatureStore(mounted(kind) / "store")
    features = PretrainedCNNFeatures("tiny", cache=store)
    rows = features.transform(photos)
    assert journal_of(store) == "delete"
    np.testing.assert_array_equal(features.transform(photos), rows)
    assert features.stats_["n_computed"] == 0
    assert not list(store.open().folder.glob("*-wal"))


@pytest.mark.parametrize("kind", ["ext4", "ntfs"])
def test_a_local_disk_has_a_write_ahead_log(mounted, kind, photos):
    store = FeatureStore(mounted(kind) / "store")
    PretrainedCNNFeatures("tiny", cache=store).transform(photos)
    assert journal_of(store) == "wal"


@pytest.mark.parametrize(
    "kind", ["nolock", "nobrl", "localflock", "sshfs", "s3", "unknown"]
)
def test_a_disk_without_locks_between_machines_is_refused(mounted, kind, photos):
    store = FeatureStore(mounted(kind) / "store")
    with pytest.raises(ValueError, match=r"Use a folder on a local disk.*merge"):
        PretrainedCNNFeatures("tiny", cache=store).transform(photos)
    assert not (mounted(kind) / "store" / FILE).exists()


def test_a_finished_store_is_read_from_a_disk_without_locks(mounted, photos, tmp_path):
    local = FeatureStore(tmp_path / "local")
    rows = PretrainedCNNFeatures("tiny", cache=local).transform(photos[:4])
    local.open().close()
    folder = mounted("s3") / "store"
    shutil.copytree(local.path, folder)
    before = (folder / FILE).read_bytes()
    features = PretrainedCNNFeatures("tiny", cache=folder)
    with pytest.warns(StoreWarning, match="is not writable"):
        np.testing.assert_array_equal(features.transform(photos)[:4], rows)
    assert features.stats_["n_computed"] == 2
    assert (folder / FILE).read_bytes() == before


def test_a_store_of_a_local_disk_is_changed_where_it_is_copied(
    mounted, photos, tmp_path
):
    local = FeatureStore(tmp_path / "local")
    PretrainedCNNFeatures("tiny", cache=local).transform(photos)
    local.open().close()
    shutil.copytree(local.path, mounted("nfs") / "store")
    store = FeatureStore(mounted("nfs") / "store")
    features = PretrainedCNNFeatures("tiny", cache=store)
    features.transform(photos)
    assert journal_of(store) == "delete" and features.stats_["n_computed"] == 0
    with sqlite3.connect(f"{store.path}/{FILE}") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


def test_a_shared_disk_whose_locks_do_nothing_is_refused(mounted, photos, monkeypatch):
    store = FeatureStore(mounted("nfs") / "store")
    monkeypatch.setattr(file_systems.fcntl, "fcntl", lambda *arguments: 0)
    with pytest.raises(ValueError, match="on nfs4: machines may not see"):
        PretrainedCNNFeatures("tiny", cache=store).transform(photos)
    assert not list(store.open().folder.iterdir())


def test_a_shared_disk_without_locks_is_refused(mounted, photos, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOSYS, "no locks")

    store = FeatureStore(mounted("lustre") / "store")
    monkeypatch.setattr(file_systems.fcntl, "fcntl", no_locks)
    with pytest.raises(ValueError, match="on lustre"):
        PretrainedCNNFeatures("tiny", cache=store).transform(photos)
