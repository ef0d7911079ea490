"""Answers what a record needs to know about its network: see ``Inspector``."""

from .building import seeded_values
from .discovery import check_node
from .head import find_head
from .identity import as_code_stands, describe

__all__ = ["as_code_stands", "check_node", "describe", "find_head", "seeded_values"]
