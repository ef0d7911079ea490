"""Finds the stages that a network in the style of timm returns as intermediates.

Its ``forward_intermediates`` is traced, and its steps are those of the network's own
graph, but for the last ones, which move the places of a stage into maps.
"""

from itertools import count

from torch import fx

from .stages import Stage, stage_info, stem_and_blocks
from .structure import Structure
from .trial import graph_of_intermediates
from .whole import has_intermediates

# Steps that move values, or leave out tokens of no place.
MOVES = {"reshape", "view", "permute", "transpose", "flatten", "unflatten", "getitem"}
MOVES |= {"contiguous"}


def intermediate_stages(structure: Structure) -> dict[str, Stage]:
    """The stages in order of depth, by alias; empty if they are not in the graph."""
    if not structure.traceable or not has_intermediates(structure.skeleton):
        return {}
    try:
        graph = graph_of_intermediates(structure.backbone, structure.image_size)
        found = _found_in(structure, graph)
    except Exception:  # whatever the network's code raises
        return {}
    info = stage_info(structure.skeleton)
    if len(info) != len(found):
        return {}
    stem, _ = stem_and_blocks(info)
    stages = [Stage(n, about.channels) for n, about in zip(found, info, strict=True)]
    return _by_depth(structure, stages, begins_with_stem=stem is info[0])


def _by_depth(structure: Structure, stages: list[Stage], begins_with_stem: bool):
    """The stages by alias, numbered in the order of the graph."""
    place = {node: i for i, node in enumerate(structure.nodes)}
    stem, blocks = (stages[:1], stages[1:]) if begins_with_stem else ([], stages)
    blocks = sorted(blocks, key=lambda stage: place[stage.node])
    numbered = {f"block{i}": block for i, block in enumerate(blocks, 1)}
    return {"stem": stem[0], **numbered} if stem else numbered


def _found_in(structure: Structure, graph: fx.Graph) -> list[str]:
    """The nodes of the network whose values another graph of it returns, in order."""
    assert structure.graph is not None
    numbers: dict[tuple, int] = {}
    own = _numbered(structure.graph, numbers)
    steps = {number: node for node, number in reversed(own.items())}
    other = _numbered(graph, numbers)
    return [
        structure.name_of(_behind_moves(structure, node, other, steps))
        for node in graph.output_node().all_input_nodes
    ]


def _behind_moves(structure, node: fx.Node, numbered: dict, steps: dict) -> fx.Node:
    """The step of the network whose values a step of the other graph moves."""
    while numbered[node] not in steps:
        if structure.kind(node) not in MOVES:
            raise LookupError(f"{node} is not a step of the network")
        node = node.all_input_nodes[0]
    return steps[numbered[node]]


def _numbered(graph: fx.Graph, numbers: dict[tuple, int]) -> dict[fx.Node, int]:
    """A number for each step: equal numbers for those that compute the same."""
    found: dict[fx.Node, int] = {}
    unique = count(-1, -1)
    for node in graph.nodes:
        given = fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{found[n]}")
        about = (node.op, str(node.target), str(given))
        if node.op == "get_attr" and "_constant" in str(node.target):
            found[node] = next(unique)  # its value has no name in both graphs
        else:
            found[node] = numbers.setdefault(about, len(numbers))
    return found
