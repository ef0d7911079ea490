"""The service of the guide answers many clients at once, each with its own photo."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import joblib
import numpy as np
import pytest
from test_docs import ROOT, _make_photos

from skdeepfeat import load_image_folder

PAGE = ROOT / "docs" / "guide" / "servers.md"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def running(app, folder, env=None):
    """An app in a file of a folder, run by uvicorn; gives its address."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(port)]
    process = subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, process.stderr.read().decode()
            try:
                urllib.request.urlopen(f"{address}/openapi.json")
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.communicate(timeout=600)


@pytest.fixture
def service(tmp_path):
    """The page's own code, run by uvicorn; gives its address and folder."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "service.py").write_text(code)
    _make_photos(tmp_path / "photos")
    with running("service:app", tmp_path) as address:
        yield address, tmp_path


def post(address, content):
    """Upload a file as a browser does; gives the status and the answer."""
    head = (
        "--edge\r\n"
        'Content-Disposition: form-data; name="photo"; filename="photo.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    request = urllib.request.Request(
        f"{address}/classify",
        head.encode() + content + b"\r\n--edge--\r\n",
        {"Content-Type": "multipart/form-data; boundary=edge"},
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_eight_clients_at_once_get_their_own_answers(service):
    address, folder = service
    photos = load_image_folder(folder / "photos")
    model = joblib.load(folder / "model.joblib")
    expected = model.predict_proba(photos.data)
    contents = [Path(path).read_bytes() for path in photos.data]
    rows = np.random.default_rng(0).permutation(4 * list(range(len(contents))))
    with ThreadPoolExecutor(8) as clients:
        answers = clients.map(lambda row: post(address, contents[row]), rows)
        for row, (status, answer) in zip(rows, answers, strict=True):
            assert status == 200
            found = [answer[name] for name in photos.target_names]
            np.testing.assert_allclose(found, expected[row], atol=1e-5)


def test_an_upload_that_is_not_a_photo_is_a_client_error(service):
    address, _ = service
    for content, reason in ((b"", "empty"), (b"%!PS-Adobe", "PostScript")):
        status, answer = post(address, content)
        assert status == 422 and reason in answer["error"]
