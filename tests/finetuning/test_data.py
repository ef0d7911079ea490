"""The images of a fit: decoded once, at the network's size, without unreadable ones."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from small_fits import classifier, coloured_images, data_of, with_unreadable

from skdeepfeat import ImageError, ImageWarning, PretrainedCNNFeatures
from skdeepfeat._backbones.weights import resolve_source
from skdeepfeat._finetuning.data import read_pixels
from skdeepfeat._finetuning.new_head import Head
from skdeepfeat._finetuning.parts import Parts
from skdeepfeat._finetuning.tuned_part import find_tuned_part
from skdeepfeat._images import batches
from skdeepfeat._images.containers import read_images
from skdeepfeat._networks.generators import Draws


@pytest.fixture(scope="module")
def images():
    return coloured_images()


@pytest.fixture
def some_unreadable(images):
    return with_unreadable(images)


def test_images_are_decoded_once(images, tmp_path, monkeypatch):
    X, y = images
    paths = []
    for i, pixels in enumerate(X):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(pixels).save(paths[-1])
    decoded, real = [], batches.read_row
    monkeypatch.setattr(
        batches, "read_row", lambda *a: (decoded.append(a[1]), real(*a))[1]
    )
    clf = classifier(epochs=3, augment="standard").fit(paths, y)
    assert sorted(decoded) == list(range(40))
    same = classifier(epochs=3, augment="standard").fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), same.predict_proba(X))


def test_training_pixels_are_those_of_the_features(images):
    """The crop of the padded training images is the very crop of the recipe."""
    name = "efficientnet_lite0"
    rng = np.random.default_rng(1)
    for side in (60, 61, 62, 63):
        photo = rng.integers(0, 256, (side, 80, 3), dtype=np.uint8)
        X = np.stack([photo, photo[:, ::-1]])
        clf = classifier(name, unfreeze=0, image_size=32).fit(X, [0, 1])
        source = resolve_source(name, "default", 0, 32)
        pixels = read_pixels(
            read_images(X), range(len(X)), source.input, None, 1
        ).pixels
        assert pixels.shape[2] > 32
        part = find_tuned_part(source, 0)
        head = Head(part.width, 2, 0.0)
        parts = Parts(source, source.key(), part, head, Draws(0, torch.device("cpu")))
        with torch.no_grad():
            rows = parts.pooled(parts.frozen(parts.prepare(pixels))[part.end.node])
        expected = PretrainedCNNFeatures(name, image_size=32, cache=None).transform(X)
        np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)
        assert clf.n_iter_ == 5


def test_one_float_image_makes_all_of_them_floats_and_keeps_their_values():
    rng = np.random.default_rng(0)
    eight_bit = rng.integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)
    precise = np.full((8, 8, 3), 0.3, np.float32)
    source = resolve_source("tiny", "default", 0, None)
    images = read_images([*eight_bit[:50], precise, *eight_bit[50:]])
    pixels = read_pixels(images, range(71), source.input, None, 2).pixels
    assert pixels.dtype == torch.float32 and pixels.shape == (71, 3, 8, 8)
    rows = pixels.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(np.delete(rows, 50, axis=0), eight_bit)
    np.testing.assert_allclose(rows[50], 76.5, rtol=1e-6)
    images = read_images(eight_bit)
    few = read_pixels(images, [3, 60, 5], source.input, None, 2)
    assert few.pixels.dtype == torch.uint8 and few.rows.tolist() == [3, 60, 5]


def test_images_held_out_are_not_copied():
    pixels = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 2, 2)
    data = data_of(pixels, np.arange(10))
    some = data.at(np.array([7, 2, 5])).at([2, 0])
    assert some.images.pixels is pixels and len(some) == 2
    assert some.take(torch.tensor([0, 1]))[:, 0, 0, 0].tolist() == [5, 7]
    assert some.targets.tolist() == [5, 7]


@pytest.mark.parametrize("early_stopping", [False, True])
def test_fit_leaves_unreadable_images_out(images, some_unreadable, early_stopping):
    X, y = some_unreadable
    clf = classifier(
        on_error="nan",
        class_weight="balanced",
        early_stopping=early_stopping,
        validation_fraction=0.2,
    )
    with pytest.warns(ImageWarning, match=r"2 of 40 .* first is row 3") as caught:
        clf.fit(X, y)
    assert len([w for w in caught if w.category is ImageWarning]) == 1
    kept = np.delete(np.arange(40), [3, 7])
    without = clone(clf).fit(images[0][kept], y[kept])
    np.testing.assert_array_equal(
        clf.predict_proba(images[0]), without.predict_proba(images[0])
    )


def test_a_class_without_a_readable_image_is_an_error(images):
    X, y = images
    clf = classifier(on_error="nan")
    rows = [
        None if label == "bee" else image for image, label in zip(X, y, strict=True)
    ]
    with pytest.raises(ImageError, match=r"No image of the classes \['bee'\]"):
        clf.fit(rows, y)
    with pytest.raises(ImageError, match=r"\['ant', 'bee', 'cat'\] can be used"):
        clf.fit([None] * 40, y)
    with pytest.warns(ImageWarning, match="left out"):  # more may come
        clf.partial_fit(rows, y, classes=np.unique(y))
    with pytest.raises(ImageError, match="can be used"):
        clf.partial_fit([None] * 40, y)


def test_flat_rows_with_missing_values(images):
    X, y = images
    X = X.reshape(40, -1).astype(float) / 255
    clf = classifier(on_error="nan", image_shape=(10, 10, 3)).fit(X, y)
    X[4, 17] = np.nan
    with pytest.warns(ImageWarning, match="1 of 40"):
        assert np.flatnonzero(np.isnan(clf.predict_proba(X)[:, 0])).tolist() == [4]
    with pytest.warns(ImageWarning, match="left out"):
        clf.fit(X, y)


def test_unreadable_images_are_all_named(images, tmp_path):
    X, y = images
    rows = [*X[:-2], tmp_path / "a.jpg", tmp_path / "b.jpg"]
    with pytest.raises(ImageError, match=r"row 38.*2 of 40 images.*rows 39"):
        classifier().fit(rows, y)


def test_images_that_a_fit_leaves_out_are_listed(images):
    X, y = images
    X, y = [*X[:8], "gone.jpg", *X[8:16], "lost.jpg"], [*y[:8], y[0], *y[8:16], y[1]]
    clf = classifier(unfreeze=0, epochs=0, on_error="nan")
    with pytest.warns(ImageWarning, match=r"2 of 18 images .* errors_ lists them"):
        clf.fit(X, y)
    assert [(row, source) for row, source, _ in clf.errors_] == [
        (8, "gone.jpg"),
        (17, "lost.jpg"),
    ]
    clf.predict(X[:2])
    assert clf.errors_ == []
