"""Bounded caches that all estimators of a process share, and the cache folder."""

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from ._processes import RLock, fork_safe

# Held while a value is made, and by whoever draws from torch's global generators, as
# builders of networks do: fine-tuning in another thread draws from them too. It is
# always taken before the lock of a cache.
turn = RLock()


def user_cache(part: str) -> Path:
    """Where this user's processes keep files; RuntimeError if the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "skdeepfeat" / part


class _Entry:
    """A value of a cache, and the objects that use it.

    Parameters
    ----------
    value : object
    leave : callable
        Called once, when the last of the registered users is garbage collected.
    """

    def __init__(self, value, leave: Callable[["_Entry"], None]):
        self.value, self._leave = value, leave
        self._users: dict[int, weakref.ref] = {}

    def note(self, user) -> None:
        """Register an object that uses the value, without keeping it alive."""
        name = id(user)
        if name not in self._users:
            self._users[name] = weakref.ref(user, lambda _: self._gone(name))

    def _gone(self, name: int) -> None:
        self._users.pop(name, None)
        if not self._users:
            self._leave(self)


class SharedCache:
    """A bounded cache for the whole process; the least recently used value goes first.

    All other threads wait while a value is made, so that eight threads that request
    the same one make it once. A value that has left the cache lives until its users
    are done.

    Parameters
    ----------
    most : float
        How much is kept in addition to the value that was used last.
    size_of : callable, optional
        The size of a value; by default 1.
    """

    _all: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    def __init__(self, most: float, size_of: Callable[[Any], float] = lambda value: 1):
        self._most, self._size_of = most, size_of
        # Entries vanish at any moment, when their users do: never iterate over this.
        self._entries: dict[Any, _Entry] = {}
        self._lock = RLock()
        self._all.add(self)

    def __len__(self):
        return len(self._entries)

    def get(self, name, make: Callable[[], Any], user=None):
        """The value of this name, made if it is not cached.

        It leaves the cache when the last `user` that requested it is gone.
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
        with turn, self._lock:
            entry = self._entries.get(name)
            if entry is None:
                entry = _Entry(make(), lambda left: self._remove(name, left))
                self._entries[name] = entry
            return entry

    def _remove(self, name, entry: _Entry) -> None:
        """Remove an entry; without the lock, as any thread may free its last user."""
        if self._entries.get(name) is entry:
            self._entries.pop(name, None)

    def _make_room(self) -> None:
        """Drop the values that were used least recently, but never the last one."""
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
        """All values."""
        return [entry.value for entry in self._entries.copy().values()]

    def clear(self) -> None:
        """Drop all values."""
        with self._lock:
            self._entries.clear()

    @classmethod
    def clear_all(cls) -> None:
        """Drop the values of all caches of this module."""
        for holder in (*cls._all, *Memo.all, *Companions.all):
            holder.clear()


class Memo:
    """Facts about one object, each found once; they are dropped with the object."""

    all: ClassVar[weakref.WeakSet] = weakref.WeakSet()
    lock: ClassVar[Any] = RLock()

    def __init__(self):
        self._found: dict[Any, Any] = {}
        self.all.add(self)

    def get(self, name, find: Callable[[], Any]):
        """The fact of this name, found now if it is not known."""
        try:
            return self._found[name]
        except KeyError:
            return self._find(name, find)

    @fork_safe
    def _find(self, name, find: Callable[[], Any]):
        with turn, Memo.lock:
            if name not in self._found:
                self._found[name] = find()
            return self._found[name]

    def clear(self) -> None:
        """Drop everything."""
        with Memo.lock:
            self._found.clear()


class Companions:
    """One value for each object, dropped with the object."""

    all: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    def __init__(self):
        self._found: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        self._lock = RLock()  # `make` may request another value
        self.all.add(self)

    def get(self, owner, state, make: Callable[[], Any]):
        """The value for an object, made again once its state is another object."""
        with self._lock:
            known, value = self._found.get(owner, (None, None))
        return value if known is state else self._make(owner, state, make)

    @fork_safe
    def _make(self, owner, state, make: Callable[[], Any]):
        """A new value, unless another thread has made it."""
        with turn, self._lock:
            known, value = self._found.get(owner, (None, None))
            if known is not state:
                value = make()
                self._found[owner] = state, value
            return value

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._found.clear()
