"""Transformer encoders from folders: their layers, tokens and rows."""

import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from encoders import ARCHITECTURES, DEPTH, WIDTH, random_texts, save_encoder

from skdeepfeat import (
    FeatureStore,
    PretrainedTextFeatures,
    TextError,
    TextWarning,
    WeightsError,
    list_layers,
)
from skdeepfeat._engines.tokens import PooledStates

transformers = pytest.importorskip("transformers")

LAYERS = ["embeddings", *(f"block{i}" for i in range(1, DEPTH + 1))]
ALL = (*LAYERS, "penultimate")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Architecture → folder of a tiny encoder, made once."""
    made = {}

    def save(architecture="Bert"):
        if architecture not in made:
            folder = tmp_path_factory.mktemp("encoders") / architecture
            made[architecture] = str(save_encoder(folder, architecture))
        return made[architecture]

    return save


@pytest.fixture(scope="module")
def bert(saved):
    return saved()


@pytest.fixture
def passes(monkeypatch):
    """Number of texts that pass through a network, in a list of one."""
    forward, seen = PooledStates.forward, [0]

    def counted(self, padded):
        seen[0] += int((padded >= 0).any(1).sum())
        return forward(self, padded)

    monkeypatch.setattr(PooledStates, "forward", counted)
    return seen


def states_of_transformers(folder, texts):
    """The states (length, width) of each text and depth, as transformers gives them.

    A text at a time, so that nothing is padded.
    """
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in texts:
        given = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        given = {key: given[key] for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            out = model(**given, output_hidden_states=True)
        yield [*(s[0] for s in out.hidden_states), out.last_hidden_state[0]]


@pytest.mark.filterwarnings("ignore::skdeepfeat.TextWarning")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_depths_equal_those_of_transformers(saved, architecture):
    folder, texts = saved(architecture), random_texts(40, longest=90)
    states = list(states_of_transformers(folder, texts))
    means = [np.stack([s[i].mean(0) for s in states]) for i in range(len(ALL))]
    assert np.ptp(means[1]) > 1  # the weights are large enough to tell
    rows = PretrainedTextFeatures(folder, layer=ALL).transform(texts)
    for i in range(len(ALL)):
        found = rows[:, i * WIDTH : (i + 1) * WIDTH]
        largest = max(1, np.abs(means[i]).max())
        np.testing.assert_allclose(found, means[i], rtol=0, atol=1e-5 * largest)


def test_each_pooling_leaves_the_padding_out(bert):
    texts = random_texts(20)
    last = [states[-1] for states in states_of_transformers(bert, texts)]
    expected = {
        "max": [s.amax(0) for s in last],
        "cls": [s[0] for s in last],
        "meanmax": [torch.cat([s.mean(0), s.amax(0)]) for s in last],
    }
    for pooling, rows in expected.items():
        found = PretrainedTextFeatures(bert, pooling=pooling).transform(texts)
        np.testing.assert_allclose(found, np.stack(rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", ["auto", 1, 7])
def test_a_row_does_not_depend_on_its_neighbours(bert, batch_size):
    texts = random_texts(70)
    features = PretrainedTextFeatures(
        bert, layer=ALL, batch_size=batch_size, cache=None
    )
    rows = features.transform(texts)
    order = np.random.default_rng(1).permutation(70)
    shuffled = features.transform([texts[i] for i in order])
    np.testing.assert_array_equal(shuffled, rows[order])
    np.testing.assert_array_equal(features.transform(texts[:2]), rows[:2])
    alone = np.vstack([features.transform([text]) for text in texts[:9]])
    np.testing.assert_allclose(alone, rows[:9], rtol=1e-5, atol=1e-5)


def test_nothing_after_the_deepest_layer_is_computed(bert, monkeypatch):
    PretrainedTextFeatures(bert).transform(["ok"])  # builds and tries the network
    computed = []
    layer = transformers.models.bert.modeling_bert.BertLayer
    call = layer.__call__
    monkeypatch.setattr(
        layer,
        "__call__",
        lambda self, *a, **k: computed.append(self) or call(self, *a, **k),
    )
    features = PretrainedTextFeatures(bert, layer="block2", prefetch_layers=[])
    features.transform(["win cash"])
    assert len(computed) == 2
    features.set_params(layer="embeddings").transform(["call now"])
    assert len(computed) == 2


def test_one_pass_for_all_depths_in_any_order_of_a_search(bert, passes):
    texts = list(dict.fromkeys(random_texts(30)))
    features = PretrainedTextFeatures(bert, cache=FeatureStore(name="depths"))
    for layer in ("block4", "block2", "embeddings", ("block1", "block3")):
        features.set_params(layer=layer).fit_transform(texts)
    assert passes == [len(texts)]


def test_a_store_serves_other_processes_without_a_network(bert, tmp_path):
    texts = random_texts(12)
    features = PretrainedTextFeatures(bert, cache=tmp_path / "store")
    rows = features.transform(texts)
    code = f"""
import json, sys
from skdeepfeat import PretrainedTextFeatures
features = PretrainedTextFeatures({bert!r}, cache={str(tmp_path / "store")!r})
rows = features.transform({texts!r})
assert not {{"torch", "transformers"}} & set(sys.modules)
print(json.dumps([features.stats_["n_computed"], rows.tolist()]))
"""
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    n_computed, found = json.loads(out)
    assert n_computed == 0
    np.testing.assert_array_equal(np.array(found, np.float32), rows)


def test_long_texts_are_cut_with_one_warning_that_says_how_many(bert, tmp_path):
    texts = ["win cash", "call now " * 40, "home " * 70, "home " * 70]
    features = PretrainedTextFeatures(bert, cache=tmp_path / "store")
    for _ in range(2):  # computed, then stored
        with pytest.warns(TextWarning, match="cut: 2 in this call") as warned:
            rows = features.transform(texts[:3])
        assert len(warned) == 1
    np.testing.assert_array_equal(
        rows[2], features.transform(["home " * 62])[0]
    )  # the tokens at the start and the end count too
    with pytest.warns(TextWarning, match="cut: 3"):
        features.set_params(max_length=4).transform([*texts[1:3], "win cash now"])
    with pytest.raises(ValueError, match="must be at least 3"):
        features.set_params(max_length=2).transform(["win cash"])


def test_random_weights_come_from_the_seed_alone(bert):
    state = torch.random.get_rng_state()
    features = PretrainedTextFeatures(bert, weights=None, random_state=3, cache=None)
    rows = features.transform(["win cash"])
    assert torch.equal(torch.random.get_rng_state(), state)
    other = features.set_params(random_state=4).transform(["win cash"])
    assert np.abs(rows - other).max() > 1e-3


def test_threads_share_one_network(bert):
    texts = random_texts(8)
    expected = PretrainedTextFeatures(bert, layer=ALL, cache=None).transform(texts)

    def transform(layer):
        features = PretrainedTextFeatures(bert, layer=layer, cache=None)
        return features.transform(texts)

    with ThreadPoolExecutor(4) as pool:
        found = np.hstack(list(pool.map(transform, ALL)))
    np.testing.assert_array_equal(found, expected)


def test_an_estimator_pickles_without_its_network(bert):
    features = PretrainedTextFeatures(bert).fit(["win cash"])
    features.transform(["win cash"])
    content = pickle.dumps(features)
    assert len(content) < 4096
    rows = pickle.loads(content).transform(["win cash"])
    np.testing.assert_array_equal(rows, features.transform(["win cash"]))


def test_layers_are_listed_without_transformers(bert):
    code = (
        "import sys\nfrom skdeepfeat import list_layers\n"
        f"print(list_layers({bert!r}, kind='text'))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "block4" in out and "64 × 32" in out
    layers = list_layers(bert, kind="text")
    assert [layer.alias for layer in layers] == list(ALL)


def test_an_unknown_layer_says_which_there_are(bert):
    with pytest.raises(ValueError, match=r"Did you mean 'block4'.*or 0 to 5"):
        PretrainedTextFeatures(bert, layer="block5").fit(["a"])
    with pytest.raises(ValueError, match="Unknown layer 9"):
        PretrainedTextFeatures(bert, layer=9).fit(["a"])


def test_a_folder_without_safe_weights_is_refused(tmp_path):
    folder = save_encoder(tmp_path / "unsafe")
    state = {}
    for path in folder.glob("*.safetensors"):
        torch.save(state, path.with_suffix(".bin"))
        path.unlink()
    with pytest.raises(WeightsError, match=r"no .safetensors file"):
        PretrainedTextFeatures(folder).fit(["a"])


def test_a_folder_that_is_no_encoder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(WeightsError, match="not the configuration of a transformer"):
        PretrainedTextFeatures(tmp_path).fit(["a"])


def test_a_network_of_texts_and_images_is_refused_with_how_to_save_its_part(tmp_path):
    parts = {"text_config": CONFIGURED, "vision_config": CONFIGURED}
    (tmp_path / "config.json").write_text(json.dumps(parts))
    with pytest.raises(WeightsError, match=r"CLIPTextModel\.from_pretrained\(folder\)"):
        PretrainedTextFeatures(tmp_path).fit(["a"])


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n"
CONFIGURED = {"model_type": "bert", "num_hidden_layers": DEPTH, "hidden_size": WIDTH}
DAMAGED = [  # file, its content, and words of the error
    ("config.json", "{", "Expecting property name"),
    ("config.json", "null", "contains a NoneType"),
    ("config.json", '"hidden_size"', "contains a str"),
    ("config.json", {"num_hidden_layers": "2"}, "'num_hidden_layers' is '2' instead"),
    ("config.json", {"num_hidden_layers": 0}, "'num_hidden_layers' is 0 instead"),
    ("config.json", {"hidden_size": None}, "'hidden_size' is None instead"),
    ("config.json", {"max_position_embeddings": []}, "is \\[\\] instead"),
    ("config.json", {"model_type": "nothing"}, "transformers cannot make an encoder"),
    ("model.safetensors", "", "transformers cannot make an encoder"),
    ("model.safetensors", POINTER, "transformers cannot make an encoder"),
    ("tokenizer.json", "hello", "tokenizer in .* cannot be read"),
    ("tokenizer.json", "null", "tokenizer in .* cannot be read"),
    ("tokenizer_config.json", "{", "tokenizer in .* cannot be read"),
    ("tokenizer_config.json", "[]", "tokenizer in .* cannot be read"),
]


@pytest.mark.parametrize(("file", "content", "words"), DAMAGED)
def test_a_damaged_file_in_a_folder_is_refused(file, content, words, bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "damaged")
    if isinstance(content, dict):
        content = json.dumps(CONFIGURED | content)
    (folder / file).write_text(content)
    with pytest.raises(WeightsError, match=words) as error:
        PretrainedTextFeatures(str(folder), cache=None).transform(["hello"])
    assert str(folder) in str(error.value)


def test_weights_that_lack_a_layer_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_encoder(tmp_path / "part")
    (path,) = folder.glob("*.safetensors")
    state = {k: v for k, v in load_file(path).items() if "layer.2." not in k}
    save_file(state, path, {"format": "pt"})
    with pytest.raises(WeightsError, match="are missing"):
        PretrainedTextFeatures(folder).transform(["a"])


def test_code_in_a_folder_is_never_run(tmp_path):
    folder = save_encoder(tmp_path / "code")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    PretrainedTextFeatures(folder).transform(["win cash"])  # BERT needs no such code
    config["model_type"] = "own"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="contains custom code"):
        PretrainedTextFeatures(folder, cache=None).transform(["win cash"])
    assert not (tmp_path / "ran").exists()


def test_changed_weights_and_tokenizers_are_noticed(tmp_path):
    folder = save_encoder(tmp_path / "encoder")
    features = PretrainedTextFeatures(folder).fit(["win cash"])
    rows = features.transform(["win cash"])
    save_encoder(folder, seed=1)
    with pytest.raises(WeightsError, match="changed since"):
        features.transform(["win cash"])
    other = PretrainedTextFeatures(folder).transform(["win cash"])
    assert np.abs(other - rows).max() > 1e-3


@pytest.mark.parametrize("weights", ["default", None])
@pytest.mark.parametrize(
    ("entry", "value"), [("hidden_act", "relu"), ("num_attention_heads", 2)]
)
def test_a_changed_configuration_is_noticed(entry, value, weights, tmp_path):
    """The weights still fit it, and mean something else."""
    folder = save_encoder(tmp_path / "encoder")
    features = PretrainedTextFeatures(folder, weights=weights).fit(["win cash"])
    rows = features.transform(["win cash"])
    config = json.loads((folder / "config.json").read_text())
    set_config(folder, {**config, "transformers_version": "0"})
    np.testing.assert_array_equal(features.transform(["win cash"]), rows)
    set_config(folder, {**config, entry: value})
    for fitted in (features, pickle.loads(pickle.dumps(features))):
        with pytest.raises(WeightsError, match=r"its config\.json, or weights changed"):
            fitted.transform(["win cash"])


def set_config(folder, config):
    (folder / "config.json").write_text(json.dumps(config))


def test_tokens_beyond_the_table_are_errors_of_their_rows(tmp_path):
    """A tokenizer with added words, of which the network was not told."""
    folder = save_encoder(tmp_path / "encoder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["jackpot"])
    tokenizer.save_pretrained(folder)
    texts = ["win cash", "a jackpot", "see you"]
    with pytest.raises(TextError, match=r"row 1 .* from 0 to 77\. Got 78"):
        PretrainedTextFeatures(folder, cache=None).transform(texts)
    features = PretrainedTextFeatures(folder, cache=None, on_error="nan")
    with pytest.warns(TextWarning, match="1 of 3"):
        rows = features.transform(texts)
    assert np.isnan(rows).any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("architecture", ["Bert", "DebertaV2", "GPT2", "CLIPText"])
def test_the_last_block_and_what_is_returned_are_stored_once_if_they_are_one(
    saved, architecture
):
    store = FeatureStore(name=f"ends of {architecture}")
    features = PretrainedTextFeatures(saved(architecture), layer=ALL, cache=store)
    rows = features.transform(["win cash"])
    assert rows.shape == (1, len(ALL) * WIDTH)
    once = architecture in ("Bert", "DebertaV2")
    assert len(store.info()["layers"]) == len(ALL) - once
    if once:
        np.testing.assert_array_equal(rows[:, -WIDTH:], rows[:, -2 * WIDTH : -WIDTH])


def test_an_encoder_that_goes_on_after_its_last_block_is_not_cut_there(tmp_path):
    """Its kind is among those that do not, but its code has changed."""
    from skdeepfeat._networks.encoder_states import make_encoder

    folder = save_encoder(tmp_path / "encoder", "CLIPText")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with pytest.raises(WeightsError, match="changes the states after its last block"):
        make_encoder(model, "folder", LAYERS, WIDTH, last=LAYERS[-1])
