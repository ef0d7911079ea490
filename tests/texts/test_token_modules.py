"""Networks of texts of the user's own: their layers, padding and identity."""

import pickle

import numpy as np
import pytest
import torch
from encoders import random_texts, save_tokenizer
from torch import nn

from skdeepfeat import (
    PretrainedTextFeatures,
    StoreWarning,
    TextBackbone,
    TextError,
    TextWarning,
    list_layers,
    rank_layers,
)

WORDS = {"win": 1, "cash": 2, "home": 3, "now": 4}


class Transpose(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


class LargestOverTime(nn.Module):
    def forward(self, x):
        return x.amax(2)


def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(6, 8, padding_idx=0),
        Transpose(),
        nn.Conv1d(8, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv1d(6, 5, 3),
        LargestOverTime(),
        nn.Linear(5, 2),
    )


class LanguageModel(nn.Module):
    """Recurrent layers one after another, as ULMFiT has them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(6, 8)
        widths = [(8, 7), (7, 7)]
        self.rnns = nn.ModuleList(nn.LSTM(a, b, batch_first=True) for a, b in widths)

    def forward(self, tokens):
        states = self.embedding(tokens)
        for rnn in self.rnns:
            states, _ = rnn(states)
        return states


def layers_of(backbone):
    return {x.alias: (x.node, x.layout, x.features) for x in list_layers(backbone)}


def test_layers_of_a_convolutional_network():
    backbone = TextBackbone.from_module(convolutions(), tokenize=WORDS)
    assert layers_of(backbone) == {
        "embeddings": ("0", "tokens", 8),
        "block1": ("1", "channels", 8),
        "block2": ("2", "channels", 6),
        "block3": ("3", "channels", 6),
        "block4": ("4", "channels", 5),
        "block5": ("5", "vector", 5),
        "penultimate": ("6.input", "vector", 5),
        "logits": ("6", "vector", 2),
    }


def test_states_of_each_recurrent_layer_are_read_without_the_padding():
    net = LanguageModel()
    backbone = TextBackbone.from_module(net, tokenize=WORDS)
    assert layers_of(backbone)["penultimate"] == ("rnns.1", "tokens", 7)
    features = PretrainedTextFeatures(backbone, layer=("block1", "block2"))
    rows = features.transform(["win cash now", "home"])
    with torch.no_grad():
        first, _ = net.rnns[0](net.embedding(torch.tensor([[1, 2, 4]])))
        second, _ = net.rnns[1](first)
    expected = torch.cat([first[0].mean(0), second[0].mean(0)])
    np.testing.assert_allclose(rows[0], expected, atol=1e-6)


def test_places_of_a_convolution_count_that_begin_with_a_token():
    net = convolutions()
    backbone = TextBackbone.from_module(net, tokenize=WORDS)
    rows = PretrainedTextFeatures(backbone, layer="block4").transform(["win cash now"])
    with torch.no_grad():
        tokens = torch.tensor([[1, 2, 4] + [0] * 5])
        expected = net[:5](tokens)[0, :, :3].mean(1)
    np.testing.assert_allclose(rows[0], expected, atol=1e-6)


@pytest.mark.parametrize("pooling", ["meanmax", "cls"])
def test_an_empty_text_has_zeros_for_places_and_a_row_for_vectors(pooling):
    backbone = TextBackbone.from_module(convolutions(), tokenize=WORDS)
    features = PretrainedTextFeatures(backbone, layer="block2", pooling=pooling)
    rows = features.transform(["", "unknown words"])
    assert not rows.any()
    assert np.isfinite(features.set_params(layer="logits").transform([""])).all()


def test_a_row_does_not_depend_on_its_neighbours():
    for net in (convolutions(), LanguageModel()):
        backbone = TextBackbone.from_module(net, tokenize=WORDS)
        layer = tuple(range(len(list_layers(backbone))))
        features = PretrainedTextFeatures(backbone, layer=layer, cache=None)
        texts = random_texts(50)
        rows = features.transform(texts)
        reverse = features.transform(texts[::-1])
        np.testing.assert_array_equal(reverse[::-1], rows)


def test_a_backbone_is_a_value_that_pickles_with_its_weights():
    net = LanguageModel()
    backbone = TextBackbone.from_module(net, tokenize=WORDS, version="1")
    features = PretrainedTextFeatures(backbone, cache=None)
    expected = features.transform(["win cash"])
    with torch.no_grad():
        net.embedding.weight.zero_()
    copied = pickle.loads(pickle.dumps(backbone))
    assert copied == backbone and hash(copied) == hash(backbone)
    rows = PretrainedTextFeatures(copied, cache=None).transform(["win cash"])
    np.testing.assert_array_equal(rows, expected)
    assert TextBackbone.from_module(net, tokenize=WORDS, version="1") != backbone


def test_what_may_be_stored_in_a_folder(tmp_path):
    plain = nn.Sequential(nn.Embedding(6, 8), nn.Linear(8, 4))
    backbone = TextBackbone.from_module(plain, tokenize=WORDS)
    assert backbone.lasting  # of modules of torch alone
    other = TextBackbone.from_module(plain, tokenize={**WORDS, "win": 2})
    assert other != backbone
    own = TextBackbone.from_module(LanguageModel(), tokenize=WORDS)
    assert not own.lasting
    features = PretrainedTextFeatures(own, cache=tmp_path / "store")
    with pytest.warns(StoreWarning, match="version='1'"):
        features.transform(["win"])
    named = TextBackbone.from_module(LanguageModel(), tokenize=WORDS, version="1")
    assert named.lasting
    features.set_params(backbone=named).transform(["win"])


class Squashed(nn.Module):
    """A network whose class and setting decide what it computes."""

    def __init__(self, slope=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.slope = slope
        self.embedding = nn.Embedding(6, 8)

    def forward(self, tokens):
        return torch.tanh(self.slope * self.embedding(tokens))


class Rectified(Squashed):
    def forward(self, tokens):
        return torch.relu(self.embedding(tokens))


def lower(text):
    return [1]


def test_networks_of_one_version_are_told_apart():
    def made(net, **options):
        options = {"tokenize": WORDS, "version": "1", **options}
        return TextBackbone.from_module(net, **options)

    first = made(Squashed())
    assert first == made(Squashed())
    others = [Rectified(), Squashed(2.0), nn.Sequential(Squashed()), Squashed()]
    options = [{}, {}, {}, {"padding": 1}]
    for net, more in zip(others, options, strict=True):
        assert made(net, **more) != first
    inside = [made(nn.Sequential(kind())) for kind in (Squashed, Rectified)]
    assert inside[0] != inside[1]
    layers = nn.Sequential(nn.Embedding(6, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    assert made(layers, head="1") != made(layers, head="2")
    tokens = [made(Squashed(), tokenize=f) for f in (lambda t: [1], lambda t: [2])]
    assert tokens[0] != tokens[1] and not tokens[0].lasting
    named = made(Squashed(), tokenize=lower)
    assert named == made(Squashed(), tokenize=lower) and named.lasting


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_length": 0},
        {"max_length": 2.5},
        {"max_length": "8"},
        {"padding": -1},
        {"padding": 2.5},
        {"padding": 99},
        {"tokenize": {"win": -1}},
        {"tokenize": {"win": 1.9}},
        {"tokenize": {"win": "x"}},
        {"tokenize": {"win": 6}},
    ],
)
def test_what_the_network_cannot_take_is_refused_at_once(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"'{name}' parameter of TextBackbone.from_m"):
        TextBackbone.from_module(LanguageModel(), **{"tokenize": WORDS, **wrong})


def refuse(text):
    raise KeyError(text)


@pytest.mark.parametrize(
    ("tokenize", "reason"),
    [
        (lambda text: [-1], "from 0 to 5. Got -1"),
        (lambda text: [1, 6], "from 0 to 5. Got 6"),
        (lambda text: [2**40], "from 0 to 5. Got 1099511627776"),
        (lambda text: [1.7], "from 0 to 5. Got 1.7"),
        (lambda text: text.split(), "from 0 to 5. Got a str"),
        (lambda text: None, "raised TypeError"),
        (lambda text: {"input_ids": [1]}, "returned a dict; return its 'input_ids'"),
        (refuse, "raised KeyError"),
    ],
)
def test_a_text_without_tokens_is_an_error_of_its_row(tokenize, reason):
    def some(text):
        return [1] if text == "win" else tokenize(text)

    backbone = TextBackbone.from_module(LanguageModel(), tokenize=some)
    features = PretrainedTextFeatures(backbone, cache=None)
    with pytest.raises(TextError, match=f"row 1 .*{reason}") as raised:
        features.transform(["win", "my password"])
    assert "password" not in str(raised.value)
    features.set_params(on_error="nan")
    with pytest.warns(TextWarning, match="1 of 2"):
        rows = features.transform(["win", "my password"])
    assert np.isnan(rows).all(1).tolist() == [False, True]
    with pytest.warns(TextWarning, match="1 of 1"):
        assert np.isnan(features.transform(["my password"])).all()


@pytest.mark.parametrize("max_length", [1, 2, 3])
def test_short_limits_are_possible(max_length):
    net = LanguageModel()
    own = TextBackbone.from_module(net, tokenize=WORDS, max_length=max_length)
    text = " ".join(list(WORDS)[:max_length])
    rows = PretrainedTextFeatures(own, cache=None).transform([text])
    whole = TextBackbone.from_module(net, tokenize=WORDS)
    features = PretrainedTextFeatures(whole, cache=None)
    np.testing.assert_allclose(rows, features.transform([text]), atol=1e-6)
    # The estimator cuts texts, and pads them as far as the network needs.
    backbone = TextBackbone.from_module(convolutions(), tokenize=WORDS)
    short = PretrainedTextFeatures(backbone, max_length=max_length, cache=None)
    assert np.isfinite(short.transform([text])).all()


def test_a_network_that_needs_longer_texts_is_refused_at_once():
    net = nn.Sequential(nn.Embedding(6, 8), Transpose(), nn.Conv1d(8, 6, 9))
    with pytest.raises(ValueError, match="With 8 tokens it raised"):
        TextBackbone.from_module(net, tokenize=WORDS)


def test_words_of_a_vocabulary_may_have_marks():
    net = nn.Sequential(nn.Embedding(3, 4))
    backbone = TextBackbone.from_module(net, tokenize={"नमस्ते": 1, "cafe\u0301": 2})
    rows = PretrainedTextFeatures(backbone, cache=None).transform(["नमस्ते", "café"])
    np.testing.assert_allclose(rows, net[0].weight[1:].detach(), atol=1e-6)


def test_where_networks_of_images_are_needed_a_sentence_says_what_to_type(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("good 1 2\n")
    own = TextBackbone.from_module(LanguageModel(), tokenize=WORDS)
    for backbone in ("wordllama", path):
        with pytest.raises(ValueError, match=r"is a network of texts.*kind='text'"):
            list_layers(backbone)
    for backbone in ("wordllama", path, own):
        with pytest.raises(ValueError, match=r"layer='auto' compares its layers"):
            rank_layers(["good", "bad"], [0, 1], backbone=backbone)


def test_layers_to_prefetch_are_checked_without_a_store():
    features = PretrainedTextFeatures(prefetch_layers=["zz"], cache=None)
    with pytest.raises(ValueError, match="Unknown layer 'zz'"):
        features.fit(["good"])


def test_tokenizers_of_each_kind(tmp_path):
    pytest.importorskip("transformers")
    from transformers import AutoTokenizer

    n_words = save_tokenizer(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    net = nn.Sequential(nn.Embedding(n_words, 8))
    texts = random_texts(5)
    kinds = (saved, saved.backend_tokenizer, lambda text: saved(text)["input_ids"])
    rows = [
        PretrainedTextFeatures(
            TextBackbone.from_module(net, tokenize=tokenize)
        ).transform(texts)
        for tokenize in kinds
    ]
    assert np.ptp(rows[0]) > 0
    for other in rows[1:]:
        np.testing.assert_array_equal(other, rows[0])
    with pytest.raises(TypeError, match="'tokenize' parameter"):
        TextBackbone.from_module(net, tokenize=3)


class Random(nn.Module):
    def forward(self, x):
        return torch.rand(len(x), 3)


class TwoOutputs(nn.Module):
    def forward(self, x):
        return {"states": x}


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (nn.Sequential(nn.Embedding(6, 8), nn.LSTM(8, 7)), "batch_first=True"),
        (nn.Sequential(Random()), "differ from call to call"),
        (nn.Sequential(TwoOutputs()), "must return a tensor"),
        (nn.Sequential(nn.Conv1d(3, 4, 3)), "must take tokens"),
    ],
)
def test_a_network_that_gives_no_rows_is_refused(net, reason):
    with pytest.raises(ValueError, match=reason):
        TextBackbone.from_module(net, tokenize=WORDS)


def test_what_is_no_network_is_refused():
    with pytest.raises(TypeError, match=r"takes a torch.nn.Module"):
        TextBackbone.from_module(len, tokenize=WORDS)
    with pytest.raises(ValueError, match="head='none' names no part"):
        TextBackbone.from_module(convolutions(), tokenize=WORDS, head="none")
