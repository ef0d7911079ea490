"""A folder → the file system it is on, and how safely machines share files there.

SQLite's write-ahead log needs memory that all its readers share, so it is only for
disks of one machine. Its rollback journal needs locks alone. Where machines do not see
each other's locks, several of them could damage a file, so that it is only read there.
"""

import fcntl
import os
import re
import secrets
import struct
from pathlib import Path
from typing import NamedTuple

MOUNTS = Path("/proc/self/mountinfo")  # of Linux; elsewhere all disks count as local

# Disks that several machines may share, which see each other's locks there.
SHARED = {"afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre"}
SHARED |= {"nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs"}
SHARED |= {"fuse.ceph", "fuse.ceph-fuse", "fuse.glusterfs", "fuse.juicefs"}
SHARED |= {"9p", "fakeowner", "prl_fs", "vboxsf", "virtiofs", "vmhgfs"}  # of a host

# File systems in user space that show a local disk. Of others it is not known whether
# machines share them and see each other's locks; of many it is known that they do not.
LOCAL_FUSE = {"fuse.bindfs", "fuse.encfs", "fuse.fuse-overlayfs", "fuse.gocryptfs"}
LOCAL_FUSE |= {"fuse.mergerfs", "fuse.ntfs-3g", "fuse.unionfs", "fuse.veracrypt"}

# Options of mounts with which locks hold on one machine alone.
LOCAL_LOCKS = {"nolock", "local_lock=all", "local_lock=posix"}  # of NFS
LOCAL_LOCKS |= {"nobrl", "localflock", "noflock"}  # of SMB and Lustre


class Mount(NamedTuple):
    """A mounted file system.

    Parameters
    ----------
    point : str
    kind : str
        Such as "ext4" or "nfs4".
    options : frozenset of str
    """

    point: str
    kind: str
    options: frozenset[str]

    @property
    def is_shared(self) -> bool:
        """Whether several machines may have it, or memory may not be shared on it."""
        return self.kind in SHARED or self._in_user_space

    @property
    def _in_user_space(self) -> bool:
        return self.kind.partition(".")[0] in ("fuse", "davfs")

    @property
    def without_locks(self) -> str:
        """Why machines may not see each other's locks there, or "" if they do."""
        if self._in_user_space and self.kind not in SHARED | LOCAL_FUSE:
            return self.kind
        options = sorted(self.options & LOCAL_LOCKS)
        return f"{self.kind} with the option {options[0]!r}" if options else ""


LOCAL = Mount("/", "unknown", frozenset())


def mount_of(folder: Path) -> Mount:
    """The file system of a folder, which need not exist yet."""
    path = os.path.realpath(folder)
    holding = [mount for mount in _mounts() if _is_within(path, mount.point)]
    # Of several at one point, the last one hides the others.
    return max(reversed(holding), key=lambda mount: len(mount.point), default=LOCAL)


def _is_within(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def _mounts() -> list[Mount]:
    """What is mounted, in the order of mounting."""
    try:
        text = MOUNTS.read_text(errors="surrogateescape")
    except OSError:
        return []
    return [_parse(line) for line in text.splitlines() if " - " in line]


def _parse(line: str) -> Mount:
    """One line: its fifth field is the place; the type follows a dash."""
    before, _, after = line.partition(" - ")
    _, _, _, _, point, options, *_ = before.split(" ")
    kind, _, more = (*after.split(" "), "", "")[:3]
    return Mount(_unescaped(point), kind, frozenset(f"{options},{more}".split(",")))


def _unescaped(text: str) -> str:
    r"""A path in which "\040" stands for a space."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)


def locks_hold(folder: Path) -> bool:
    """Whether a lock on a file of a folder keeps others away, tried with two of them.

    Locks of open files, and not of processes, so that one process can try it.
    """
    path = folder / f"probe.{secrets.token_hex(4)}"
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with path.open("wb") as one, path.open("wb") as other:
            fcntl.fcntl(one, fcntl.F_OFD_SETLK, lock)
            try:
                fcntl.fcntl(other, fcntl.F_OFD_SETLK, lock)
            except BlockingIOError:
                return True
        return False
    except OSError:  # there are no locks at all
        return False
    finally:
        path.unlink(missing_ok=True)
