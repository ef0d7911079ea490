"""Builds the networks of timm, and converts the names in published files.

The attributes of this module are the builders, by the names of timm: those of its
networks, such as "resnet18.a1_in1k", or "local-dir:" and the path of a folder.
"""

import functools
import warnings
from collections.abc import Callable

from torch import nn

from .generators import restored

try:
    import timm
except ModuleNotFoundError as e:
    raise ModuleNotFoundError(
        "The networks of timm need timm, which is not installed. Type: pip install "
        "'skdeepfeat[timm]'"
    ) from e


def __getattr__(name: str) -> Callable[..., nn.Module]:
    if name.startswith("__"):
        raise AttributeError(name)
    return functools.partial(create, name)


def create(name: str, **options) -> nn.Module:
    """A network of timm by its name, with random weights unless others are given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's, about names that it has changed
        try:
            return timm.create_model(name, **options)
        except RuntimeError as error:
            if "Unknown model" not in str(error):
                raise
            raise RuntimeError(
                f"timm {timm.__version__} has no network {name!r}. Type: pip install "
                "--upgrade timm"
            ) from error


def convert(name: str, entries: dict, **options) -> dict:
    """The entries of a file as timm's own loader gives them to a network.

    Raises an error of timm's if they do not fit.
    """
    given = {"state_dict": entries, "custom_load": False, "source": None}
    options |= {"pretrained": True, "pretrained_cfg_overlay": given}
    with restored():
        network = create(name, pretrained_strict=True, **options)
    return dict(network.state_dict())
