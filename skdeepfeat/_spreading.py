"""Missing rows → computed rows, on the cluster that joblib's context names.

The caller keeps the store and sends chunks of rows; workers read, hash and compute
them. Work goes out through ``joblib.Parallel`` alone, so that any backend which joblib
knows can run it.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from joblib import Parallel, cpu_count, delayed, effective_n_jobs, parallel_config
from joblib.parallel import get_active_backend

from ._clock import Clock
from ._computing import Here, Place, run
from ._digests import learn_digest
from ._exceptions import ConversionError, ImageError, WorkerError, in_one_line
from ._images.cells import Cell
from ._images.references import File, Reference
from ._images.unread import SentImages, UnreadImages
from ._images.windows import Images, Window
from ._plan import Plan
from ._store.base import Computed, Table
from ._store.columns import Columns
from ._store.rows import Rows

FIRST_ROWS = 16  # of a chunk, before it is known how long rows take
MOST_ROWS = 512  # of a chunk
CHUNK_SECONDS = 2.0  # of work in a chunk
WINDOW_SECONDS = 30.0  # of work in a window, at whose end all workers wait
MOST_IN_WINDOW = 50_000  # rows
MOST_BYTES = 2**28  # of results that may wait for the caller
FAILURES = 3  # rounds that may fail


# Which backends are clusters --------------------------------------------------------


def _in_dask_task() -> bool:
    from distributed import get_worker

    try:
        return get_worker() is not None
    except ValueError:
        return False


def _in_ray_task() -> bool:
    import ray

    inside = ray.is_initialized() and ray.get_runtime_context()
    return bool(inside) and inside.worker.mode == ray.WORKER_MODE


def _in_spark_task() -> bool:
    from pyspark import TaskContext

    return TaskContext.get() is not None


class Backend(NamedTuple):
    """A backend of joblib that runs tasks on other machines.

    Parameters
    ----------
    return_as : str
        How it can return results: as they arrive, or all at once.
    is_inside : callable
        Whether this runs inside one of its tasks, where nothing is spread.
    """

    return_as: str
    is_inside: Callable[[], bool]


# By the name of its class: no public attribute of a backend says that it is one.
BACKENDS = {
    "DaskDistributedBackend": Backend("generator_unordered", _in_dask_task),
    "RayBackend": Backend("list", _in_ray_task),
    "SparkDistributedBackend": Backend("list", _in_spark_task),
}


def place_to_compute(plan: Plan) -> Place:
    """The cluster of joblib's context, or this process."""
    active, n_jobs = get_active_backend()
    backend = BACKENDS.get(type(active).__name__)
    if backend is None or backend.is_inside():
        return Here(plan)
    return Cluster(plan, backend, n_jobs)


# Workers ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """What a worker returns for one chunk.

    Parameters
    ----------
    host : str
    keys : dict of int to bytes
        Row → key of its content, for rows that could be read.
    states : dict of int to (str, str)
        Row → name and state of its file.
    computed : Computed
        Of distinct rows, and the errors of all.
    seconds : float
        How long it took.
    """

    host: str
    keys: dict[int, bytes]
    states: dict[int, tuple[str, str]]
    computed: Computed
    seconds: float


def compute_chunk(plan: Plan, columns: Columns, cells: Sequence[Cell]) -> "Reply | Any":
    """Run by workers: the features of some rows, or an exception as a value."""
    host, started = socket.gethostname(), time.perf_counter()
    try:
        plan = replace(plan, n_jobs=plan.n_jobs or _threads_of_worker())
        with parallel_config(backend="threading", n_jobs=plan.n_jobs):
            keys, states, computed = _read_and_run(plan, columns, SentImages(cells))
    except ConversionError as error:
        return error
    except Exception as error:
        return WorkerError(f"The worker on host {host!r} failed: {in_one_line(error)}")
    return Reply(host, keys, states, computed, time.perf_counter() - started)


def _threads_of_worker() -> int:
    """Clusters limit the threads of a worker in this way."""
    return int(os.environ.get("OMP_NUM_THREADS") or cpu_count())


def _read_and_run(plan: Plan, columns: Columns, images: SentImages):
    """Keys, files and features of these rows."""
    keys: dict[int, bytes] = {}
    states: dict[int, tuple[str, str]] = {}
    parts: list[Computed] = []
    errors: list[ImageError] = []
    distinct: dict[bytes, int] = {}
    for window in images.windows(lambda names: None, plan.n_jobs, plan.rescaled):
        for row, key in window.keys.items():
            if isinstance(key, ImageError):
                errors.append(key)
                continue
            keys[row] = key
            distinct.setdefault(key, row)
            if file := window.hashed(row).file:
                states[row] = file[:2]
        mine = [row for row in distinct.values() if row in window.keys]
        if mine:
            parts += run(plan, columns, window, mine, False, Clock())
        window.forget()
    return keys, states, _joined(columns, parts, errors)


def _joined(columns: Columns, parts: list[Computed], errors) -> Computed:
    """All batches of a chunk, and the errors of rows that could not be hashed."""
    features = {
        column.pooled: np.concatenate(
            [np.empty((0, column.width), np.float32)]
            + [part.features[column.pooled] for part in parts]
        )
        for column in columns.stored
    }
    lists: dict[str, list] = {
        name: [value for part in parts for value in getattr(part, name)]
        for name in ("rows", "errors", "in_range", "sources")
    }
    lists["errors"] += errors
    return Computed(features=features, **lists)


# The caller -------------------------------------------------------------------------


class Cluster(ExitStack):
    """The workers of the cluster that joblib's context names.

    Parameters
    ----------
    plan : Plan
    backend : Backend
    n_jobs : int
        Of joblib's context; 1, the default of some backends, means all.
    """

    def __init__(self, plan: Plan, backend: Backend, n_jobs: int):
        super().__init__()
        self._plan, self._backend = plan, backend
        self._n_jobs = -1 if n_jobs == 1 else n_jobs
        self._row_seconds = 0.0  # how long a worker takes for a row; 0 if unknown
        self._parallel: Any = None
        self._n_failed = 0

    def take(self, images: Images) -> Images:
        """The rows of X; unknown files are not read here."""
        return UnreadImages(images, self._rows_held)

    def _rows_held(self) -> int:
        """Rows in the next window."""
        rate = 1 / self._row_seconds if self._row_seconds else FIRST_ROWS
        n_jobs = effective_n_jobs(self._n_jobs)
        at_most = MOST_BYTES // self._plan.columns.row_bytes
        return int(min(MOST_IN_WINDOW, at_most, n_jobs * rate * WINDOW_SECONDS) + 1)

    def compute(
        self, window: Window, rows: Rows, table: Table, clock: Clock
    ) -> Iterator[Computed]:
        """Features of the missing rows that no other call is computing, in chunks."""
        claimed = list(rows.claim())
        cells = [window.hashed(row).cell for row in claimed]
        tasks = (
            delayed(compute_chunk)(self._plan, rows.columns, chunk)
            for chunk in self._chunks(cells)
        )
        replies = self._replies(tasks)
        for reply in clock.each(replies, "workers"):
            if isinstance(reply, Exception):
                raise reply
            yield self._accept(reply, window, rows)

    def _chunks(self, cells: list[Cell]) -> Iterator[list[Cell]]:
        """Rows for one task each, fewer towards the end, so that all end together."""
        n_jobs, start = effective_n_jobs(self._n_jobs), 0
        while start < len(cells):
            share = (len(cells) - start) // (2 * n_jobs)
            enough = CHUNK_SECONDS / self._row_seconds if self._row_seconds else 0
            size = int(max(FIRST_ROWS, min(share, enough, MOST_ROWS)))
            yield cells[start : start + size]
            start += size

    def _replies(self, tasks) -> Iterator[Any]:
        """What the workers return, as it arrives."""
        if self._parallel is None:
            parallel = Parallel(
                self._n_jobs, return_as=self._backend.return_as, batch_size=1
            )
            self._parallel = self.enter_context(parallel)
        return self._parallel(tasks)

    def _accept(self, reply: Reply, window: Window, rows: Rows) -> Computed:
        """A reply, without rows whose files are other ones here."""
        computed = reply.computed
        n = max(1, len(reply.keys))
        self._row_seconds = reply.seconds / n
        cells = {row: window.hashed(row).cell for row in reply.keys}
        is_read = {row: isinstance(cells[row].held, Reference) for row in cells}
        keys = {row: key for row, key in reply.keys.items() if is_read[row]}
        files, errors = (
            [],
            [self._located(e, window, reply.host) for e in computed.errors],
        )
        for row in keys:
            if row in reply.states:
                known, error = self._compare(row, cells[row], reply, keys[row])
                files += known
                errors += error
        rows.identify(keys, files, computed.rows)
        return replace(computed, errors=errors)

    def _located(self, error: ImageError, window: Window, host: str) -> ImageError:
        """The error of a file, with the host which could not read it."""
        if not isinstance(window.hashed(error.row).cell.held, Reference):
            return error
        reason = f"{error.reason} (on host {host!r})"
        return ImageError(error.row, error.source, reason)

    def _compare(self, row: int, cell: Cell, reply: Reply, key: bytes):
        """The file to remember, or the error that it is another one here."""
        name, there = reply.states[row]
        if not isinstance(cell.held, File):
            return [(name, there, key)], []
        try:
            here = cell.held.state()
        except (OSError, ValueError):
            return [], []  # not visible here
        if _size_and_time(here) != _size_and_time(there):
            reason = (
                f"the worker on host {reply.host!r} read another file than the one of "
                "this path here; it was changed meanwhile, or the hosts have different "
                "disks"
            )
            return [], [ImageError(row, cell.source, reason)]
        learn_digest(name, here, key)
        return [(name, here, key)], []


def _size_and_time(state: str) -> list[str]:
    return state.split()[1:3]
