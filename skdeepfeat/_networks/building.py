"""Builds a network: record + weights → a module in ``eval`` mode without gradients."""

import functools
import warnings

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .._backbones.builders import Skeleton, resolve_builder
from .._backbones.copies import evaluating
from .._backbones.records import Backbone
from .._backbones.tensors import as_array, digest_tensors
from .._backbones.weights import OwnWeights, RandomWeights, WeightsSource
from .._digests import digest_fields
from .._exceptions import WeightsError
from .._processes import Lock
from .descriptions import describe_settings
from .generators import restored
from .loading import fill_weights, transient_buffers


class SkipInitialisation(TorchFunctionMode):
    """Skip the initialisation of parameters, which a file fills afterwards.

    This saves seconds for large networks and leaves the global generator alone.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place and isinstance(target, nn.Parameter):
            return target
        return func(*args, **kwargs)


def build_network(source: WeightsSource) -> tuple[nn.Module, frozenset[str]]:
    """A new network on the CPU with the weights of `source`, and the entries of its
    head that they lack."""
    size, backbone = source.input.image_size, source.backbone
    absent: frozenset[str] = frozenset()
    if isinstance(source, RandomWeights):
        module = _seeded(backbone, size, source.seed)
    else:
        state = source.read()
        module = _without_initialisation(backbone, size)
        values_as_before(backbone, size, None, module)
        module, absent = fill_weights(module, state, source)
    return evaluating(module.float()).requires_grad_(False), absent


class _SinglePrecision:
    """A context in which new tensors are in single precision, as in a fresh process.

    If the caller's default is another one, their seeded values would differ. All
    threads share the default, so the last one that leaves restores it.
    """

    def __init__(self):
        self._lock, self._n_inside = Lock(), 0
        self._usual = torch.float32

    def __enter__(self):
        with self._lock:
            if self._n_inside == 0:
                self._usual = torch.get_default_dtype()
            self._n_inside += 1
            self._set(torch.float32)

    def __exit__(self, *exception):
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                self._set(self._usual)

    @staticmethod
    def _set(dtype: torch.dtype) -> None:
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)


single_precision = _SinglePrecision()


def call_builder(backbone: Backbone, image_size: int, official=False) -> nn.Module:
    """Call the record's builder.

    `official` networks are built as published weights expect them.
    """
    build = resolve_builder(backbone.build, backbone.name)
    options = dict(backbone.options) if official else {}
    if backbone.size_option:
        options[backbone.size_option] = image_size
    with warnings.catch_warnings(), single_precision:
        # torchvision announces a future default of GoogLeNet's initialisation.
        warnings.filterwarnings("ignore", category=FutureWarning)
        return build(**options)


def skeleton_of(backbone: Backbone, image_size: int) -> tuple[nn.Module, bytes]:
    """The network without memory for its weights, which is enough for shapes and
    structure, and the digest of the values that this drops."""
    network = _without_initialisation(backbone, image_size)
    values = values_as_before(backbone, image_size, None, network)
    return evaluating(network.to("meta")), values


def with_transient_buffers(skeleton: nn.Module, backbone, image_size: int) -> list:
    """Give a skeleton these buffers with their values, and return them."""
    network = _without_initialisation(backbone, image_size)
    if backbone.arrays is not None:
        network = trial_network(backbone, image_size)
    for name, buffer in transient_buffers(network).items():
        path, _, own = name.rpartition(".")
        skeleton.get_submodule(path)._buffers[own] = buffer
    return list(transient_buffers(skeleton).values())


def trial_network(backbone: Backbone, image_size: int) -> nn.Module:
    """The network with numbers in it, which a graph is compared with."""
    if backbone.arrays is not None:
        return build_network(OwnWeights(backbone, backbone.input))[0]
    build = functools.partial(call_builder, backbone, image_size, official=True)
    return evaluating(_with_seed(0, build)).requires_grad_(False)


def _without_initialisation(backbone: Backbone, image_size: int) -> nn.Module:
    """The network as published weights expect it, with uninitialised parameters."""
    with SkipInitialisation():
        return _with_seed(0, lambda: call_builder(backbone, image_size, official=True))


def _seeded(backbone: Backbone, image_size: int, seed: int) -> nn.Module:
    """The network with random weights."""
    network = _with_seed(int(seed), lambda: call_builder(backbone, image_size))
    values_as_before(backbone, image_size, seed, network)
    return network


def _with_seed(seed: int, build):
    """Build with a seed, then restore the global generator."""
    with restored(seed):
        return build()


def seeded_values(source: RandomWeights) -> bytes:
    """Digest of the values that a seed gives a network."""
    backbone, size, seed = source.backbone, source.input.image_size, source.seed
    return backbone.memo.get(
        ("seeded", size if backbone.size_option else None, seed),
        lambda: _values(_seeded(backbone, size, seed), seed),
    )


def values_as_before(backbone, image_size: int, seed, network: nn.Module) -> bytes:
    """Digest of the values that a builder sets and no file replaces.

    Raises an error if they, or the settings of modules, differ from those of the first
    call: what was found out about the network is no longer true then.
    """
    if not backbone.is_own or isinstance(backbone.build, Skeleton):
        return b""
    size = image_size if backbone.size_option else None
    # Networks for published weights are built with other options.
    options = seed is None and bool(backbone.options)
    settings = digest_fields("settings", 1, describe_settings(network))
    _check_as_before(backbone, ("settings", size, options), settings)
    found = _values(network, seed)
    _check_as_before(backbone, ("values", size, seed), found)
    return found


def _check_as_before(backbone: Backbone, name: tuple, found: bytes) -> None:
    """Remember a digest, or compare it with the remembered one."""
    if backbone.memo.get(name, lambda: found) != found:
        raise WeightsError(
            f"The builder {backbone.build!r} of backbone {backbone.name!r} returns "
            "another network than before: its code was changed, or it draws numbers "
            "that torch.manual_seed does not control. Make a new Backbone after a "
            "change, and seed all random numbers."
        )


def _values(network: nn.Module, seed: int | None) -> bytes:
    """Digest of all tensors of a network; without a seed, of those in no file."""
    tensors = dict(network.named_buffers())
    in_files = network.state_dict()
    if seed is None:
        tensors = transient_buffers(network)
    else:
        tensors |= {name: t for name, t in in_files.items() if torch.is_tensor(t)}
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and not value.requires_grad:
                tensors[f"{path}.{name}"] = value
    return digest_tensors({name: as_array(value) for name, value in tensors.items()})
