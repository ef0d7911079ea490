"""Answers what a record needs to know about its network: see ``Inspector``."""

from .building import seeded_values
from .head import find_head
from .identity import as_code_stands, describe

__all__ = ["as_code_stands", "describe", "find_head", "seeded_values"]
