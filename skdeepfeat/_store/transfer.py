"""Rows of one table → another table, or a file of features with the paths beside."""

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from .._exceptions import StoreWarning, closest, warn_user
from .._files import replacing
from .base import ColumnRows, Table
from .waiting import new_call

NO_PYARROW = (
    "Parquet files are written by pyarrow, which is not installed. Type: pip install "
    "pyarrow, or export to a file that ends in .npy"
)
SEVERAL = (
    "The store has {} kinds of features called {!r}, which differ in weights, "
    "preprocessing, precision or engine. Write those of one estimator with "
    "features.transform_to('features.npy', paths), which reads the store."
)


# Merging ----------------------------------------------------------------------------


def merge(table: Table, other: Table) -> int:
    """Copy the sound rows of another table, and what it knows of files."""
    n_rows, is_full = 0, False
    for rows in other.dump():
        is_full |= table.write(new_call(), b"", [], [rows])
        n_rows += len(rows.keys)
    table.write_files(other.all_files())
    if is_full:
        larger = table.larger(table.max_bytes + 2 * _size(other))
        warn_user(
            f"The store has reached its limit of {table.max_bytes:,} bytes, so some "
            f"rows were removed. Use {larger}.",
            StoreWarning,
        )
    return n_rows


def _size(table: Table) -> int:
    return table.info()["bytes"]


# Exporting --------------------------------------------------------------------------


def export(table: Table, path: Path, layer: str | None) -> int:
    """Write the rows of one layer to a file, with their paths."""
    write = _writer(path)
    layer = _resolve_layer(table.info()["layers"], layer)
    names = _names_of(table, layer)
    n_rows = sum(map(len, names.values()))
    with replacing(path) as partial:
        write(partial, path, n_rows, _blocks(names, n_rows, table.dump(layer)))
    return n_rows


def _resolve_layer(known: Mapping[str, int], layer: str | None) -> str:
    """The name of a stored layer; None stands for the only one."""
    names = ", ".join(map(repr, known)) or "none"
    if layer is None and len(known) == 1:
        return next(iter(known))
    if layer is None:
        raise ValueError(
            f"The 'layer' parameter must name a stored layer. Stored are: {names}."
        )
    if layer not in known:
        raise ValueError(
            f"No layer {layer!r} is stored.{closest(layer, known)} Stored are: {names}."
        )
    return layer


def _names_of(table: Table, layer: str) -> dict[bytes, list[str]]:
    """Key of each image → its paths; [""] if none is known."""
    paths = defaultdict(list)
    for name, _, key in table.all_files():
        paths[key].append(name)
    names: dict[bytes, list[str]] = {}
    columns: set[bytes] = set()
    for rows in table.dump(layer):
        columns.add(rows.column.fingerprint)
        names |= {key: paths.get(key, [""]) for key in rows.keys}
    if len(columns) > 1:
        raise ValueError(SEVERAL.format(len(columns), layer))
    return names


Blocks = Iterator[tuple[list[str], list[str], np.ndarray]]


def _blocks(
    names: Mapping[bytes, list[str]], n_rows: int, dumped: Iterator[ColumnRows]
) -> Blocks:
    """Paths, keys and features, some at a time; one row for each path."""
    n_left = n_rows
    for rows in dumped:
        places = [i for i, key in enumerate(rows.keys) for _ in names.get(key, ())]
        paths = [name for key in rows.keys for name in names.get(key, ())]
        keys = [rows.keys[place].hex() for place in places]
        yield paths, keys, rows.rows[places]
        n_left -= len(places)
    if n_left:
        raise RuntimeError(
            "Rows were removed from the store while they were exported; try again."
        )


def _write_npy(partial: Path, path: Path, n_rows: int, blocks: Blocks) -> None:
    """Features as .npy, and keys and paths as a .csv file beside it."""
    done, out = 0, None
    with replacing(path.with_suffix(".csv")) as beside, _text_file(beside) as file:
        lines = csv.writer(file)
        lines.writerow(["path", "key"])
        for paths, keys, rows in blocks:
            if out is None:
                shape = (n_rows, rows.shape[1])
                out = open_memmap(partial, "w+", np.float32, shape)
            out[done : done + len(rows)] = rows
            lines.writerows(zip(paths, keys, strict=True))
            done += len(rows)


def _text_file(path: Path):
    """A text file for the names of files, whose bytes need not be text."""
    return open(path, "w", newline="", encoding="utf-8", errors="surrogateescape")


def _write_parquet(partial: Path, path: Path, n_rows: int, blocks: Blocks) -> None:
    """A table with the columns path, key and features."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ImportError(NO_PYARROW) from None
    with ExitStack() as stack:
        writer = None
        for paths, keys, rows in blocks:
            flat, width = pa.array(rows.reshape(-1)), rows.shape[1]
            columns = {
                "path": pa.array([_utf8(name) or None for name in paths], pa.string()),
                "key": pa.array(keys, pa.string()),
                "features": pa.FixedSizeListArray.from_arrays(flat, width),
            }
            block = pa.table(columns)
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(partial, block.schema))
            writer.write_table(block)


def _utf8(name: str) -> str:
    """A file name whose bytes need not be text, as text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


Writer = Callable[[Path, Path, int, Blocks], None]
WRITERS: dict[str, Writer] = {
    ".npy": _write_npy,
    ".parquet": _write_parquet,
}


def _writer(path: Path) -> Writer:
    """What writes files of this name."""
    if path.suffix not in WRITERS:
        raise ValueError(
            f"The 'path' of an export must end in {' or '.join(WRITERS)}. Got "
            f"{str(path)!r} instead."
        )
    return WRITERS[path.suffix]
