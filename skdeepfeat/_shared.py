"""Heavy things that all estimators of a process share: built once, few at a time."""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar


class SharedTable:
    """A bounded table; who is used least recently goes first.

    One lock holds everybody else while a value is made, so that eight threads that ask
    for the same one make it once. What has left the table lives until its users are
    done.

    Parameters
    ----------
    most : int
        How many values are kept.
    """

    _all: ClassVar[list["SharedTable"]] = []

    def __init__(self, most: int):
        self._most = most
        self._values: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.RLock()
        self._all.append(self)

    def __len__(self):
        return len(self._values)

    def get(self, name, make: Callable[[], Any]):
        """The value of this name, made if it is not there."""
        with self._lock:
            if name not in self._values:
                self._values[name] = make()
            self._values.move_to_end(name)
            while len(self._values) > self._most:
                self._values.popitem(last=False)
            return self._values[name]

    def clear(self) -> None:
        """Forget all values."""
        with self._lock:
            self._values.clear()

    @classmethod
    def unlock_all(cls) -> None:
        """In a child process nobody holds a lock."""
        for table in cls._all:
            table._lock = threading.RLock()
        Memo.lock = threading.RLock()

    @classmethod
    def clear_all(cls) -> None:
        """Forget the values of all tables, and all memos."""
        for holder in (*cls._all, *Memo.all):
            holder.clear()


class Memo:
    """What is found out about one object, once, and dies with it."""

    all: ClassVar[weakref.WeakSet] = weakref.WeakSet()
    lock: ClassVar[Any] = threading.RLock()

    def __init__(self):
        self._found: dict[Any, Any] = {}
        self.all.add(self)

    def get(self, name, find: Callable[[], Any]):
        """What has this name, found now if it is not here."""
        with Memo.lock:
            if name not in self._found:
                self._found[name] = find()
            return self._found[name]

    def clear(self) -> None:
        """Forget all."""
        with Memo.lock:
            self._found.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SharedTable.unlock_all)
