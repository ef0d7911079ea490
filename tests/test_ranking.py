"""rank_layers: one pass of each network, and a table of how well layers predict y."""

import builtins
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import coloured_images, count_images, tiny_backbone

from skdeepfeat import (
    ImageWarning,
    PretrainedCNNFeatures,
    list_layers,
    load_textures,
    rank_layers,
)
from skdeepfeat._choice import LayerScore

N = 60


@pytest.fixture
def data():
    return coloured_images(N, 12)


def test_is_what_auto_measures(data):
    ranking = rank_layers(*data, backbone="tiny")
    features = PretrainedCNNFeatures("tiny", layer="auto").fit(*data)
    assert {row.layer: row.r2 for row in ranking} == features.layer_scores_
    assert {row.layer: row.accuracy for row in ranking} == features.layer_accuracies_
    assert [row.layer for row in ranking if row.chosen] == [features.layer_]
    assert all(row.score == (row.r2 + row.neighbors_r2) / 2 for row in ranking)
    scores = [row.score for row in ranking]
    assert scores == sorted(scores, reverse=True)
    width = {layer.alias: layer.features for layer in list_layers("tiny")}
    assert all(row.features == width[row.layer] for row in ranking)
    assert all(row.backbone == "tiny" and row.error is None for row in ranking)


def test_several_networks_have_one_choice(data):
    ranking = rank_layers(
        *data, backbone=["tiny", "smallcnn"], weights=["default", None]
    )
    assert {row.backbone for row in ranking} == {"tiny", "smallcnn"}
    (chosen,) = [row for row in ranking if row.chosen]
    best = max(ranking, key=lambda row: row.score)
    assert chosen.score >= best.score - 0.01 and chosen.backbone == best.backbone


def test_the_network_of_the_best_layer_is_chosen(data, monkeypatch):
    """Even if its choice, a deeper layer, is a little worse than that of another."""
    r2 = iter([{"a": 0.655, "b": 0.648}, {"a": 0.652, "b": 0.3}])

    def score_layers(self, X, y):
        scores = {name: LayerScore(value, value) for name, value in next(r2).items()}
        return dict.fromkeys(scores, np.zeros((N, 1))), scores

    monkeypatch.setattr(PretrainedCNNFeatures, "score_layers", score_layers)
    monkeypatch.setattr(
        "skdeepfeat._ranking._milliseconds", lambda *_: {"a": 1.0, "b": 2.0}
    )
    ranking = rank_layers(*data, backbone=["tiny", "mini"])
    (chosen,) = [row for row in ranking if row.chosen]
    assert (chosen.backbone, chosen.layer) == ("tiny", "b")


def test_networks_of_one_name_are_numbered(data):
    ranking = rank_layers(*data, backbone=[tiny_backbone(seed) for seed in (0, 1)])
    assert {row.backbone for row in ranking} == {"Sequential (1)", "Sequential (2)"}


def test_weights_of_each_network(data):
    ranking = rank_layers(*data, backbone=["mini"] * 2, weights=["default", None])
    first, second = (
        {row.layer: row.r2 for row in ranking if row.backbone == f"mini ({i})"}
        for i in (1, 2)
    )
    assert first.keys() == second.keys() and first != second
    with pytest.raises(ValueError, match=r"1 entries for 2 networks"):
        rank_layers(*data, backbone=["mini"] * 2, weights=[None])


@pytest.mark.parametrize("n_stored", [0, 50, N])
def test_each_network_computes_each_image_about_once(n_stored, data, monkeypatch):
    forwards = count_images(monkeypatch)
    backbones = [tiny_backbone(seed) for seed in (0, 1)]
    options = {"backbone": backbones, "batch_size": 1}
    if n_stored:
        rank_layers(*(part[:n_stored] for part in data), **options)
    before = forwards[0]
    ranking = rank_layers(*data, **options)
    assert forwards[0] - before <= 2 * N
    assert all(0 < row.ms < 1000 for row in ranking)
    if n_stored == 0:
        assert forwards[0] == 2 * N


def test_cost_grows_with_depth():
    textures = load_textures()
    ranking = rank_layers(textures.data[::4], textures.target[::4], image_size=64)
    ms = {row.layer: row.ms for row in ranking}
    in_order = [ms[layer.alias] for layer in list_layers("mini") if layer.alias in ms]
    assert in_order == sorted(in_order) and in_order[0] < in_order[-1]


def test_prints_as_a_table(data):
    ranking = rank_layers(*data, backbone="tiny")
    title, *lines = repr(ranking).splitlines()
    titles = "backbone layer score R² of neighbours accuracy features ms an image"
    assert title.split() == titles.split()
    assert len(lines) == len(ranking)
    for row, line in zip(ranking, lines, strict=True):
        assert row.layer in line and f"{row.r2:.3f}" in line
        assert line.endswith("<- chosen") == row.chosen


def test_numbers_to_predict_have_an_error(data):
    X, _ = data
    y = 1000 * X[..., 0].mean((1, 2))
    ranking = rank_layers(X, y, backbone="tiny")
    assert "error" in repr(ranking) and "accuracy" not in repr(ranking)
    for row in ranking:
        deviation = np.sqrt(1 - row.r2) * y.std()
        np.testing.assert_allclose(row.error, deviation)


def test_as_a_frame(data):
    frame = rank_layers(*data, backbone="tiny", as_frame=True)
    assert isinstance(frame, pd.DataFrame)
    scores = ["score", "r2", "neighbors_r2", "accuracy"]
    columns = ["backbone", "layer", *scores, "features", "ms", "chosen"]
    assert list(frame.columns) == columns
    rows = rank_layers(*data, backbone="tiny")
    assert frame["r2"].tolist() == [row.r2 for row in rows]


def test_a_frame_needs_pandas(data, monkeypatch):
    real = builtins.__import__

    def without_pandas(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    forwards = count_images(monkeypatch)
    with pytest.raises(ImportError, match="pip install pandas"):
        rank_layers(*data, backbone="tiny", as_frame=True)
    assert forwards[0] == 0


def test_a_wrong_network_is_refused_before_others_are_computed(data, monkeypatch):
    forwards = count_images(monkeypatch)
    with pytest.raises(ValueError, match="Unknown backbone 'resnet81'"):
        rank_layers(*data, backbone=["tiny", "resnet81"])
    with pytest.raises(ValueError, match=r"No weights file at 'absent\.pth'"):
        rank_layers(*data, backbone=["tiny", "mini"], weights=["default", "absent.pth"])
    assert forwards[0] == 0


def test_parameters_and_unreadable_images(data):
    X, y = [None, *data[0]], [0, *data[1]]
    with pytest.warns(ImageWarning):
        ranking = rank_layers(X, y, backbone="tiny", on_error="nan", pooling="avgmax")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = rank_layers(*data, backbone="tiny", pooling="avgmax")
    assert [row.r2 for row in ranking] == [row.r2 for row in expected]
    assert {row.features for row in ranking} == {12, 20, 10}


def test_without_signal_the_deepest_layer_is_chosen(data):
    y = np.random.default_rng(0).integers(0, 10, N)
    ranking = rank_layers(data[0], y, backbone="tiny")
    assert max(row.r2 for row in ranking) < 0.01
    assert [row.layer for row in ranking if row.chosen] == ["penultimate"]


def test_progress(data, capsys):
    rank_layers(*data, backbone="tiny", verbose=1)
    said = capsys.readouterr()
    assert "60 images, 60 computed" in said.out and "100%" in said.err


def test_a_layer_cannot_be_named(data):
    with pytest.raises(TypeError, match=r"no 'layer' parameter: it ranks all layers"):
        rank_layers(*data, backbone="tiny", layer="block1")


def test_at_least_one_network_is_ranked(data):
    with pytest.raises(ValueError, match=r"at least one. Got \[\] instead; pass"):
        rank_layers(*data, backbone=[])


@pytest.mark.parametrize("backbone", [np.array(["mini", "tiny"]), {"mini"}, None])
def test_what_is_no_list_of_networks_is_refused(backbone):
    with pytest.raises(ValueError, match="Unknown backbone"):
        rank_layers(np.zeros((2, 8, 8, 3), np.uint8), [0, 1], backbone=backbone)
