"""The packages of the extra [onnx], and the versions of ONNX that are written."""

import importlib

OPSET = 18  # the first with antialiasing in Resize
OPSETS = {"": OPSET, "ai.onnx.ml": 3}
IR_VERSION = 10
NEEDED = ("onnx", "onnxscript", "skl2onnx", "onnxruntime")


def require_extra() -> None:
    """Raise an error that names the extra if one of its packages is missing."""
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f"to_onnx needs {name}. Type: pip install 'skdeepfeat[onnx]'"
            ) from error
