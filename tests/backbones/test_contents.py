"""What weights files contain: their formats, trainings, and names of entries."""

import gzip
import os
import zipfile
from argparse import Namespace
from collections import defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from uuid import UUID

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from skdeepfeat import PretrainedCNNFeatures, PretrainedTextFeatures, WeightsError
from skdeepfeat._backbones.contents import strip_wrapper
from skdeepfeat._backbones.files import read_weights_file


@pytest.fixture(scope="module")
def state():
    from skdeepfeat._networks.smallnets import smallcnn

    torch.manual_seed(0)
    return smallcnn().state_dict()


@pytest.fixture
def features(tmp_path):
    """Features of a network whose weights are in a file with this content."""

    def compute(content, photos):
        torch.save(content, tmp_path / "net.pth")
        weights = tmp_path / "net.pth"
        est = PretrainedCNNFeatures("smallcnn", weights=weights, layer="block2")
        return est.set_params(cache=None).fit_transform(photos)

    return compute


# Formats ------------------------------------------------------------------------------


def write_zip(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")


def write_arrays(save, path):
    with path.open("wb") as file:
        save(file, np.ones(2))


def write_compiled(path):
    torch.jit.trace(torch.nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 4, 4)).save(path)


# Content of a file → words of the sentence about it.
NO_WEIGHTS = {
    "text": (lambda path: path.write_text("hello"), "it begins with 'hello'"),
    "page": (lambda path: path.write_text("<html>\n"), r"it begins with '<html>\\n'"),
    "empty": (lambda path: path.write_bytes(b""), "is empty, a pipe or a device"),
    "packed": (lambda path: path.write_bytes(gzip.compress(b"x")), "is compressed"),
    "pickle": (lambda path: path.write_bytes(b"\x80\x02garbage"), "state_dict"),
    "array": (partial(write_arrays, np.save), "it begins with"),
    "arrays": (partial(write_arrays, np.savez), r"'arr_0\.npy'"),
    "no entries": (lambda path: write_zip(path), "contains nothing"),
    "zip": (
        lambda path: write_zip(path, "__MACOSX/._a.pth", "a/a.pth"),
        r"contains 'a/a\.pth'\. Unpack it, and pass the path of the file inside",
    ),
    "pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "names one that Git has not fetched.* type: git lfs pull",
    ),
    "compiled": (write_compiled, "compiled by TorchScript"),
    "folder": (lambda path: path.mkdir(), r"is a folder\. Pass the path of the"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_what_is_no_weights_file_is_refused_in_a_sentence(kind, suffix, tmp_path):
    write, words = NO_WEIGHTS[kind]
    write(path := tmp_path / f"net{suffix}")
    with pytest.raises(WeightsError, match=words) as error:
        read_weights_file(path)
    assert str(path) in str(error.value)


def test_the_content_says_how_a_file_is_read_whatever_its_name(state, tmp_path):
    torch.save(state, tmp_path / "a.safetensors")
    save_file(state, tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth"):
        found = read_weights_file(tmp_path / name)
        assert all(torch.equal(found[n], value) for n, value in state.items())


@pytest.mark.parametrize("start", [b"\x80", b"PK"])
def test_the_length_of_a_header_may_begin_like_another_format(start, state, tmp_path):
    path = tmp_path / "net.safetensors"
    for n in range(64):
        save_file(state, path, metadata={"note": "x" * 8 * n})
        if path.read_bytes().startswith(start[:1]):
            break
    assert path.read_bytes().startswith(start[:1])
    assert read_weights_file(path).keys() == state.keys()


def test_a_changed_byte_of_a_torch_file_is_refused(state, tmp_path):
    """Torch reads such a file without a word."""
    path = tmp_path / "net.pth"
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    some = state["features.0.weight"].numpy().tobytes()[:16]
    content[content.index(some) + 3] ^= 0x40  # an exponent
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    with pytest.raises(WeightsError, match=r"net\.pth' is damaged: 'net/data/0' in it"):
        read_weights_file(path)


def test_a_changed_byte_anywhere_in_a_torch_file_changes_no_weight(tmp_path):
    """It may be one that the libraries skip, or that sends them to a place before 0."""
    path, kept = tmp_path / "net.pth", {"weight": torch.arange(6.0)}
    torch.save(kept, path)
    content = path.read_bytes()
    n_refused = 0
    for place in range(len(content)):
        path.write_bytes(
            content[:place] + bytes([content[place] ^ 0xC0]) + content[place + 1 :]
        )
        try:
            found = read_weights_file(path)
        except WeightsError:
            n_refused += 1
        else:
            assert torch.equal(found["weight"], kept["weight"])
    assert n_refused > len(content) / 5


def test_a_list_of_parts_says_how_to_join_them(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"metadata": {}, "weight_map": {"a": "model-1-of-2.safetensors"}}')
    with pytest.raises(WeightsError, match=r"lists the parts of one\. Join them"):
        read_weights_file(path)


@pytest.fixture(params=["empty", "pipe", "/dev/zero", "/proc/version"])
def without_content(request, tmp_path):
    """The path of something that must not be read, as that may never end."""
    path = tmp_path / request.param  # the parameter itself if that is absolute
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "empty":
        path.touch()
    elif not path.exists():
        pytest.skip("needs files of Linux")
    return str(path)


@pytest.mark.parametrize("backbone", ["mini", "resnet50"])
def test_what_has_no_content_is_not_read(backbone, without_content, photos):
    """The versions of resnet50 differ in preprocessing, so its file is hashed first."""
    features = PretrainedCNNFeatures(backbone, weights=without_content)
    with pytest.raises(WeightsError, match="it is empty, a pipe or a device"):
        features.transform(photos)


def test_word_vectors_without_content_are_not_read(without_content):
    with pytest.raises(WeightsError, match="it is empty, a pipe or a device"):
        PretrainedTextFeatures(without_content).transform(["some words"])


@pytest.mark.parametrize("name", ["net.zip", "last.pth.tar", "net.pth", "net.h5"])
def test_the_name_of_a_file_is_no_name_of_a_version(
    name, state, photos, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    est = PretrainedCNNFeatures("smallcnn", weights=name, layer="block1", cache=None)
    with pytest.raises(WeightsError, match=f"No weights file at '{name}'"):
        est.transform(photos)
    torch.save(state, name)
    assert est.transform(photos).shape == (len(photos), 64)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all files")
def test_a_file_that_may_not_be_read_is_not_called_damaged(state, tmp_path):
    torch.save(state, tmp_path / "net.pth")
    (tmp_path / "net.pth").chmod(0)
    with pytest.raises(PermissionError):
        read_weights_file(tmp_path / "net.pth")


# Trainings ----------------------------------------------------------------------------

# Where trainings keep an average of the weights, and the weights themselves.
AVERAGES = ["state_dict_ema", "model_ema", "ema_state_dict", "ema", "EMA_model"]
AVERAGES += ["params_ema", "ema.module", "swa_model", "averaged_model"]
PLAIN = ["state_dict", "model", "model_state_dict", "net", "params"]


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("plain", PLAIN)
def test_the_average_over_a_training_is_preferred(average, plain, state, tmp_path):
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    for mean in (state, {"module": state, "decay": 0.99}):
        content = {plain: other, average: mean, "epoch": 3, "ema_decay": 0.99}
        torch.save(content, tmp_path / "net.pth")
        found = read_weights_file(tmp_path / "net.pth")
        assert all(torch.equal(found[n], value) for n, value in state.items())


class Own:
    """What a file can name without its code being known."""


NOTES = {
    "numpy": lambda: (np.float64(0.5), np.arange(3), np.str_("a"), np.bool_(1)),
    "path": lambda: (Path("a"), PurePosixPath("b"), PureWindowsPath("c")),
    "log": lambda: (defaultdict(list, loss=[1.0]), deque([1], maxlen=3)),
    "time": lambda: (datetime.now(UTC), timedelta(1), UUID(int=1)),
    "numbers": lambda: (1j, range(3), Decimal("0.1"), frozenset({1})),
    "arguments": lambda: (Namespace(lr=0.1), SimpleNamespace(lr=0.1)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("note", NOTES.values(), ids=NOTES)
def test_what_trainings_note_beside_the_weights_is_not_read(
    note, zipped, state, tmp_path
):
    content = {"state_dict": defaultdict(list, state), "note": note()}
    path = tmp_path / "net.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    before = set(torch.serialization.get_safe_globals())
    found = read_weights_file(path)
    assert all(torch.equal(found[n], value) for n, value in state.items())
    assert set(torch.serialization.get_safe_globals()) == before


def test_other_objects_are_refused_by_name(state, tmp_path):
    torch.save({"state_dict": state, "note": Own()}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"more than plain weights \('.*\.Own'\)"):
        read_weights_file(tmp_path / "net.pth")


def test_threads_read_files_at_the_same_time(state, tmp_path):
    torch.save({"state_dict": state, "note": Path("a")}, tmp_path / "net.pth")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read_weights_file, [tmp_path / "net.pth"] * 40))
    assert all(one.keys() == state.keys() for one in found)


def test_an_average_that_is_empty_is_not_used(state, tmp_path):
    for empty in (None, {}, 0.99):
        torch.save({"state_dict": state, "state_dict_ema": empty}, tmp_path / "n.pth")
        assert read_weights_file(tmp_path / "n.pth").keys() == state.keys()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"ema_0": {"a": 1.0}, "epoch": 3}, "it has the entries 'ema_0', 'epoch'"),
        ({"student": {"a": torch.ones(1)}}, "it has the entries 'student'"),
        ({0: torch.ones(1)}, "it has the entries 0"),
        ([1, 2], "but a list"),
        ({}, "it is empty"),
    ],
)
def test_a_file_without_weights_says_what_it_contains(content, words, tmp_path):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=words):
        read_weights_file(tmp_path / "net.pth")


def test_of_several_averages_none_is_guessed(state, tmp_path):
    torch.save({"model_ema": state, "model_ema2": state}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"net.pth.*'model_ema', 'model_ema2'"):
        read_weights_file(tmp_path / "net.pth")


# Names of entries ---------------------------------------------------------------------

WRAPPERS = ["module.", "_orig_mod.", "_orig_mod.module.", "model.", "net.", "backbone."]
WRAPPERS += ["model.encoder.net."]


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_a_module_around_the_network_adds_is_removed(
    wrapper, state, photos, features
):
    expected = features(state, photos)
    wrapped = under(wrapper, state)
    parts = {
        "alone": {},
        "counted": {"n_averaged": torch.tensor(3)},
        "criterion": {"criterion.weight": torch.ones(10)},
        "other": {"head.fc.weight": torch.ones(5, 128), "scale": torch.ones(())},
    }
    for name, others in parts.items():
        found = features(wrapped | others, photos)
        np.testing.assert_array_equal(found, expected, name)


INNER = ["_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module."]


@pytest.mark.parametrize("inner", INNER)
def test_wrappers_of_parts_are_removed(inner, state, photos, features):
    expected = features(state, photos)
    outer = next(iter(state)).partition(".")[0]
    wrapped = {
        name.replace(f"{outer}.", f"{outer}.{inner}"): v for name, v in state.items()
    }
    assert wrapped.keys() != state.keys()
    np.testing.assert_array_equal(features(wrapped, photos), expected)
    model = under("model." + inner, wrapped)
    np.testing.assert_array_equal(features(model, photos), expected)


def test_a_network_under_a_prefix_may_lack_its_head(state, photos, features):
    expected = features(state, photos)
    trunk = {n: v for n, v in state.items() if not n.startswith("classifier.")}
    assert 0 < len(trunk) < len(state)
    found = features(under("model.", trunk) | {"head.weight": torch.ones(2)}, photos)
    np.testing.assert_array_equal(found, expected)


def test_of_two_networks_in_a_file_none_is_guessed(state, photos, features):
    both = under("student.", state) | under("teacher.", state)
    with pytest.raises(WeightsError, match=r"2 such networks, under 'student.', 'tea"):
        features(both, photos)


def test_entries_missing_under_a_prefix_are_named(state, photos, features):
    wrapped = under("model.", state) | {"criterion.weight": torch.ones(10)}
    first = next(iter(state))
    del wrapped[f"model.{first}"]
    with pytest.raises(WeightsError, match=rf"1 entry missing .*\({first}\)"):
        features(wrapped, photos)


@pytest.mark.parametrize(
    "own",
    [
        {"fc.weight": 0, "fc.bias": 1},  # all of it is the head
        {"net.conv.weight": 0, "conv.weight": 1, "fc.weight": 2},
        {"n_averaged": 0, "conv.weight": 1},
    ],
)
def test_names_that_are_the_networks_own_are_kept(own):
    state = dict(own)
    strip_wrapper(state, own.keys(), "fc")
    assert state == own
