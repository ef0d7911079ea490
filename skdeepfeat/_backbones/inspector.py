"""What a record asks of the network that it describes.

Records stand below the code that builds and traces networks. So the package names, at
its top, the module that answers these questions; it is imported when one is asked.
"""

import importlib
from typing import Any, Protocol, cast


class Inspector(Protocol):
    """What only a look into a network itself can say."""

    def describe(self, backbone, image_size: int, about: dict) -> tuple[dict, str]:
        """Named values that identify its computation, and why they do not last."""

    def as_code_stands(self, backbone, image_size: int, known) -> Any:
        """The identity of a network known only by its object and its code."""

    def find_head(self, backbone) -> str | None:
        """Name of the module that ends a network with classes."""

    def seeded_values(self, source) -> bytes:
        """Digest of the values that a network draws from its seed."""


_module = ""


def inspected_by(module: str) -> None:
    """Name the module whose functions are the :class:`Inspector`."""
    global _module
    _module = module


def inspector() -> Inspector:
    """The module that was named, imported now."""
    return cast(Inspector, importlib.import_module(_module))
