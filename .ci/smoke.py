"""Use the installed package once, without test tools: python .ci/smoke.py"""

import sys
import tempfile

import numpy as np
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skdeepfeat
from skdeepfeat import FeatureStore, PretrainedCNNFeatures, load_textures


def main():
    textures = load_textures()
    X, y = textures.data, textures.target
    # Windows keeps the files of an open store, and the folder with them.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        features = PretrainedCNNFeatures(cache=folder)
        computed = features.fit_transform(X)
        assert computed.shape == (len(X), 1280) and np.isfinite(computed).all()
        assert FeatureStore(folder).info()["rows"] >= len(X)
        np.testing.assert_array_equal(features.transform(X), computed)
        model = make_pipeline(features, StandardScaler(), RidgeClassifier(1000))
        accuracy = model.fit(X[::2], y[::2]).score(X[1::2], y[1::2])
    assert accuracy > 0.6, accuracy
    rows = PretrainedCNNFeatures("efficientnet_lite0").transform(X[:2])  # from [lite]
    assert rows.shape == (2, 1280) and np.isfinite(rows).all()
    print(f"skdeepfeat {skdeepfeat.__version__} from {skdeepfeat.__file__}")
    print(f"on Python {sys.version.split()[0]}: accuracy {accuracy:.2f}")


if __name__ == "__main__":
    main()
