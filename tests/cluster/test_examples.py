"""Each example of partitioned data runs on a real cluster, and again from its store."""

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
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, check=True, timeout=120
    )
    table = pq.read_table(tmp_path / "features.parquet").to_pylist()
    found = {Path(row["path"]).name: row["features"] for row in table}
    rows = [found[Path(path).name] for path in paths]
    features = PretrainedCNNFeatures(cache=store)
    np.testing.assert_allclose(rows, features.transform(paths), rtol=1e-5, atol=1e-6)
    assert FeatureStore(store).info()["misses"] == len(paths)
