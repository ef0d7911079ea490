"""Network + names of layers → a smaller network that returns just those activations.

The traced graph is cut after the last requested layer and bound to the shared network's
own weights: nothing is hooked or copied, nothing is computed in vain, and many threads
may run it at once.
"""

import contextlib

from torch import fx

from .._backbones.records import Backbone
from .._backbones.weights import WeightsSource
from .._exceptions import WeightsError
from .building import SharedNetwork
from .layers import aliased_layers
from .rewriting import fold_batch_norms, overwrite_in_place, round_off
from .structure import Structure, bind, structure_of

# Running ----------------------------------------------------------------------------


@contextlib.contextmanager
def explain_size(source: WeightsSource, nodes: tuple[str, ...]):
    """A context in which a network that refuses images says which parameter it is.

    Only a network that does so on no device, and takes images of its own size, is
    blamed on the size; any other error passes through.
    """
    try:
        yield
    except Exception as error:
        size, backbone = source.input.image_size, source.backbone
        if not _refuses(backbone, size, nodes):
            raise
        raise ValueError(
            f"Backbone {backbone.name!r} does not take images of image_size={size}: "
            f"{error}. Choose another size, for instance a larger one."
        ) from error


def _refuses(backbone: Backbone, image_size: int, nodes: tuple[str, ...]) -> bool:
    """Whether the network cannot be computed at this size, but can at its own."""
    own = backbone.input.image_size
    if image_size == own or _can_compute(structure_of(backbone, image_size), nodes):
        return False
    return _can_compute(structure_of(backbone, own), nodes)


def _can_compute(structure: Structure, nodes: tuple[str, ...]) -> bool:
    """Whether the shapes of these nodes can be found."""
    try:
        return structure.shapes(nodes).keys() >= set(nodes)
    except Exception:  # whatever the network raises
        return False


def activations_of(
    network: SharedNetwork, source: WeightsSource, nodes: tuple[str, ...]
):
    """The cut network for these nodes; made once for each shared network."""
    key = (source.input.image_size, nodes)
    with network.lock:
        if key not in network.activations:
            structure = structure_of(source.backbone, source.input.image_size)
            cut = bind(structure, network.module, nodes)
            _check_head(cut, network.absent, source)  # before names change
            if isinstance(cut, fx.GraphModule):
                fold_batch_norms(cut, network.substitutes, _aliased_modules(structure))
                if network.rounded:
                    round_off(cut, network.substitutes, *network.rounded)
                overwrite_in_place(cut)
            elif network.rounded:
                cut.to(*network.rounded)
            network.activations[key] = cut
        return network.activations[key]


def _check_head(cut, absent: frozenset, source: WeightsSource) -> None:
    """Refuse a layer beyond a head that the weights file does not have."""
    if absent.intersection(cut.state_dict()):
        raise WeightsError(
            f"The weights in {str(source.path)!r} have no classes that fit backbone "
            f"{source.backbone.name!r}, so layer='logits' cannot be read from them. "
            "Ask for layer='penultimate' or an earlier one."
        )


def _aliased_modules(structure: Structure) -> set[str]:
    """Modules whose output is an aliased layer."""
    layers = aliased_layers(structure.backbone)
    return {str(structure.step(layer.node).target) for layer in layers}
