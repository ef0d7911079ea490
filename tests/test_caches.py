"""Shared networks and features are kept while they are used, within limits."""

import builtins
import gc
import os
import weakref

import numpy as np
import pytest
import torch
from conftest import tiny_backbone, tiny_network

from skdeepfeat import (
    Backbone,
    FineTunedClassifier,
    PretrainedCNNFeatures,
    clear_caches,
)
from skdeepfeat._caches import SharedCache
from skdeepfeat._exceptions import EngineWarning
from skdeepfeat._networks import sharing
from skdeepfeat._networks.sharing import SharedNetwork, bytes_of, networks_on
from skdeepfeat._report import last_report


class Value:
    def __init__(self, size=1):
        self.size = size


def test_a_cache_keeps_the_most_recently_used_values():
    table = SharedCache(2)
    for name in "abac":
        table.get(name, Value)
    assert table.get("a", lambda: None) is not None
    assert table.get("b", lambda: None) is None


def test_a_cache_may_be_limited_by_the_size_of_its_values():
    table = SharedCache(10, lambda value: value.size)
    for name, size in {"a": 4, "b": 3, "c": 3, "d": 2}.items():
        table.get(name, lambda size=size: Value(size))
    assert len(table) == 3
    last = table.get("large", lambda: Value(50))
    assert table.values() == [last]  # there must be room for one


def test_a_value_is_removed_with_its_last_user():
    table, users = SharedCache(8), [Value(), Value()]
    for user in users:
        value = weakref.ref(table.get("name", Value, user))
    del user, users[0]
    assert len(table) == 1 and value() is not None
    users.clear()
    assert len(table) == 0 and value() is None


def test_a_newer_value_of_the_same_key_outlives_users_of_the_older_one():
    table, first, second = SharedCache(8), Value(), Value()
    table.get("name", Value, first)
    table.clear()
    table.get("name", Value, second)
    del first
    assert len(table) == 1


@pytest.fixture
def own(monkeypatch):
    """Use a custom network; returns a reference to what must be freed afterwards."""

    def use(photos, **parameters):
        backbone = Backbone.from_module(tiny_network(), image_size=8)
        PretrainedCNNFeatures(backbone, cache=None, **parameters).transform(photos)
        seen = [weakref.ref(network) for network in networks_on("cpu").values()]
        return [weakref.ref(backbone), *seen], backbone

    return use


def dead(references):
    gc.collect()
    gc.collect()  # what the first has freed may have held others
    return [reference() is None for reference in references]


def test_a_custom_network_is_freed_with_its_last_user(own, photos):
    references, backbone = own(photos, engine="torch")
    assert len(references) == 2
    copy = tiny_backbone()  # of other preprocessing, the same network
    del backbone
    assert all(dead(references)) and len(networks_on("cpu")) == 0
    del copy


def test_equal_networks_are_shared_until_the_last_user_is_gone(photos):
    backbones = [tiny_backbone(seed=5), tiny_backbone(seed=5)]
    for backbone in backbones:
        PretrainedCNNFeatures(backbone, cache=None).transform(photos)
    (network,) = networks_on("cpu").values()
    network = weakref.ref(network)
    del backbone, backbones[0]
    assert dead([network]) == [False]
    backbones.clear()
    assert dead([network]) == [True]


def test_cleared_networks_are_freed_while_their_backbones_live(own, photos):
    (_, network), backbone = own(photos, engine="torch")
    clear_caches()
    assert dead([network]) == [True]
    assert backbone.digest


def test_a_network_that_could_not_be_converted_is_freed_too(own, photos, monkeypatch):
    pytest.importorskip("openvino")
    from skdeepfeat._engines import openvino_conversion

    def fail(*arguments):
        raise openvino_conversion.ConversionError("it is a test")

    monkeypatch.setattr("skdeepfeat._engines.devices._has_openvino", lambda: True)
    monkeypatch.setattr(openvino_conversion, "convert", fail)
    with pytest.warns(EngineWarning, match="it is a test"):
        references, backbone = own(photos, engine="openvino")
    assert len(references) == 2  # torch runs it
    del backbone
    assert all(dead(references))


def test_a_converted_custom_network_is_freed_too(own, photos, monkeypatch):
    pytest.importorskip("openvino")
    from skdeepfeat._engines import openvino

    monkeypatch.setattr("skdeepfeat._engines.devices._has_openvino", lambda: True)
    references, backbone = own(photos, engine="openvino")
    assert len(openvino._compiled) == 1
    del backbone
    assert all(dead(references)) and len(openvino._compiled) == 0


def test_a_tuned_network_is_freed_with_its_classifier(photos):
    clf = FineTunedClassifier(
        "tiny", head_epochs=1, epochs=1, augment="none", random_state=0
    ).fit(photos, [0, 1] * 3)
    clf.predict(photos)
    backbone = weakref.ref(clf.to_backbone())
    assert clf.to_backbone() is backbone()
    del clf
    assert dead([backbone]) == [True]


def test_reported_errors_keep_no_images(photo_files, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not an image")
    X = np.array([*photo_files, str(tmp_path / "bad.png")], dtype=object)
    features = PretrainedCNNFeatures("tiny", cache=None, on_error="nan")
    with pytest.warns(UserWarning, match="could not be read"):
        features.transform(X)
    assert features.errors_[0][0] == 6
    assert last_report(features).failed[6].__traceback__ is None


def test_networks_on_a_gpu_are_limited_by_bytes(monkeypatch):
    monkeypatch.setattr(sharing, "memory_of", lambda device: 4 * 2 * 1000)
    monkeypatch.setattr(sharing, "_networks_on", {})
    table = networks_on("cuda:0")
    assert table is networks_on("cuda:0") is not networks_on("cuda:1")
    assert networks_on("cpu") is networks_on("cpu") is not table

    def make():
        return SharedNetwork(torch.nn.Linear(10, 24, bias=False))  # 960 bytes

    for name in "abc":
        table.get(name, make)
    assert len(table) == 2


def test_the_size_of_a_network_counts_shared_tensors_once():
    linear = torch.nn.Linear(10, 10, bias=False)
    network = SharedNetwork(torch.nn.Sequential(linear, linear))
    assert bytes_of(network) == 400
    network.substitutes[linear,] = torch.nn.Linear(5, 5, bias=False)
    network.activations["same"] = linear
    assert bytes_of(network) == 500


# Files ------------------------------------------------------------------------------


@pytest.fixture
def mask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_written_file_has_the_permissions_of_any_other(photos, tmp_path, mask):
    path, other = tmp_path / "rows.npy", tmp_path / "other"
    features = PretrainedCNNFeatures("tiny", cache=None)
    features.transform_to(path, photos)
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode
    path.chmod(0o604)
    features.transform_to(path, photos)
    assert path.stat().st_mode & 0o777 == 0o604
    assert sorted(tmp_path.iterdir()) == [other, path]


def test_an_interrupted_file_leaves_nothing(photos, tmp_path):
    features = PretrainedCNNFeatures("tiny", cache=None)
    with pytest.raises(ValueError, match="row 1"):
        features.transform_to(tmp_path / "rows.npy", [photos[0], "missing.png"])
    assert not list(tmp_path.iterdir())


def test_a_call_without_a_store_opens_each_file_once(photo_files, monkeypatch):
    opened = []
    real = os.open

    def counted(file, *arguments, **keywords):
        opened.append(str(file))
        return real(file, *arguments, **keywords)

    real_open = builtins.open

    def counted_open(file, *arguments, **keywords):
        opened.append(str(file))
        return real_open(file, *arguments, **keywords)

    monkeypatch.setattr(os, "open", counted)
    monkeypatch.setattr(builtins, "open", counted_open)
    monkeypatch.setattr("io.open", counted_open)
    PretrainedCNNFeatures("tiny", cache=None).transform(photo_files)
    assert sorted(f for f in opened if f in photo_files) == sorted(photo_files)
