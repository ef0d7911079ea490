"""The script and the service of the guide need neither torch nor scikit-learn."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from test_docs import _make_photos
from test_servers import post, running

from skdeepfeat import PretrainedCNNFeatures, load_image_folder, to_onnx

for name in ("onnx", "onnxscript", "skl2onnx", "onnxruntime"):
    pytest.importorskip(name)

SCRIPTS = Path(__file__).parents[2] / "docs" / "scripts"
# Run before anything else in a process, by its own import of modules.
REFUSE = """
import sys
for name in ("torch", "torchvision", "sklearn", "skdeepfeat", "onnx", "skl2onnx"):
    sys.modules[name] = None
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with photos, a model, and a guard against heavy imports."""
    folder = tmp_path_factory.mktemp("exported")
    _make_photos(folder / "photos")
    photos = load_image_folder(folder / "photos")
    model = make_pipeline(PretrainedCNNFeatures(layer="block2"), LogisticRegression())
    model.fit(photos.data, photos.target)
    to_onnx(model, folder / "model.onnx", X=photos.data, resize=True)
    (folder / "sitecustomize.py").write_text(REFUSE)
    for script in SCRIPTS.glob("*.py"):
        shutil.copy(script, folder)
    return folder, model, photos.data


def environment(folder):
    return os.environ | {"PYTHONPATH": str(folder)}


def test_the_script_classifies_photos(exported):
    folder, model, paths = exported
    command = [sys.executable, "predict_onnx.py", "model.onnx", *paths[::5]]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    expected = model.predict_proba(paths[::5])
    assert [line[0] for line in lines] == list(paths[::5])
    assert [int(line[1]) for line in lines] == expected.argmax(1).tolist()
    found = np.array([float(line[2]) for line in lines])
    np.testing.assert_allclose(found, expected.max(1), atol=1e-3)


def test_the_service_classifies_uploads(exported):
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    folder, model, paths = exported
    with running("serve_onnx:app", folder, environment(folder)) as address:
        status, answer = post(address, Path(paths[0]).read_bytes())
        expected = model.predict_proba(paths[:1])[0]
        assert status == 200 and list(answer) == ["0", "1"]
        np.testing.assert_allclose(list(answer.values()), expected, atol=1e-3)
        assert post(address, b"no photo") == (422, {"detail": "not a photo"})


@pytest.mark.parametrize("name, most", [("predict_onnx", 15), ("serve_onnx", 20)])
def test_scripts_are_short(name, most):
    code = (SCRIPTS / f"{name}.py").read_text().splitlines()[1:]
    assert len([line for line in code if line]) <= most


def test_metadata_are_json(exported):
    import onnx

    about = onnx.load(exported[0] / "model.onnx").metadata_props
    assert json.loads(next(p.value for p in about if p.key == "classes")) == [0, 1]
