"""Builds the networks of timm, and converts the names in published files.

The attributes of this module are the builders, by the names of timm: those of its
networks, such as "resnet18.a1_in1k", or "local-dir:" and the path of a folder.
"""

import functools
import warnings
from collections.abc import Callable

from torch import nn

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
    """A network of timm by its name, without pretrained weights unless requested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's, about names that it has changed
        return timm.create_model(name, **options)


def convert(name: str, entries: dict, network: nn.Module, **options) -> dict:
    """The entries of a file as timm's own loader gives them to the same network.

    Raises a RuntimeError if the loader cannot make them fit.
    """
    given = {"state_dict": entries, "custom_load": False, "source": None}
    options |= {"pretrained": True, "pretrained_cfg_overlay": given}
    return dict(create(name, **options).state_dict())
