"""A folder → the file system it is on, and how safely machines share files there.

SQLite's write-ahead log needs memory that all its readers share, so it is only for
disks of one machine. Its rollback journal needs locks alone. Where machines do not see
each other's locks, several of them could damage a file, so that it is only read there.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

MOUNTS = Path("/proc/self/mountinfo")  # of Linux; elsewhere all disks count as local

# Disks that several machines may share. Anything in user space that is not listed
# further below may be one.
SHARED = {"afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre"}
SHARED |= {"nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs"}
SHARED |= {"9p", "fakeowner", "prl_fs", "vboxsf", "virtiofs", "vmhgfs"}  # of a host

# File systems, and options of mounts, with which locks hold on one machine alone.
UNLOCKED = {"fuse.blobfuse", "fuse.blobfuse2", "fuse.gcsfuse", "fuse.goofys"}
UNLOCKED |= {"fuse.mountpoint-s3", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "davfs"}
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
        """Whether several machines may have it."""
        return self.kind in SHARED or self.kind.partition(".")[0] == "fuse"

    @property
    def without_locks(self) -> str:
        """Why machines do not see each other's locks there, or "" if they do."""
        if self.kind in UNLOCKED:
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
