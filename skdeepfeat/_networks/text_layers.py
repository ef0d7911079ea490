"""Layers of networks of texts, as a plan needs to know them; without torch."""

from dataclasses import dataclass

from .._backbones.records import Layer
from .._backbones.text_records import TextSource
from .._exceptions import closest
from .._texts.specs import AS_STATES, POOLINGS


@dataclass(frozen=True)
class TextNetwork:
    """A network of texts, as a plan needs to know it.

    Parameters
    ----------
    source : TextSource
        The network's record, its weights, and what it takes.
    """

    source: TextSource

    def aliased(self) -> tuple[Layer, ...]:
        """The layers in order of depth."""
        return self.source.backbone.layers

    def find(self, name) -> Layer:
        """The layer with this alias, index or node."""
        layers = self.aliased()
        if isinstance(name, str):
            named = [x for x in layers if name == x.alias]
            named += [x for x in layers if name == x.node]
        else:
            named = [layers[name]] if -len(layers) <= name < len(layers) else []
        if not named:
            raise ValueError(_unknown(self.source.backbone.name, name, layers))
        return named[0]

    def width(self, layer: Layer, pooling: str) -> int:
        """Number of features of a layer after pooling."""
        if layer.layout not in AS_STATES:
            return layer.features
        known = self.source.input.poolings
        if pooling not in known:
            raise ValueError(
                f"pooling={pooling!r} is not possible with backbone "
                f"{self.source.backbone.name!r}. Use one of {sorted(known)}."
            )
        return len(POOLINGS[pooling]) * layer.features


def _unknown(backbone: str, name, layers: tuple[Layer, ...]) -> str:
    """What to type instead of an unknown layer."""
    known = [str(layer.alias) for layer in layers]
    return (
        f"Unknown layer {name!r} of backbone {backbone!r}.{closest(name, known)} Its "
        f"layers are {', '.join(map(repr, known))}, or 0 to {len(known) - 1}."
    )
