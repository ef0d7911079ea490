"""Bugs found in use, one test each."""

import functools
import io
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_backbone
from PIL import Image
from sklearn.utils._param_validation import InvalidParameterError
from torchvision import models

from skdeepfeat import (
    Backbone,
    FeatureStore,
    FineTunedClassifier,
    ImageError,
    ImageWarning,
    PretrainedCNNFeatures,
    WeightsError,
    list_layers,
)
from skdeepfeat._digests import digest_file
from skdeepfeat._images.recipe import InputSpec


def of_module(net, **parameters):
    net = net.eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    backbone = Backbone.from_module(net, image_size=32, mean=(0,) * 3, std=(1,) * 3)
    return PretrainedCNNFeatures(backbone, cache=None, **parameters)


@pytest.fixture
def X(photos):
    large = [Image.fromarray(photo).resize((32, 32)) for photo in photos]
    return np.stack([np.asarray(image) for image in large])


def as_input(X):
    return torch.from_numpy(X).permute(0, 3, 1, 2) / 255


class InPlace(torch.nn.Module):
    """Discards the results of its in-place steps and reads their argument."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(inplace=True)
        self.fc = torch.nn.Linear(4, 3)

    def forward(self, x):
        y = self.conv(x)
        y.mul_(-1)
        self.relu(y)
        y.add_(0.5)
        F.hardtanh(y, -1, 1, inplace=True)
        return self.fc(y.mean((2, 3)))


def test_in_place_steps_whose_result_is_discarded(X):
    net = InPlace()
    features = of_module(net, layer="logits").transform(X)
    with torch.no_grad():
        np.testing.assert_allclose(features, net(as_input(X)), rtol=1e-4, atol=1e-4)


class Scaled(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.conv, self.scale = torch.nn.Conv2d(3, 4, 3), scale

    def forward(self, x):
        return self.conv(x) * self.scale


def redefined(sign):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

    def plus(self, x):
        return self.conv(x).relu()

    def minus(self, x):
        return -self.conv(x)

    Net.forward = plus if sign > 0 else minus
    return Net()


def test_networks_that_differ_only_in_attributes_or_code_are_different():
    one, two = (of_module(Scaled(s)).backbone for s in (1.0, 100.0))
    assert one != two and one == of_module(Scaled(1.0)).backbone
    plus, minus = (of_module(redefined(sign)).backbone for sign in (1, -1))
    assert plus != minus and plus == of_module(redefined(1)).backbone


def test_long_constants_of_a_network_are_compared_to_the_last_value():
    ends = []
    for end in (0.0, 1.0):
        scale = torch.zeros(4, 30, 30)
        scale[2, 15, 15] = end  # numpy would not print it
        ends.append(of_module(Scaled(scale)).backbone)
    assert ends[0] != ends[1]


@pytest.mark.parametrize(
    "build", [lambda: None, functools.partial(print)], ids=["lambda", "partial"]
)
def test_builders_that_other_processes_cannot_find_are_refused(build):
    with pytest.raises(TypeError, match="top of a module"):
        Backbone("mine", build, InputSpec(8, None))


def test_transparency_of_an_rgb_image_is_part_of_its_content():
    flat = Image.new("RGB", (32, 32), (10, 20, 30))
    buffer = io.BytesIO()
    flat.save(buffer, "PNG", transparency=(10, 20, 30))
    features = PretrainedCNNFeatures("tiny")
    opaque = features.transform([flat])
    assert not np.array_equal(features.transform([Image.open(buffer)]), opaque)


def test_channels_are_found_wherever_a_node_keeps_them(photos):
    features = PretrainedCNNFeatures("convnext_tiny", weights=None, image_size=64)
    for node, width in [("features.1.0.block.3", 384), ("features.1.0.block.1", 96)]:
        assert features.set_params(layer=node).transform(photos[:1]).shape == (1, width)


class Regrouped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)

    def forward(self, x):
        x = self.conv(x)
        halves = x.reshape(x.shape[0] * 2, 4, 30, 30)
        return halves.mean((2, 3)).reshape(x.shape[0], 8)


def test_nodes_that_mix_images_are_refused(X):
    features = of_module(Regrouped())
    assert features.set_params(layer="reshape_1").transform(X).shape == (6, 8)
    with pytest.raises(ValueError, match="for each image"):
        features.set_params(layer="reshape").transform(X)


FRAMES = {
    "nullable": lambda frame: frame.convert_dtypes(),
    "pandas in Arrow": lambda frame: frame.convert_dtypes(dtype_backend="pyarrow"),
    "Arrow": pa.Table.from_pandas,
    "polars": pl.from_pandas,
}


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint16", "int64"])
@pytest.mark.parametrize("container", FRAMES)
def test_whole_numbers_in_frames_are_scaled_as_those_in_arrays(X, container, dtype):
    flat = (X[:, :8, :8].reshape(6, -1) // 100).astype(dtype)
    frame = FRAMES[container](pd.DataFrame(flat).add_prefix("p"))
    features = PretrainedCNNFeatures("tiny", image_shape=(8, 8, 3), cache=None)
    expected = features.transform(flat)
    np.testing.assert_array_equal(features.transform(frame), expected)


def takes_missing_values(dtype):
    try:
        return pd.Series([1, None], dtype=dtype).astype("f8").isna().any()
    except TypeError:  # pandas 2.2.0 stumbles over those of Arrow
        return False


@pytest.mark.parametrize("dtype", ["UInt8", "uint16[pyarrow]"])
def test_a_missing_pixel_costs_its_own_row_alone(X, dtype):
    if not takes_missing_values(dtype):
        pytest.skip("this pandas makes no floats of missing values of this dtype")
    features = PretrainedCNNFeatures(
        "tiny", image_shape=(8, 8, 3), cache=None, on_error="nan"
    )
    flat = X[:, :8, :8].reshape(6, -1).astype("u2")
    frame = pd.DataFrame(flat).astype(dtype)
    expected = features.transform(frame)
    frame.iloc[2, 5] = pd.NA
    with pytest.warns(ImageWarning, match=r"1 of 6 images .* row 2"):
        found = features.transform(frame)
    assert np.isnan(found[2]).all()
    rest = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(found[rest], expected[rest])


def test_masked_arrays_and_mappings_are_refused(X, photo_files):
    for wrong in (np.ma.masked_array(X, mask=True), {"a": photo_files[0]}, set("ab")):
        with pytest.raises(ValueError, match="X must"):
            PretrainedCNNFeatures("tiny").transform(wrong)
    with pytest.raises(ValueError, match="dtype of numbers"):
        PretrainedCNNFeatures("tiny").transform(X.astype(object))


class Undecided(torch.nn.Module):
    """fx cannot trace it; one module is used twice, one never."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()
        self.never = torch.nn.Conv2d(3, 4, 3)
        self.fc, self.dead = torch.nn.Linear(4, 2), torch.nn.Linear(9, 9)

    def forward(self, x):
        y = self.relu(self.conv(x))
        if x.sum() > 0:
            y = self.relu(F.avg_pool2d(y, 2) - 0.5)
        return self.fc(y.mean((2, 3)))


def test_a_module_used_twice_is_read_the_first_time(X):
    features = of_module(Undecided(), layer="relu")
    alone = features.transform(X)
    together = features.set_params(layer=("relu", "fc")).transform(X)
    np.testing.assert_array_equal(together[:, :4], alone)
    found = {layer.alias: layer.node for layer in list_layers(features.backbone)}
    blocks = {"block1": "conv", "block2": "relu"}
    assert found == blocks | {"penultimate": "fc.input", "logits": "fc"}


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.rnn = torch.nn.Conv2d(3, 4, 3), torch.nn.LSTM(30, 5)
        self.fc, self.dead = torch.nn.Linear(5, 2), torch.nn.Linear(9, 9)
        self.shift = torch.ones(4, 1, 1)

    def forward(self, x):
        x, _ = self.rnn((self.conv(x) + self.shift).mean(1))
        return self.fc(x.mean(1))


def test_children_without_tensor_or_use_are_not_layers(X):
    features = of_module(Recurrent())
    aliases = {layer.alias: layer.node for layer in list_layers(features.backbone)}
    assert aliases["penultimate"] == "fc.input" and "rnn" not in aliases.values()
    assert features.transform(X).shape == (6, 5)


def test_only_plain_networks_are_accepted():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    with pytest.raises(TypeError, match="plain Python"):
        Backbone.from_module(torch.nn.Sequential, image_size=8)
    with pytest.raises(ValueError, match="weights='default'"):
        of_module(net, weights=None).fit(np.zeros((1, 8, 8, 3), np.uint8))


def test_files_in_the_download_folder_are_verified(tmp_path, monkeypatch, photos):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"not that file")
    with pytest.raises(WeightsError, match="checksum"):
        PretrainedCNNFeatures("squeezenet1_1").transform(photos)


def test_a_rewritten_file_with_its_old_time_stamp_is_read_again(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    stat, first = file.stat(), digest_file(file)
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digest_file(file) != first


def in_steps_of_two_seconds(found, age):
    """What os.stat returns on FAT, as if a file was that many seconds older."""
    steps = {
        name: (getattr(found, name) // 10**9 // 2 * 2 - age) * 10**9
        for name in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")
    }
    seconds = [value // 10**9 for value in steps.values()]
    floats = dict(zip(("st_atime", "st_mtime", "st_ctime"), seconds, strict=True))
    return os.stat_result((*found[:7], *seconds), steps | floats)


@pytest.mark.parametrize("age, n_read", [(0, 2), (60, 1)])
def test_a_photo_that_is_written_twice_in_one_step_of_its_times_is_read_twice(
    tmp_path, monkeypatch, age, n_read
):
    stat, name = os.stat, str(tmp_path / "latest.bmp")

    def coarse(path, *arguments, **options):
        found = stat(path, *arguments, **options)
        return in_steps_of_two_seconds(found, age) if path == name else found

    monkeypatch.setattr(os, "stat", coarse)
    features = PretrainedCNNFeatures("tiny", cache=FeatureStore(tmp_path / "store"))
    rows = []
    while time.time() % 2 > 1.5:
        time.sleep(0.1)
    for grey in (0, 255):
        Image.new("L", (9, 9), grey).save(name)
        rows.append(features.transform([name]))
    assert len(np.unique(np.concatenate(rows), axis=0)) == n_read


@pytest.mark.parametrize("X", [["nowhere.png"], [None, "nowhere.png"]])
def test_without_readable_rows_all_rows_are_nan(X):
    features = PretrainedCNNFeatures("tiny", on_error="nan")
    with pytest.warns(ImageWarning):
        out = features.transform(X)
    assert out.shape == (len(X), 10) and np.isnan(out).all()


@pytest.mark.parametrize(
    "first", [5, np.zeros(0), np.zeros(5), [1, 2], np.float32("nan")]
)
def test_an_unusual_first_row_does_not_affect_the_others(first, photos):
    features = PretrainedCNNFeatures("tiny", on_error="nan")
    with pytest.warns(ImageWarning, match="1 of 2"):
        out = features.transform([first, photos[0]])
    np.testing.assert_array_equal(np.isnan(out).all(1), [True, False])


def test_missing_first_cell_of_an_object_column(photo_files):
    column = np.array([np.nan, *photo_files], dtype=object)[:, None]
    features = PretrainedCNNFeatures("tiny", on_error="nan")
    with pytest.warns(ImageWarning, match="1 of 7"):
        assert features.transform(column).shape == (7, 10)


@pytest.mark.parametrize("layer", ["block1", "penultimate"])
def test_maxvit(layer):
    X = np.zeros((1, 224, 224, 3), np.uint8)
    features = PretrainedCNNFeatures("maxvit_t", weights=None, layer=layer)
    assert features.transform(X).shape[1] == len(features.get_feature_names_out())


def test_networks_built_for_one_size(photos, tmp_path):
    features = PretrainedCNNFeatures("vit_b_32", weights=None, image_size=64)
    assert features.transform(photos[:1]).shape == (1, 768)
    (tmp_path / "w.pth").write_bytes(b"")
    features.set_params(weights=str(tmp_path / "w.pth"))
    with pytest.raises(ValueError, match="only takes images of 224 pixels"):
        features.transform(photos[:1])


@pytest.mark.parametrize(
    "parameters",
    [
        {"value_range": (255,)},
        {"value_range": (0, 0)},
        {"value_range": (0, float("inf"))},
        {"value_range": ("a", "b")},
        {"image_shape": (3072,)},
        {"image_shape": (-1, -1)},
        {"image_shape": (0, 4)},
        {"weights": ("default",)},
        {"layer": (1.5,)},
        {"device": "meta"},
    ],
    ids=str,
)
def test_wrong_values_are_parameter_errors_not_row_errors(parameters, photos):
    (name,) = parameters
    features = PretrainedCNNFeatures("tiny", on_error="nan", **parameters)
    with pytest.raises(ValueError, match=name):
        features.transform(photos)


def test_numpy_seeds_and_store_bounds(photos):
    seeded = PretrainedCNNFeatures(
        "squeezenet1_1", weights=None, layer="stem", random_state=np.int64(2)
    )
    assert seeded.transform(photos[:1]).shape == (1, 64)
    with pytest.raises(ValueError, match="at least 0"):
        FeatureStore(name="x", max_bytes=-1)


def test_a_frame_needs_no_fit(photo_files, recwarn):
    PretrainedCNNFeatures("tiny").transform(pd.DataFrame({"path": photo_files}))
    assert not recwarn


@pytest.mark.parametrize("place", ["memory", "folder"])
def test_values_out_of_range_also_warn_for_stored_rows(place, photos, tmp_path):
    """The warning must not be limited to the call that computes the rows."""
    cache = "memory" if place == "memory" else tmp_path / "store"
    floats = photos.astype(np.float32)  # from 0 to 255, taken as from 0 to 1
    est = PretrainedCNNFeatures(tiny_backbone(), cache=cache)
    for X in (floats, floats, list(floats), torch.tensor(floats).permute(0, 3, 1, 2)):
        with pytest.warns(ImageWarning, match=r"value_range=\(0, 255\)"):
            est.transform(X)
    assert est.stats_["n_computed"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        est.set_params(value_range=(0, 255)).transform(floats)


@pytest.mark.parametrize(
    "column",
    [[1, 2, 3], np.arange(3), pd.Series([1, 2, 3]), pl.Series([1, 2, 3])],
    ids=["list", "array", "pandas", "polars"],
)
def test_a_column_of_numbers_is_refused_with_an_explanation(column):
    est = PretrainedCNNFeatures(tiny_backbone())
    for method in (est.fit, est.transform):
        with pytest.raises(ValueError, match="Pass the column that holds the images"):
            method(column)


def test_frames_of_pixels_need_no_fit(photos):
    """There are no names from `fit` to compare with."""
    flat = pd.DataFrame(photos.reshape(len(photos), -1))
    flat.columns = [f"pixel{i}" for i in range(flat.shape[1])]
    est = PretrainedCNNFeatures(tiny_backbone(), image_shape=(24, 32, 3))
    expected = PretrainedCNNFeatures(tiny_backbone()).transform(photos)
    np.testing.assert_array_equal(est.transform(flat), expected)


def test_paths_from_arrays_are_named_as_text(tmp_path):
    path = tmp_path / "no image.jpg"
    path.write_text("text")
    est = PretrainedCNNFeatures(tiny_backbone(), on_error="nan")
    with pytest.warns(ImageWarning, match=r"row 0 \(/.*no image\.jpg\)"):
        est.transform(np.array([str(path)]))
    ((_, source, _),) = est.errors_
    assert type(source) is str and Path(source) == path


def test_inspecting_a_store_creates_no_folder(tmp_path):
    store = FeatureStore(tmp_path / "mistyped")
    assert store.info()["rows"] == 0
    store.clear()
    assert not (tmp_path / "mistyped").exists()


@pytest.mark.parametrize("bound", ["1GB", -1, 1.5, True, ""])
def test_size_limits_of_stores_are_integers(bound):
    with pytest.raises(ValueError, match="'max_bytes' must be None or an int"):
        FeatureStore(max_bytes=bound)


def test_networks_say_which_images_they_refuse(photos):
    message = "'squeezenet1_1' does not take images of image_size=8"
    small = {"backbone": "squeezenet1_1", "weights": None, "image_size": 8}
    for engine in ("torch", "auto"):
        est = PretrainedCNNFeatures(**small, engine=engine)
        with pytest.raises(ValueError, match=message):
            est.transform(photos[:1])
    with pytest.raises(ValueError, match=message):
        FineTunedClassifier(**small).fit(photos[:4], [0, 1, 0, 1])


def test_damaged_weights_are_not_called_unsafe(tmp_path, photos):
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save(models.resnet18(weights=None).state_dict(), whole)
    cut.write_bytes(whole.read_bytes()[:1_000_000])
    with pytest.raises(WeightsError, match=r"damaged, truncated.*1,000,000 bytes"):
        PretrainedCNNFeatures("resnet18", weights=cut).transform(photos)


def test_the_error_for_an_unknown_layer_says_how_to_list_all_of_them(photos):
    for backbone, typed in [("resnet18", "'resnet18'"), (tiny_backbone(), "backbone")]:
        est = PretrainedCNNFeatures(backbone, weights="default", layer="nowhere")
        with pytest.raises(ValueError, match=rf"list_layers\({typed}, nodes=True\)"):
            est.transform(photos)


def test_the_error_for_planar_arrays_says_how_to_transpose(photos):
    planar = photos[0].transpose(2, 0, 1)
    with pytest.raises(ImageError, match=r"pass image\.transpose\(1, 2, 0\)"):
        PretrainedCNNFeatures(tiny_backbone()).transform([planar])


@pytest.mark.parametrize("estimator", [PretrainedCNNFeatures, FineTunedClassifier])
def test_the_error_for_a_bare_network_names_from_module(estimator, photos):
    with pytest.raises(InvalidParameterError, match=r"Backbone\.from_module\(net"):
        estimator(torch.nn.Flatten()).fit(photos, range(6))
