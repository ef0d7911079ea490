"""Merges the steps of a graph that compute the same."""

from torch import fx

from .tracer import ENDS
from .whole import separate


def merge_repeats(
    graph: fx.Graph, named: dict[str, fx.Node], kept: fx.Node | None
) -> tuple[dict[str, fx.Node], fx.Node | None]:
    """Let each step that repeats an earlier one be that one.

    Returns the steps that are left, by name, and the one that `kept` has become. No
    step may overwrite a value, so that copies are not needed.
    """
    first: dict[tuple, fx.Node] = {}
    merged: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op in ENDS:
            continue
        same = (node.op, node.target, str(node.args), str(node.kwargs))
        copied = node.all_input_nodes[0] if node.target is separate else node
        earlier = first.setdefault(same, copied)
        if earlier is not node:
            node.replace_all_uses_with(earlier)
            graph.erase_node(node)
            merged[node] = earlier
    left = {name: step for name, step in named.items() if step not in merged}
    return left, merged.get(kept, kept) if kept else None
