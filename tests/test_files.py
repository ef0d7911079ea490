"""Files that appear, or change, only once they are complete."""

import os

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
