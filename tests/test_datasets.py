"""load_image_folder lists photos by class and says what it left out."""

import numpy as np
import pytest
from PIL import Image

from skdeepfeat import ImageWarning, load_image_folder


@pytest.fixture
def folder(tmp_path):
    for name in ["b bees", "äpfel/deep", "empty"]:
        (tmp_path / name).mkdir(parents=True)
    for place in ["b bees/2.PNG", "b bees/1.jpeg", "äpfel/deep/x.webp"]:
        Image.new("RGB", (3, 3)).save(tmp_path / place)
    return tmp_path


def test_photos_classes_and_order(folder):
    photos = load_image_folder(str(folder))
    assert photos.target_names == ["b bees", "äpfel"]
    assert [path.rsplit("/", 1)[1] for path in photos.data] == [
        "1.jpeg",
        "2.PNG",
        "x.webp",
    ]
    np.testing.assert_array_equal(photos.target, [0, 0, 1])
    np.testing.assert_array_equal(photos.filenames, photos.data)
    assert photos.n_ignored == 0


def test_other_files_are_left_out_and_counted(folder):
    (folder / "readme.txt").write_text("x")
    (folder / "b bees" / "notes.csv").write_text("x")
    (folder / "b bees" / ".hidden.png").write_text("x")
    (folder / ".DS_Store").write_text("x")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "1.png").write_text("x")
    with pytest.warns(ImageWarning, match="2 files.*for instance .*readme.txt'"):
        photos = load_image_folder(folder)
    assert photos.n_ignored == 2 and len(photos.data) == 3


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_image_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no subfolder with images"):
        load_image_folder(tmp_path)
