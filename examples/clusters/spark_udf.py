"""Paths in a Spark dataframe → features in a Parquet folder."""

from collections.abc import Iterator

import pandas as pd
from pyspark.sql import SparkSession
from pyspark.sql.functions import pandas_udf
from pyspark.sql.types import ArrayType, FloatType

from skdeepfeat import PretrainedCNNFeatures, load_image_folder


@pandas_udf(ArrayType(FloatType()))
def features_of(parts: Iterator[pd.Series]) -> Iterator[pd.Series]:
    """Runs in an executor; a store lets the next run continue."""
    features = PretrainedCNNFeatures(cache="/tmp/features.store")
    for paths in parts:
        yield pd.Series(list(features.transform(paths)))


if __name__ == "__main__":
    spark = SparkSession.builder.master("local[2]").getOrCreate()
    photos = pd.DataFrame({"path": load_image_folder("photos").data})
    table = spark.createDataFrame(photos)
    table = table.withColumn("features", features_of("path"))
    table.write.mode("overwrite").parquet("features.parquet")
    spark.stop()
