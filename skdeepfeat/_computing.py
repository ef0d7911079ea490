"""Missing rows → computed rows: in this process, or in a worker for another one."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import chain
from typing import Any, Protocol

from ._clock import Clock
from ._engines.devices import names_of_gpus, resolve_devices
from ._engines.running import Engine
from ._plan import Plan
from ._store.base import Computed, Table
from ._store.columns import Columns
from ._store.rows import Inputs, Rows, Window


class Place(Protocol):
    """Where one call computes; a context that frees what it took there."""

    def take(self, inputs: Any) -> Inputs:
        """The rows of X as this place identifies them."""

    def compute(
        self, window: Any, rows: Rows, table: Table, clock: Clock
    ) -> Iterator[Computed]:
        """Features of the missing rows that no other call is computing.

        The window is one of the inputs that `take` returned.
        """

    def __enter__(self): ...

    def __exit__(self, *exception): ...


class Here(nullcontext):
    """This process.

    Parameters
    ----------
    plan : Plan
    """

    def __init__(self, plan: Plan):
        super().__init__()
        self._plan = plan

    def take(self, inputs: Inputs) -> Inputs:
        """The rows of X; their files are read and hashed here."""
        return inputs

    def compute(
        self, window: Window, rows: Rows, table: Table, clock: Clock
    ) -> Iterator[Computed]:
        """Features of the missing rows that no other call is computing, in batches."""
        with table.use_gpus(lambda: names_of_gpus(resolve_devices(self._plan.device))):
            claimed = rows.claim()
            first = next(claimed, None)
            if first is None:
                return  # other calls compute all of them, so no network is built
            single = len(rows.missing) == 1
            claimed = chain([first], claimed)
            yield from run(self._plan, rows.columns, window, claimed, single, clock)


def run(
    plan: Plan,
    columns: Columns,
    window: Any,
    rows: Iterable[int],
    single: bool,
    clock: Clock,
) -> Iterator[Computed]:
    """Features of rows, in batches; a `single` one is computed alone, for latency."""
    with clock.measure("building"):
        batch_size = 1 if single else plan.batch_size
        engine = Engine(
            plan.pooled_for(columns),
            resolve_devices(plan.device),
            plan.precision,
            batch_size,
            plan.engine,
        )
    yield from engine.run(window, rows, plan.reading, clock)
