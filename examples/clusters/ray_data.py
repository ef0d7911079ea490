"""Files read by Ray Data → features in a folder of Parquet files."""

import ray

from skdeepfeat import PretrainedCNNFeatures


class AddFeatures:
    """Runs in an actor, which keeps the network."""

    def __init__(self, store):
        self.features = PretrainedCNNFeatures(cache=store)

    def __call__(self, batch):
        rows = self.features.transform(list(batch["bytes"]))
        return {"path": batch["path"], "features": rows}


if __name__ == "__main__":
    ray.init(num_cpus=3)
    files = ray.data.read_binary_files("photos", include_paths=True)
    table = files.map_batches(
        AddFeatures,
        fn_constructor_args=("/tmp/features.store",),
        compute=ray.data.ActorPoolStrategy(size=2),
        batch_size=64,
    )
    table.write_parquet("features.parquet")
