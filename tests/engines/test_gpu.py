"""What a GPU could break: values, order, memory, processes, fine-tuning.

Run it where there is a GPU with ``python -m pytest -m gpu``; elsewhere all is skipped.
"""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torch
from conftest import tiny_backbone
from PIL import Image

from skdeepfeat import (
    Backbone,
    FeatureStore,
    FineTunedClassifier,
    PretrainedCNNFeatures,
    clear_caches,
)
from skdeepfeat._backbones.registry import resolve_backbone
from skdeepfeat._engines.devices import resolve_device
from skdeepfeat._engines.torch import PooledModule
from skdeepfeat._images.crew import FEWEST, crew

GPU = "cuda:0"
N_GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
SEVERAL = [f"cuda:{i}" for i in range(N_GPUS)] if N_GPUS > 1 else [GPU, GPU]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        N_GPUS == 0, reason="run on a GPU with: python -m pytest -m gpu"
    ),
]

FAMILIES = [
    *("resnet18", "densenet121", "mobilenet_v3_large", "efficientnet_b0"),
    *("convnext_tiny", "vit_b_16", "swin_t", "efficientnet_lite0", "mini"),
]
SHIPPED = ("mini", "tiny")  # whose weights need no seed
SIZES = [(37, 53), (500, 375), (224, 224), (600, 91), (33, 400), (225, 223), (48, 48)]


def transformer(device=GPU, backbone="tiny", **parameters):
    """Features that are computed in each call, unless `cache` says otherwise."""
    defaults = {"weights": "default" if backbone in SHIPPED else None}
    defaults |= {"engine": "torch", "cache": None}
    return PretrainedCNNFeatures(backbone, device=device, **(defaults | parameters))


def assert_close(rows, expected, tolerance):
    """Equal but for a part of the largest feature."""
    largest = np.abs(expected).max()
    np.testing.assert_allclose(rows, expected, rtol=0, atol=tolerance * largest)


@pytest.fixture(scope="module")
def odd_photos():
    """Smooth colour images of different sizes and shapes."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (len(SIZES), 8, 8, 3), dtype=np.uint8)
    images = zip(map(Image.fromarray, coarse), SIZES, strict=True)
    return [np.asarray(image.resize(size, Image.BICUBIC)) for image, size in images]


@pytest.fixture(scope="module")
def many():
    """50 different small images."""
    return np.random.default_rng(1).integers(0, 256, (50, 10, 10, 3), dtype=np.uint8)


# Values -----------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", FAMILIES)
def test_features_are_those_of_a_cpu(backbone, odd_photos):
    expected = transformer("cpu", backbone).transform(odd_photos)
    rows = transformer(GPU, backbone).transform(odd_photos)
    assert rows.dtype == np.float32 and rows.flags.c_contiguous
    assert_close(rows, expected, 1e-4)


@pytest.mark.parametrize(
    "pooling", ["avg", "max", "avgmax", "gem", "stochastic", "flatten"]
)
@pytest.mark.parametrize("backbone", ["resnet18", "swin_t", "vit_b_16"])
def test_pooled_maps_are_those_of_a_cpu(backbone, pooling, odd_photos):
    parameters = {"backbone": backbone, "layer": "block2", "pooling": pooling}
    expected = transformer("cpu", **parameters).transform(odd_photos[:3])
    assert_close(
        transformer(GPU, **parameters).transform(odd_photos[:3]), expected, 1e-4
    )


def test_images_of_floats_keep_their_precision(odd_photos):
    X = [(photo / np.float32(255)).astype(np.float32) for photo in odd_photos]
    expected = transformer("cpu", "resnet18").transform(X)
    assert_close(transformer(GPU, "resnet18").transform(X), expected, 1e-4)


@pytest.mark.parametrize("backbone", ["resnet18", "densenet121", "vit_b_16", "mini"])
def test_layers_together_equal_layers_alone(backbone, odd_photos):
    layers = ("block1", "block2", "penultimate")
    together = transformer(GPU, backbone, layer=layers).transform(odd_photos)
    alone = [transformer(GPU, backbone, layer=x).transform(odd_photos) for x in layers]
    ends = np.cumsum([rows.shape[1] for rows in alone])[:-1]
    for rows, expected in zip(np.split(together, ends, axis=1), alone, strict=True):
        assert_close(rows, expected, 1e-6)


def test_rows_do_not_depend_on_their_neighbours(many):
    est = transformer(batch_size=8)
    whole = est.transform(many)
    some = np.random.default_rng(2).permutation(50)[:21]
    assert_close(est.transform(many[some]), whole[some], 1e-6)
    assert_close(est.transform(many[:1]), whole[:1], 1e-5)


class Branching(torch.nn.Module):
    """A network that cannot be traced."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3)
        self.norm = torch.nn.BatchNorm2d(6)
        self.classifier = torch.nn.Linear(6, 4)

    def forward(self, x):
        x = self.norm(self.conv(x))
        if x.mean() > 1e9:
            x = -x
        return self.classifier(x.relu().mean((2, 3)))


@pytest.mark.parametrize(
    "precision, tolerance", [("float32", 1e-4), ("bfloat16", 2e-2), ("float16", 5e-3)]
)
def test_a_network_that_cannot_be_traced(precision, tolerance, many):
    torch.manual_seed(0)
    own = Backbone.from_module(Branching().eval(), image_size=8)
    parameters = {"backbone": own, "weights": "default"}
    expected = transformer("cpu", **parameters).transform(many)
    rows = transformer(GPU, precision=precision, **parameters).transform(many)
    assert_close(rows, expected, tolerance)


# Precision --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "precision, tolerance", [("tf32", 4e-3), ("float16", 5e-3), ("bfloat16", 4e-2)]
)
@pytest.mark.parametrize("backbone", ["resnet18", "vit_b_16", "mini"])
def test_reduced_precision_is_close(backbone, precision, tolerance, odd_photos):
    if precision == "tf32" and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("this GPU has no TF32")
    expected = transformer("cpu", backbone).transform(odd_photos)
    rows = transformer(GPU, backbone, precision=precision).transform(odd_photos)
    assert rows.dtype == np.float32
    assert_close(rows, expected, tolerance)
    full = transformer(GPU, backbone).transform(odd_photos)
    assert np.abs(rows - full).max() > 1e-5 * np.abs(full).max()


def switches():
    """torch's own settings of TF32, as far as this version has them."""
    backends = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return [backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32]
    places = [backends, backends.cuda.matmul, backends.cudnn, backends.cudnn.conv]
    return [place.fp32_precision for place in places]


@pytest.fixture
def rounding_user():
    """A program that asks torch for TF32 everywhere, until the end of the test."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):
        before = torch.backends.fp32_precision
        torch.backends.fp32_precision = "tf32"
        yield
        torch.backends.fp32_precision = before
    else:
        before = matmul.allow_tf32, cudnn.allow_tf32
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        yield
        matmul.allow_tf32, cudnn.allow_tf32 = before


def test_float32_is_never_rounded_whatever_the_program_asks_torch_for(
    rounding_user, odd_photos
):
    expected = transformer("cpu", "resnet18").transform(odd_photos)
    assert_close(transformer(GPU, "resnet18").transform(odd_photos), expected, 1e-4)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_switches_of_torch_are_left_as_they_were(precision, many):
    before = switches()
    transformer(precision=precision).transform(many)
    assert switches() == before


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"),
    reason="this torch has no common switch",
)
def test_the_common_switch_of_torch_still_has_an_effect(many):
    backends = torch.backends

    def effects():
        """What is set for operations, by what is set for all of them."""
        before, found = backends.fp32_precision, []
        for value in ("ieee", "tf32"):
            backends.fp32_precision = value
            parts = backends.cuda.matmul, backends.cudnn.conv
            found.append([part.fp32_precision for part in parts])
        backends.fp32_precision = before
        return found

    expected = effects()
    transformer().transform(many)
    assert effects() == expected
    assert [matmul for matmul, _ in expected] == ["ieee", "tf32"]


def test_rows_of_a_gpu_are_not_served_to_a_cpu(many, tmp_path):
    store = FeatureStore(tmp_path / "store")
    on_gpu = transformer(cache=store).transform(many)
    on_cpu = transformer("cpu", cache=store).transform(many)
    assert store.info()["misses"] == 2 * len(many)
    np.testing.assert_array_equal(on_cpu, transformer("cpu").transform(many))
    np.testing.assert_array_equal(transformer(cache=store).transform(many), on_gpu)
    assert store.info()["misses"] == 2 * len(many)


def test_output_torch_is_on_the_device(many):
    rows = transformer(output="torch").transform(many)
    assert rows.device == torch.device(GPU) and rows.dtype == torch.float32
    assert_close(rows.cpu().numpy(), transformer().transform(many), 1e-6)


# Devices ----------------------------------------------------------------------------


def test_auto_is_the_first_gpu(many):
    assert resolve_device("auto") == GPU
    est = transformer("auto")
    est.transform(many)
    assert est.stats_["device"] == "cuda"


@pytest.mark.parametrize("index", [N_GPUS, N_GPUS + 9])
def test_a_missing_gpu_is_refused(index, many):
    with pytest.raises(ValueError, match=f"cuda:{index}.*torch sees"):
        transformer(f"cuda:{index}").transform(many)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_several_devices_keep_the_order(batch_size, many):
    expected = transformer().transform(many)
    est = transformer(SEVERAL, batch_size=batch_size)
    for _ in range(5):  # what is sent must not be overwritten by the next batch
        assert_close(est.transform(many), expected, 1e-5)


@pytest.mark.skipif(N_GPUS < 2, reason="needs two GPUs")
def test_every_gpu_computes_the_same(many):
    expected = transformer().transform(many)
    for device in SEVERAL[1:]:
        assert_close(transformer(device).transform(many), expected, 1e-5)
    assert torch.cuda.current_device() == 0


def test_a_stream_of_the_program_is_respected(many):
    expected = transformer().transform(many)
    with torch.cuda.stream(torch.cuda.Stream(GPU)):
        rows = transformer(batch_size=4).transform(many)
    assert_close(rows, expected, 1e-5)


# Memory -----------------------------------------------------------------------------


@pytest.fixture
def passes(monkeypatch):
    """The size of each batch that a network is given, and which of them fail."""
    forward, seen = PooledModule.forward, SimpleNamespace(sizes=[], failing=())

    def limited(self, pixels):
        seen.sizes.append(len(pixels))
        if len(seen.sizes) - 1 in seen.failing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, pixels)

    monkeypatch.setattr(PooledModule, "forward", limited)
    return seen


@pytest.mark.parametrize("device", [GPU, SEVERAL], ids=["one", "several"])
@pytest.mark.parametrize("failing", range(7))
def test_memory_that_runs_out_at_any_batch_loses_nothing(failing, device, many, passes):
    est = transformer(device, batch_size=8)
    expected = est.transform(many)
    assert passes.sizes == [8] * 7
    passes.sizes, passes.failing = [], {failing}
    assert_close(est.transform(many), expected, 1e-5)
    assert set(passes.sizes[failing + 1 :]) == {4}


@pytest.mark.parametrize("n_failing", [1, 2, 3])
def test_memory_that_runs_out_again_and_again_is_remembered(n_failing, many, passes):
    est = transformer(batch_size=8)
    expected = est.transform(many)
    passes.sizes, passes.failing = [], range(n_failing)
    assert_close(est.transform(many), expected, 1e-5)
    passes.sizes, passes.failing = [], ()
    assert_close(est.transform(many), expected, 1e-5)
    assert set(passes.sizes) == {8 // 2**n_failing}


def test_memory_that_does_not_bear_one_image_is_an_error(many, passes):
    passes.failing = range(4)
    with pytest.raises(torch.OutOfMemoryError):
        transformer(batch_size=8).transform(many)


def test_a_card_that_is_really_full(passes, odd_photos):
    expected = transformer(GPU, "resnet18", batch_size=16).transform(odd_photos)
    clear_caches()
    gc.collect()
    torch.cuda.empty_cache()
    passes.sizes = []
    total = torch.cuda.get_device_properties(GPU).total_memory
    room = torch.cuda.memory_reserved(GPU) + 2**30  # one activation of 512 takes 1.6 GB
    torch.cuda.set_per_process_memory_fraction(room / total, GPU)
    try:
        est = transformer(GPU, "resnet18", batch_size=512)
        assert_close(est.transform(odd_photos), expected, 1e-5)
        borne = passes.sizes[-1]
        assert passes.sizes[0] == 512 and borne < 512
        passes.sizes = []
        assert_close(est.transform(odd_photos), expected, 1e-5)
        assert set(passes.sizes) == {borne}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)


def allocated():
    """Bytes on the card, less what cuBLAS keeps for itself."""
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated()


def test_memory_is_flat_and_given_back(odd_photos):
    before = allocated()
    est = transformer(GPU, "resnet18", layer=("block2", "penultimate"))
    seen = []
    for _ in range(50):
        est.transform(odd_photos)
        seen.append(allocated())
    assert len(set(seen)) == 1 and seen[0] > before
    clear_caches()
    assert allocated() == before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_clear_caches_gives_back_all_networks(precision, odd_photos):
    before = allocated()
    for backbone in ("mini", "vit_b_16", tiny_backbone(7)):
        est = transformer(GPU, backbone, weights="default", precision=precision)
        if backbone == "vit_b_16":
            est.set_params(weights=None)
        est.transform(odd_photos)
    assert allocated() > before
    clear_caches()
    assert allocated() == before


# Threads and processes --------------------------------------------------------------


def test_processes_decode_what_threads_do(many):
    """From 4 cores on; with fewer, threads decode on both sides."""
    X = [many[i % len(many)] ^ np.uint8(i // len(many)) for i in range(1500)]
    rows = transformer(n_jobs=1).transform(X)
    for _ in range(2):
        np.testing.assert_array_equal(transformer().transform(X), rows)
    deadline = time.monotonic() + 60
    while crew.free and not all(one.is_ready for one in [*crew.free]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert bool(crew.free) == (joblib.cpu_count() >= FEWEST)
    np.testing.assert_array_equal(transformer().transform(X), rows)


def test_threads_share_a_gpu_and_a_store(many):
    store = FeatureStore()
    est = transformer(cache=store, batch_size=4)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda _: est.transform(many), range(8)))
    assert store.info()["misses"] == len(many)
    expected = transformer().transform(many)
    for rows in together:
        assert_close(rows, expected, 1e-5)


def test_threads_without_a_store_get_their_own_rows(many):
    est = transformer(batch_size=4)
    parts = np.split(many, 5)
    with ThreadPoolExecutor(5) as pool:
        together = np.concatenate(list(pool.map(est.transform, parts)))
    assert_close(together, transformer().transform(many), 1e-5)


def in_new_process(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def output_of(process, seconds=300):
    """What it prints; a process that hangs is ended with its children."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0
    return output


def test_processes_share_a_gpu_and_a_folder(many, tmp_path):
    code = """
        import sys
        import numpy as np
        from skdeepfeat import PretrainedCNNFeatures
        features = PretrainedCNNFeatures(
            "resnet18", weights=None, device="cuda:0", batch_size=4, cache=sys.argv[2]
        )
        np.save(sys.argv[3], features.transform(np.load(sys.argv[1])))
    """
    images, store = tmp_path / "images.npy", tmp_path / "store"
    np.save(images, many)
    outputs = [tmp_path / "first.npy", tmp_path / "second.npy"]
    processes = [in_new_process(code, images, store, out) for out in outputs]
    for process in processes:
        output_of(process)
    assert FeatureStore(store).info()["misses"] == len(many)
    first, second = map(np.load, outputs)
    np.testing.assert_array_equal(first, second)
    assert_close(first, transformer(GPU, "resnet18").transform(many), 1e-5)


FORKING = """
    import os, sys, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    import numpy as np
    from skdeepfeat import FineTunedClassifier, PretrainedCNNFeatures

    X = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    PretrainedCNNFeatures(device="cuda:0", cache=None).transform(X)
    if not (child := os.fork()):
        try:
            {in_child}
        except Exception as error:
            print(error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("device", ["auto", GPU])
@pytest.mark.parametrize(
    "in_child",
    [
        "PretrainedCNNFeatures(device={!r}, cache=None).transform(X)",
        "FineTunedClassifier(device={!r}, epochs=1).fit(X, [0, 1] * 4)",
    ],
    ids=["transform", "fit"],
)
def test_a_forked_child_is_told_to_spawn(in_child, device):
    process = in_new_process(FORKING.format(in_child=in_child.format(device)))
    assert "spawn" in output_of(process, 120)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_may_use_the_cpu():
    made = "PretrainedCNNFeatures(device='cpu', cache=None).transform(X)"
    in_child = f"print({made}.shape, flush=True)"
    process = in_new_process(FORKING.format(in_child=in_child))
    assert output_of(process, 120) == "(8, 1280)\n"


# Fine-tuning ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled():
    """40 images of three classes that differ in colour, and their labels."""
    rng = np.random.default_rng(0)
    y = np.arange(40) % 3
    X = rng.integers(0, 120, (40, 10, 10, 3))
    X[np.arange(40), :, :, y] += 80
    return X.astype(np.uint8), np.array(["ant", "bee", "cat"])[y]


def classifier(device=GPU, **parameters):
    defaults = {"augment": "none", "epochs": 2, "batch_size": 8, "random_state": 0}
    defaults |= {"backbone": "tiny", "learning_rate": 0.01}
    return FineTunedClassifier(device=device, **(defaults | parameters))


@pytest.mark.parametrize("augment", ["none", "standard"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_frozen_is_frozen(labelled, augment, precision):
    before = resolve_backbone("tiny").arrays
    clf = classifier(augment=augment, precision=precision).fit(*labelled)
    tuned = set(clf.weights_["tail"])
    assert tuned == {"3.weight", "3.bias"}
    for name, array in clf.to_backbone().arrays.items():
        assert np.array_equal(array, before[name]) != (name in tuned), name


@pytest.mark.parametrize("unfreeze", [0, 1, "all"])
@pytest.mark.parametrize("backbone", ["tiny", "mini"])
def test_what_a_gpu_trained_a_cpu_predicts(backbone, unfreeze, labelled):
    if backbone == "mini" and unfreeze == "all":
        pytest.skip("one block more shows no more")
    X, y = labelled
    clf = classifier(backbone=backbone, unfreeze=unfreeze, epochs=5).fit(X, y)
    assert clf.score(X, y) > 0.8
    proba = clf.predict_proba(X)
    on_cpu = clf.set_params(device="cpu").predict_proba(X)
    np.testing.assert_allclose(proba, on_cpu, rtol=0, atol=1e-3)


@pytest.mark.parametrize("unfreeze", [0, 1])
def test_a_gpu_trains_as_a_cpu_does(unfreeze, labelled):
    def losses(device):
        fitted = classifier(device, unfreeze=unfreeze).fit(*labelled)
        return [epoch["loss"] for epoch in fitted.history_]

    np.testing.assert_allclose(losses(GPU), losses("cpu"), rtol=1e-2)


def test_seeds_repeat_and_generators_are_left_alone(labelled):
    X, y = labelled

    def proba(seed):
        clf = classifier(augment="strong", dropout=0.3, random_state=seed)
        return clf.fit(X, y).predict_proba(X)

    torch.cuda.manual_seed_all(5)
    states = torch.get_rng_state(), torch.cuda.get_rng_state(GPU)
    first = proba(0)
    torch.cuda.manual_seed_all(6)
    np.testing.assert_allclose(proba(0), first, rtol=0, atol=1e-2)
    assert np.abs(proba(1) - first).max() > 0.02
    torch.cuda.manual_seed_all(5)
    proba(0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(torch.cuda.get_rng_state(GPU), states[1])


def test_fits_give_their_memory_back(labelled):
    before = allocated()
    for _ in range(3):
        classifier(unfreeze="all").fit(*labelled).predict(labelled[0])
    clear_caches()
    assert allocated() == before
