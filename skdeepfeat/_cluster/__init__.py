"""Missing rows → computed rows, in the workers of the cluster that joblib names.

The caller keeps the store and sends chunks of rows (`spreading`); workers read, hash
and compute them (`working`).
"""
