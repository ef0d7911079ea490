"""A small table for tests of code that uses one: no bounds, threads or processes."""

import contextlib

from skdeepfeat._store.base import ColumnRows, Found, Label


class FakeSnapshot:
    n_damaged = 0

    def __init__(self, layers, n_bytes, rows, files):
        self.layers, self.n_bytes = layers, n_bytes
        self._rows, self._files = rows, dict(files)

    def dump(self, label=None):
        return [rows for rows in self._rows if label in (None, rows.column.label)]

    def files(self):
        return [(name, *file) for name, file in self._files.items()]


class FakeTable:
    """Rows in a dict; `misses` counts those that were written."""

    max_bytes = 10**9

    def __init__(self):
        self.rows, self.claims, self.files = {}, {}, {}
        self.labels, self.hits, self.misses = {}, 0, 0

    def read(self, fingerprint, keys, out, places):
        missing, out_of_range = [], []
        for position, (key, place) in enumerate(zip(keys, places, strict=True)):
            if (fingerprint, key) not in self.rows:
                missing.append(position)
                continue
            row, in_range = self.rows[fingerprint, key]
            if not in_range:
                out_of_range.append(position)
            if out is not None:
                out[place] = row
        return Found(missing, out_of_range)

    def has_any(self, fingerprints, keys):
        return any((f, key) in self.rows for f in fingerprints for key in keys)

    def add(self, columns):
        for part in columns:
            self.labels[part.column.fingerprint] = part.column.label
            for key, row, fits in zip(part.keys, part.rows, part.in_range, strict=True):
                self.rows[part.column.fingerprint, key] = row.copy(), bool(fits)
        return False

    def write(self, call, scope, keys, columns):
        self.add(columns)
        self.misses += len(keys)
        for key in keys:
            self.claims.pop((scope, key), None)
        return False

    def claim(self, call, scope, keys, fingerprints):
        lacking = [
            i
            for i, key in enumerate(keys)
            if not all((f, key) in self.rows for f in fingerprints)
        ]
        granted = [i for i in lacking if (scope, keys[i]) not in self.claims]
        self.claims.update({(scope, keys[i]): call for i in granted})
        return granted

    def release(self, call):
        self.claims = {
            id_: other for id_, other in self.claims.items() if other != call
        }

    def wait(self, scope, keys, rows=()):
        assert not any((scope, key) in self.claims for key in keys), "it waits for ever"

    def use_gpus(self, gpus):
        return contextlib.nullcontext()

    def count_hits(self, n, fingerprints):
        self.hits += n

    def read_files(self, names):
        return [(name, *self.files[name]) for name in names if name in self.files]

    def write_files(self, files):
        self.files.update({name: (state, digest) for name, state, digest in files})

    @contextlib.contextmanager
    def snapshot(self):
        rows = [
            ColumnRows(Label(sign, self.labels[sign]), [key], row[None], [fits], True)
            for (sign, key), (row, fits) in self.rows.items()
        ]
        info = self.info()
        yield FakeSnapshot(info["layers"], info["bytes"], rows, self.files)

    def larger(self, n_bytes):
        return f"FakeTable({n_bytes})"

    def info(self):
        labels = [self.labels[fingerprint] for fingerprint, _ in self.rows]
        return {
            "rows": len(self.rows),
            "bytes": sum(row.nbytes for row, _ in self.rows.values()),
            "hits": self.hits,
            "misses": self.misses,
            "layers": {label: labels.count(label) for label in sorted(set(labels))},
        }

    def clear(self):
        self.__init__()

    forget = clear

    def pause(self):
        return contextlib.nullcontext()

    def after_fork(self):
        self.claims = {}
