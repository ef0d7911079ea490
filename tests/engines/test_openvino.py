"""The engine of OpenVINO: the same features, kept on disk, and torch where it fails."""

import shutil
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch

import skdeepfeat._engines.devices as device
from skdeepfeat import (
    Backbone,
    EngineWarning,
    FeatureStore,
    PretrainedCNNFeatures,
    WeightsError,
    clear_caches,
)
from skdeepfeat._networks.sharing import networks_on

ops = pytest.importorskip("openvino.opset13")
engine = pytest.importorskip("skdeepfeat._engines.openvino", reason="needs openvino")
from skdeepfeat._engines import openvino_cache as cache  # noqa: E402
from skdeepfeat._engines import openvino_conversion as conversion  # noqa: E402


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """OpenVINO is there."""
    monkeypatch.setattr(device, "_has_openvino", lambda: True)


@pytest.fixture
def conversions(monkeypatch):
    """Counts what is converted."""
    converted, translate = [], conversion.translate
    monkeypatch.setattr(
        conversion,
        "translate",
        lambda *args: (converted.append(1), translate(*args))[1],
    )
    return converted


def features(backbone="mini", **parameters):
    parameters = {"engine": "openvino", "cache": None, **parameters}
    return PretrainedCNNFeatures(backbone, **parameters)


def relative_error(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    "backbone, layer",
    [
        ("mini", ("block2", "penultimate")),
        ("resnet18", ("stem", "block4", "logits")),
        ("mobilenet_v3_small", "block3"),
        ("vit_b_16", "block2"),
        ("swin_t", "block1"),
        ("googlenet", "block2"),
        ("smallcnn", ("block2", "penultimate")),
    ],
)
def test_features_are_those_of_torch(backbone, layer, photos):
    weights = "default" if backbone == "mini" else None
    parameters = {"weights": weights, "layer": layer}
    expected = features(backbone, engine="torch", **parameters).transform(photos)
    est = features(backbone, **parameters)
    assert relative_error(est.transform(photos), expected) < 1e-5
    assert est.stats_["engine"] == "openvino"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["image_size", "batch_size"])
def test_a_size_of_numpy_is_converted(name, photos):
    expected = features(**{name: 48}).transform(photos)
    clear_caches()
    est = features(**{name: np.int64(48)})
    assert np.array_equal(est.transform(photos), expected)
    assert est.stats_["engine"] == "openvino"


@pytest.mark.parametrize("pooling", ["max", "avgmax", "gem", "stochastic", "flatten"])
def test_all_poolings_are_converted(pooling, photos):
    parameters = {"pooling": pooling, "layer": "block2"}
    expected = features("tiny", engine="torch", **parameters).transform(photos)
    assert relative_error(
        features("tiny", **parameters).transform(photos), expected
    ) < (1e-5)


def test_floats_and_single_rows(photos):
    floats = photos / np.float32(255)
    expected = features(engine="torch").transform(floats)
    assert relative_error(features().transform(floats), expected) < 1e-5
    one = features().transform(floats[:1])
    assert relative_error(one, expected[:1]) < 1e-5


def test_the_requested_order_does_not_change_the_network(photos, conversions):
    there = features("tiny", layer=("penultimate", "block2")).transform(photos)
    back = features("tiny", layer=("block2", "block5")).transform(photos)
    np.testing.assert_array_equal(there, np.hstack([back[:, 6:], back[:, :6]]))
    assert conversions == [1]


@pytest.mark.parametrize("n", [1, 3])
def test_what_runs_is_compared_with_torch(n, photos, monkeypatch):
    """Not only what was converted: it is compiled for the batches to come."""
    compile_for_cpu = engine.compile_for_cpu

    def wrong(model, *options):
        for step in model.get_ordered_ops():
            if step.get_type_name() == "Convolution":
                kernels = step.input_value(1).get_node().data
                step.input(1).replace_source_output(ops.constant(kernels * 2).output(0))
        return compile_for_cpu(model, *options)

    expected = features("tiny", engine="torch").transform(photos[:n])
    features("tiny").transform(photos[:n])
    clear_caches()  # as in a process that finds it converted
    monkeypatch.setattr(engine, "compile_for_cpu", wrong)
    with pytest.warns(EngineWarning, match="differ from torch's by"):
        found = features("tiny").transform(photos[:n])
    np.testing.assert_array_equal(found, expected)


def test_a_network_that_no_other_process_knows_is_not_kept(photos):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    net[0].register_forward_hook(lambda module, args, out: out * 2)
    backbone = Backbone.from_module(net.eval(), image_size=8)
    expected = features(backbone, engine="torch").transform(photos)
    est = features(backbone)
    assert relative_error(est.transform(photos), expected) < 1e-5
    assert est.stats_["engine"] == "openvino"
    assert not cache.cache_folder().exists()


def test_rows_do_not_depend_on_their_neighbours(photos):
    est = features(batch_size=4)
    rows = est.transform(photos)
    np.testing.assert_array_equal(est.transform(photos[::-1])[::-1], rows)
    np.testing.assert_array_equal(est.transform(photos[[5, 1]]), rows[[5, 1]])


def test_a_network_is_converted_once_and_read_from_disk(photos, conversions):
    rows = features().transform(photos)
    features().transform(photos[:1])
    assert len(conversions) == 1
    clear_caches()  # as in a new process
    np.testing.assert_array_equal(features().transform(photos), rows)
    assert len(conversions) == 1
    features(layer="block1").transform(photos)
    assert len(conversions) == 2


def test_a_damaged_conversion_is_made_again(photos, conversions):
    rows = features("tiny").transform(photos)
    (folder,) = cache.cache_folder().iterdir()
    weights = folder / "model.bin"
    blob = bytearray(weights.read_bytes())
    blob[len(blob) // 2] ^= 1
    weights.write_bytes(blob)
    clear_caches()
    np.testing.assert_array_equal(features("tiny").transform(photos), rows)
    assert len(conversions) == 2


def test_half_a_conversion_is_replaced(photos, conversions):
    """As a cleaner of cache folders leaves it."""
    features("tiny").transform(photos)
    (folder,) = cache.cache_folder().iterdir()
    (folder / "checksum").unlink()
    for _ in range(2):
        clear_caches()
        features("tiny").transform(photos)
    assert len(conversions) == 2
    assert list(cache.cache_folder().iterdir()) == [folder]


def test_a_user_without_a_home_does_no_harm(photos, conversions, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(cache.Path, "home", home)
    expected = features("tiny", engine="torch").transform(photos)
    for n_conversions in (1, 2):
        clear_caches()
        rows = features("tiny").transform(photos)
        assert relative_error(rows, expected) < 1e-5
        assert len(conversions) == n_conversions


def test_a_conversion_leaves_no_network_of_torch_behind(photos):
    features("tiny").transform(photos)
    assert len(networks_on("cpu")) == 0


def test_a_full_disk_does_no_harm(photos, monkeypatch):
    def full(*args, **options):
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(cache.openvino, "save_model", full)
    expected = features("tiny", engine="torch").transform(photos)
    assert relative_error(features("tiny").transform(photos), expected) < 1e-5
    assert not list(cache.cache_folder().iterdir())


def test_conversions_on_disk_are_bounded(photos, monkeypatch):
    monkeypatch.setattr(cache, "MAX_BYTES", 1)
    for layer in ("block2", "block4"):
        features("tiny", layer=layer).transform(photos)
    assert len(list(cache.cache_folder().iterdir())) == 1


def test_a_folder_that_cannot_be_written_changes_no_bit(photos, monkeypatch, tmp_path):
    expected = features().transform(photos)
    clear_caches()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    np.testing.assert_array_equal(features().transform(photos), expected)


def test_a_new_process_needs_no_torch(photos, tmp_path):
    rows = features().transform(photos)
    np.save(tmp_path / "photos.npy", photos)
    code = (
        "import sys, numpy as np\n"
        "from skdeepfeat import PretrainedCNNFeatures\n"
        "est = PretrainedCNNFeatures(engine='openvino', cache=None)\n"
        "rows = est.transform(np.load(sys.argv[1]))\n"
        "assert not {'torch', 'torchvision'} & set(sys.modules)\n"
        "assert 'openvino_telemetry' not in sys.modules\n"  # which reports imports
        "np.save(sys.argv[2], rows)"
    )
    arguments = [tmp_path / "photos.npy", tmp_path / "rows.npy"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), rows)


def test_threads_share_a_network(photos, conversions):
    expected = features().transform(photos)
    results = [None] * 4

    def work(place):
        results[place] = features().transform(photos)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rows in results:
        np.testing.assert_array_equal(rows, expected)
    assert len(conversions) == 1


def test_auto_takes_it_but_not_for_networks_of_ones_own(photos):
    est = features("resnet18", weights=None, layer="stem", engine="auto")
    est.transform(photos)
    assert est.stats_["engine"] == "openvino"
    est = features("tiny", engine="auto")
    est.transform(photos)
    assert est.stats_["engine"] == "torch"
    est = features(engine="auto", precision="float16")
    est.transform(photos)
    assert est.stats_["engine"] == "torch"


def test_bfloat16_depends_little_on_layers_of_the_same_pass(photos):
    read = {"precision": "bfloat16"}
    alone = features(**read).transform(photos)
    both = features(layer=("stem", "penultimate"), **read).transform(photos)
    np.testing.assert_allclose(
        both[:, -alone.shape[1] :], alone, atol=0.02 * np.abs(alone).max()
    )


def test_bfloat16_points_the_same_way(photos):
    full, low = (
        features(precision=p).transform(photos) for p in ("float32", "bfloat16")
    )
    cosine = (full * low).sum(1)
    cosine /= np.linalg.norm(full, axis=1) * np.linalg.norm(low, axis=1)
    assert (cosine > 0.999).all()


def test_engines_do_not_serve_each_others_rows(photos):
    store = FeatureStore(name="engines")
    features("tiny", cache=store).transform(photos)
    features("tiny", cache=store, engine="torch").transform(photos)
    assert store.info()["misses"] == 2 * len(photos)


class Branching(torch.nn.Module):
    """fx cannot trace a network that looks at values."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x = self.conv(x)
        return x if x.sum() > -1e9 else -x


def test_torch_takes_over_what_cannot_be_converted(photos):
    backbone = Backbone.from_module(Branching().eval(), image_size=16)
    expected = features(backbone, engine="torch").transform(photos)
    est = features(backbone)
    with pytest.warns(
        EngineWarning, match=r"torch cannot trace the network \(its code branches"
    ):
        rows = est.transform(photos)
    np.testing.assert_array_equal(rows, expected)
    assert est.stats_["engine"] == "torch"
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        est.transform(photos)


def test_a_conversion_that_computes_something_else_is_not_used(photos, monkeypatch):
    other = features("tiny", layer="block4", engine="torch").transform(photos)
    translate = conversion.translate

    def wrong(network, example):
        return translate(torch.nn.Sequential(network, Half()), example)

    class Half(torch.nn.Module):
        def forward(self, rows):
            return tuple(r / 2 for r in rows)

    monkeypatch.setattr(conversion, "translate", wrong)
    with pytest.warns(EngineWarning, match="differ from torch's by"):
        rows = features("tiny", layer="block4").transform(photos)
    np.testing.assert_array_equal(rows, other)
    assert not cache.cache_folder().exists()


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"precision": "float16"}, "precision 'float32' or 'bfloat16'"),
        ({"precision": "tf32"}, "precision 'float32' or 'bfloat16'"),
    ],
)
def test_what_it_cannot_do_is_said(parameters, message, photos):
    with pytest.raises(ValueError, match=message):
        features(**parameters).transform(photos)


def test_a_missing_installation_says_what_to_type(photos, monkeypatch):
    monkeypatch.setattr(device, "_has_openvino", lambda: False)
    with pytest.raises(ImportError, match=r"pip install 'skdeepfeat\[openvino\]'"):
        features().transform(photos)


def test_a_damaged_conversion_is_removed_but_not_its_successor(photos, monkeypatch):
    """Another process may have put it in place meanwhile."""
    features("tiny").transform(photos)
    (folder,) = cache.cache_folder().iterdir()
    (folder / "checksum").write_text("wrong")
    real = cache._checksum

    def replaced(path):
        shutil.copytree(path, path.with_name("aside"))
        shutil.rmtree(path)
        (path.with_name("aside") / "checksum").write_text(real(path.with_name("aside")))
        path.with_name("aside").rename(path)
        return "what was read before"

    monkeypatch.setattr(cache, "_checksum", replaced)
    assert cache.read_converted(folder.name) is None
    monkeypatch.setattr(cache, "_checksum", real)
    assert list(cache.cache_folder().iterdir()) == [folder]
    assert cache.read_converted(folder.name) is not None
    (folder / "checksum").write_text("wrong")
    assert cache.read_converted(folder.name) is None
    assert not list(cache.cache_folder().iterdir())


def test_weights_that_cannot_be_read_are_no_failed_conversion(photos, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        features("alexnet", weights=path).transform(photos)
