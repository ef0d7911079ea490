"""Paths in a Dask dataframe → features in a folder of Parquet files."""

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
from distributed import Client

from skdeepfeat import PretrainedCNNFeatures, load_image_folder


def add_features(part):
    """Runs in a worker; a store lets the next run continue."""
    features = PretrainedCNNFeatures(cache="/tmp/features.store")
    return part.assign(features=list(features.transform(part["path"])))


if __name__ == "__main__":
    photos = pd.DataFrame({"path": load_image_folder("photos").data})
    types = {"path": pa.string(), "features": pa.list_(pa.float32())}
    options = {"schema": pa.schema(types), "write_index": False}
    with Client(n_workers=2, threads_per_worker=1):
        table = dd.from_pandas(photos, npartitions=4).map_partitions(
            add_features, meta={"path": "string", "features": object}
        )
        table.to_parquet("features.parquet", **options)
