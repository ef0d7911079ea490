"""Missing rows → computed rows, on the cluster that joblib's context names.

The caller keeps the store and sends chunks of rows; workers read, hash and compute
them. Work goes out through ``joblib.Parallel`` alone, so that joblib's backends decide
how it is scheduled and serialised.
"""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import get_active_backend

from .._clock import Clock
from .._computing import Here, Place
from .._exceptions import (
    ImageError,
    ImageWarning,
    RowError,
    WorkerError,
    in_one_line,
    warn_user,
)
from .._images.cells import Cell
from .._images.unread import UnreadImages, UnreadWindow
from .._images.windows import Images
from .._plan import Plan
from .._store.base import Computed, Table
from .._store.rows import Rows
from .backends import BACKENDS, Backend
from .working import Order, Reply, carry_out, empty

FIRST_ROWS = 16  # of a chunk, before it is known how long rows take
CHUNK_SECONDS = 2.0  # of work in a chunk
CHUNK_BYTES = 2**26  # of results of a chunk
WINDOW_BYTES = 2**28  # of results that may wait for the caller
WINDOW_ROWS = 50_000
FAILURES = 3  # rounds in a row that may fail without any result
RESTART_SECONDS = 10  # that a dead worker is given to start again
MUCH = 2**30  # bytes of images in memory to send

SENDS_MUCH = (
    "More than 1 GB of images in memory are sent to the workers of the cluster. Pass "
    "paths or URLs instead, which the workers can read themselves."
)
BROKEN = (
    "The workers of the cluster failed {} times in a row without any result. The last "
    "error is {}. Check that they run, have enough memory, and have skdeepfeat "
    "installed. What has been computed is stored: call again to continue."
)


def place_to_compute(plan: Plan) -> Place:
    """The cluster of joblib's context, or this process."""
    active, n_jobs = get_active_backend()
    backend = BACKENDS.get(type(active).__name__)
    if backend is None or backend.is_inside() or not plan.reading.spreads:
        return Here(plan)
    return Cluster(plan, backend, n_jobs)


class _Cancelled(Exception):
    """Tells joblib that its results are not needed."""


class Cluster(ExitStack):
    """The workers of the cluster that joblib's context names.

    Parameters
    ----------
    plan : Plan
    backend : Backend
    n_jobs : int or None
        Of joblib's context. None and 1, the defaults of backends, mean all workers.
    """

    def __init__(self, plan: Plan, backend: Backend, n_jobs: int | None):
        super().__init__()
        self._plan, self._backend = plan, backend
        self._n_jobs = -1 if n_jobs in (None, 1) else n_jobs
        self._unit = plan.batch_rows
        self._row_bytes = plan.columns.row_bytes
        self._row_seconds = 0.0  # that a worker takes for a row; 0 if unknown
        self._parallel: Any = None
        self._results: Any = None
        self._n_workers = 1  # a guess, until the first chunk is sent
        self._n_failed = self._n_bytes = 0

    def take(self, images: Images) -> UnreadImages:
        """The rows of X; unknown files are not read here."""
        return UnreadImages(images, self._rows_of_window)

    def compute(
        self, window: UnreadWindow, rows: Rows, table: Table, clock: Clock
    ) -> Iterator[Computed]:
        """Features of the missing rows that no other call is computing, in chunks."""
        cells, errors = self._to_send(window, list(rows.claim()))
        if errors:
            yield empty(rows.columns, errors)
        self._start()
        task, order, columns = delayed(carry_out), self._order, rows.columns
        tasks = (task(order, columns, some) for some in self._chunks(cells))
        for reply in clock.each(self._replies(tasks), "workers"):
            yield self._accept(reply, window, rows)

    @cached_property
    def _order(self) -> Order:
        return Order.of(self._plan)

    # Rows that go out ---------------------------------------------------------------

    def _rows_of_window(self) -> int:
        """How many rows the next window takes, so that it ends after some time."""
        most = WINDOW_BYTES // self._row_bytes
        rows = self._n_workers * self._backend.seconds * self._rate
        return int(max(self._unit, min(rows, most, WINDOW_ROWS)))

    @property
    def _rate(self) -> float:
        """Rows that a worker computes in a second; a guess at first."""
        return 1 / self._row_seconds if self._row_seconds else FIRST_ROWS

    def _to_send(self, window: UnreadWindow, rows: list[int]):
        """The cells of rows as they are sent, and errors of those that cannot be."""
        cells: list[Cell] = []
        errors: list[RowError] = []
        for row in rows:
            try:
                cells.append(window.send(row))
            except ImageError as error:
                errors.append(error)
        self._note_size(sum(cell.n_bytes for cell in cells))
        return cells, errors

    def _note_size(self, n_bytes: int) -> None:
        """Warn once that much is sent."""
        if self._n_bytes <= MUCH < self._n_bytes + n_bytes:
            warn_user(SENDS_MUCH, ImageWarning)
        self._n_bytes += n_bytes

    def _chunks(self, cells: list[Cell]) -> Iterator[list[Cell]]:
        """Rows for one task each, fewer towards the end, so that all end together."""
        start, most = 0, CHUNK_BYTES // self._row_bytes
        while start < len(cells):
            share = (len(cells) - start) / (2 * self._n_workers)
            enough = CHUNK_SECONDS * self._rate if self._row_seconds else FIRST_ROWS
            size = max(FIRST_ROWS, min(share, enough, most))
            stop = start + math.ceil(size / self._unit) * self._unit
            yield cells[start:stop]
            start = stop

    # Replies that come in -----------------------------------------------------------

    def _replies(self, tasks) -> Iterator[Reply]:
        """What the workers return, as it arrives, until all is done or some fail."""
        try:
            self._results = self._parallel(tasks)
            for reply in self._results:
                if isinstance(reply, Reply):
                    self._n_failed = 0
                yield reply
        except Exception as error:  # of the cluster: workers return theirs
            self._note_failure(error)

    def _start(self) -> None:
        """Start the workers of a backend that starts them itself, for the whole call.

        They are counted here, because other threads have another context of joblib.
        """
        if self._parallel is None:
            how = {"return_as": self._backend.return_as, "batch_size": 1}
            self._parallel = self.enter_context(Parallel(self._n_jobs, **how))
            self.callback(self._cancel)
        self._n_workers = effective_n_jobs(self._n_jobs)

    def _cancel(self) -> None:
        """Cancel what has been sent; joblib warns if its generator is just dropped."""
        if hasattr(self._results, "throw"):
            with suppress(_Cancelled):
                self._results.throw(_Cancelled())

    def _note_failure(self, error: Exception) -> None:
        """Leave the missing rows to the next round, unless too many rounds failed."""
        self._n_failed += 1
        if self._n_failed > FAILURES:
            message = BROKEN.format(self._n_failed, in_one_line(error))
            raise WorkerError(message) from error
        self.close()  # a pool with a dead worker
        self._parallel = None
        self._await_workers()

    def _await_workers(self) -> None:
        """Let workers start again: joblib computes here if there is only one."""
        started = time.monotonic()
        while effective_n_jobs(self._n_jobs) < self._n_workers:
            if time.monotonic() - started > RESTART_SECONDS:
                return
            time.sleep(0.1)

    def _accept(self, reply, window: UnreadWindow, rows: Rows) -> Computed:
        """A reply, without rows whose files differ from those here."""
        if not isinstance(reply, Reply):
            raise reply
        self._row_seconds = reply.seconds / max(1, len(reply.keys))
        keys = {row: key for row, key in reply.keys.items() if window.is_unread(row)}
        errors = [window.located(e, reply.host) for e in reply.computed.errors]
        files: list = []
        for row, state in reply.states.items():
            try:
                files += window.accept(row, state, keys[row], reply.host)
            except ImageError as error:
                errors.append(error)
        done = {*reply.computed.rows, *(error.row for error in errors)}
        rows.identify(keys, done)
        return replace(reply.take(), errors=errors, files=files)
