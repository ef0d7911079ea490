"""A stored row is served only for the very computation that made it."""

import copy
import dataclasses
import functools
import gc
import importlib
import os
import pickle
import subprocess
import sys
import textwrap
import types
import warnings
import weakref

import numpy as np
import pytest
import skops.io
import torch
from safetensors.numpy import save_file
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F
from torchvision import models
from torchvision.ops import Conv2dNormActivation

from skdeepfeat import (
    Backbone,
    FeatureStore,
    FineTunedClassifier,
    PretrainedCNNFeatures,
    StoreWarning,
    WeightsError,
    clear_caches,
    list_layers,
    register_backbone,
)
from skdeepfeat._backbones import registry
from skdeepfeat._backbones.registry import resolve_backbone
from skdeepfeat._backbones.saved import saved_digest
from skdeepfeat._backbones.weights import resolve_weights
from skdeepfeat._caches import Memo
from skdeepfeat._digests import Tagged, changed_fields, digest_fields
from skdeepfeat._images.recipe import InputSpec
from skdeepfeat._networks.activations import activations_of
from skdeepfeat._networks.building import build_network
from skdeepfeat._networks.sharing import SharedNetwork, get_network
from skdeepfeat._networks.structure import Structure, structure_of


@pytest.fixture
def X(photos):
    return photos[:3]


def seeded(net):
    """The network with weights from one seed, ready to compute."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=generator).mul_(0.3)
    return net.eval()


def backbone_of(net, **options):
    return Backbone.from_module(net, image_size=16, **options)


def features(backbone, cache=None, **parameters):
    return PretrainedCNNFeatures(backbone, cache=cache, **parameters)


# Networks that differ in one way -----------------------------------------------------


class Net(nn.Module):
    """A convolution, and then what `finish` does."""

    def __init__(self, **attributes):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.finish(self.conv(x))

    def finish(self, x):
        return x


class Activated(Net):
    def finish(self, x):
        return self.act(x)


class Listed(Net):
    def finish(self, x):
        return x * self.scales[0] + self.shifts["x"] - self.config.offset


class Configured:
    def __init__(self, offset):
        self.offset = offset


def listed(scale=1.0, shift=0.0, offset=0.0):
    return Listed(scales=[scale], shifts={"x": shift}, config=Configured(offset))


def with_helper(helper):
    """A class whose helper method is what an edited notebook cell defines."""
    return type("Helped", (Net,), {"finish": helper})()


SCALE = 1.0


def helper(x):
    return x * SCALE


class Global(Net):
    def finish(self, x):
        return helper(x)


def with_global(value, name="SCALE"):
    """The network as it is after a global of its module was edited."""
    net = Global()
    return net, {name: value}


class Shifted(Net):
    def __init__(self, shift, persistent=None):
        super().__init__()
        shift = torch.full((4, 1, 1), shift)
        if persistent is None:
            self.shift = shift
        else:
            self.register_buffer("shift", shift, persistent=persistent)

    def finish(self, x):
        return x + self.shift


def hooked(where, hook):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU()))
    if hook:
        net.get_submodule(where).register_forward_hook(lambda m, args, out: out * 2)
    return net


def with_forward(where, forward):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    if forward:
        module = net.get_submodule(where)
        module.forward = types.MethodType(lambda self, x: x[:, :1] * 3, module)
    return net


class Closed(Net):
    def __init__(self, function):
        super().__init__()
        self.finish = function


def times(factor):
    return lambda x: x * factor


@torch.fx.wrap
def opaque(x, factor):
    return x * float(factor)


class Wrapped(Net):
    def finish(self, x):
        return opaque(x, self.factor)


class Calling(Net):
    """What is called does more than its forward."""

    def __call__(self, x):
        return super().__call__(x) * 5


class Untraceable(Net):
    def finish(self, x):
        return x * self.factor if x.is_meta or x.sum() > -1e9 else x


class DroppedOut(Net):
    def finish(self, x):
        return F.alpha_dropout(x, self.p, training=False) + F.dropout(x, 0.0) * self.p


def parametrized(factor):
    class Times(nn.Module):
        def forward(self, weight):
            return weight * factor

    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    nn.utils.parametrize.register_parametrization(net[0], "weight", Times())
    return net


class Pointwise(Conv2dNormActivation):
    """A leaf for torchvision, with a forward of the user's own."""

    factor = 1.0

    def forward(self, x):
        return super().forward(x) * self.factor


class TwicePointwise(Pointwise):
    factor = 2.0


def pooled(pool):
    return with_helper(lambda self, x: pool(x.flatten(2), 2, stride=1))


def zeroing(self, x):
    x[:, 0].zero_()
    return x


def checking(self, x):
    return x * 2 if isinstance(x, torch.fx.Proxy) else x


ONE_WAY = {
    "function as attribute": lambda: (Activated(act=F.relu), Activated(act=torch.tanh)),
    "functions of one private name": lambda: (
        pooled(F.max_pool1d),
        pooled(F.max_pool2d),
    ),
    "value in a list": lambda: (listed(), listed(scale=2.0)),
    "value in a dict": lambda: (listed(), listed(shift=2.0)),
    "value in an object": lambda: (listed(), listed(offset=2.0)),
    "integer or float": lambda: (listed(2.5), listed(3)),
    "helper method": lambda: (
        with_helper(lambda self, x: x + 1),
        with_helper(lambda self, x: x + 2),
    ),
    "global constant": lambda: (with_global(1.0), with_global(2.0)),
    "global function": lambda: (
        with_global(helper, "helper"),
        with_global(lambda x: x - 3, "helper"),
    ),
    "hook of a step": lambda: (hooked("0", False), hooked("0", True)),
    "hook of a container": lambda: (hooked("1", False), hooked("1", True)),
    "hook of the network": lambda: (hooked("", False), hooked("", True)),
    "forward of a step": lambda: (with_forward("1", False), with_forward("1", True)),
    "forward of the network": lambda: (with_forward("", False), with_forward("", True)),
    "call of the network": lambda: (Net(), Calling()),
    "setting of a module": lambda: (
        nn.Sequential(nn.Conv2d(3, 4, 3, dilation=1, padding=1)),
        nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2, padding=2)),
    ),
    "class of a module": lambda: (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh()),
    ),
    "plain tensor": lambda: (Shifted(1.0), Shifted(2.0)),
    "transient buffer": lambda: (Shifted(1.0, False), Shifted(2.0, False)),
    "buffer": lambda: (Shifted(1.0, True), Shifted(2.0, True)),
    "closure": lambda: (Closed(times(1.0)), Closed(times(2.0))),
    "wrapped function": lambda: (Wrapped(factor=1.0), Wrapped(factor=2.0)),
    "untraceable": lambda: (Untraceable(factor=1.0), Untraceable(factor=2.0)),
    "order of modules": lambda: (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Softplus()),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.ReLU()),
    ),
    "parametrization": lambda: (parametrized(1.0), parametrized(2.0)),
    "constant of a function": lambda: (DroppedOut(p=0.25), DroppedOut(p=0.5)),
    "subclass of a step": lambda: (Pointwise(3, 4), TwicePointwise(3, 4)),
    "branch": lambda: (
        with_helper(lambda self, x: x + x.relu()),
        with_helper(lambda self, x: x - x.relu()),
    ),
}


def rows_of(made, cache, X):
    """Features of a network that may want globals of this module edited."""
    net, edited = made if isinstance(made, tuple) else (made, {})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in edited.items():
            patch.setattr(sys.modules[__name__], name, value)
        return features(backbone_of(seeded(net)), cache).transform(X)


@pytest.mark.parametrize("place", ["memory", "folder"])
@pytest.mark.parametrize("way", ONE_WAY)
def test_networks_that_differ_in_one_way_never_share_a_row(way, place, X, tmp_path):
    store = FeatureStore(tmp_path if place == "folder" else None, name=way)
    with warnings.catch_warnings():  # what cannot be described is kept in memory
        warnings.filterwarnings("ignore", "The features of this network", StoreWarning)
        served = [rows_of(made, store, X) for made in ONE_WAY[way]()]
    computed = [rows_of(made, None, X) for made in ONE_WAY[way]()]
    for stored, alone in zip(served, computed, strict=True):
        np.testing.assert_array_equal(stored, alone)
    assert not np.array_equal(*computed)


DESCRIBED = {
    "functions": lambda: Activated(act=F.relu),
    "values": lambda: listed(2.0, 3.0, 1.0),
    "tensors": lambda: nn.Sequential(Shifted(1.0), nn.ReLU()),
    "buffers": lambda: Shifted(1.0, False),
    "recurrent": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.LSTM(196, 3)
    ),
    "attention": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 8, 8),
        nn.Flatten(2),
        nn.TransformerEncoderLayer(4, 2, 8, activation=F.gelu, batch_first=True),
    ),
    "of torchvision": lambda: models.swin_t(weights=None),
    "subclass of a step": lambda: TwicePointwise(3, 4),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_two_builds_of_one_network_are_equal(name):
    net = seeded(DESCRIBED[name]())
    one, two = backbone_of(net), backbone_of(seeded(DESCRIBED[name]()))
    assert one.lasting and one == two and hash(one) == hash(two)
    assert one == backbone_of(copy.deepcopy(net))
    assert one == pickle.loads(pickle.dumps(one))
    assert one == copy.deepcopy(one)


@pytest.mark.parametrize(
    "make",
    [
        lambda: hooked("0", True),
        lambda: with_forward("1", True),
        lambda: Wrapped(factor=2.0),
        lambda: Untraceable(factor=2.0),
    ],
    ids=["hook", "forward", "wrapped", "untraceable"],
)
def test_what_cannot_be_described_is_known_by_the_object_alone(make, X):
    net = seeded(make())
    one, two = backbone_of(net), backbone_of(net)
    assert not one.lasting and one != two
    assert copy.deepcopy(one) == one and clone(features(one)).backbone == one
    np.testing.assert_array_equal(
        features(one).transform(X), features(two).transform(X)
    )


@pytest.mark.parametrize(
    "make, reason",
    [
        (
            lambda: Untraceable(factor=2.0),
            "its code branches on the values of a tensor",
        ),
        (lambda: hooked("0", True), "one of its modules, of class Conv2d, has a hook"),
        (
            lambda: hooked("", True),
            "one of its modules, of class Sequential, has a hook",
        ),
        (lambda: with_forward("1", True), "of class ReLU, has a replaced 'forward'"),
        (lambda: Calling(), "of class Calling, has its own '__call__' method"),
        (lambda: Wrapped(factor=2.0), r"it uses \w+\.opaque, which may differ"),
        (lambda: parametrized(2.0), "ParametrizedConv2d, which may differ"),
        (lambda: with_helper(zeroing), "its step 'zero_' overwrites an earlier value"),
        (lambda: with_helper(checking), "the graph it finds computes something else"),
    ],
)
def test_the_user_learns_why_features_are_kept_in_memory(make, reason, X, tmp_path):
    est = features(backbone_of(seeded(make())), cache=tmp_path, layer=0)
    with pytest.warns(StoreWarning, match=f"recognise the network: .*{reason}"):
        est.fit(X).transform(X)


def test_a_network_that_cannot_be_run_is_not_known_by_its_graph():
    def fail(self, x):
        return x if isinstance(x, torch.fx.Proxy) or x.is_meta else x.no_such_method()

    known = backbone_of(seeded(with_helper(fail)))._identity_at(16)
    assert not known.lasting
    reason = "it cannot be run on two images (AttributeError: 'Tensor' object has no"
    assert known.obstacle.startswith(reason)


def test_copies_carry_the_token_of_a_network():
    one = backbone_of(seeded(Untraceable(factor=2.0)))
    assert pickle.loads(pickle.dumps(one)) == one


def test_a_version_names_what_cannot_be_described():
    net = seeded(Untraceable(factor=2.0))
    one, two = (backbone_of(net, version="3") for _ in range(2))
    assert one.lasting and one == two == pickle.loads(pickle.dumps(one))
    others = [
        backbone_of(net, version="4"),
        backbone_of(net, version="3", name="other"),
        backbone_of(seeded(Untraceable(factor=2.0)).apply(halved), version="3"),
    ]
    assert one not in others and len({*others, one}) == 4


@torch.no_grad()
def halved(module):
    for parameter in module.parameters(recurse=False):
        parameter.div_(2)


def run(code, folder, *arguments):
    """What a new process prints that runs this code."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    environ = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}  # a file is edited quickly
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


MODULE = """
    import torch
    SCALE = 1.0
    def scale(x):
        return x * SCALE
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)
            self.register_buffer("shift", torch.ones(4, 1, 1), persistent=False)
            self.plain = torch.ones(4, 1, 1)
        def forward(self, x):
            return scale(self.conv(x)) * self.plain + self.shift
    def build():
        return Net()
    def initialised():
        net = Net()
        torch.nn.init.constant_(net.conv.bias, 1.0)
        return net
"""
SAVE = """
    import pickle, torch, mynet
    from skdeepfeat import Backbone
    torch.manual_seed(0)
    backbone = Backbone.from_module(mynet.Net().eval(), image_size=16)
    pickle.dump(backbone, open("backbone.pkl", "wb"))
    print(backbone.digest.hex())
"""
LOAD = """
    import pickle
    print(pickle.load(open("backbone.pkl", "rb")).digest.hex())
"""


@pytest.fixture
def mynet(tmp_path):
    """A module of a user, in a folder, and a function that edits it."""

    def edit(old="", new=""):
        text = textwrap.dedent(MODULE)
        assert old in text
        (tmp_path / "mynet.py").write_text(text.replace(old, new) if old else text)
        return tmp_path

    edit()
    return edit


@pytest.mark.slow
def test_a_pickle_is_known_in_another_process_by_the_code_that_is_there(mynet):
    folder = mynet()
    saved = run(SAVE, folder)
    assert run(LOAD, folder) == saved
    assert run(LOAD, mynet("SCALE = 1.0", "# a comment\nSCALE = 1.0")) == saved
    assert run(LOAD, mynet("+ self.shift", "- self.shift")) != saved


@pytest.fixture
def built(mynet, monkeypatch, X):
    """Rows of a builder after an edit, as a process gets them that starts then."""
    folder = mynet()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    file = folder / "w.safetensors"
    save_file({"conv.weight": weight, "conv.bias": weight[:, 0, 0, 0]}, file)

    def rows(function, weights, *edit, cache=folder / "store", version=None):
        mynet(*edit)
        sys.modules.pop("mynet", None)
        clear_caches()
        build = f"mynet:{function}"
        backbone = Backbone("mine", build, InputSpec(16, None), version=version)
        weights = file if weights == "file" else None
        return features(backbone, cache, weights=weights).transform(X)

    yield rows
    sys.modules.pop("mynet", None)


EDITS = {
    "forward": ("scale(self.conv(x))", "self.conv(x).relu()"),
    "constant": ("SCALE = 1.0", "SCALE = 3.0"),
    "buffer": ("torch.ones(4, 1, 1), persist", "torch.ones(4, 1, 1) * 2, persist"),
    "tensor": ("plain = torch.ones(4, 1, 1)", "plain = torch.ones(4, 1, 1) * 2"),
}


@pytest.mark.parametrize("weights", ["file", "seed"])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_builder_is_not_served_old_rows(built, weights, edit):
    first = built("build", weights)
    np.testing.assert_array_equal(built("build", weights), first)
    found = built("build", weights, *EDITS[edit])
    assert not np.allclose(found, first)
    alone = built("build", weights, *EDITS[edit], cache=None)
    np.testing.assert_array_equal(found, alone)


def test_an_edited_initialisation_is_not_served_old_rows(built):
    first = built("initialised", None)
    assert not np.allclose(built("initialised", None, "bias, 1.0", "bias, 2.0"), first)


def test_a_builder_with_a_version_is_known_by_it(built):
    for weights in ("file", "seed"):
        first = built("build", weights, version="1")
        edited = built("build", weights, *EDITS["constant"], version="1")
        np.testing.assert_array_equal(edited, first)
        other = built("build", weights, *EDITS["constant"], version="2")
        assert not np.array_equal(other, first)


def test_a_builder_that_changes_under_a_backbone_is_refused(mynet, monkeypatch):
    monkeypatch.syspath_prepend(str(mynet()))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module("mynet")
    backbone = Backbone("mine", "mynet:initialised", InputSpec(16, None))
    source = resolve_weights(backbone, None, 0)
    key = source.key()
    mynet("bias, 1.0", "bias, 2.0")
    importlib.invalidate_caches()
    sys.modules.pop("mynet")
    importlib.import_module("mynet")
    with pytest.raises(WeightsError, match="returns another network than before"):
        build_network(source)
    again = Backbone("mine", "mynet:initialised", InputSpec(16, None))
    assert resolve_weights(again, None, 0).key() != key
    assert module is not sys.modules.pop("mynet")


def test_the_graph_that_is_known_is_the_graph_that_runs(X, monkeypatch):
    """Code that is edited after a backbone was looked at does not reach it."""
    backbone = backbone_of(seeded(Global()))
    digest, rows = backbone.digest, features(backbone).transform(X)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 7.0)
    for layer in ("penultimate", "conv", "mul"):
        found = features(backbone, layer=layer, image_size=24).transform(X)
        assert layer != "mul" or np.allclose(
            found, features(backbone, layer="conv", image_size=24).transform(X)
        )
    np.testing.assert_array_equal(features(backbone).transform(X), rows)
    assert backbone.digest == digest
    other = backbone_of(seeded(Global()))
    assert other != backbone
    np.testing.assert_allclose(features(other).transform(X), 7 * rows, rtol=1e-4)


def test_what_changes_the_call_of_a_network_reaches_its_features(X):
    """fx looks at the class of a network alone."""
    plain = seeded(hooked("", False))
    rows = features(backbone_of(plain)).transform(X)
    doubled = features(backbone_of(seeded(hooked("", True)))).transform(X)
    np.testing.assert_allclose(doubled, 2 * rows, rtol=1e-5)
    calling = backbone_of(seeded(Calling()))
    rows = features(backbone_of(seeded(Net()))).transform(X)
    np.testing.assert_allclose(features(calling).transform(X), 5 * rows, rtol=1e-5)


def test_steps_that_were_changed_are_not_rewritten(X):
    """Neither folded nor overwritten: they do not do what their class does."""
    net = seeded(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))
    net[0].forward = types.MethodType(
        lambda self, x: x.repeat(1, 2, 1, 1)[:, :4], net[0]
    )
    x = torch.rand(2, 3, 16, 16)
    source = resolve_weights(backbone_of(net), "default", 0)
    with torch.inference_mode():
        found = activations_of(
            SharedNetwork(*build_network(source)), source, ("0", "2")
        )(x)
        torch.testing.assert_close(found["2"], net(x))
        torch.testing.assert_close(found["0"], net[0](x))


def test_a_network_dies_with_its_last_user(X):
    backbone = backbone_of(seeded(Net()))
    list_layers(backbone), list_layers(backbone, nodes=True)
    features(backbone, layer="conv").transform(X)
    skeleton = weakref.ref(backbone.build.module)
    array = weakref.ref(backbone.arrays["conv.weight"])
    clear_caches()
    del backbone
    gc.collect()
    assert skeleton() is None and array() is None


def test_layouts_of_layers_are_part_of_a_row(X):
    backbone = resolve_backbone("smallcnn")
    as_rows = [
        dataclasses.replace(layer, layout="hwc", features=30)
        for layer in backbone.layers
        if layer.alias == "block1"
    ]
    other = dataclasses.replace(backbone, layers=tuple(as_rows))
    store = FeatureStore(name="layouts")
    wanted = {"weights": None, "layer": "block1", "image_size": 32}
    assert features(backbone, store, **wanted).transform(X).shape == (3, 64)
    assert features(other, store, **wanted).transform(X).shape == (3, 30)


# What must not matter ----------------------------------------------------------------


def test_fields_have_names_and_no_order():
    one = digest_fields("kind", 1, {"a": 1, "b": (1, [2.0, None], b"x")})
    assert one == digest_fields("kind", 1, {"b": (1, [2.0, None], b"x"), "a": 1})
    others = [
        digest_fields("other", 1, {"a": 1, "b": (1, [2.0, None], b"x")}),
        digest_fields("kind", 2, {"a": 1, "b": (1, [2.0, None], b"x")}),
        digest_fields("kind", 1, {"a": 1, "b": [1, [2.0, None], b"x"]}),
        digest_fields("kind", 1, {"a": 1, "b": (1, [2, None], b"x")}),
        digest_fields("kind", 1, {"a": True, "b": (1, [2.0, None], b"x")}),
        digest_fields("kind", 1, {"a": 1, "b": (1, [2.0, None], "x")}),
        digest_fields("kind", 1, {"a": 1, "b": {"tuple": [1, [2.0, None], b"x"]}}),
        digest_fields("kind", 1, {"a": 1, "b": Tagged("step", 1)}),
    ]
    assert len({one, *others}) == 1 + len(others)


@pytest.mark.parametrize("value", [object(), np.array([object()]), {"a": len}])
def test_what_has_no_digest_is_refused(value):
    with pytest.raises(TypeError, match="no digest"):
        digest_fields("kind", 1, {"a": value})


def test_arrays_are_known_by_type_shape_and_values():
    made = [
        np.zeros(4, np.float32),
        np.zeros((2, 2), np.float32),
        np.zeros(4, np.int32),
        np.array([0, 0, 0, 1], np.float32),
    ]
    assert len({digest_fields("kind", 1, {"a": array}) for array in made}) == 4
    turned = np.asfortranarray(np.arange(6).reshape(2, 3))
    assert digest_fields("kind", 1, {"a": turned}) == digest_fields(
        "kind", 1, {"a": turned.copy("C")}
    )


def test_a_new_field_of_a_recipe_changes_no_digest(monkeypatch):
    Longer = dataclasses.make_dataclass(
        "InputSpec",
        [("gamma", float, dataclasses.field(default=1.0))],
        bases=(InputSpec,),
        frozen=True,
    )
    spec = resolve_backbone("resnet50").input
    longer = Longer(**changed_fields(spec))
    assert changed_fields(longer) == changed_fields(spec)
    assert changed_fields(dataclasses.replace(longer, gamma=2.0)) != changed_fields(
        spec
    )
    source = resolve_weights(resolve_backbone("resnet50"), "default", 0)
    assert saved_digest(source) == saved_digest(
        dataclasses.replace(source, input=Longer(**changed_fields(source.input)))
    )


def test_networks_of_the_package_are_known_wherever_their_code_lies():
    for name in ("smallcnn", "lenet5"):
        backbone = resolve_backbone(name)
        assert backbone.published_name == f"skdeepfeat.{name}"
        moved = backbone.build.replace("_networks.smallnets", "_smallnets")
        assert moved != backbone.build
        moved = dataclasses.replace(backbone, build=moved)
        assert moved == backbone
        one, two = (
            saved_digest(resolve_weights(b, None, 3)) for b in (backbone, moved)
        )
        assert one == two


def test_saved_digests_are_these_for_ever():
    """A change here makes every saved model refuse."""
    mini = resolve_weights(resolve_backbone("mini"), "default", 0)
    (retired,) = mini.backbone.retired
    former = dataclasses.replace(mini, input=retired.input, version=retired)
    resnet = resolve_weights(resolve_backbone("resnet50"), "IMAGENET1K_V1", 0)
    arrays = {"a": np.arange(4, dtype=np.float32), "b": np.zeros((2, 1), np.int64)}
    own = Backbone("own", "mynet:build", InputSpec(8, None), arrays=arrays)
    own = resolve_weights(own, "default", 0)
    assert saved_digest(former) == MINI_V1
    assert saved_digest(mini) == MINI_V2
    assert saved_digest(resnet) == RESNET
    assert saved_digest(own) == OWN


MINI_V1 = "016ead41f6901fb54b2b15e018ec5542b37adba8712ec177f51f9628e3372fe019"
MINI_V2 = "014b45b67190187aa592280c0ee48ccecbe0de4b2919545fb5052a6e6ed9cd9b6c"
RESNET = "01a08363f80a36ce2070bcdf61bf22dc23b839f75c0a11f7b54cc9903b31246c5d"
OWN = "01851ee003368be275580c97487c32e4fb20f3d4348842eb053d3b2864f339bb16"


def test_every_published_file_has_a_checksum():
    for name in registry.list_image_backbones():
        for weights in resolve_backbone(name).weights:
            assert weights.sha256 or weights.sha256_prefix


def test_a_digest_of_a_published_network_needs_no_torch(tmp_path):
    code = """
        import sys
        from skdeepfeat import PretrainedCNNFeatures
        from skdeepfeat._backbones.registry import resolve_backbone
        for name in ("mini", "resnet50", "vit_b_16", "smallcnn"):
            assert resolve_backbone(name).lasting
        est = PretrainedCNNFeatures("resnet50")
        est._note_weights()
        est._plan()
        assert not {"torch", "torchvision"} & set(sys.modules)
    """
    run(code, tmp_path)


# Weights that changed since fit ------------------------------------------------------


@pytest.fixture
def weights_file(tmp_path):
    """A file of weights, and a function that writes another one there."""
    path = tmp_path / "net.pth"

    def write(seed):
        torch.manual_seed(seed)
        torch.save(models.squeezenet1_1(weights=None).state_dict(), path)
        return path

    write(0)
    return write


WAYS = ["transform", "warm", "transform_to", "pipeline"]


@pytest.mark.parametrize("way", WAYS)
def test_a_replaced_weights_file_is_refused(way, weights_file, X, tmp_path):
    recipe = {"weights": weights_file(0), "layer": "stem", "cache": tmp_path / "store"}
    est = features("squeezenet1_1", **recipe)
    pipeline = make_pipeline(est, StandardScaler()).fit(X)
    before = dict(vars(est))
    call = {
        "transform": est.transform,
        "warm": est.warm,
        "transform_to": functools.partial(est.transform_to, tmp_path / "rows.npy"),
        "pipeline": pipeline.transform,
    }[way]
    call(X)
    assert vars(est) == before
    weights_file(1)
    with pytest.raises(WeightsError, match=r"net\.pth', .* changed since .*fit again"):
        call(X)
    with pytest.raises(WeightsError, match="changed since"):
        est.get_feature_names_out()
    weights_file(0)
    est.transform(X)
    weights_file(1)
    assert est.fit_transform(X).shape == est.transform(X).shape
    assert clone(est).transform(X).shape == (3, 64)  # which is not fitted


def test_parameters_that_name_other_weights_are_refused_and_layers_are_not(X):
    est = features("tiny").fit(X)
    for free in ({"layer": "block2"}, {"pooling": "max"}, {"precision": "bfloat16"}):
        est.set_params(**free).transform(X)
    loaded = pickle.loads(pickle.dumps(est))
    for changed, word in [
        ({"image_size": 12}, "image_size"),
        ({"backbone": backbone_of(seeded(Net()))}, "backbone or weights"),
    ]:
        with pytest.raises(WeightsError, match=word):
            clone_fitted(loaded).set_params(**changed, layer=0).transform(X)
    seeds = features("smallcnn", weights=None, random_state=1).fit(X)
    with pytest.raises(WeightsError, match="random_state"):
        seeds.set_params(random_state=2).transform(X)


def clone_fitted(est):
    return pickle.loads(pickle.dumps(est))


def test_estimators_of_earlier_versions_are_not_asked(X):
    est = features("tiny").fit(X)
    del est.weights_digest_
    expected = features("tiny", image_size=12).transform(X)
    np.testing.assert_array_equal(est.set_params(image_size=12).transform(X), expected)
    est.weights_digest_ = "ff" * 33  # of a later version
    np.testing.assert_array_equal(est.transform(X), expected)


def test_weights_from_a_seed_are_known_to_classifiers_by_their_values(X, monkeypatch):
    """Another version of torch that gives the same is as good."""
    y = [0, 1, 0]
    clf = FineTunedClassifier("smallcnn", weights=None, unfreeze=0, random_state=0)
    expected = clf.fit(X, y).predict_proba(X)
    monkeypatch.setattr("skdeepfeat._backbones.weights.version", lambda name: "99.0")
    np.testing.assert_array_equal(clf.predict_proba(X), expected)


# In files of skops -------------------------------------------------------------------


def skops_copy(model):
    blob = skops.io.dumps(model)
    return skops.io.loads(blob, trusted=skops.io.get_untrusted_types(data=blob))


def shared_convolution():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    return nn.Sequential(conv, nn.ReLU(), conv, nn.BatchNorm2d(3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        shared_convolution,
        lambda: Shifted(2.0),
        lambda: Shifted(2.0, False),
    ],
    ids=["plain", "shared", "plain tensor", "transient buffer"],
)
def test_networks_of_ones_own_travel_in_skops_files(make, X):
    est = features(backbone_of(seeded(make()))).fit(X)
    back = skops_copy(est)
    assert back.backbone == est.backbone
    np.testing.assert_array_equal(back.transform(X), est.transform(X))


def test_tuned_and_registered_networks_travel_in_skops_files(X):
    net = nn.Sequential(*make_layers())
    register_backbone("in_skops", backbone_of(seeded(net)), overwrite=True)
    y = [0, 1, 0]
    clf = FineTunedClassifier("in_skops", epochs=1, random_state=0).fit(X, y)
    np.testing.assert_array_equal(
        skops_copy(clf).predict_proba(X), clf.predict_proba(X)
    )
    tuned = features(clf.to_backbone()).fit(X)
    np.testing.assert_array_equal(skops_copy(tuned).transform(X), tuned.transform(X))
    frozen = clf.as_features()
    np.testing.assert_array_equal(skops_copy(frozen).transform(X), frozen.transform(X))
    named = features("in_skops").fit(X)
    np.testing.assert_array_equal(skops_copy(named).transform(X), named.transform(X))


def make_layers():
    return (
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


# Rounding ----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_batch_norms_are_taken_in_before_weights_are_rounded(precision):
    source = resolve_weights(resolve_backbone("resnet18"), None, 0)
    network = get_network(source, b"k", "cpu", precision)
    generator = torch.Generator().manual_seed(0)
    for norm in network.module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.uniform_(0.2, 1.5, generator=generator)
            norm.running_mean.normal_(0, 1, generator=generator)
            norm.running_var.uniform_(0.1, 4, generator=generator)
    assert network.module.conv1.weight.dtype is torch.float32
    conv, norm = network.module.conv1, network.module.bn1
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    exact = conv.weight.double() * scale[:, None, None, None]
    cut = activations_of(network, source, ("layer1.1.relu_1",))
    folded = next(m for m in cut.modules() if isinstance(m, nn.Conv2d))
    dtype = getattr(torch, precision)
    assert torch.equal(folded.weight, exact.float().to(dtype))
    assert all(p.dtype is dtype for p in cut.parameters())


def test_untraceable_networks_are_rounded_too(X):
    net = backbone_of(seeded(Untraceable(factor=2.0)))
    exact = features(net).transform(X)
    rounded = features(net, precision="bfloat16").transform(X)
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


# The right culprit -------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 24])
def test_a_failing_device_is_not_called_a_wrong_size(size, X, monkeypatch):
    def fault(self, x):
        if x.is_meta:
            return forward(self, x)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    forward = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", fault)
    backbone = backbone_of(seeded(nn.Sequential(*make_layers())))
    with pytest.raises(RuntimeError, match=r"^CUDA error"):
        features(backbone, image_size=size).transform(X)
    clf = FineTunedClassifier(backbone, image_size=size, augment="none")
    with pytest.raises(RuntimeError, match=r"^CUDA error"):
        clf.fit(X, [0, 1, 0])


class OneSize(Net):
    def finish(self, x):
        torch._assert(x.shape[2] == 16, "16 pixels are wanted")
        return x


def test_a_network_that_refuses_a_size_says_so_whatever_it_raises(X):
    for kind in (OneSize, type("Crooked", (Untraceable, OneSize), {"factor": 1.0})):
        if kind is not OneSize:
            kind.finish = lambda self, x: OneSize.finish(
                self, x if x.is_meta or x.sum() > -1e9 else -x
            )
        backbone = backbone_of(seeded(kind()))
        assert features(backbone).transform(X).shape == (3, 4)
        with pytest.raises(ValueError, match="does not take images of image_size=24"):
            features(backbone, image_size=24).transform(X)


# The end of a network ----------------------------------------------------------------


class Block(nn.Module):
    """What ends a vision transformer without a head."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Transformer(nn.Module):
    def __init__(self, end=None):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.block, self.end = Block(), end

    def forward(self, x):
        x = self.block(self.patches(x).flatten(2).transpose(1, 2))[:, 0]
        return x if self.end is None else self.end(x)


class Linear(nn.Linear):
    """A subclass, which is traced."""


class Squeezed(nn.Module):
    def __init__(self, channels, pool):
        super().__init__()
        self.trunk = nn.Conv2d(3, 6, 3)
        self.conv, self.pool = nn.Conv2d(6, channels, 1), pool

    def forward(self, x):
        x = self.pool(self.conv(self.trunk(x).relu()).relu())
        return x.view(x.size(0), -1) if x.shape[-1] == 1 else x


def sequential(*end):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *end
    )


class Branches(nn.Module):
    """A linear layer whose scores are read twice."""

    def __init__(self):
        super().__init__()
        self.trunk, self.fc = sequential(), nn.Linear(6, 6)

    def forward(self, x):
        x = self.fc(self.trunk(x))
        return x * x.sigmoid()


class Reading(nn.Module):
    """Reads shapes on the way, which are no values."""

    def __init__(self):
        super().__init__()
        self.trunk, self.fc = sequential(), nn.Linear(6, 5)

    def forward(self, x):
        x = self.fc(self.trunk(x))
        return F.log_softmax(x.reshape(x.shape[0], x.size(1)), dim=-1)


class Values(nn.Module):
    """Cannot be traced."""

    def __init__(self, end=None):
        super().__init__()
        self.trunk, self.fc, self.end = sequential(), nn.Linear(6, 5), end

    def forward(self, x):
        x = self.trunk(x)
        x = self.fc(x) if x.is_meta or x.sum() > -1e9 else x
        return x if self.end is None else self.end(x)


ENDS = [  # (network, head, width of "penultimate", width of "logits")
    (lambda: Transformer(), None, 8, None),
    (lambda: Transformer(nn.LayerNorm(8)), None, 8, None),
    (lambda: Transformer(nn.Linear(8, 3)), "end", 8, 3),
    (lambda: Transformer(Linear(8, 3)), "end", 8, 3),
    (lambda: Transformer(nn.Sequential(nn.Linear(8, 5), nn.ReLU())), None, 5, None),
    (lambda: sequential(nn.Linear(6, 4), nn.Softmax(1)), "3", 6, 4),
    (lambda: sequential(nn.Linear(6, 4), nn.Dropout(), nn.Sigmoid()), "3", 6, 4),
    (lambda: sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), None, 4, None),
    (lambda: sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), "5", 4, 2),
    (Branches, None, 6, None),
    (Reading, "fc", 6, 5),
    (lambda: Squeezed(9, nn.Identity()), None, 9, None),
    (lambda: models.squeezenet1_1(weights=None), "classifier.1", 512, 1000),
    (lambda: models.resnet18(weights=None), "fc", 512, 1000),
    (Values, "fc", 6, 5),
    (lambda: Values(nn.Softmax(1)), "fc", 6, 5),
    (lambda: Values(nn.Tanh()), None, 5, None),
    (lambda: Values(nn.LayerNorm(5)), None, 5, None),
]


@pytest.mark.parametrize(("make", "head", "width", "classes"), ENDS)
def test_a_classifier_ends_a_network(make, head, width, classes):
    net = seeded(make())
    backbone = Backbone.from_module(net, image_size=64)
    found = {layer.alias: layer.features for layer in list_layers(backbone)}
    assert backbone.head == head
    assert found["penultimate"] == width and found.get("logits") == classes
    X = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    rows = features(backbone).transform(X)
    if head is None:
        x = torch.from_numpy(X).permute(0, 3, 1, 2) / 255
        mean, std = (
            torch.tensor(v).view(3, 1, 1)
            for v in (backbone.input.mean, backbone.input.std)
        )
        with torch.no_grad():
            expected = net((x - mean) / std)
        expected = expected.mean((2, 3)) if expected.ndim == 4 else expected
        np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-5)


def test_a_network_that_returns_several_things_has_no_last_layer(X):
    class Two(Net):
        def finish(self, x):
            return x, x.relu()

    backbone = backbone_of(seeded(Two()))
    assert [layer.alias for layer in list_layers(backbone)] == ["block1"]
    with pytest.raises(ValueError, match="Its aliases are 'block1'"):
        features(backbone).transform(X)
    assert features(backbone, layer="block1").transform(X).shape == (3, 4)


# Light -------------------------------------------------------------------------------


def test_a_memo_is_asked_once_and_forgotten_with_the_caches():
    memo, calls = Memo(), []
    for _ in range(2):
        assert memo.get("a", lambda: calls.append(1) or 5) == 5
    clear_caches()
    memo.get("a", lambda: calls.append(1))
    assert len(calls) == 2


def test_a_network_is_traced_once(monkeypatch, X):
    from skdeepfeat._networks import trial

    traced, trace = [], trial.trace
    monkeypatch.setattr(trial, "trace", lambda *a: (traced.append(1), trace(*a))[1])
    backbone = backbone_of(seeded(Net()))
    assert backbone.lasting and Structure(backbone, 16).traceable
    features(backbone).fit(X).transform(X)
    features(backbone, layer="conv", image_size=24).transform(X)
    assert structure_of(backbone, 24) is structure_of(backbone, 24)
    assert len(traced) == 1


def test_features_of_a_named_network_pickle_lightly(X):
    est = features("mini", layer="block1").fit(X)
    est.transform(X)
    assert len(pickle.dumps(est)) < 4000
