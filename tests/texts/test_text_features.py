"""PretrainedTextFeatures in scikit-learn: searches, tables, tags and shared stores."""

import csv
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from encoders import save_encoder
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import estimator_checks_generator

from skdeepfeat import (
    FeatureStore,
    PretrainedCNNFeatures,
    PretrainedTextFeatures,
    list_backbones,
)
from skdeepfeat._engines.tokens import PooledStates

WITHOUT_DATA = [
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_param_validation",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
]


@pytest.fixture(scope="module")
def messages(request):
    """Some real messages, and whether they are spam."""
    shared = Path(__file__).parents[3] / "shared" / "data" / "texts" / "sms_spam.tsv"
    if not shared.is_file():
        pytest.skip("the shared data (real messages) are not on this machine")
    with shared.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    table = pd.DataFrame(rows, columns=["label", "message"])
    return table["message"], (table["label"] == "spam").to_numpy()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(save_encoder(tmp_path_factory.mktemp("encoders") / "bert"))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_all_common_checks_for_estimators_of_texts():
    for estimator, check in estimator_checks_generator(PretrainedTextFeatures()):
        check(estimator)  # scikit-learn has few without numbers; see WITHOUT_DATA


@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_check_that_needs_no_numbers(name):
    check = getattr(estimator_checks, name)
    check("PretrainedTextFeatures", PretrainedTextFeatures())


def test_tags_say_that_x_is_text():
    tags = PretrainedTextFeatures().__sklearn_tags__()
    assert tags.input_tags.string and tags.input_tags.one_d_array
    assert not tags.input_tags.two_d_array and not tags.requires_fit
    assert PretrainedTextFeatures(layer="auto").__sklearn_tags__().requires_fit


def test_output_of_each_kind():
    texts = ["win cash", "see you"]
    features = PretrainedTextFeatures()
    rows = features.fit_transform(texts)
    assert rows.dtype == np.float32 and rows.flags.c_contiguous
    frame = features.set_output(transform="pandas").transform(pd.Series(texts))
    assert list(frame.columns[:1]) == ["pretrainedtextfeatures0"]
    np.testing.assert_array_equal(frame.to_numpy(), rows)
    tensor = PretrainedTextFeatures(output="torch").transform(texts)
    assert isinstance(tensor, torch.Tensor)


def test_a_default_estimator_is_small_and_clones():
    features = clone(PretrainedTextFeatures()).fit(["win cash"])
    features.transform(["win cash"])
    assert len(pickle.dumps(features)) < 4096
    assert set(vars(features)) == {*features.get_params(), "weights_digest_"}


def test_a_search_over_depths_and_heads_costs_one_pass(
    bert, messages, tmp_path, monkeypatch
):
    forward, seen = PooledStates.forward, [0]

    def counted(self, padded):
        seen[0] += int((padded >= 0).any(1).sum())
        return forward(self, padded)

    monkeypatch.setattr(PooledStates, "forward", counted)
    X, y = messages[0][:300], messages[1][:300]
    store = str(tmp_path / "store")
    features = PretrainedTextFeatures(
        bert, max_length=32, cache=store, prefetch_layers="all"
    )
    heads = [
        LogisticRegression(max_iter=200),
        SVC(),
        GaussianNB(),
        KNeighborsClassifier(),
        RandomForestClassifier(5),
        RidgeClassifier(),
    ]
    model = Pipeline(
        [("features", features), ("scale", StandardScaler()), ("head", SVC())]
    )
    depths = ["block1", "block3", "penultimate"]
    search = GridSearchCV(model, {"features__layer": depths, "head": heads}, cv=5)
    with pytest.warns(match="were cut"):
        search.fit(X, y)
    assert len(search.cv_results_["params"]) == 18
    assert seen == [X.nunique()]
    code = f"""
import json, warnings
from skdeepfeat import PretrainedTextFeatures
warnings.simplefilter("ignore")
texts = json.loads({json.dumps(json.dumps(list(X)))})
n = 0
for layer in {depths}:
    features = PretrainedTextFeatures({bert!r}, max_length=32, layer=layer,
                                      cache={store!r})
    features.fit(texts).transform(texts)
    n += features.stats_["n_computed"]
print(n)
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "0\n"


def test_word_vectors_tell_spam_from_messages(messages):
    X, y = messages[0][:1500], messages[1][:1500]
    head = LogisticRegression(max_iter=1000)
    ours = make_pipeline(PretrainedTextFeatures(), StandardScaler(), head)
    words = make_pipeline(TfidfVectorizer(), head)
    scores = [cross_val_score(model, X, y, cv=3).mean() for model in (ours, words)]
    assert min(scores) > 0.9 > 1 - y.mean()  # and the rarer class is not left out
    assert cross_val_score(ours, X, y, cv=3, scoring="f1").mean() > 0.75


def test_auto_chooses_a_layer_of_texts(bert):
    texts = [f"{word} {other}" for word in ("win", "home") for other in "abcdefghij"]
    y = np.repeat(["spam", "ham"], 10)
    features = PretrainedTextFeatures(bert, layer="auto").fit(texts, y)
    assert features.layer_ in features.layer_scores_
    assert next(iter(features.layer_scores_)) == "embeddings"
    assert features.layer_accuracies_[features.layer_] == 1
    fitted = features.transform(texts)
    rows = PretrainedTextFeatures(bert, layer=features.layer_).transform(texts)
    np.testing.assert_array_equal(fitted, rows)


def test_photos_and_texts_share_a_store_and_a_table(photos, bert):
    store = FeatureStore(name="photos and texts")
    texts = ["win cash", "see you", "win cash", "call now", "home", "dinner"]
    table = pd.DataFrame({"photo": list(photos), "message": texts, "price": range(6)})
    columns = make_column_transformer(
        (PretrainedCNNFeatures("tiny", cache=store), "photo"),
        (PretrainedTextFeatures(bert, cache=store), "message"),
        (StandardScaler(), ["price"]),
    )
    rows = columns.fit_transform(table)
    assert rows.shape == (6, 10 + 32 + 1)
    assert store.info()["misses"] == 6 + 5
    columns.fit_transform(table)
    assert store.info()["misses"] == 6 + 5


def test_features_are_written_to_a_file_and_warmed(tmp_path):
    features = PretrainedTextFeatures(cache=tmp_path / "store")
    rows = features.warm(["win cash"]).transform_to(tmp_path / "a.npy", ["win cash"])
    assert rows.shape == (1, 256) and features.stats_["n_computed"] == 0


def test_statistics_speak_of_texts(capsys):
    features = PretrainedTextFeatures(verbose=1, cache=None)
    features.transform(["win cash", "see you"])
    assert features.stats_["n_texts"] == 2 and "texts_per_second" in features.stats_
    assert "2 texts, 2 computed on cpu with numpy" in capsys.readouterr().out


def test_text_backbones_are_listed():
    assert list_backbones(kind="text") == ["wordllama"]
    assert list_backbones("x", kind="text") == []
    with pytest.raises(ValueError, match="'kind' parameter of list_backbones"):
        list_backbones(kind="sound")
