"""Which encoders give features: what a run of them decides."""

import json

import numpy as np
import pytest
import torch
from encoders import DEPTH, SIZES, WIDTH, save_encoder, save_tokenizer

from skdeepfeat import PretrainedTextFeatures, WeightsError
from skdeepfeat._networks.encoder_states import make_encoder

transformers = pytest.importorskip("transformers")

TEXTS = ["hello ok", "free win cash prize call now are you at home for dinner", ""]
POSITIONS = {"max_position_embeddings": 64}


def save(folder, family, **options):
    """A tiny network of a family, with a tokenizer."""
    folder.mkdir()
    size = save_tokenizer(folder)
    kind = family.removesuffix("Encoder")
    config = getattr(transformers, f"{kind}Config")(vocab_size=size, **options)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(config).eval()
    model.save_pretrained(folder)
    return model


REFUSED = {  # family → its settings, and words of the error
    "BigBird": (
        {**SIZES, "block_size": 16, "num_random_blocks": 1},
        "'original_full', so that rows depend on the texts before. Set this entry of "
        "config.json to 'original_full' for all texts. Use",
    ),
    "Rwkv": (
        {"hidden_size": WIDTH, "num_hidden_layers": DEPTH},
        "from False to True, so that rows depend on the texts before. Use another",
    ),
    "Albert": (
        {**SIZES, "embedding_size": 16, "inner_group_num": 2},
        "the states of 8 blocks, and its configuration has 4",
    ),
    "SqueezeBert": (
        {**SIZES, "embedding_size": WIDTH, **POSITIONS},
        "no module returns the states of 'block1'",
    ),
    "XLNet": (
        {"d_model": WIDTH, "n_layer": DEPTH, "n_head": 4, "d_inner": 64},
        "no module returns the states",
    ),
    "Nystromformer": (
        {**SIZES, "num_landmarks": 8, "segment_means_seq_len": 64},
        "RuntimeError",
    ),
    "Canine": (SIZES, "cannot give features"),
}


@pytest.mark.parametrize("family", REFUSED)
def test_an_encoder_whose_rows_would_be_wrong_is_refused(family, tmp_path):
    options, words = REFUSED[family]
    save(tmp_path / "encoder", family, **options)
    features = PretrainedTextFeatures(tmp_path / "encoder", cache=None)
    with pytest.raises(WeightsError, match=words) as error:
        features.transform(TEXTS)
    assert str(tmp_path / "encoder") in str(error.value)


def test_a_network_with_a_setting_that_no_text_changes_gives_rows(tmp_path):
    options, _ = REFUSED["BigBird"]
    save(tmp_path / "a", "BigBird", **options, attention_type="original_full")
    rows = PretrainedTextFeatures(tmp_path / "a", cache=None).transform(TEXTS)
    assert np.isfinite(rows).all()


def bert_model(**options):
    config = transformers.BertConfig(**{"vocab_size": 50, **SIZES, **options})
    return transformers.BertModel(config).eval()


NODES = ["embeddings", *(f"block{i}" for i in range(1, DEPTH + 1))]


def test_an_encoder_that_draws_numbers_is_refused():
    model = bert_model(hidden_dropout_prob=0.5).train()
    with pytest.raises(WeightsError, match="different in every call"):
        make_encoder(model, "here", NODES, WIDTH)


def test_an_encoder_may_know_few_words():
    assert make_encoder(bert_model(vocab_size=3), "here", NODES, WIDTH).pads


def test_weights_that_are_not_finite_are_refused():
    model = bert_model()
    model.encoder.layer[1].output.dense.bias.data[0] = torch.nan
    with pytest.raises(WeightsError, match="NaN or infinite"):
        make_encoder(model, "here", NODES, WIDTH)


def test_trying_an_encoder_leaves_it_and_the_generator_as_they_were():
    model = bert_model()
    state = torch.default_generator.get_state()
    network = make_encoder(model, "here", NODES, WIDTH)
    assert network.pads
    assert torch.equal(torch.default_generator.get_state(), state)
    hooks = [m._forward_pre_hooks for m in model.modules() if m._forward_pre_hooks]
    assert not hooks  # but those of the layers, which are hooked at their end


def test_a_network_that_sees_the_padding_computes_each_text_alone(tmp_path):
    sizes = {k: v for k, v in SIZES.items() if k != "num_attention_heads"}
    model = save(tmp_path / "fnet", "FNet", **sizes, **POSITIONS)
    features = PretrainedTextFeatures(tmp_path / "fnet", cache=None)
    rows = features.transform(TEXTS)
    for text, row in zip(TEXTS, rows, strict=True):
        np.testing.assert_array_equal(features.transform([text])[0], row)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "fnet")
    with torch.no_grad():
        tokens = tokenizer(TEXTS[0], return_tensors="pt").input_ids
        expected = model(tokens).last_hidden_state.mean(1)[0]
    np.testing.assert_allclose(rows[0], expected, rtol=0, atol=1e-5)


T5 = {"d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": DEPTH, "num_heads": 4}
T5 |= {"decoder_start_token_id": 0, "num_decoder_layers": 2}
BART = {"d_model": WIDTH, "encoder_layers": DEPTH, "decoder_layers": 2}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "init_std": 0.3}
BART |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("family", "options"), [("T5", T5), ("T5Encoder", T5), ("Bart", BART)]
)
def test_of_an_encoder_with_a_decoder_the_encoder_is_read(family, options, tmp_path):
    folder = tmp_path / "both"
    model = save(folder, family, **options).get_encoder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    layers = ("embeddings", "block2", "penultimate")
    rows = PretrainedTextFeatures(folder, layer=layers, cache=None).transform(TEXTS)
    for text, row in zip(TEXTS, rows, strict=True):
        tokens = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model(input_ids=tokens, output_hidden_states=True)
        states = out.hidden_states[0], out.hidden_states[2], out.last_hidden_state
        expected = torch.cat([s.mean(1)[0] for s in states])
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-5)


def test_settings_of_calls_in_a_configuration_change_no_row(tmp_path):
    folder = save_encoder(tmp_path / "bert")
    rows = PretrainedTextFeatures(folder, cache=None).transform(TEXTS)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"output_hidden_states": True, "output_attentions": True}
    config |= {"return_dict": False, "chunk_size_feed_forward": 4}
    path.write_text(json.dumps(config))
    again = PretrainedTextFeatures(folder, cache=None).transform(TEXTS)
    np.testing.assert_allclose(again, rows, rtol=0, atol=1e-5)
