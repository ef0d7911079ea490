"""Vectors of words: WordLlama, and files of GloVe, word2vec and fastText."""

import json
import subprocess
import sys

import numpy as np
import pytest

from skdeepfeat import PretrainedTextFeatures, WeightsError, clear_caches
from skdeepfeat._backbones import word_tables
from skdeepfeat._backbones.installed import installed
from skdeepfeat._backbones.word_vectors import WordLlama

WORDS = ["good", "bad", "film", "don't", "Paris", "über", "!"]


@pytest.fixture(scope="module")
def vectors():
    """Vectors of a few words, as gensim holds them."""
    models = pytest.importorskip("gensim.models")
    found = models.KeyedVectors(20)
    rng = np.random.default_rng(0)
    found.add_vectors(WORDS, rng.normal(size=(len(WORDS), 20)).astype(np.float32))
    return found


WRITTEN = {
    "word2vec.txt": {},
    "word2vec.bin": {"binary": True},
    "glove.txt": {"write_header": False},
    "fasttext.vec": {},
    "glove.txt.gz": {"write_header": False},
}


@pytest.mark.parametrize("name", WRITTEN)
def test_words_of_a_file_have_the_vectors_that_gensim_wrote(vectors, name, tmp_path):
    vectors.save_word2vec_format(tmp_path / name, **WRITTEN[name])
    features = PretrainedTextFeatures(tmp_path / name)
    np.testing.assert_array_equal(features.transform(WORDS), vectors.vectors)
    rows = features.transform(["good film", "GOOD", "unknown", ""])
    mean = vectors[["good", "film"]].mean(0)
    np.testing.assert_allclose(rows[0], mean, rtol=1e-6)
    np.testing.assert_array_equal(rows[1], vectors["good"])
    assert not rows[2:].any()


def test_subwords_of_fasttext_are_those_of_gensim(tmp_path):
    fasttext = pytest.importorskip("gensim.models.fasttext")
    model = fasttext.FastText(vector_size=12, min_count=1, bucket=500, min_n=3, max_n=5)
    sentences = [["good", "film", "tonight"], ["bad", "movie", "über"]] * 10
    model.build_vocab(sentences)
    model.train(sentences, total_examples=20, epochs=2)
    path = str(tmp_path / "fasttext.bin")
    fasttext.save_facebook_model(model, path)
    read = fasttext.load_facebook_vectors(path)
    words = ["good", "über", "Films", "unseenword", "filmographies"]
    rows = PretrainedTextFeatures(path).transform(words)
    np.testing.assert_array_equal(rows, np.stack([read[word] for word in words]))


def test_a_file_is_converted_once_and_found_by_its_content(
    vectors, tmp_path, monkeypatch
):
    for name in ("first.txt", "copy.txt"):
        vectors.save_word2vec_format(tmp_path / name)
    expected = PretrainedTextFeatures(tmp_path / "first.txt").transform(WORDS)
    clear_caches()
    monkeypatch.setattr(
        word_tables, "read_vectors", lambda path, scratch: pytest.fail("read again")
    )
    for name in ("first.txt", "copy.txt"):
        rows = PretrainedTextFeatures(tmp_path / name, cache=None).transform(WORDS)
        np.testing.assert_array_equal(rows, expected)


def test_a_changed_file_has_other_features(vectors, tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("good 1 2\nbad 3 4\n")
    features = PretrainedTextFeatures(path).fit(["good"])
    assert features.transform(["good"]).tolist() == [[1, 2]]
    path.write_text("good 5 6\nbad 3 4\n")
    with pytest.raises(WeightsError, match="changed since"):
        features.transform(["good"])
    assert PretrainedTextFeatures(path).transform(["good"]).tolist() == [[5, 6]]


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x01\x02", b"good 1 2\nbad 3\n", b"good 1 x\n", b"2 3\na"]
)
def test_a_file_that_has_no_vectors_is_refused(content, tmp_path):
    pytest.importorskip("gensim")
    (tmp_path / "vectors.txt").write_bytes(content)
    with pytest.raises(WeightsError, match="is not a file of word vectors"):
        PretrainedTextFeatures(tmp_path / "vectors.txt").transform(["good"])
    left = list((tmp_path / "cache" / "skdeepfeat" / "words").glob("*.partial"))
    assert not left


def test_words_with_spaces_keep_their_numbers(tmp_path):
    (tmp_path / "glove.txt").write_text("good 1 2\n. . . 3 4\nbad 5 6\n")
    rows = PretrainedTextFeatures(tmp_path / "glove.txt").transform(["good", "bad"])
    assert rows.tolist() == [[1, 2], [5, 6]]


def test_a_pickle_is_never_loaded(vectors, tmp_path):
    vectors.save(str(tmp_path / "vectors.kv"))
    with pytest.raises(WeightsError, match=r"a pickle.*save_word2vec_format"):
        PretrainedTextFeatures(tmp_path / "vectors.kv").transform(["good"])


@pytest.mark.slow
def test_a_file_of_a_million_words_is_opened_but_not_read(tmp_path, monkeypatch):
    pytest.importorskip("gensim")
    n, width = 1_000_000, 50
    path, rows = tmp_path / "large.bin", np.ones((n, width), np.float32)
    rows[:, 0] = np.arange(n)
    with path.open("wb") as file:
        file.write(f"{n} {width}\n".encode())
        for i in range(n):
            file.write(f"w{i} ".encode() + rows[i].tobytes() + b"\n")
    del rows
    PretrainedTextFeatures(path).transform(["w1"])
    code = f"""
import json, resource, time
from skdeepfeat import PretrainedTextFeatures
features = PretrainedTextFeatures({str(path)!r}, cache=None)
def memory():
    line = next(x for x in open("/proc/self/status") if x.startswith("RssAnon"))
    return int(line.split()[1]) / 1024
PretrainedTextFeatures().transform(["first"])
before, start = memory(), time.perf_counter()
row = features.transform(["w7 w9"])
print(json.dumps([time.perf_counter() - start, memory() - before, float(row[0, 0])]))
"""
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    seconds, megabytes, value = json.loads(out)
    assert value == 8 and megabytes < 20 and seconds < 2


def test_rows_of_wordllama_are_those_of_its_own_package():
    inference = pytest.importorskip("wordllama.inference")
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(installed(WordLlama.tokenizer_file)))
    matrix = load_file(installed(WordLlama.vectors_file))["embedding.weight"]
    theirs = inference.WordLlamaInference(matrix, tokenizer)
    texts = ["win cash now!", "see you at home", "naïve über Texte", "a"]
    rows = PretrainedTextFeatures().transform(texts)
    np.testing.assert_allclose(rows, theirs.embed(texts), atol=1e-6)
    assert not PretrainedTextFeatures().transform([""]).any()


def test_each_pooling_of_word_vectors(vectors, tmp_path):
    vectors.save_word2vec_format(tmp_path / "vectors.txt")
    features = PretrainedTextFeatures(tmp_path / "vectors.txt", pooling="meanmax")
    some = vectors[["good", "film"]]
    rows = features.transform(["good film"])
    expected = np.hstack([some.mean(0), some.max(0)])
    np.testing.assert_allclose(rows[0], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="pooling='cls' is not possible"):
        features.set_params(pooling="cls").transform(["good"])
    with pytest.raises(ValueError, match="engine='torch' does not run"):
        features.set_params(pooling="mean", engine="torch").transform(["good"])


def test_word_vectors_need_no_torch(vectors, tmp_path):
    vectors.save_word2vec_format(tmp_path / "vectors.txt")
    code = (
        "import sys\nfrom skdeepfeat import PretrainedTextFeatures as F\n"
        f"F().fit_transform(['a b']), F({str(tmp_path / 'vectors.txt')!r})"
        ".fit_transform(['good'])\n"
        "assert not {'torch', 'transformers', 'wordllama'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_backbone_says_what_is_known():
    with pytest.raises(ValueError, match="Did you mean 'wordllama'"):
        PretrainedTextFeatures("wordlama").fit(["a"])
    with pytest.raises(ValueError, match="no such file"):
        PretrainedTextFeatures("missing/glove.6B.50d.txt").fit(["a"])
