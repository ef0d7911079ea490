"""load_image_folder lists photos by class and says what it left out."""

import os
import socket

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_files
from torchvision.datasets import ImageFolder

from skdeepfeat import ImageWarning, PretrainedCNNFeatures, load_image_folder
from skdeepfeat._store.stores import open_table


def make_photos(root, *names):
    """Small photos at these places below a folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 3)).save(root / name)


@pytest.fixture
def folder(tmp_path):
    for name in ["b bees", "äpfel/deep"]:
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
    with pytest.warns(
        ImageWarning, match="Left out 2 file.*for instance .*readme.txt'"
    ):
        photos = load_image_folder(folder)
    assert photos.n_ignored == 2 and len(photos.data) == 3


def test_the_list_is_that_of_torchvision(tmp_path):
    make_photos(
        tmp_path / "photos",
        *["B/10.png", "B/2.JPG", "B/sub/1.png", "B/sub-2/1.bmp", "B/sub/deep/1.ppm"],
        *["B/1.tiff", "a/1.webp", "a/z.png", "a/Z.png", "a.b/1.jpeg", "_/1.pgm"],
    )
    make_photos(tmp_path, "elsewhere/linked.png", "elsewhere/below/1.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "photos" / "B" / "link")
    os.symlink(tmp_path / "elsewhere", tmp_path / "photos" / "linked class")
    os.symlink(tmp_path / "elsewhere", tmp_path / "photos" / "linked again")
    os.symlink(tmp_path / "elsewhere/linked.png", tmp_path / "photos/a/link.png")
    (tmp_path / "photos" / "a" / "notes.txt").write_text("x")
    with pytest.warns(ImageWarning, match="Left out 1 file"):
        photos = load_image_folder(tmp_path / "photos")
    expected = ImageFolder(tmp_path / "photos")
    assert list(zip(photos.data, photos.target, strict=True)) == expected.samples
    assert photos.target_names == expected.classes
    assert len(photos.data) == 18


@pytest.mark.filterwarnings("error")
def test_links_that_lead_back_are_not_followed(tmp_path):
    make_photos(tmp_path, "a/1.png", "a/deep/2.png", "b/3.png")
    os.symlink(tmp_path / "a", tmp_path / "a" / "deep" / "back")
    os.symlink(tmp_path, tmp_path / "a" / "root")
    os.symlink(tmp_path / "b", tmp_path / "a" / "to b")
    os.symlink(tmp_path / "a", tmp_path / "b" / "to a")
    names = [os.path.relpath(p, tmp_path) for p in load_image_folder(tmp_path).data]
    in_a = ["1.png", "deep/2.png", "to b/3.png"]
    in_b = ["3.png", "to a/1.png", "to a/deep/2.png"]
    assert names == [f"a/{name}" for name in in_a] + [f"b/{name}" for name in in_b]


def test_links_to_what_contains_the_whole_folder_are_not_followed(tmp_path):
    make_photos(tmp_path / "all" / "train", "a/1.png", "b/2.png")
    make_photos(tmp_path / "all" / "test", "a/3.png")
    for i, folder in enumerate((tmp_path / "all", tmp_path)):
        os.symlink(folder, tmp_path / "all" / "train" / "b" / f"up {i}")
    photos = load_image_folder(tmp_path / "all" / "train")
    assert [os.path.basename(path) for path in photos.data] == ["1.png", "2.png"]


def test_a_user_who_does_not_exist_has_no_folder():
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_image_folder("~nobody of this name/photos")


def test_an_empty_class_keeps_its_number(tmp_path):
    make_photos(tmp_path / "train", "a/1.png", "b/1.png", "c/1.png")
    make_photos(tmp_path / "test", "a/1.png", "c/1.png")
    (tmp_path / "test" / "b" / "deep").mkdir(parents=True)
    train = load_image_folder(tmp_path / "train")
    with pytest.warns(ImageWarning, match="without images: 'b'"):
        test = load_image_folder(tmp_path / "test")
    listed = load_files(tmp_path / "test", load_content=False)
    assert test.target_names == train.target_names == listed.target_names
    np.testing.assert_array_equal(test.target, [0, 2])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("place", ["", "features.store", "b/rows", "a"])
def test_a_store_of_features_is_no_class(place, tmp_path):
    make_photos(tmp_path, "a/1.png", "z/2.png", "owners.photos/3.png", "b/4.png")
    before = load_image_folder(tmp_path)
    features = PretrainedCNNFeatures(layer="stem", cache=tmp_path / place)
    features.transform(before.data)
    with open_table(features.cache).use_gpus(lambda: ["cuda-0"]):
        pass
    assert len(list((tmp_path / place).glob("features.v*.sqlite"))) == 1
    after = load_image_folder(tmp_path)
    assert after.target_names == before.target_names == ["a", "b", "owners.photos", "z"]
    np.testing.assert_array_equal(after.data, before.data)
    np.testing.assert_array_equal(after.target, before.target)


@pytest.mark.parametrize("beside", [False, True])
def test_owners_with_photos_are_a_class_also_beside_a_store(beside, tmp_path):
    make_photos(tmp_path, "owners/1.png", "pets/2.png")
    if beside:
        PretrainedCNNFeatures(layer="stem", cache=tmp_path).transform(
            load_image_folder(tmp_path).data
        )
    assert load_image_folder(tmp_path).target_names == ["owners", "pets"]


def test_many_empty_classes_are_counted(tmp_path):
    make_photos(tmp_path, "full/1.png")
    for i in range(8):
        (tmp_path / f"{i}").mkdir()
    with pytest.warns(ImageWarning, match="'3', '4' and 3 more"):
        load_image_folder(tmp_path)


def test_files_that_are_not_photos_are_skipped_and_counted(tmp_path):
    make_photos(tmp_path, "a/1.png", "a/2.jp2", "a/3.gif", "a/4.pfm.bmp")
    others = ["paper.pdf", "features.h5", "clip.mpg", "art.eps", "icon.ico", "x"]
    for name in others:
        (tmp_path / "a" / name).write_bytes(b"no photo")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "a" / "broken.png")
    os.symlink(tmp_path / "a" / "itself.png", tmp_path / "a" / "itself.png")
    os.symlink("/dev/zero", tmp_path / "a" / "device.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "a" / "socket.png"))
        os.mkfifo(tmp_path / "pipe")
        with pytest.warns(ImageWarning, match=f"Left out {len(others) + 6} file"):
            photos = load_image_folder(tmp_path)
    assert [os.path.basename(path) for path in photos.data] == [
        "1.png",
        "2.jp2",
        "3.gif",
        "4.pfm.bmp",
    ]
    assert photos.n_ignored == len(others) + 6
    assert PretrainedCNNFeatures("tiny").transform(photos.data).shape == (4, 10)


def test_heif_files_are_photos_where_pillow_reads_them(tmp_path, monkeypatch):
    make_photos(tmp_path, "a/1.png")
    (tmp_path / "a" / "2.heic").write_bytes(b"a photo")
    Image.init()
    monkeypatch.setattr(Image, "EXTENSION", Image.EXTENSION | {".heic": "HEIF"})
    assert len(load_image_folder(tmp_path).data) == 2


def test_file_names_that_are_not_utf_8_are_kept(tmp_path):
    make_photos(tmp_path, "a/1.png")
    name = os.fsdecode(b"caf\xe9.png")
    try:
        os.rename(tmp_path / "a" / "1.png", tmp_path / "a" / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    photos = load_image_folder(tmp_path)
    assert photos.data[0] == str(tmp_path / "a" / name)
    Image.open(photos.data[0]).load()


@pytest.mark.filterwarnings("error")
def test_a_folder_without_classes_lists_its_photos(tmp_path):
    make_photos(tmp_path, "b.png", "a.jpg", ".hidden.png", ".hidden/1.png")
    photos = load_image_folder(tmp_path)
    assert [os.path.basename(path) for path in photos.data] == ["a.jpg", "b.png"]
    assert photos.target is None and photos.target_names == []
    assert photos.n_ignored == 0
    assert PretrainedCNNFeatures("tiny").transform(photos.data).shape == (2, 10)


def test_other_files_of_a_folder_without_classes_are_counted(tmp_path):
    make_photos(tmp_path, "b.png")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.warns(ImageWarning, match=r"Left out 1 file.*notes\.txt"):
        assert load_image_folder(tmp_path).n_ignored == 1


@pytest.mark.parametrize("root", [None, 3, b"photos", ["photos"]])
def test_what_is_no_path_is_refused(root):
    with pytest.raises(ValueError, match="'root' parameter must be a str or a path"):
        load_image_folder(root)


def test_a_folder_without_photos_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_image_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither subfolders nor images"):
        load_image_folder(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"neither .*notes\.txt"):
        load_image_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    make_photos(tmp_path, "beside.png")
    with pytest.raises(
        ValueError, match=r"no subfolder with images.*without subfolder"
    ):
        load_image_folder(tmp_path)
