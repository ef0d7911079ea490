"""ONNX files predict as the estimator that they come from."""

import numpy as np
import onnxruntime
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdeepfeat import PretrainedCNNFeatures, load_textures, to_onnx
from skdeepfeat._images.decoding import Pixels
from skdeepfeat._images.recipe import prepare


def test_a_file_predicts_as_the_pipeline(tmp_path):
    textures = load_textures()
    model = make_pipeline(
        PretrainedCNNFeatures(), StandardScaler(), LogisticRegression()
    )
    model.fit(textures.data[::4], textures.target[::4])
    X = textures.data[1::7]
    to_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    spec = model[0]._source().input
    images = np.stack(
        [prepare(Pixels(Image.fromarray(x).convert("RGB"), True), spec) for x in X]
    )
    label, probabilities = session.run(None, {"images": images})
    np.testing.assert_array_equal(label, model.predict(X))
    np.testing.assert_allclose(probabilities, model.predict_proba(X), atol=1e-4)
