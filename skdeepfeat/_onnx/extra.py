"""The packages of the extra [onnx], and the versions of ONNX that are written."""

import importlib
from importlib.metadata import version

OPSET = 18  # the first with antialiasing in Resize
OPSETS = {"": OPSET, "ai.onnx.ml": 3}
IR_VERSION = 10
NEEDED = ("onnx", "onnxscript", "onnxruntime", "skl2onnx")
TORCH = (2, 9)  # the first that exports these networks


def require_extra() -> None:
    """Raise an error that names the extra if one of its packages is missing, or old."""
    found = version("torch")
    if tuple(map(int, found.split(".")[:2])) < TORCH:
        raise ImportError(
            f"to_onnx needs torch {'.'.join(map(str, TORCH))} or later, and this is "
            f"torch {found}. Type: pip install 'skdeepfeat[onnx]'"
        )
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f"to_onnx needs {name}. Type: pip install 'skdeepfeat[onnx]'"
            ) from error


def state_versions(model) -> None:
    """State the versions that the parts of a graph share, so that they can be merged.

    torch states the first one alone. skl2onnx writes for these versions, and then
    states the lowest ones that may suffice.
    """
    from onnx import helper

    model.ir_version = IR_VERSION
    del model.opset_import[:]
    model.opset_import.extend(
        helper.make_opsetid(domain, version) for domain, version in OPSETS.items()
    )
