"""Network + names of layers → a smaller network that returns their activations.

The traced graph is cut after the last requested layer and bound to the weights of the
shared network: nothing is hooked or copied, nothing is computed that is not needed, and
many threads may run it at once.
"""

from torch import fx

from .._backbones.weights import OwnWeights, WeightsSource
from .._exceptions import WeightsError
from .layers import aliased_layers
from .rewriting import fold_batch_norms, overwrite_in_place, round_off, simplify
from .sharing import SharedNetwork
from .structure import Structure, bind, structure_of


def activations_of(
    network: SharedNetwork, source: WeightsSource, nodes: tuple[str, ...]
):
    """What returns {node: activation} for images; made once for each shared network."""
    key = (source.input.image_size, nodes)
    with network.lock:
        if key not in network.activations:
            network.activations[key] = _make(network, source, nodes)
        return network.activations[key]


def _make(network: SharedNetwork, source: WeightsSource, nodes: tuple[str, ...]):
    """The network up to these nodes, rewritten to run faster if it is a graph."""
    structure = structure_of(source.backbone, source.input.image_size)
    bound = bind(structure, network.module, nodes)
    _check_head(bound, network.absent, source)  # before names change
    if isinstance(bound, fx.GraphModule):
        fold_batch_norms(bound, network.substitutes, _aliased_modules(structure))
        simplify(bound, network.substitutes)
        if network.rounded:
            round_off(bound, network.substitutes, *network.rounded)
        if network.overwrites:
            overwrite_in_place(bound)
    elif network.rounded:
        bound.to(*network.rounded)
    return bound


def _check_head(bound, absent: frozenset, source: WeightsSource) -> None:
    """Raise an error if a layer needs a head that the weights file does not have."""
    if not absent.intersection(bound.state_dict()):
        return
    if isinstance(source, OwnWeights):
        raise WeightsError(
            f"Backbone {source.backbone.name!r} has the weights of some layers only: "
            f"{', '.join(str(x.alias) for x in aliased_layers(source.backbone))}. Use "
            f"one of these. {source.backbone.remedy}"
        )
    raise WeightsError(
        f"The weights in {source.name!r} have no classes that fit backbone "
        f"{source.backbone.name!r}, so layer='logits' cannot be read from them. "
        "Use layer='penultimate' or an earlier one."
    )


def _aliased_modules(structure: Structure) -> set[str]:
    """Modules whose output is an aliased layer."""
    layers = aliased_layers(structure.backbone)
    return {str(structure.step(layer.node).target) for layer in layers}
