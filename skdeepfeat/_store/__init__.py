"""Content key → feature row: computed rows, and where they are kept.

A row is found by the content of its image and by the fingerprint of everything that
determines its features, so features of all layers and settings live side by side.
While one worker computes a row, the others that need it wait and then read it.

- ``stores``: `FeatureStore`, and the `cache` parameter
- ``base``: the protocol of a table; ``memory`` and ``disk`` implement it
- ``snapshots``, ``transfer``: stores that are merged or exported
- ``rows``, ``columns``: what one call asks of a table and puts into it
- ``database``, ``statements``, ``eviction``: the database of a folder
- ``file_systems``: the disks on which machines may share a folder
- ``claims``, ``waiting``: no row is computed twice at the same time
"""
