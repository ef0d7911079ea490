"""Network + names of layers → a smaller network that returns just those activations.

The traced graph is cut after the last requested layer and bound to the shared network's
own weights: nothing is hooked or copied, nothing is computed in vain, and many threads
may run it at once.
"""

from torch import fx

from .._backbones.weights import WeightsSource
from .._exceptions import WeightsError
from .layers import aliased_layers
from .rewriting import fold_batch_norms, overwrite_in_place, round_off
from .sharing import SharedNetwork
from .structure import Structure, bind, structure_of


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
