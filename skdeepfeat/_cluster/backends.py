"""Which of joblib's backends are clusters, and what differs between them."""

from collections.abc import Callable
from typing import NamedTuple


def _in_dask_task() -> bool:
    from distributed import get_worker

    try:
        return get_worker() is not None
    except ValueError:
        return False


def _in_ray_task() -> bool:
    import ray

    if not ray.is_initialized():
        return False
    return ray.get_runtime_context().worker.mode == ray.WORKER_MODE


def _in_spark_task() -> bool:
    from pyspark import TaskContext

    return TaskContext.get() is not None


class Backend(NamedTuple):
    """A backend of joblib that runs tasks on other machines.

    Parameters
    ----------
    return_as : str
        How it can return results: as they arrive, or all at once.
    seconds : float
        Of work in one call, at whose end all workers wait. If results come all at once,
        this is also what is lost if a worker dies.
    is_inside : callable
        Whether this runs inside one of its tasks, where nothing is spread.
    """

    return_as: str
    seconds: float
    is_inside: Callable[[], bool]


# By the name of its class, since no public attribute of a backend says that it is one.
BACKENDS = {
    "DaskDistributedBackend": Backend("generator_unordered", 30, _in_dask_task),
    "RayBackend": Backend("list", 20, _in_ray_task),
    "SparkDistributedBackend": Backend("list", 20, _in_spark_task),
}
