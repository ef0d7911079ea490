"""Identifies a network of the user's own by what it computes.

The traced graph describes the computation: its steps in order, the functions and
modules that they call, their settings and constants. Only what torch, torchvision and
Python itself provide can be named. A network with any other kind of step, or without a
graph that computes the same, is identified by the object and its code.
"""

from operator import attrgetter

from torch import fx, nn

from .._backbones.records import Backbone, Identity
from .._digests import digest_fields
from .._processes import fork_safe
from .code_digest import digest_code
from .descriptions import (
    Undescribable,
    describe_module,
    describe_tensor,
    describe_value,
    name_of_function,
)
from .structure import Structure, structure_of


@fork_safe
def describe(backbone: Backbone, image_size: int, about: dict) -> tuple[dict, str]:
    """Named values that identify this network, weights apart, and why they mean
    nothing in other processes, or ""."""
    structure = structure_of(backbone, image_size)
    if structure.values:
        about = {**about, "values": structure.values}
    try:
        described = _describe_graph(structure)
        graph = digest_fields("graph", 1, described)
        return {**about, "graph": graph}, ""
    except TypeError as error:  # also of values that have no digest
        return {**about, "token": backbone.token}, str(error)


@fork_safe
def as_code_stands(backbone: Backbone, image_size: int, known: Identity) -> Identity:
    """The identity of a network that only the object and its code describe.

    Its code is read again each time, because it may have been edited.
    """
    skeleton = structure_of(backbone, image_size).skeleton
    about = {"network": known.digest, "code": digest_code(backbone, skeleton)}
    return Identity(
        digest_fields("network as its code stands", 1, about), known.obstacle
    )


def _describe_graph(structure: Structure) -> dict:
    """Steps, and the modules and tensors that they use."""
    if structure.graph is None:
        raise Undescribable(f"torch.fx cannot trace it ({structure.fault})")
    if structure.fault:
        raise Undescribable(structure.fault)
    place = {node: i for i, node in enumerate(structure.graph.nodes)}
    steps = [_describe_step(node, place) for node in structure.graph.nodes]
    used = [n for n in structure.graph.nodes if n.op in ("call_module", "get_attr")]
    parts = {
        target: _describe_part(structure.skeleton, target)
        for target in sorted({str(node.target) for node in used})
    }
    return {"steps": steps, "parts": parts, "names": list(structure.nodes)}


def _describe_step(node: fx.Node, place: dict) -> list:
    """What a step does, and to which values."""
    target = node.target
    if node.op == "call_function":
        target = name_of_function(target)
    given = [describe_value(value, place) for value in (node.args, node.kwargs)]
    return [node.op, str(target), *given]


def _describe_part(skeleton: nn.Module, target: str):
    """A module or a tensor; weights have no values here."""
    part = attrgetter(target)(skeleton)
    describe_one = describe_module if isinstance(part, nn.Module) else describe_tensor
    return describe_one(part)
