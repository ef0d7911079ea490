"""Bounded caches that all estimators of a process share."""

import weakref
from collections.abc import Callable
from typing import Any, ClassVar

from ._processes import RLock, fork_safe


class _Entry:
    """A value of a table, and who uses it.

    Parameters
    ----------
    value : object
    leave : callable
        Called once, when the last of the users that were noted is gone.
    """

    def __init__(self, value, leave: Callable[["_Entry"], None]):
        self.value, self._leave = value, leave
        self._users: dict[int, weakref.ref] = {}

    def note(self, user) -> None:
        """Count on somebody, as long as he lives."""
        name = id(user)
        if name not in self._users:
            self._users[name] = weakref.ref(user, lambda _: self._gone(name))

    def _gone(self, name: int) -> None:
        self._users.pop(name, None)
        if not self._users:
            self._leave(self)


class SharedCache:
    """A bounded table; who is used least recently goes first.

    One lock holds everybody else while a value is made, so that eight threads that ask
    for the same one make it once. What has left the table lives until its users are
    done.

    Parameters
    ----------
    most : float
        How much is kept, besides the value that was asked for last.
    size_of : callable, optional
        How much a value counts; by default each counts as 1.
    """

    _all: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    def __init__(self, most: float, size_of: Callable[[Any], float] = lambda value: 1):
        self._most, self._size_of = most, size_of
        # Users die at any moment, also while this is read: never iterate over it.
        self._entries: dict[Any, _Entry] = {}
        self._lock = RLock()
        self._all.add(self)

    def __len__(self):
        return len(self._entries)

    def get(self, name, make: Callable[[], Any], user=None):
        """The value of this name, made if it is not there.

        It leaves the table when the last `user` for whom it was asked is gone.
        """
        entry = self._entries.get(name) or self._make(name, make)
        if user is not None:
            entry.note(user)
        with self._lock:
            self._entries.pop(name, None)
            self._entries[name] = entry  # the last
            self._make_room()
        return entry.value

    @fork_safe
    def _make(self, name, make: Callable[[], Any]) -> _Entry:
        """A new entry, unless another thread has made it."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                entry = _Entry(make(), lambda left: self._remove(name, left))
                self._entries[name] = entry
            return entry

    def _remove(self, name, entry: _Entry) -> None:
        """Without the lock: whatever thread frees the last user comes here."""
        if self._entries.get(name) is entry:
            self._entries.pop(name, None)

    def _make_room(self) -> None:
        """Drop what was used least recently, but not the last."""
        *others, last = list(self._entries)
        left = self._most - self._size(last)
        for name in reversed(others):
            left -= self._size(name)
            if left < 0:
                self._entries.pop(name, None)

    def _size(self, name) -> float:
        entry = self._entries.get(name)
        return 0 if entry is None else self._size_of(entry.value)

    def values(self) -> list:
        """All that is here."""
        return [entry.value for entry in self._entries.copy().values()]

    def clear(self) -> None:
        """Forget all values."""
        with self._lock:
            self._entries.clear()

    @classmethod
    def clear_all(cls) -> None:
        """Forget the values of all tables, and all memos."""
        for holder in (*cls._all, *Memo.all, *Companions.all):
            holder.clear()


class Memo:
    """What is found out about one object, once, and dies with it."""

    all: ClassVar[weakref.WeakSet] = weakref.WeakSet()
    lock: ClassVar[Any] = RLock()

    def __init__(self):
        self._found: dict[Any, Any] = {}
        self.all.add(self)

    def get(self, name, find: Callable[[], Any]):
        """What has this name, found now if it is not here."""
        try:
            return self._found[name]
        except KeyError:
            return self._find(name, find)

    @fork_safe
    def _find(self, name, find: Callable[[], Any]):
        with Memo.lock:
            if name not in self._found:
                self._found[name] = find()
            return self._found[name]

    def clear(self) -> None:
        """Forget all."""
        with Memo.lock:
            self._found.clear()


class Companions:
    """A value for each of some objects, which dies with it."""

    all: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    def __init__(self):
        self._found: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        self._lock = RLock()  # what makes a value may ask for another one
        self.all.add(self)

    @fork_safe
    def get(self, owner, state, make: Callable[[], Any]):
        """The value for an object, made anew once its state is another object."""
        with self._lock:
            known, value = self._found.get(owner, (None, None))
            if known is not state:
                value = make()
                self._found[owner] = state, value
            return value

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._found.clear()
