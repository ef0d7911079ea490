"""The weights that ship with the package.

``manifest.json`` says of each file where it comes from, under which licence, its
SHA-256, how to reproduce it, and what the registry must know of its network.
"""
