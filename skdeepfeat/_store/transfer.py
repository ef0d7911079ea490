"""Rows of one table → another table, or a file of features with the paths beside."""

import csv
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from .._exceptions import StoreWarning, closest, warn_user
from .._files import replacing
from .base import ColumnRows, Snapshot, Table

NO_PYARROW = (
    "Parquet files are written by pyarrow, which is not installed. Type: pip install "
    "pyarrow, or export to a file that ends in .npy"
)
SEVERAL = (
    "The store has {} kinds of features called {!r}, which differ in weights, "
    "preprocessing, precision or engine. Write those of one estimator with "
    "features.transform_to('features.npy', paths), which reads the store."
)
HEADER = ("path", "key")
NOT_OURS = (
    "An export writes the paths of the images to {!r}, but this file was not written "
    "by an export. Rename it, or choose another name than {!r}."
)
DAMAGED = "{} damaged rows of the feature store were left out."
NOT_UTF8 = (
    "{} paths are not valid UTF-8, such as {!r}. The bytes that are not are written as "
    "\\x and two digits; the column 'key' identifies the images."
)


# Merging ----------------------------------------------------------------------------


def merge(table: Table, other: Table) -> int:
    """Copy the sound rows of another table, and what it knows of files."""
    n_rows, is_full = 0, False
    with other.snapshot() as stored:
        for rows in stored.dump():
            is_full |= table.add([rows])
            n_rows += len(rows.keys)
        table.write_files(stored.files())
        larger = table.larger(table.max_bytes + 2 * stored.n_bytes)
    _warn_of_damage(stored)
    if is_full:
        warn_user(
            f"The store has reached its limit of {table.max_bytes:,} bytes, so it "
            f"keeps only {table.info()['rows']:,} rows. Use {larger}.",
            StoreWarning,
        )
    return n_rows


def _warn_of_damage(stored: Snapshot) -> None:
    """Warn of rows that the last dump has left out."""
    if stored.n_damaged:
        warn_user(DAMAGED.format(stored.n_damaged), StoreWarning)


# Exporting --------------------------------------------------------------------------


def export(table: Table, path: Path, layer: str | None) -> int:
    """Write the rows of one layer to a file, with their paths."""
    write = _writer(path)
    with table.snapshot() as stored:
        layer = _resolve_layer(stored.layers, layer)
        names = _as_text(_names_of(stored, layer))
        _warn_of_damage(stored)
        n_rows = sum(map(len, names.values()))
        write(path, n_rows, _blocks(names, n_rows, stored.dump(layer)))
    return n_rows


def _resolve_layer(known: Mapping[str, int], layer: str | None) -> str:
    """The name of a stored layer; None stands for the only one."""
    if not known:
        raise ValueError("The store has no rows to export.")
    names = ", ".join(map(repr, known))
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


def _names_of(stored: Snapshot, layer: str) -> dict[bytes, list[str]]:
    """Key of each image → its paths; [""] if none is known."""
    paths = defaultdict(list)
    for name, _, key in stored.files():
        paths[key].append(name)
    names: dict[bytes, list[str]] = {}
    columns: set[bytes] = set()
    for rows in stored.dump(layer):
        columns.add(rows.column.fingerprint)
        names |= {key: paths.get(key, [""]) for key in rows.keys}
    if len(columns) > 1:
        raise ValueError(SEVERAL.format(len(columns), layer))
    if not names:
        raise ValueError(f"All stored rows of {layer!r} are damaged.")
    return names


def _as_text(names: dict[bytes, list[str]]) -> dict[bytes, list[str]]:
    """The same with paths that can be written; bytes that are not text are escaped."""
    texts = {key: list(map(_escaped, some)) for key, some in names.items()}
    both = zip(chain(*names.values()), chain(*texts.values()), strict=True)
    odd = [text for name, text in both if text != name]
    if odd:
        warn_user(NOT_UTF8.format(len(odd), odd[0]), StoreWarning)
    return texts


def _escaped(name: str) -> str:
    return os.fsencode(name).decode(errors="backslashreplace")


Blocks = Iterator[tuple[list[str], list[str], np.ndarray]]


def _blocks(
    names: dict[bytes, list[str]], n_rows: int, dumped: Iterator[ColumnRows]
) -> Blocks:
    """Paths, keys and features, some at a time; one row for each path."""
    n_left = n_rows
    for rows in dumped:
        found = [names.pop(key, []) for key in rows.keys]  # each key only once
        places = [i for i, paths in enumerate(found) for _ in paths]
        keys = [rows.keys[place].hex() for place in places]
        yield list(chain(*found)), keys, rows.rows[places]
        n_left -= len(places)
    if n_left:
        raise RuntimeError(
            "Rows were removed from the store while they were exported; try again."
        )


def _write_npy(path: Path, n_rows: int, blocks: Blocks) -> None:
    """Features as .npy, and keys and paths as a .csv file beside it."""
    done, out = 0, None
    with replacing(path) as partial, _beside(path) as beside, _text(beside) as file:
        lines = csv.writer(file)
        lines.writerow(HEADER)
        for paths, keys, rows in blocks:
            if out is None:
                shape = (n_rows, rows.shape[1])
                out = open_memmap(partial, "w+", np.float32, shape)
            out[done : done + len(rows)] = rows
            lines.writerows(zip(paths, keys, strict=True))
            done += len(rows)


def _beside(path: Path):
    """The context of the .csv file beside, which replaces that of an export alone."""
    beside = path.with_suffix(".csv")
    if beside.is_file():
        with open(beside, errors="replace") as file:
            if file.readline().strip() != ",".join(HEADER):
                raise ValueError(NOT_OURS.format(str(beside), path.name))
    return replacing(beside)


def _text(path: Path):
    return open(path, "w", newline="", encoding="utf-8")


def _write_parquet(path: Path, n_rows: int, blocks: Blocks) -> None:
    """A table with the columns path, key and features."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ImportError(NO_PYARROW) from None
    with replacing(path) as partial, ExitStack() as stack:
        writer = None
        for paths, keys, rows in blocks:
            flat, width = pa.array(rows.reshape(-1)), rows.shape[1]
            columns = {
                "path": pa.array([name or None for name in paths], pa.string()),
                "key": pa.array(keys, pa.string()),
                "features": pa.FixedSizeListArray.from_arrays(flat, width),
            }
            block = pa.table(columns)
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(partial, block.schema))
            writer.write_table(block)


Writer = Callable[[Path, int, Blocks], None]
WRITERS: dict[str, Writer] = {
    ".npy": _write_npy,
    ".parquet": _write_parquet,
}


def _writer(path: Path) -> Writer:
    """What writes files of this name."""
    if path.suffix.lower() not in WRITERS:
        raise ValueError(
            f"The 'path' of an export must end in {' or '.join(WRITERS)}. Got "
            f"{str(path)!r} instead."
        )
    return WRITERS[path.suffix.lower()]
