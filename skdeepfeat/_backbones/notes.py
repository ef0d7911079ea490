"""Plain values that training scripts save with the weights, which are not read.

In place of each class or function that a file names, a stand-in takes its arguments, so
that neither the named code nor any other is run.
"""

from collections.abc import Callable
from typing import Any


class Unread:
    """Stands in for a value that is not read."""

    def __new__(cls, *args):
        """A stand-in, whatever the value is made from."""
        return super().__new__(cls)

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


def _entries(*args) -> dict:
    """A plain dictionary, which the entries of the file are put into."""
    return {}


def _items(*args) -> list:
    """A plain list, which the items of the file are put into."""
    return []


UNREAD = {
    "argparse": "Namespace",
    "builtins": "complex dict float frozenset int list range set slice str tuple",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "numpy": "dtype ndarray",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy.core.multiarray": "_reconstruct scalar",
    "pathlib": "Path PosixPath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "Path PosixPath PurePosixPath PureWindowsPath WindowsPath",
    "types": "SimpleNamespace",
    "uuid": "UUID",
}
KINDS = "Bool Bytes Float16 Float32 Float64 Int8 Int16 Int32 Int64 Object Str UInt8"
UNREAD["numpy.dtypes"] = " ".join(f"{kind}DType" for kind in KINDS.split())

# What a file may name → what stands in for it.
STAND_INS: dict[str, Callable[..., Any]] = {
    f"{module}.{name}": Unread
    for module, names in UNREAD.items()
    for name in names.split()
}
STAND_INS |= {"collections.defaultdict": _entries, "collections.deque": _items}
