"""Answers what a record needs to know about its network: see ``Inspector``."""

from .building import seeded_values
from .discovery import check_node
from .head import find_head
from .identity import as_code_stands, describe
from .token_modules import count_tokens, describe_text_module, find_text_layers

__all__ = [
    "as_code_stands",
    "check_node",
    "count_tokens",
    "describe",
    "describe_text_module",
    "find_head",
    "find_text_layers",
    "seeded_values",
]
