"""What records need from the networks that they describe.

Records must not import the code that builds and traces networks. Instead, the package
names the module that provides these functions, which is imported on first use.
"""

import importlib
from typing import Any, Protocol, cast


class Inspector(Protocol):
    """Functions that need the network itself."""

    def describe(self, backbone, image_size: int, about: dict) -> tuple[dict, str]:
        """Named values that identify the computation, and why they do not last."""

    def as_code_stands(self, backbone, image_size: int, known) -> Any:
        """The identity of a network by its object and its current code."""

    def find_head(self, backbone) -> str | None:
        """Name of the module that computes the class scores, or None."""

    def check_node(self, backbone, node: str) -> None:
        """Refuse a name that is not a node of the network."""

    def find_text_layers(self, net, max_length, head) -> tuple:
        """The layers of a network of texts."""

    def count_tokens(self, net) -> int:
        """How many different tokens a network takes."""

    def describe_text_module(self, net, version) -> tuple[dict, str]:
        """Named values that identify a network of texts, or why there are none."""

    def seeded_values(self, source) -> bytes:
        """Digest of the weights that a network draws from its seed."""


_module = ""


def inspected_by(module: str) -> None:
    """Set the module that provides the functions of :class:`Inspector`."""
    global _module
    _module = module


def inspector() -> Inspector:
    """The module set by `inspected_by`, imported on first use."""
    return cast(Inspector, importlib.import_module(_module))
