"""Files in the folder of an encoder: its tokenizer, its limits, what else it has."""

import json
import re
import warnings
from fnmatch import fnmatch

import numpy as np
import pytest
from encoders import WIDTH, random_texts, save_encoder

from skdeepfeat import PretrainedTextFeatures, TextBackbone, TextWarning, WeightsError
from skdeepfeat._backbones import text_registry

transformers = pytest.importorskip("transformers")

TEXT = "[SEP] free win cash prize call now hello are you"


def set_entries(folder, file="tokenizer_config.json", **entries):
    path = folder / file
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**known, **entries}))


def tokens_of(folder, max_length=None):
    """What our tokenizer makes of the text."""
    record = text_registry.resolve_text_backbone(folder)
    return record.make_tokenizer(max_length)(TEXT).tokens


@pytest.mark.parametrize(
    "entries", [{}, {"truncation_side": "left"}, {"split_special_tokens": True}]
)
def test_texts_are_cut_and_split_as_the_tokenizer_is_set_up(entries, tmp_path):
    folder = save_encoder(tmp_path / "bert")
    set_entries(folder, **entries)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for length in (None, 6):
        cut = {"truncation": True, "max_length": length} if length else {}
        assert tokens_of(folder, length) == theirs(TEXT, **cut).input_ids
        own = TextBackbone.from_module(net(), tokenize=theirs, max_length=length)
        found = own.record.make_tokenizer(length)(TEXT).tokens
        assert found == theirs(TEXT, **cut).input_ids


def net():
    import torch

    return torch.nn.Sequential(torch.nn.Embedding(99, 4), torch.nn.Linear(4, 4))


def test_a_folder_without_a_vocabulary_is_refused(tmp_path):
    folder = save_encoder(tmp_path / "bert")
    (folder / "tokenizer.json").unlink()
    for again in ("without its vocabulary", "without any file of a tokenizer"):
        with pytest.raises(WeightsError, match=r"tokenizer\.save_pretrained\(folder\)"):
            PretrainedTextFeatures(folder, cache=None).transform([again])
        (folder / "tokenizer_config.json").unlink(missing_ok=True)


NOT_PLAIN = {
    "adapter_config.json": ({"peft_type": "LORA"}, r"adapter.*merge_and_unload\(\)"),
    "config.json": ({"quantization_config": {}}, r"quantised.*dequantize\(\)"),
}


@pytest.mark.parametrize("file", NOT_PLAIN)
def test_adapters_and_quantised_weights_are_refused(file, tmp_path):
    """What they compute depends on which packages are installed."""
    folder = save_encoder(tmp_path / "bert")
    path, (entries, message) = folder / file, NOT_PLAIN[file]
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | entries))
    with pytest.raises(WeightsError, match=message):
        PretrainedTextFeatures(folder, cache=None).fit(["a"])


@pytest.mark.parametrize("length", ["512", 0, -1, True])
def test_a_limit_that_is_no_number_is_refused(length, tmp_path):
    folder = save_encoder(tmp_path / "bert")
    set_entries(folder, model_max_length=length)
    with pytest.raises(WeightsError, match="instead of a positive number"):
        PretrainedTextFeatures(folder).fit(["a"])


@pytest.mark.parametrize(("padding", "longest"), [(1, 62), (0, 63)])
def test_positions_that_begin_after_the_padding_are_left_out(
    padding, longest, tmp_path
):
    options = {"pad_token_id": padding, "max_position_embeddings": 64}
    folder = save_encoder(tmp_path / "roberta", "Roberta", **options)
    set_entries(folder, model_max_length=None)
    if padding == 1:  # its default, which need not be in the file
        config = json.loads((folder / "config.json").read_text())
        del config["pad_token_id"]
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.warns(TextWarning, match="were cut"):
        rows = PretrainedTextFeatures(folder, cache=None).transform(["win " * 80])
    assert np.isfinite(rows).all()
    record = text_registry.resolve_text_backbone(folder)
    assert record.input.max_length == longest


def test_a_limit_that_leaves_no_room_for_a_word_is_refused(tmp_path):
    folder = save_encoder(tmp_path / "bert")
    set_entries(folder, model_max_length=2)
    with pytest.raises(ValueError, match="'model_max_length' of the tokenizer"):
        PretrainedTextFeatures(folder, cache=None).transform(["win"])


FILES = ["spm.model", "tokenizer.model", "sentencepiece.model", "tekken.json"]
FILES += ["bpe.codes", "vocab.bpe", "dict.txt", "vocab.tiktoken", "vocab.json"]


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_a_tokenizer_is_downloaded_and_identifies_it(name, tmp_path):
    folder = save_encoder(tmp_path / "bert")
    before = text_registry.resolve_text_backbone(folder).input.tokenizer
    (folder / name).write_text("{}")
    assert text_registry.resolve_text_backbone(folder).input.tokenizer != before
    assert any(fnmatch(name, pattern) for pattern in text_registry.HUB_FILES)


@pytest.mark.parametrize("name", ["README.md", "generation_config.json", "model.bin"])
def test_other_files_do_not_identify_the_tokenizer(name, tmp_path):
    folder = save_encoder(tmp_path / "bert")
    before = text_registry.resolve_text_backbone(folder).input.tokenizer
    (folder / name).write_text("{}")
    assert text_registry.resolve_text_backbone(folder).input.tokenizer == before


def test_a_folder_that_is_not_there_is_said_first(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def fail(*args, **options):
        raise OSError("no connection")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(WeightsError, match=r"^There is no folder 'data/my-bert' here"):
        PretrainedTextFeatures("data/my-bert").fit(["a"])


# Folders of sentence-transformers ----------------------------------------------------

PREFIX = "sentence_transformers.models."
OLD = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


def as_sentences(folder, pooling, *more):
    """Add the files that sentence-transformers writes beside an encoder."""
    kinds = ["Transformer", "Pooling", *more, "Normalize"]
    paths = [f"{i}_{kind}" if i else "" for i, kind in enumerate(kinds)]
    modules = [
        {"idx": i, "path": path, "type": f"{PREFIX}{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    set_entries(folder, "1_Pooling/config.json", **pooling)


def warnings_of(folder, pooling):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        PretrainedTextFeatures(folder, pooling=pooling).fit(["win"]).transform(["win"])
    return [str(w.message) for w in caught if w.category is TextWarning]


@pytest.mark.parametrize(
    ("pooling", "ours"),
    [
        ({"pooling_mode": "cls"}, "cls"),
        (OLD, "cls"),
        ({"pooling_mode": ["max", "mean"]}, "meanmax"),
    ],
)
def test_another_pooling_of_sentence_transformers_is_said_once(pooling, ours, tmp_path):
    folder = save_encoder(tmp_path / "bert")
    as_sentences(folder, pooling)
    (message,) = warnings_of(folder, "mean")
    assert f"set pooling={ours!r}" in message
    assert not warnings_of(folder, "mean")  # again
    assert not warnings_of(folder, ours)


def test_a_dense_module_of_sentence_transformers_is_said(tmp_path):
    folder = save_encoder(tmp_path / "bert")
    as_sentences(folder, {"pooling_mode": "mean"}, "Dense")
    (message,) = warnings_of(folder, "mean")
    assert "computes Dense" in message


def test_a_default_prompt_of_sentence_transformers_is_said(tmp_path):
    folder = save_encoder(tmp_path / "bert")
    as_sentences(folder, {"pooling_mode": "mean"})
    prompts = {"prompts": {"q": "query: "}, "default_prompt_name": None}
    set_entries(folder, "config_sentence_transformers.json", **prompts)
    assert not warnings_of(folder, "mean")
    prompts["default_prompt_name"] = "q"
    set_entries(folder, "config_sentence_transformers.json", **prompts)
    (message,) = warnings_of(folder, "max")
    assert "puts 'query: ' before each text" in message


def test_an_encoder_inside_a_folder_of_sentence_transformers_is_named(tmp_path):
    folder = tmp_path / "old"
    inner = save_encoder(folder / "0_Transformer")
    as_sentences(folder, {"pooling_mode": "mean"})
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = inner.name
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(WeightsError, match=re.escape(f"pass {str(inner)!r}")):
        PretrainedTextFeatures(folder).fit(["win"])
    modules[0] = {"path": "", "type": f"{PREFIX}StaticEmbedding"}
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(WeightsError, match="consists of StaticEmbedding, Pooling"):
        PretrainedTextFeatures(folder).fit(["win"])


def test_a_broken_folder_of_sentence_transformers_still_gives_states(tmp_path):
    folder = save_encoder(tmp_path / "bert")
    (folder / "modules.json").write_text("{")
    assert not warnings_of(folder, "mean")


def test_texts_are_cut_where_sentence_transformers_cuts_them(tmp_path):
    folder = save_encoder(tmp_path / "bert")
    set_entries(folder, "sentence_bert_config.json", max_seq_length=8)
    texts = random_texts(5, longest=30)
    with pytest.warns(TextWarning, match="were cut"):
        rows = PretrainedTextFeatures(folder, cache=None).transform(texts)
    (folder / "sentence_bert_config.json").unlink()
    with pytest.warns(TextWarning, match="were cut"):
        cut = PretrainedTextFeatures(folder, max_length=8, cache=None)
        np.testing.assert_array_equal(cut.transform(texts), rows)
    assert rows.shape == (5, WIDTH)


# Damaged folders ---------------------------------------------------------------------


def cut_weights(folder):
    (path,) = folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])


def lose_a_shard(folder):
    model = transformers.AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    sorted(folder.glob("*.safetensors"))[0].unlink()


def widen(folder):
    set_entries(folder, "config.json", intermediate_size=128)


def need_code(folder):
    entries = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    set_entries(folder, "config.json", **entries)


DAMAGES = {
    cut_weights: "git lfs pull",
    lose_a_shard: "Download the missing file",
    widen: "other shapes than config.json says",
    need_code: "use an encoder that needs none",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_an_error_of_transformers_comes_with_what_to_do(damage, tmp_path):
    folder = save_encoder(tmp_path / "bert")
    damage(folder)
    with pytest.raises(WeightsError, match=DAMAGES[damage]) as error:
        PretrainedTextFeatures(folder, cache=None).transform(["win"])
    assert str(folder) in str(error.value)
