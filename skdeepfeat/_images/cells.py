"""One cell of X: which kind of image it is, its content key, and its pixels."""

import contextlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from .._digests import digest, is_remembered, learn_digest, recall_digest
from .._exceptions import ImageError
from .._validation import is_missing
from .decoding import Pixels
from .kinds import ALLOWED, CellKind, kind_of, unwrap
from .reasons import row_errors
from .references import File, Reference
from .samples import Samples


@dataclass(frozen=True)
class Cell:
    """The image of one row of X.

    Parameters
    ----------
    row : int
        Position in X.
    kind : CellKind
    held : object
        A `Reference`, encoded bytes, or the object in X.
    source : str
        Its name in messages.
    is_kept : bool, default=True
        Whether it keeps in memory what X does not.
    """

    row: int
    kind: CellKind
    held: Any
    source: str
    is_kept: bool = True

    @classmethod
    def of(
        cls, row: int, value, protocols: Collection[str], in_memory: bool = False
    ) -> "Cell":
        """The cell of a row of X; raises ImageError if it is not an image."""
        with row_errors(row, type(value).__name__):
            value = unwrap(value)
            if is_missing(value):
                raise ImageError(row, "missing", "there is no image in this row")
            kind = kind_of(value)
            if kind is None:
                raise ValueError(f"is not an image; a row must be {ALLOWED}")
            source = kind.describe(value)
        with row_errors(row, source):
            held = kind.take(value, protocols)
            return cls(row, kind, held, source, not (in_memory and held is value))

    def sent(self) -> "Cell":
        """The cell as another process is sent it; raises ImageError if none can be."""
        with row_errors(self.row, self.source):
            held = self.kind.send(self.held)
            kind = self.kind if held is self.held else kind_of(held)
            assert kind is not None
            return replace(self, kind=kind, held=held)

    @property
    def n_bytes(self) -> int:
        """Roughly how much memory is held."""
        if isinstance(self.held, Reference):
            return 0
        if isinstance(self.held, Samples):
            return self.held.values.nbytes
        if isinstance(self.held, Image.Image):
            return self.held.width * self.held.height * len(self.held.getbands())
        return getattr(self.held, "nbytes", None) or len(self.held)

    @property
    def is_hashed(self) -> bool:
        """Whether its key can be computed without waiting for a disk or a server."""
        if not isinstance(self.held, File):
            return not isinstance(self.held, Reference)
        with contextlib.suppress(OSError, ValueError):
            return recall_digest(self.held.name, self.held.state()) is not None
        return True  # its error is found at once

    def hashed(self) -> "Hashed":
        """The cell with its key; a file that is not known yet is read, and held."""
        with row_errors(self.row, self.source):
            if not isinstance(self.held, Reference):
                return Hashed(self, self.kind.digest(self.held))
            name, state = self.held.name, self.held.state()
            known = recall_digest(name, state)
            read = self if known is not None else self.read()
            key = known or self.kind.digest(read.held)
            if state is None:
                return Hashed(read, key)
            if known is None:
                learn_digest(name, state, key)
            return Hashed(read, key, (name, state, key))

    def named(self) -> "Hashed":
        """The cell with its key or, if that is not known yet, a key of its name.

        No file is read.
        """
        if not isinstance(self.held, Reference):
            return self.hashed()
        name = self.held.name
        with contextlib.suppress(Exception):  # it need not be visible here
            state = self.held.state() if is_remembered(name) else None
            if state and (known := recall_digest(name, state)):
                return Hashed(self, known, (name, state, known))
        return Hashed(self, digest("unread", name))

    def read(self) -> "Cell":
        """The same cell with its content, if only a reference is held."""
        if not isinstance(self.held, Reference):
            return self
        with row_errors(self.row, self.source):
            return replace(self, held=self.held.read())

    def open(self, value_range, enough, reserve) -> Pixels:
        """Its pixels; the content must be held. `reserve` is called before decoding."""
        return self.kind.open(self.held, value_range, enough, reserve)


@dataclass(frozen=True)
class Hashed:
    """A cell and its content key.

    Parameters
    ----------
    cell : Cell
    key : bytes
    file : tuple of (str, str, bytes) or None
        Name, state and digest of a file whose state is known.
    """

    cell: Cell
    key: bytes
    file: tuple[str, str, bytes] | None = None

    def read(self) -> Cell:
        """The cell with its content, which must be what was hashed."""
        cell = self.cell.read()
        if cell is not self.cell and cell.kind.digest(cell.held) != self.key:
            reason = "the file was changed while it was in use; try again"
            raise ImageError(cell.row, cell.source, reason)
        return cell
