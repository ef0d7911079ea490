"""A network of the user's own computes what its code says, whatever fx makes of it."""

import contextlib
import copy
import importlib
import operator
import pickle
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skdeepfeat import (
    Backbone,
    FeatureStore,
    FineTunedClassifier,
    PretrainedCNNFeatures,
    WeightsError,
    list_layers,
)
from skdeepfeat._images.recipe import InputSpec
from skdeepfeat._networks import trial
from skdeepfeat._networks.structure import structure_of
from skdeepfeat._networks.tracer import Tracer

SIZE = 16


@pytest.fixture
def X(photos):
    return photos[:3]


class Net(nn.Module):
    """Two convolutions, and what is put between them."""

    def __init__(self, forward, value=1.5):
        super().__init__()
        torch.manual_seed(0)
        self.c, self.d = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.drop, self.same = nn.Dropout(0.1), nn.Identity()
        self.relu, self.leaky = nn.ReLU(inplace=True), nn.LeakyReLU(0.5, inplace=True)
        self.inner = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))
        self.v, self.between = value, forward

    def forward(self, x):
        return self.between(self, x)


def own(forward, **options):
    """The network as an instance of a class of its own, which holds its code."""
    kind = type("Own", (Net,), {"forward": forward})
    return kind(None, **options).eval()


def backbone_of(net, **options):
    return Backbone.from_module(net, image_size=SIZE, **options)


def features(backbone, cache=None, **parameters):
    parameters = {"engine": "torch", "n_jobs": 1, **parameters}
    return PretrainedCNNFeatures(backbone, cache=cache, **parameters)


def normalised(backbone, images):
    """What enters the network for photos of any size."""
    pixels = [np.asarray(image) for image in images]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous() / 255
    spec = backbone.input
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
    return (x - mean) / std


@pytest.fixture
def pixels():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


def computed_by(net, backbone, pixels):
    """What the network itself returns, averaged over each map; one by one."""
    with torch.no_grad():
        rows = [net(row[None]) for row in normalised(backbone, pixels)]
    row = torch.cat(rows)
    return (row.mean((2, 3)) if row.ndim == 4 else row).numpy()


# Forwards: each a way to overwrite a value, or to ask what fx does not know -----------


def steps(*functions):
    """The code of a network that does these things one after the other."""

    def forward(self, x):
        for function in functions:
            x = function(self, x)
        return x

    return forward


def dropping(change):
    """Change a value, drop the result, and go on with the value."""

    def forward(self, x):
        x = self.c(x)
        change(self, x)
        return self.d(x) + x

    return forward


def chunked(self, x):
    x.chunk(2, 1)[0].mul_(3)


def aliased(self, x):
    y = x
    y += self.v


def assigned(self, x):
    y = self.c(x).clone()
    y[:, 0] = self.v
    return y


def seen_through_an_earlier_view(self, x):
    x = self.c(x)
    view = x.view(x.shape[0], -1)
    self.relu(x)
    return view * self.v


def overwritten_twice(self, x):
    x = self.c(x)
    y = F.relu_(x)
    z = torch.sigmoid_(y)
    return self.d(z) + x + y


def overwritten_input(self, x):
    before = x
    x.mul_(2)
    return self.c(before)


def with_itself(self, x):
    x = self.c(x)
    x.add_(x)
    return self.d(x)


def catching(self, x):
    with contextlib.suppress(Exception):
        if x.max() > 0.1:
            x = x / x.amax((1, 2, 3), keepdim=True)
    return self.c(x)


def catching_what_does_not_happen(self, x):
    try:
        x = x / 0.5 if x.max() > 1e9 else x
    except Exception:
        pass
    return self.c(x)


def instance(self, x):
    if isinstance(x, torch.Tensor):
        x = x * self.v
    return self.c(x)


def in_bfloat16(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        return self.c(x).float()


def first(net):
    return next(net.parameters())


def with_relu(self, x):
    return self.relu(self.c(x))


LOST = {  # there is no graph that computes the same: the network runs as it is
    "a view": dropping(lambda s, x: x[:, 0].zero_()),
    "part of a view": dropping(lambda s, x: x[:, :2].mul_(s.v)),
    "a chunk": dropping(chunked),
    "an assignment to a part": assigned,
    "another name": steps(dropping(aliased)),
    "iadd": dropping(lambda s, x: operator.iadd(x, s.v)),
    "zero_": dropping(lambda s, x: x.zero_()),
    "copy_": dropping(lambda s, x: x.copy_(torch.full_like(x, s.v))),
    "init": dropping(lambda s, x: nn.init.constant_(x, s.v)),
    "out=": dropping(lambda s, x: torch.mul(x, s.v, out=x)),
    "an earlier view": seen_through_an_earlier_view,
    "a flattened module": dropping(lambda s, x: s.leaky(x.flatten(1))),
    "isinstance": instance,
    "is_tensor": lambda s, x: s.c(x * s.v if torch.is_tensor(x) else x),
    "type": lambda s, x: s.c(x * s.v if type(x) is torch.Tensor else x),
    "hasattr": lambda s, x: s.c(x.logits if hasattr(x, "logits") else x),
    "try": catching,
    "try in vain": catching_what_does_not_happen,
    "device": lambda s, x: s.c(x) * (s.v if first(s).device.type == "cpu" else 1),
    "is_meta": lambda s, x: s.c(x) * (1 if first(s).is_meta else s.v),
    "autocast": in_bfloat16,
}
KEPT = {  # the graph is rewritten
    "leaky_relu_": dropping(lambda s, x: F.leaky_relu_(x, 0.1)),
    "elu_": dropping(lambda s, x: F.elu_(x, 0.5)),
    "hardtanh_": dropping(lambda s, x: F.hardtanh_(x, -0.1, 0.1)),
    "sigmoid_": dropping(lambda s, x: torch.sigmoid_(x)),
    "exp_": dropping(lambda s, x: torch.exp_(x)),
    "clamp_": dropping(lambda s, x: torch.clamp_(x, min=0.2)),
    "masked_fill_": dropping(lambda s, x: x.masked_fill_(x > 0, s.v)),
    "inplace=True": dropping(lambda s, x: F.relu(x, inplace=True)),
    "data": dropping(lambda s, x: x.detach().data.mul_(s.v)),
    "a module": dropping(lambda s, x: s.relu(x)),
    "a module in a module": dropping(lambda s, x: s.inner(x)),
    "through dropout": dropping(lambda s, x: s.relu(s.drop(x))),
    "through Identity": dropping(lambda s, x: s.relu(s.same(x))),
    "through contiguous": dropping(lambda s, x: s.relu(x.contiguous())),
    "through a view of all": dropping(lambda s, x: s.relu(x.view(x.shape))),
    "twice": overwritten_twice,
    "the input": overwritten_input,
    "with itself": with_itself,
    "result alone": lambda s, x: s.d(torch.sigmoid_(s.c(x))),
    "no gradients": lambda s, x: s.c(x) * (1 if torch.is_grad_enabled() else s.v),
    "a type of numbers": lambda s, x: s.c(x).view(torch.int32).view(torch.float32),
}
FORWARDS = [(k, f, False) for k, f in LOST.items()]
FORWARDS += [(k, f, True) for k, f in KEPT.items()]


@pytest.mark.parametrize(
    ("forward", "kept"), [f[1:] for f in FORWARDS], ids=[f[0] for f in FORWARDS]
)
def test_features_are_what_the_network_computes(forward, kept, pixels):
    net = own(forward)
    backbone = backbone_of(net)
    assert backbone.lasting == kept
    expected = computed_by(net, backbone, pixels)
    est = features(backbone, layer=list_layers(backbone)[-1].node)
    np.testing.assert_allclose(est.transform(pixels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("forward", KEPT.values(), ids=KEPT)
def test_layers_have_their_own_values_whatever_comes_after(forward, pixels):
    """Alone, together, and stored by the way."""
    backbone = backbone_of(own(forward))
    layers = [layer.node for layer in list_layers(backbone)]
    alone = [features(backbone, layer=n).transform(pixels) for n in layers]
    together = features(backbone, layer=tuple(layers)).transform(pixels)
    np.testing.assert_array_equal(together, np.hstack(alone))
    store = FeatureStore()
    features(backbone, store, prefetch_layers="all").transform(pixels)
    for node, rows in zip(layers, alone, strict=True):
        served = features(backbone, store, layer=node).transform(pixels)
        np.testing.assert_array_equal(served, rows)


@pytest.mark.parametrize("forward", [instance, catching], ids=["instance", "try"])
def test_networks_that_fx_takes_for_one_are_two(forward, tmp_path, pixels):
    rows = []
    for value in (2.0, 9.0):
        backbone = backbone_of(own(forward, value=value))
        with pytest.warns(UserWarning, match="kept in memory"):
            rows.append(features(backbone, tmp_path).transform(pixels))
        expected = computed_by(own(forward, value=value), backbone, pixels)
        np.testing.assert_allclose(rows[-1], expected, rtol=1e-4, atol=1e-5)


def test_settings_of_activations_do_not_tell_networks_apart_that_are_the_same():
    plain = own(with_relu)
    plain.relu.inplace = False
    assert backbone_of(plain) == backbone_of(own(with_relu))


# Rows of their own -------------------------------------------------------------------


class BatchNorm(Net):
    def __init__(self):
        super().__init__(None)
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x):
        return self.norm(self.c(x)).relu()


REFUSED = {
    "batch statistics": (BatchNorm, "depend on the other images"),
    "mean over the batch": (
        lambda: own(lambda s, x: s.c(x - x.mean(0, keepdim=True))),
        "depend on the other images",
    ),
    "two images at once": (
        lambda: own(lambda s, x: s.c(x.view(2, 3, 16, 16))),
        r"but not one alone \(RuntimeError: shape '\[2, 3",
    ),
    "dropout": (
        lambda: own(lambda s, x: F.dropout(s.c(x), 0.5)),
        "are different in every call",
    ),
    "noise": (
        lambda: own(lambda s, x: s.c(x) + torch.randn(1)),
        "are different in every call",
    ),
}


@pytest.mark.parametrize("way", REFUSED)
def test_what_has_no_row_for_each_image_is_refused(way, X):
    make, why = REFUSED[way]
    with pytest.raises(ValueError, match=f"^Backbone '.*' cannot give.*{why}"):
        backbone_of(make().eval())
    named = backbone_of(make().eval(), head="d", version="1")  # looked at later
    with pytest.raises(ValueError, match=why):
        features(named).transform(X)


OTHER_INPUT = {
    "grey": lambda: nn.Sequential(nn.Conv2d(1, 4, 3)),
    "half": lambda: own(lambda s, x: s.c(x.half())),
}


@pytest.mark.parametrize("make", OTHER_INPUT.values(), ids=OTHER_INPUT)
def test_a_network_that_takes_no_such_images_says_so(make, X):
    backbone = backbone_of(make().eval())
    words = r"does not take a batch .* of shape \(n, 3, 16, 16\), .*: RuntimeError"
    with pytest.raises(ValueError, match=words):
        list_layers(backbone)
    with pytest.raises(ValueError, match=words):
        features(backbone).transform(X)


def test_looking_at_a_network_draws_no_random_numbers():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    drawn = own(lambda s, x: s.c(x) + 0 * torch.rand(1))
    torch.set_rng_state(state)
    backbone_of(drawn)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_may_be_taken_in_inference_mode(pixels):
    with torch.inference_mode():
        backbone = backbone_of(own(KEPT["twice"]))
        assert backbone.lasting
    assert backbone == backbone_of(own(KEPT["twice"]))


def test_a_network_that_cannot_run_here_is_not_kept():
    """Its graph is not compared with anything."""
    away = torch.ones(1, device="meta")  # as if on another machine's device
    backbone = backbone_of(own(lambda s, x: s.c(x) * s.v, value=away))
    assert structure_of(backbone, SIZE).traceable and not backbone.lasting


class Activated(Net):
    def __init__(self):
        super().__init__(None)

    def forward(self, x):
        return self.relu(self.c(x))


def test_copies_share_what_one_of_them_found(monkeypatch):
    tried, try_out = [], trial._try_out
    monkeypatch.setattr(trial, "_try_out", lambda *a: (tried.append(1), try_out(*a))[1])
    backbone = backbone_of(Activated().eval())
    for other in (pickle.loads(pickle.dumps(backbone)), copy.deepcopy(backbone)):
        assert other == backbone and other.lasting
    assert len(tried) == 1
    assert backbone_of(Activated().eval()) == backbone and len(tried) == 2


def test_published_networks_are_trusted(monkeypatch):
    monkeypatch.setattr(trial, "_try_out", None)
    assert structure_of(backbone_named("squeezenet1_1"), 64).traceable


def backbone_named(name):
    from skdeepfeat._backbones.registry import _backbone_of_record

    _backbone_of_record.cache_clear()
    return _backbone_of_record(name)


def test_a_question_that_fx_cannot_answer_is_noted():
    net = own(catching)
    tracer = Tracer(net)
    tracer.trace(net)
    assert tracer.refused


# Memory formats ----------------------------------------------------------------------


class Tutorial(nn.Module):
    """The network of PyTorch's tutorial on CIFAR."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1, self.fc2 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 5 * 5)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class UntraceableTutorial(Tutorial):
    def forward(self, x):
        return super().forward(x if x.sum() > -1e9 else -x)


@pytest.fixture
def large():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (4, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("kind", [Tutorial, UntraceableTutorial])
def test_code_that_views_maps_as_rows_runs(kind, large):
    net = kind().eval()
    backbone = Backbone.from_module(net, image_size=32)
    assert backbone.lasting == (kind is Tutorial)
    rows = features(backbone, layer="logits").transform(large)
    expected = computed_by(net, backbone, large)
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)


def test_code_that_views_maps_as_rows_is_converted(large, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr("skdeepfeat._engines.devices._has_openvino", lambda: True)
    backbone = Backbone.from_module(Tutorial().eval(), image_size=32)
    est = features(backbone, layer="logits", engine="openvino")
    rows, expected = est.transform(large), features(backbone, layer="logits")
    assert est.stats_["engine"] == "openvino"
    np.testing.assert_allclose(rows, expected.transform(large), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("unfreeze", [0, 1, "all"])
def test_code_that_views_maps_as_rows_is_tuned(unfreeze, large):
    backbone = Backbone.from_module(Tutorial().eval(), image_size=32)
    clf = FineTunedClassifier(backbone, unfreeze=unfreeze, epochs=1)
    assert clf.fit(large, [0, 1, 0, 1]).predict(large).shape == (4,)


# What is known of it -----------------------------------------------------------------


@pytest.fixture
def operators():
    """Operators of the user's own, which torch.ops knows by their names alone."""
    library = torch.library.Library("skdeepfeat_tests", "DEF")
    library.define("act(Tensor x) -> Tensor")
    library.impl("act", lambda x: x.relu(), "CompositeImplicitAutograd")
    yield torch.ops.skdeepfeat_tests
    library._destroy()


def test_only_published_operators_are_known_by_their_names(operators):
    assert not backbone_of(own(lambda s, x: operators.act(s.c(x)))).lasting
    assert not backbone_of(own(lambda s, x: operators.act.default(s.c(x)))).lasting
    assert backbone_of(own(lambda s, x: torch.ops.aten.relu(s.c(x)))).lasting
    one, two = (
        backbone_of(own(lambda s, x, op=op: op(s.c(x))))
        for op in (torch.ops.aten.relu.default, torch.ops.aten.tanh.default)
    )
    assert one.lasting and two.lasting and one != two


BUILDER = """
import torch
SLOPE, KERNEL, NAME = 0.1, 2, "a"
class Named(torch.nn.Sequential):
    name = None
def build():
    net = Named(
        torch.nn.Conv2d(3, 4, 3), torch.nn.LeakyReLU(SLOPE), torch.nn.MaxPool2d(KERNEL)
    )
    net.name = NAME
    return net
"""


@pytest.fixture
def builder(tmp_path, monkeypatch):
    (tmp_path / "settings_of_builder.py").write_text(BUILDER)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("settings_of_builder")
    sys.modules.pop("settings_of_builder")


@pytest.mark.parametrize(("name", "value"), [("SLOPE", 0.9), ("KERNEL", 3)])
@pytest.mark.parametrize("layer", ["block2", "block3"])
def test_a_builder_whose_settings_change_is_refused(builder, name, value, layer, X):
    backbone = Backbone("own", "settings_of_builder:build", InputSpec(SIZE, None))
    est = features(backbone, weights=None, layer=layer)
    assert backbone.lasting and est.get_feature_names_out().shape == (4,)
    setattr(builder, name, value)
    with pytest.raises(WeightsError, match="returns another network than before"):
        est.transform(X)


def test_settings_that_no_step_reads_may_change(builder, X):
    backbone = Backbone("own", "settings_of_builder:build", InputSpec(SIZE, None))
    est = features(backbone, weights=None, layer="block3")
    est.get_feature_names_out()
    builder.NAME = "b"
    assert est.transform(X).shape == (3, 4)


# Code that is edited -----------------------------------------------------------------


def helper(x, again=0):
    return calling(x) if again else x.relu()


def calling(x):
    return helper(x) * FACTOR


FACTOR = 1.0


class Untraceable(Net):
    def __init__(self, value=1.5):
        super().__init__(None, value)

    def forward(self, x):
        x = self.c(x)
        return calling(x) if x.sum() > -1e9 else x


class Configured(Untraceable):
    scale = 1.0

    def forward(self, x):
        return super().forward(x) * self.scale


EDITS = {
    "helper": ("helper", lambda x: x.tanh()),
    "caller": ("calling", lambda x: helper(x) + 1),
    "constant": ("FACTOR", 3.0),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edited_function_reaches_a_network_that_cannot_be_traced(
    edit, pixels, monkeypatch
):
    backbone, store = backbone_of(Untraceable().eval()), FeatureStore()
    before = features(backbone, store).transform(pixels)
    assert not backbone.lasting
    digest, copied = backbone.digest, pickle.loads(pickle.dumps(backbone))
    assert backbone.digest == digest == copied.digest
    monkeypatch.setattr(sys.modules[__name__], *edit)
    for asked in (backbone, copied, pickle.loads(pickle.dumps(backbone))):
        assert asked.digest != digest
        rows = features(asked, store).transform(pixels)
        expected = features(asked).transform(pixels)
        np.testing.assert_array_equal(rows, expected)
        assert not np.allclose(rows, before)


def test_an_edited_class_reaches_its_networks(pixels, monkeypatch):
    backbone, store = backbone_of(Configured().eval()), FeatureStore()
    before = features(backbone, store).transform(pixels)
    monkeypatch.setattr(Configured, "scale", 2.0)
    rows = features(backbone, store).transform(pixels)
    np.testing.assert_allclose(rows, 2 * before, rtol=1e-5)


# Hooks of all modules ----------------------------------------------------------------


@pytest.mark.parametrize(
    "register",
    [
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
    ],
)
def test_hooks_of_all_modules_are_part_of_every_network(register, pixels, tmp_path):
    def double(module, args, out=None):
        if isinstance(module, nn.Conv2d):
            return 2 * out if out is not None else (2 * args[0],)

    backbone, store = backbone_of(own(lambda s, x: s.c(x))), FeatureStore(tmp_path)
    before = features(backbone, store).transform(pixels)
    handle = register(double)
    try:
        assert not backbone.lasting
        with pytest.warns(UserWarning, match="kept in memory"):
            hooked = features(backbone, store).transform(pixels)
        np.testing.assert_array_equal(hooked, features(backbone).transform(pixels))
    finally:
        handle.remove()
    assert backbone.lasting and not np.allclose(hooked, before)
    np.testing.assert_array_equal(features(backbone, store).transform(pixels), before)


# What cannot be copied ---------------------------------------------------------------


def test_a_network_that_cannot_be_copied_says_so():
    net = own(lambda s, x: s.c(x))
    net.file = sys.stdout.__class__  # a class is copied as it is
    backbone_of(net)
    net.module = torch  # a module is not
    with pytest.raises(TypeError, match=r"this Own cannot be copied: .*module.*Keep"):
        backbone_of(net)
