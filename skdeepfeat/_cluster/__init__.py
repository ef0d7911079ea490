"""Missing rows → computed rows, in the workers of the cluster that joblib names.

- ``backends``: which of joblib's backends are clusters
- ``spreading``: the caller, which keeps the store and sends chunks of rows
- ``working``: the workers, which read, hash and compute them
"""
