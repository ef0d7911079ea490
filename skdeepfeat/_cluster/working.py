"""What a worker of a cluster does: chunks of rows → their features."""

import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from joblib import cpu_count, parallel_config

from .._caches import SharedCache
from .._clock import Clock
from .._computing import run
from .._exceptions import ConversionError, RowError, WorkerError, in_one_line
from .._images.cells import Cell
from .._images.unread import SentImages
from .._images.windows import Window
from .._plan import Plan, computation_here
from .._processes import threads_of_openmp
from .._store.base import Computed
from .._store.columns import Columns

PACKAGES = ("skdeepfeat", "torch", "torchvision", "timm", "openvino", "pillow")

SHARED_BYTES = 2**20  # of weights that are sent once to each worker

CANNOT = "The worker on host {!r} cannot compute this: {}."
COMPUTES_OTHERS = (
    "its features would differ from those of the caller's process, because "
)
VERSION = "{} is {} there and {} here; install the same version"
SETTING = "{} is {} there and {} here; set it to the same value"
NO_DESCRIPTION = (
    "the network is a different one there, and only its code identifies it ({}); "
    "install the same code there, or set Backbone.from_module(..., version='1')"
)
SOMETHING = (
    "the weights or the decoders of images differ; install the same packages, and give "
    "both the same files of weights"
)
INSTALL = "install there what is installed here"
USUAL = "as usual"  # a setting that has its default

# Plans that this process carries out, by token: networks of the user's own are
# unpacked, checked and identified once.
_accepted = SharedCache(4)


@dataclass(frozen=True)
class Order:
    """A plan for workers.

    Parameters
    ----------
    plan : Plan
        With the class of devices instead of devices of the caller.
    token : bytes
        The same for all chunks of a call.
    computation : bytes
        Digest of what the caller expects to be computed.
    versions : dict of str to str
        Of the packages that compute.
    settings : dict of str to str
        Of the caller's process, that decide what is read.
    """

    plan: Plan
    token: bytes
    computation: bytes
    versions: dict[str, str]
    settings: dict[str, str]

    @classmethod
    def of(cls, plan: Plan) -> "Order":
        """The order of a call."""
        plan = replace(plan, device=plan.device_class)
        about = computation_here(plan), _versions(), plan.reading.settings
        return cls(plan, secrets.token_bytes(16), *about)

    def __sizeof__(self):
        """Dask decides by it which arguments each worker is sent only once.

        A small one is sent with each chunk: if the worker that holds a shared one is
        killed, all chunks have to be sent again.
        """
        arrays = self.plan.pooled.source.backbone.arrays or {}
        n_bytes = sum(array.nbytes for array in arrays.values())
        return n_bytes if n_bytes > SHARED_BYTES else 0

    def accepted(self) -> Plan:
        """The plan, if this process computes the same as the caller."""
        return _accepted.get(self.token, self._check)

    def _check(self) -> Plan:
        same_settings = self.plan.reading.settings == self.settings
        if computation_here(self.plan) != self.computation or not same_settings:
            raise ValueError(COMPUTES_OTHERS + self._difference())
        reading = self.plan.reading.in_worker(_n_threads())
        return replace(self.plan, reading=reading)

    def _difference(self) -> str:
        """What differs from the caller's process, in words, and what to do."""
        settings = self.plan.reading.settings
        found = [
            *self._versions_that_differ(),
            *_differences(SETTING, settings, self.settings, USUAL),
        ]
        obstacle = self.plan.obstacle
        other = NO_DESCRIPTION.format(obstacle) if obstacle else SOMETHING
        return "; ".join(found) or other

    def to_install(self) -> str:
        """What to install where something cannot be imported."""
        return "; ".join(self._versions_that_differ()) or INSTALL

    def _versions_that_differ(self) -> list[str]:
        return _differences(VERSION, _versions(), self.versions, "absent")


def _differences(words: str, there: dict, here: dict, absent: str) -> list[str]:
    """What differs between two processes, in words."""
    pairs = {
        name: (there.get(name, absent), here.get(name, absent))
        for name in sorted(there.keys() | here.keys())
    }
    return [
        words.format(name, *pair) for name, pair in pairs.items() if pair[0] != pair[1]
    ]


def _versions() -> dict[str, str]:
    """Versions of the packages that compute, if they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _n_threads() -> int:
    """Threads that a worker may use: clusters set OMP_NUM_THREADS for each worker."""
    return threads_of_openmp() or cpu_count()


@dataclass(frozen=True)
class Reply:
    """What a worker returns for one chunk.

    Parameters
    ----------
    host : str
    keys : dict of int to bytes
        Row → key of its content, of rows that could be read.
    states : dict of int to str
        Row → state of its file, if it has one.
    computed : Computed
        Of distinct rows, and the errors of all.
    seconds : float
        How long it took, without building the network.
    """

    host: str
    keys: dict[int, bytes]
    states: dict[int, str]
    computed: Computed
    seconds: float

    def take(self) -> Computed:
        """What was computed; this reply no longer holds it.

        joblib's futures of Dask refer to themselves and to this reply, so that it would
        stay in memory until the garbage collector finds it.
        """
        taken = replace(self.computed, features=dict(self.computed.features))
        for held in (self.computed.features, self.keys, self.states):
            held.clear()
        return taken


def carry_out(
    order: Order, columns: Columns, cells: Sequence[Cell]
) -> Reply | Exception:
    """Compute some rows in a worker; what goes wrong is returned, not raised.

    So an exception that the caller catches is one of the cluster.
    """
    host = socket.gethostname()
    try:
        with parallel_config(backend="threading"):
            return _compute(order.accepted(), columns, SentImages(cells), host)
    except ConversionError as error:
        return _alone(error)
    except ImportError as error:
        reason = f"{in_one_line(error)}; {order.to_install()}"
        return WorkerError(CANNOT.format(host, reason))
    except Exception as error:
        return WorkerError(CANNOT.format(host, in_one_line(error)))


def _alone(error: Exception) -> Exception:
    """An error without those behind it, which need not survive being sent.

    Clusters may also pickle causes and tracebacks. Its message says the same.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _compute(plan: Plan, columns: Columns, images: SentImages, host: str) -> Reply:
    """Read, hash and compute the distinct rows of a chunk."""
    keys: dict[int, bytes] = {}
    states: dict[int, str] = {}
    seen: set[bytes] = set()
    parts: list[Computed] = []
    clock = Clock()
    for window in plan.reading.windows(images, lambda names: None):
        read, errors = _sorted_out(window)
        keys |= read
        states |= {row: file[1] for row in read if (file := window.file_of(row))}
        first = {key: row for row, key in reversed(read.items()) if key not in seen}
        seen |= first.keys()
        parts.append(empty(columns, errors))
        if first:
            rows = sorted(first.values())
            parts += run(plan, columns, window, rows, False, clock)
        window.forget()
    seconds = clock.total - clock.seconds["building"]
    return Reply(host, keys, states, _joined(parts), seconds)


def _sorted_out(window: Window) -> tuple[dict[int, bytes], list[RowError]]:
    """Keys of the rows that could be read, and errors of the others."""
    keys = {row: k for row, k in window.keys.items() if isinstance(k, bytes)}
    errors: list[RowError] = [
        k for k in window.keys.values() if isinstance(k, RowError)
    ]
    return keys, errors


def empty(columns: Columns, errors: list[RowError]) -> Computed:
    """The errors of some rows, and no features."""
    features = {c.pooled: np.empty((0, c.width), np.float32) for c in columns.stored}
    return Computed([], features, errors, [], [])


def _joined(parts: list[Computed]) -> Computed:
    """Several batches as one, which is stored in one transaction."""
    names = ("rows", "errors", "in_range", "sources")
    lists = {name: [v for part in parts for v in getattr(part, name)] for name in names}
    lists["errors"] = list(map(_alone, lists["errors"]))
    features = {
        pooled: np.concatenate([part.features[pooled] for part in parts])
        for pooled in parts[0].features
    }
    return Computed(features=features, **lists)
