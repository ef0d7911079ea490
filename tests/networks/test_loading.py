"""Weights files: fitting, safe, and with a clear sentence when they are not."""

import email.message
import io
import pickle
import urllib.error

import numpy as np
import pytest
import torch
from conftest import tiny_network
from safetensors.torch import save_file
from torchvision import models

from skdeepfeat import (
    Backbone,
    FineTunedClassifier,
    PretrainedCNNFeatures,
    RecipeWarning,
    WeightsError,
    clear_caches,
    embed_weights,
    list_backbones,
    list_layers,
)
from skdeepfeat._backbones.registry import resolve_backbone
from skdeepfeat._backbones.weights import OwnWeights, resolve_weights
from skdeepfeat._images.recipe import InputSpec
from skdeepfeat._networks.building import build_network


def features(weights, **parameters):
    parameters = {"backbone": "squeezenet1_1", "layer": "block8", **parameters}
    return PretrainedCNNFeatures(weights=weights, cache=None, **parameters)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return models.squeezenet1_1(weights=None).state_dict()


@pytest.fixture
def file(state, tmp_path):
    torch.save(state, tmp_path / "net.pth")
    return tmp_path / "net.pth"


def test_pth_and_safetensors_give_the_same(state, file, photos):
    save_file(state, file.with_suffix(".safetensors"))
    expected = features(file).transform(photos)
    found = features(str(file.with_suffix(".safetensors"))).transform(photos)
    np.testing.assert_array_equal(found, expected)


FORMS = {
    "saved by torch": lambda state, path: torch.save(state, path),
    "without versions": lambda state, path: torch.save(dict(state), path),
    "of another module": lambda state, path: torch.save(
        torch.nn.DataParallel(models.mnasnet0_5()).state_dict() | prefixed(state), path
    ),
    "safetensors": save_file,
}


def prefixed(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("save", FORMS.values(), ids=FORMS)
def test_a_network_that_looks_for_its_version_is_read_from_any_file(save, tmp_path):
    state = models.mnasnet0_5(weights=None).state_dict()
    save(state, tmp_path / "weights")
    source = resolve_weights(resolve_backbone("mnasnet0_5"), tmp_path / "weights", 0)
    read = build_network(source)[0].state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


NO_NUMBERS = {
    "whole": (lambda w: (w * 100).to(torch.int8), "file torch.int8, network"),
    "complex": (lambda w: w.to(torch.complex64), "file torch.complex64, network"),
    "no values": (lambda w: w.to("meta"), "has no values"),
    "sparse": (lambda w: w.to_sparse(), "is sparse_coo"),
    "NaN": (lambda w: w * float("nan"), "contains NaN"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse", "ignore:Sparse invariant")
@pytest.mark.parametrize(("change", "why"), NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_entries_without_plain_numbers_are_refused(
    change, why, state, photos, tmp_path
):
    name = "features.0.weight"
    torch.save({**state, name: change(state[name])}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=rf"{name}: .*{why}.*float32"):
        features(tmp_path / "net.pth").transform(photos)


def test_what_is_left_over_beside_a_head_that_fits_is_named(state, file, photos):
    torch.save({**state, "classifier.9.weight": torch.ones(2)}, file)
    with pytest.raises(WeightsError, match=r"left over .*classifier\.9\.weight"):
        features(file).transform(photos)


def test_missing_left_over_and_misshapen_entries_are_named(state, file, photos):
    cases = {
        "missing from the file .features.3.squeeze.bias": {
            k: v for k, v in state.items() if k != "features.3.squeeze.bias"
        },
        "left over in the file .extra.weight": {**state, "extra.weight": torch.ones(1)},
        r"with other shapes .features.0.weight: file \(2,\), network \(64, 3, 3, 3\)": {
            **state,
            "features.0.weight": torch.ones(2),
        },
    }
    for words, wrong in cases.items():
        torch.save(wrong, file)
        with pytest.raises(WeightsError, match=words):
            features(file).transform(photos)


def test_a_head_for_other_classes_does_not_matter_for_features(state, file, photos):
    expected = features(file).transform(photos)
    five = {
        **state,
        "classifier.1.weight": torch.ones(5, 512, 1, 1),
        "classifier.1.bias": torch.ones(5),
    }
    headless = {k: v for k, v in state.items() if not k.startswith("classifier")}
    layers = {
        "classifier.0.weight": torch.ones(5, 512),
        "classifier.3.weight": torch.ones(7, 5),
    }
    for other in (five, headless, headless | layers):
        torch.save(other, file)
        np.testing.assert_array_equal(features(file).transform(photos), expected)
        with pytest.raises(WeightsError, match="layer='penultimate'"):
            features(file, layer="logits").transform(photos)
        prefetching = features(file, prefetch_layers="all").set_params(cache="memory")
        np.testing.assert_array_equal(prefetching.transform(photos), expected)


class Bomb:
    """Pickles as a call of a function with an effect that can be seen."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickled_code_is_refused_and_never_run(tmp_path, photos):
    marker = tmp_path / "executed"
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Bomb(str(marker))))
    torch.save({"features": Bomb(str(marker))}, tmp_path / "zip.pth")
    torch.save(models.squeezenet1_1(weights=None), tmp_path / "module.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "zip.pth").read_bytes()[:300])
    (tmp_path / "text.safetensors").write_text("hello")
    names = ["plain.pkl", "zip.pth", "module.pth", "list.pth", "cut.pth"]
    for name in [*names, "text.safetensors"]:
        with pytest.raises(WeightsError, match="state_dict"):
            features(tmp_path / name).transform(photos)
    assert not marker.exists()


def test_recipe_follows_the_checksum_in_the_name_or_the_content(tmp_path, monkeypatch):
    backbone = resolve_backbone("resnet50")
    v1, v2 = (
        resolve_weights(backbone, n, 0).input for n in ("IMAGENET1K_V1", "default")
    )
    assert (v1.resize, v2.resize) == (256, 232)
    file = tmp_path / "resnet50-0676ba61-copy.pth"
    file.write_bytes(b"x")
    assert resolve_weights(backbone, file, 0).input == v1
    other = tmp_path / "mine.pth"
    other.write_bytes(b"y")
    with pytest.warns(RecipeWarning, match="'IMAGENET1K_V2' is used"):
        assert resolve_weights(backbone, other, 0).input == v2
    assert resolve_weights(backbone, ("IMAGENET1K_V1", other), 0).input == v1
    third = tmp_path / "third.pth"
    third.write_bytes(b"z")
    monkeypatch.setattr(
        "skdeepfeat._backbones.recipes.sha256_file", lambda path: "0676ba61ff"
    )
    assert resolve_weights(backbone, third, 0).input == v1


class FakeOpener:
    """Stands in for the network: serves one file, counts what is asked."""

    def __init__(self, content):
        self.content, self.asked = content, []

    def __call__(self, request):
        self.asked.append(request.full_url)
        if self.content is None:
            raise urllib.error.URLError("no route")
        response = io.BytesIO(self.content)
        headers = email.message.Message()
        headers["Content-Length"] = str(len(self.content))
        response.headers = headers
        response.info = lambda: headers
        return response


@pytest.fixture
def published(state, file, tmp_path, monkeypatch):
    """The default weights of squeezenet1_1, with the checksum of a file of ours."""
    import dataclasses
    import hashlib

    from skdeepfeat._backbones import registry

    checksum = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    backbone = resolve_backbone("squeezenet1_1")
    version = dataclasses.replace(
        backbone.weights[0], url=f"https://weights.invalid/squeezenet-{checksum}.pth"
    )
    backbone = dataclasses.replace(backbone, weights=(version,))
    monkeypatch.setitem(registry._registered, "squeezenet1_1", backbone)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return file.read_bytes()


def test_published_weights_are_fetched_once_and_verified(
    published, file, photos, monkeypatch
):
    opener = FakeOpener(published)
    monkeypatch.setattr("torch.hub.urlopen", opener)
    expected = features(file).transform(photos)
    np.testing.assert_array_equal(features("default").transform(photos), expected)
    clear_caches()
    features("default").transform(photos)
    assert len(opener.asked) == 1


@pytest.mark.parametrize("content", [None, b"something else"])
def test_a_failed_download_says_what_to_do_offline(
    published, content, photos, monkeypatch, tmp_path
):
    monkeypatch.setattr("torch.hub.urlopen", FakeOpener(content))
    with pytest.raises(WeightsError, match=r"copy 'squeezenet-.*pass its path"):
        features("default").transform(photos)
    assert not list((tmp_path / "home").rglob("*.pth"))


def test_old_densenet_files_are_understood(tmp_path, photos):
    torch.manual_seed(0)
    state = models.densenet121(weights=None).state_dict()
    torch.save(state, tmp_path / "new.pth")
    old = {
        k.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v
        for k, v in state.items()
    }
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "old.pth")
    one, two = (
        features(tmp_path / name, backbone="densenet121", layer="block1").transform(
            photos[:1]
        )
        for name in ("new.pth", "old.pth")
    )
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_training_heads_in_a_file_are_not_needed(name, tmp_path):
    torch.manual_seed(0)
    net = models.get_model(name, weights=None, init_weights=False)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    backbone = resolve_backbone(name)
    network, _ = build_network(resolve_weights(backbone, tmp_path / "net.pth", 0))
    assert network.transform_input and not network.training


def test_buffers_that_state_dicts_leave_out_come_along(photos):
    class Shift(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer(
                "shift", torch.full((1, 3, 1, 1), 5.0), persistent=False
            )

        def forward(self, x):
            return x + self.shift

    net = torch.nn.Sequential(Shift(), torch.nn.Conv2d(3, 4, 1)).eval()
    est = PretrainedCNNFeatures(Backbone.from_module(net, image_size=8), layer=0)
    shifted = est.transform(photos)
    net[0].shift.zero_()
    plain = PretrainedCNNFeatures(Backbone.from_module(net, image_size=8), layer=0)
    np.testing.assert_allclose(shifted - plain.transform(photos), 5, rtol=1e-5)


def test_all_of_torchvision_is_known():
    assert set(models.list_models(module=models)) <= set(list_backbones())


def with_convolutions_as_head():
    head = torch.nn.Sequential(torch.nn.Conv2d(4, 5, 1), torch.nn.BatchNorm2d(5))
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))
    net.add_module("head", head)
    return net


def test_a_head_that_is_absent_is_missed_under_any_name(tmp_path, photos):
    """Its convolution and its batch norm are folded into a module of another name."""
    state = with_convolutions_as_head().state_dict()
    trunk = {name: value for name, value in state.items() if "head" not in name}
    torch.save(trunk, tmp_path / "trunk.pth")
    spec = InputSpec(8, None)
    backbone = Backbone("own", with_convolutions_as_head, spec, head="head")
    est = PretrainedCNNFeatures(backbone, weights=tmp_path / "trunk.pth", layer="0")
    assert est.transform(photos).shape == (6, 4)
    with pytest.raises(WeightsError, match="no classes that fit"):
        est.set_params(layer="head").transform(photos)


class Wrapped(torch.nn.Module):
    """A network with a buffer that no state dict contains."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.full((4,), 0.5), persistent=False)
        self.net = tiny_network()

    def forward(self, x):
        return self.net(x) + self.shift


def without_head(photos):
    clf = FineTunedClassifier("tiny", head_epochs=1, epochs=1, augment="none")
    return clf.fit(photos, [0, 1] * 3).to_backbone()


def without_upper_layers(photos):
    own = Backbone.from_module(Wrapped(), image_size=8)
    lowest = list_layers(own)[0].alias
    features = PretrainedCNNFeatures(own, layer=lowest, cache=None)
    return embed_weights(features.fit(photos)).backbone


@pytest.mark.parametrize("make", [without_head, without_upper_layers])
def test_what_no_file_holds_is_zero(make, photos, nan_memory):
    backbone = make(photos)
    network, absent = build_network(OwnWeights(backbone, backbone.input))
    tensors = dict(network.state_dict()) | dict(network.named_buffers())
    assert not any(t.isnan().any() for t in tensors.values())
    assert absent
    assert all(not tensors[name].any() for name in absent)
