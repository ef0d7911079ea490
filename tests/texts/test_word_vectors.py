"""Vectors of words: WordLlama, and files of GloVe, word2vec and fastText."""

import gzip
import json
import lzma
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest

from skdeepfeat import PretrainedTextFeatures, TextWarning, WeightsError, clear_caches
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


def rows_of(path, texts, **parameters):
    return PretrainedTextFeatures(path, cache=None, **parameters).transform(texts)


SAME_WORDS = {  # in a file → in a text
    "Hindi": ("नमस्ते", "नमस्ते"),
    "Thai": ("สวัสดี", "สวัสดี"),
    "vocalised Arabic": ("مَرْحَبًا", "مَرْحَبًا"),
    "a joiner inside": ("می\u200cخواهم", "می\u200cخواهم"),
    "letters with marks in the text": ("café", "cafe\u0301"),
    "letters with marks in the file": ("cafe\u0301", "café"),
    "a variant of a sign": ("❤", "❤\ufe0f"),
    "a soft hyphen": ("Wort", "Wo\u00adrt"),
    "directions": ("שלום", "\u200fשלום\u200e"),
}


@pytest.mark.parametrize("kind", SAME_WORDS)
def test_marks_belong_to_words_and_forms_of_a_word_are_one(kind, tmp_path):
    in_file, in_text = SAME_WORDS[kind]
    path = tmp_path / "vectors.txt"
    path.write_text(f"{in_file} 1 2\nfilm 3 4\n", "utf-8")
    assert rows_of(path, [in_text, f"film {in_text}!"]).tolist() == [[1, 2], [2, 3]]


@pytest.fixture(scope="module")
def fasttext_file(tmp_path_factory):
    """A binary file of fastText."""
    fasttext = pytest.importorskip("gensim.models.fasttext")
    model = fasttext.FastText(vector_size=8, min_count=1, bucket=300, epochs=1)
    model.build_vocab([["good", "film", "tonight"]])
    path = str(tmp_path_factory.mktemp("fasttext") / "small.bin")
    fasttext.save_facebook_model(model, path)
    return path


def test_compressed_files_of_fasttext_have_the_same_vectors(fasttext_file, tmp_path):
    packed = tmp_path / "small.bin.gz"
    with open(fasttext_file, "rb") as file:
        packed.write_bytes(gzip.compress(file.read()))
    expected = rows_of(fasttext_file, ["good", "unseen"])
    np.testing.assert_array_equal(rows_of(packed, ["good", "unseen"]), expected)


@pytest.mark.parametrize("place", [0, 3, 8, 60, 100, 1000, -500])
@pytest.mark.parametrize("damage", ["cut", "other bytes"])
def test_damaged_files_of_fasttext_are_refused_by_name(
    place, damage, fasttext_file, tmp_path
):
    with open(fasttext_file, "rb") as file:
        content = file.read()
    rest = b"" if damage == "cut" else b"\xff" * 4 + content[place:][4:]
    path = tmp_path / "damaged.bin"
    path.write_bytes(content[:place] + rest)
    try:
        rows = rows_of(path, ["good"])
    except WeightsError as error:
        assert "damaged.bin" in str(error)
    else:  # numbers have changed, which no reader can see
        assert damage == "other bytes" and rows.shape == (1, 8)


def test_a_word_of_a_million_letters_is_read_in_time(fasttext_file):
    from gensim.models.fasttext import load_facebook_vectors

    word = "abcdefgh" * 1500
    theirs = load_facebook_vectors(fasttext_file)[word]
    np.testing.assert_array_equal(rows_of(fasttext_file, [word])[0], theirs)
    start = time.process_time()
    rows_of(fasttext_file, ["a" * 1_000_000])
    assert time.process_time() - start < 3


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


G = "good 1 0\nbad 0 1\nfilm 2 2\n"


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + G,
        "\ufeff3 2\n" + G,
        G + "\n\n",
        G.replace("\n", "\r\n"),
        G.replace(" ", "\t"),
        G.replace(" ", "  "),
        G + "new york 5 5\n",
        "new york 5 5\n" + G,
        "4 2\nnew york 5 5\n" + G,
        G + ". . . 5 5\nat name@domain.com 6 6\n",
        G + " 5 5\n",  # a word of spaces
        "good 1 0\n\nbad 0 1\nfilm 2 2\n",
        "PK 5 5\n" + G,  # as zip files begin
        "BZh 5 5\n" + G,  # as bzip2 files begin
    ],
)
def test_spellings_of_text_files(content, tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_bytes(content.encode())
    rows = rows_of(path, ["good", "bad", "film"])
    assert rows.tolist() == [[1, 0], [0, 1], [2, 2]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("3 1\n" + G, "line 2 does not have 1 number .*, as its header says"),
        ("3 3\n" + G, "line 2 does not have 3 numbers .*, as its header says"),
        ("1000 2\n" + G, "its header says 1,000 words, and it has 3"),
        ("2 2\n" + G, "its header says 2 words, and it has 3"),
        (G + "worse 1 2 3\n", "line 4 does not have 2 numbers .*, unlike most lines"),
        ("worse 1 2 3\n" + G, "line 1 does not have 2 numbers"),
        (G + "short 1\n", "line 4 does not have 2 numbers"),
        (G.replace("1 0", "1_0 0"), "line 1 does not have 2 numbers"),
        (G.replace(" ", ","), "a word and numbers"),
        (G.encode("utf-16"), "UTF-16.*iconv"),
        (lzma.compress(G.encode()), "an archive. Unpack it"),
        (b"PK\x03\x04...", "an archive. Unpack it"),
        (gzip.compress(gzip.compress(G.encode())), "an archive. Unpack it"),
        (gzip.compress(G.encode())[:-10], "EOFError"),
        (pickle.dumps(np.ones(3), 0), "a pickle"),
        (pickle.dumps(np.ones(3), 1), "a pickle"),
        (b"2 4\ngood " + bytes(16), "says 2 words of 4 numbers, and it is shorter"),
        (b"1 4\ngood " + bytes(16) + b"\nbad " + bytes(16), "and it is longer"),
        (b"999999999999 300\ngood " + bytes(1200), "and it is shorter"),
    ],
)
def test_files_that_are_not_what_they_say_are_refused(content, reason, tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(WeightsError, match=reason):
        rows_of(path, ["good"])


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        (G.encode() + "café 3 3\n".encode("latin-1"), "1 of 4 words are not UTF-8"),
        (G.encode() + b"last 3 3", "does not end with a newline"),
    ],
)
def test_each_process_is_warned_of_a_file_that_may_be_wrong(content, warning, tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_bytes(content)
    for _ in range(2):
        with pytest.warns(TextWarning, match=warning):
            assert rows_of(path, ["film"]).tolist() == [[2, 2]]
        clear_caches()


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path):
    content = path.read_bytes()
    path.write_bytes(content[:-4] + bytes(b ^ 1 for b in content[-4:]))


@pytest.mark.parametrize("damage", [halve, change, os.unlink])
@pytest.mark.parametrize(
    "name", ["about.json", *map("{}.npy".format, ("vectors", "hashes", "letters"))]
)
def test_a_damaged_table_is_made_again(damage, name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "vectors.txt"
    path.write_text(G)
    expected = rows_of(path, ["good film"])
    (table,) = (tmp_path / "skdeepfeat" / "words").glob("*/")
    damage(table / name)
    clear_caches()
    np.testing.assert_array_equal(rows_of(path, ["good film"]), expected)
    clear_caches()
    monkeypatch.setattr(word_tables, "read_vectors", lambda *a: pytest.fail("again"))
    np.testing.assert_array_equal(rows_of(path, ["good film"]), expected)


def test_a_damaged_note_of_a_digest_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "vectors.txt"
    path.write_text(G)
    expected = rows_of(path, ["good film"])
    (note,) = (tmp_path / "skdeepfeat" / "words").glob("*.json")
    content = note.read_text()
    for damaged in ("", "[]", "{}", content[:20]):
        note.write_text(damaged)
        clear_caches()
        np.testing.assert_array_equal(rows_of(path, ["good film"]), expected)
        assert note.read_text() == content


def test_a_table_that_was_copied_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "vectors.txt"
    path.write_text(G)
    expected = rows_of(path, ["good film"])
    for file in (tmp_path / "skdeepfeat" / "words").glob("*/*.npy"):
        os.utime(file, (0, 0))
    clear_caches()
    monkeypatch.setattr(word_tables, "read_vectors", lambda *a: pytest.fail("again"))
    np.testing.assert_array_equal(rows_of(path, ["good film"]), expected)


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
import json
from skdeepfeat import PretrainedTextFeatures
features = PretrainedTextFeatures({str(path)!r}, cache=None)
def memory():
    line = next(x for x in open("/proc/self/status") if x.startswith("RssAnon"))
    return int(line.split()[1]) / 1024
PretrainedTextFeatures().transform(["first"])
before = memory()
row = features.transform(["w7 w9"])
print(json.dumps([memory() - before, float(row[0, 0])]))
"""
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    megabytes, value = json.loads(out)
    assert value == 8 and megabytes < 20


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
