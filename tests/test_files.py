"""Files that appear, or change, only once they are complete."""

import os
import signal
import subprocess
import sys

import pytest

from skdeepfeat._files import replacing


def test_a_file_is_replaced_once_it_is_complete_and_keeps_its_permissions(tmp_path):
    path = tmp_path / "rows.npy"
    path.write_text("old")
    path.chmod(0o600)
    with replacing(path) as incomplete:
        incomplete.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["rows.npy"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_leaves_nothing_behind(error, tmp_path):
    with pytest.raises(error), replacing(tmp_path / "rows.npy") as incomplete:
        incomplete.write_text("half")
        raise error
    assert os.listdir(tmp_path) == []


WRITES = """
import sys
from pathlib import Path
from skdeepfeat._files import replacing

with replacing(Path(sys.argv[1])) as incomplete:
    incomplete.write_text("half")
    print("written", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals of POSIX")
def test_what_a_killed_process_left_is_removed_and_what_others_write_is_not(tmp_path):
    path = tmp_path / "rows [1].npy"
    command = [sys.executable, "-c", WRITES, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    killed, alive = (subprocess.Popen(command, **pipes) for _ in range(2))
    for process in (killed, alive):
        assert process.stdout.readline() == b"written\n"
    killed.kill()
    killed.communicate()
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
        partials = sorted(tmp_path.glob("*.partial"))
        assert len(partials) == 3 and {one, other} < set(partials)
    alive.communicate()
    assert alive.returncode == 0 and path.read_text() == "half"
    assert os.listdir(tmp_path) == [path.name]


def test_files_of_others_with_similar_names_stay(tmp_path):
    names = ["rows.npy.old.partial", "rows.npy.old.partial.lock", "rows.npy.lock"]
    for name in names:
        (tmp_path / name).write_text("mine")
    with replacing(tmp_path / "rows.npy") as incomplete:
        incomplete.write_text("new")
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "rows.npy"])
    assert all((tmp_path / name).read_text() == "mine" for name in names)
