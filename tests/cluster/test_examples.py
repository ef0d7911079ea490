"""Each example of partitioned data runs on a real cluster."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from skdeepfeat import FeatureStore, PretrainedCNNFeatures

FOLDER = Path(__file__).parents[2] / "examples" / "clusters"
NEEDS = {
    "dask_dataframe": "dask.dataframe",
    "ray_data": "ray.data",
    "spark_udf": "pyspark",
}
RUNS = {"dask_dataframe": 2}  # the second one only reads

pytestmark = pytest.mark.slow  # each starts a cluster
pytest_plugins = ["cluster_fixtures"]


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_writes_the_features_of_one_process(name, files, alone, tmp_path):
    pytest.importorskip(NEEDS[name])
    if name == "spark_udf" and not shutil.which("java"):
        pytest.skip("Spark needs Java")
    photos, store = tmp_path / "photos" / "all", tmp_path / "features.store"
    photos.mkdir(parents=True)
    paths = [shutil.copy(path, photos) for path in files[:8]]
    text = (FOLDER / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 30
    script = tmp_path / f"{name}.py"
    script.write_text(text.replace("/tmp/features.store", str(store)))
    for _ in range(RUNS.get(name, 1)):
        run(script)
        assert FeatureStore(store).info()["misses"] == len(paths)
    table = pq.read_table(tmp_path / "features.parquet").to_pylist()
    found = {Path(row["path"]).name: row["features"] for row in table}
    rows = [found[Path(path).name] for path in paths]
    expected = PretrainedCNNFeatures(cache=None).transform(paths)
    np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-4)  # another engine


def run(script):
    """Run a script with one thread, in its folder."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, script]
    subprocess.run(command, cwd=script.parent, env=environment, check=True, timeout=600)
