"""Transformer encoders from folders: their layers, tokens and rows."""

import numpy as np
import pytest
from encoders import random_texts, save_bert

from skdeepfeat import PretrainedTextFeatures

LAYERS = ["embeddings", "block1", "block2", "block3", "block4"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(save_bert(tmp_path_factory.mktemp("bert") / "tiny-bert"))


@pytest.fixture(scope="module")
def reference(bert):
    """Texts → the pooled states of transformers itself at each depth, one by one."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(bert).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)

    def compute(texts):
        found = []
        for text in texts:
            given = tokenizer(text, truncation=True, return_tensors="pt")
            with torch.no_grad():
                states = model(**given, output_hidden_states=True).hidden_states
            found.append([state[0].mean(0).numpy() for state in states])
        return dict(zip(LAYERS, map(np.stack, zip(*found, strict=True)), strict=True))

    return compute


@pytest.mark.filterwarnings("ignore::skdeepfeat.TextWarning")
@pytest.mark.parametrize("n", [1, 2, 40])
def test_all_depths_equal_those_of_transformers(bert, reference, n):
    texts = random_texts(n, longest=90)
    features = PretrainedTextFeatures(bert, layer=tuple(LAYERS))
    expected = np.hstack(list(reference(texts).values()))
    rows = features.transform(texts)
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5)
    assert np.ptp(expected) > 1  # the weights are large enough to tell


def test_a_row_does_not_depend_on_its_neighbours(bert):
    texts = random_texts(70)
    features = PretrainedTextFeatures(bert, layer=tuple(LAYERS), cache=None)
    rows = features.transform(texts)
    order = np.random.default_rng(1).permutation(70)
    np.testing.assert_array_equal(
        features.transform([texts[i] for i in order]), rows[order]
    )
    np.testing.assert_array_equal(features.transform(texts[:2]), rows[:2])
