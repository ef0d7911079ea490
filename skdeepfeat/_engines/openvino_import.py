"""Imports OpenVINO without its telemetry, which reports each import to its makers."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """A context in which OpenVINO finds no module to report with."""
    found = "openvino_telemetry" in sys.modules
    if not found:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if not found:
            del sys.modules["openvino_telemetry"]


with _without_telemetry():
    import openvino
    import openvino.frontend

__all__ = ["openvino"]
