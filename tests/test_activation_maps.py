"""Maps show the places that a prediction rests on."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepfeat import PretrainedCNNFeatures, activation_maps, load_image_folder


def classical_maps(model, X):
    """Weights of a linear head times the maps of the predicted class [Zhou 2016]."""
    unpooled = PretrainedCNNFeatures(pooling="flatten").transform(X)
    maps = unpooled.reshape(len(X), 1280, 4, 4)
    weights = model[-1].coef_[0] / model[1].scale_
    sign = np.where(model.predict(X) == model.classes_[1], 1, -1)
    return sign[:, None, None] * np.einsum("nchw,c->nhw", maps, weights)


def test_a_linear_head_on_averages_has_the_classical_map(shared_data):
    photos = load_image_folder(shared_data / "hymenoptera" / "train")
    model = make_pipeline(
        PretrainedCNNFeatures(), StandardScaler(), LogisticRegression(max_iter=2000)
    )
    model.fit(photos.data[::6], photos.target[::6])
    X = photos.data[1::30]
    found, expected = activation_maps(model, X), classical_maps(model, X)
    assert found.shape == (len(X), 4, 4)
    for one, classical in zip(found, expected, strict=True):
        assert np.corrcoef(one.ravel(), classical.ravel())[0, 1] > 0.999
