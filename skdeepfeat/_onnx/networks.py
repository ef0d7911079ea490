"""Feature steps → one graph of ONNX: pixels → rows of features."""

import warnings

import torch
from torch import nn

from .._engines.base import PooledLayers
from .._engines.torch import PooledModule
from .._features import PretrainedCNNFeatures
from .._networks.building import build_network
from .._networks.sharing import SharedNetwork
from .._processes import fork_safe
from .extra import OPSET, state_versions


class FeatureSteps(nn.Module):
    """(n, side, side, 3) pixels → (n, width) rows of all feature steps, side by side.

    Parameters
    ----------
    steps : tuple of PretrainedCNNFeatures
    """

    def __init__(self, steps: tuple[PretrainedCNNFeatures, ...]):
        super().__init__()
        modules, self._places = [], []
        for step in steps:
            plan = step._plan()
            columns = [column.pooled for column in plan.columns.requested]
            source, key = plan.pooled.source, plan.pooled.weights_key
            pooled = PooledLayers.of(source, key, columns)
            module, absent = build_network(source)
            network = SharedNetwork(module.float(), absent)
            modules.append(PooledModule(pooled, network, "float32"))
            self._places.append([pooled.layers.index(column) for column in columns])
        self.networks = nn.ModuleList(modules)

    def forward(self, pixels):
        found = []
        for network, places in zip(self.networks, self._places, strict=True):
            rows = network(pixels)
            found += [rows[place] for place in places]
        return torch.cat(found, 1)


@fork_safe
def export_networks(steps: tuple[PretrainedCNNFeatures, ...], side: int):
    """The graph "images" (n, side, side, 3) uint8 → "features" (n, width) float32."""
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    with (
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of what the exporter itself uses
        exported = torch.onnx.export(
            FeatureSteps(steps).eval(),
            (example,),
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    state_versions(model)
    _drop_traces(model.graph)
    return model


def _drop_traces(graph) -> None:
    """Drop the lines of code and the paths that the steps of a graph come from."""
    for part in (graph, *graph.node, *graph.input, *graph.output):
        del part.metadata_props[:]
    del graph.value_info[:]
