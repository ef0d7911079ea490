"""Which rows of a folder make room for new ones once its bound is reached."""

EVICTED_AT_ONCE = 256
MOST_EVICTED = 16 * EVICTED_AT_ONCE  # in one transaction, which other writers wait for


def evict(db, max_bytes: int) -> bool:
    """Drop rows of the least recently used columns until the database fits.

    Returns
    -------
    has_dropped : bool
    """
    n_dropped = 0
    while bytes_used(db) > max_bytes and n_dropped < MOST_EVICTED:
        oldest = _least_recently_used(db)
        if oldest is None:
            break
        n_dropped += db.execute(
            "DELETE FROM rows WHERE rowid IN (SELECT rowid FROM rows "
            "INDEXED BY rows_by_age WHERE column = ? ORDER BY rowid LIMIT ?)",
            (oldest, EVICTED_AT_ONCE),
        ).rowcount
    return n_dropped > 0


def _least_recently_used(db) -> int | None:
    """The number of a column that has rows; None if no column has any."""
    found = db.execute(
        "SELECT id FROM columns WHERE EXISTS "
        "(SELECT 1 FROM rows WHERE column = id) ORDER BY used LIMIT 1"
    ).fetchone()
    return found and found[0]


def bytes_used(db) -> int:
    """The size of the database without its free pages."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size
