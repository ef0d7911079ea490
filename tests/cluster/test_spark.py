"""Rows are spread over the executors of a real, local Spark."""

import shutil
import warnings

import joblib
import numpy as np
import pytest

pyspark = pytest.importorskip("pyspark")
joblibspark = pytest.importorskip("joblibspark")

pytest_plugins = ["cluster_fixtures"]
pytestmark = [
    pytest.mark.slow,  # starts Java
    pytest.mark.skipif(not shutil.which("java"), reason="Spark needs Java"),
    pytest.mark.filterwarnings("ignore"),  # of Spark
]


@pytest.fixture(scope="module")
def spark():
    from pyspark.sql import SparkSession

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session = SparkSession.builder.master("local[2]").getOrCreate()
        joblibspark.register_spark()
        yield session
        session.stop()


def test_rows_equal_those_of_one_process_in_order(spark, features, files, alone):
    with joblib.parallel_config(backend="spark"):
        rows = features.transform(files)
    np.testing.assert_allclose(rows, alone, rtol=1e-6)
    assert features.cache.info()["misses"] == len(files)


def test_nothing_is_spread_inside_a_task(spark):
    def inside(number):
        from skdeepfeat._cluster.backends import BACKENDS

        return BACKENDS["SparkDistributedBackend"].is_inside()

    assert spark.sparkContext.parallelize([1], 1).map(inside).collect() == [True]
    assert not inside(0)
