"""Private copies of a user's network, in evaluation mode; torch is not imported."""

import copy

OWN_COPY = (
    " The method '__deepcopy__' of {} must also copy a network on the device 'meta', "
    "whose tensors have no values."
)


def check_module(net) -> None:
    """Refuse what is not a network in plain Python; torch need not be imported."""
    if "Module" not in _kinds(net) or "ScriptModule" in _kinds(net):
        raise TypeError(
            "from_module takes a torch.nn.Module in plain Python, got "
            f"{type(net).__name__} instead."
        )
    for name, module in net.named_modules():
        _check_plain(name, module)
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        _check_values(name, tensor)


def _check_plain(name: str, module) -> None:
    """Refuse a module that is compiled or quantised."""
    if "ScriptModule" in _kinds(module):
        raise TypeError(
            "from_module takes a torch.nn.Module in plain Python, and its module "
            f"{name!r} is compiled by TorchScript. Use the module that "
            "torch.jit.script or torch.jit.trace was given."
        )
    if ".quantized" in type(module).__module__:
        raise TypeError(
            f"The module {name!r} of the network is quantised. Pass the network as it "
            "was before, in single precision."
        )


def _check_values(name: str, tensor) -> None:
    """Refuse a tensor without values."""
    if tensor.is_meta:
        raise ValueError(
            f"The tensor {name!r} of the network has no values, as it is on the device "
            "'meta'. Load the weights before you pass it to from_module."
        )
    if type(tensor).__name__.startswith("Uninitialized"):
        raise ValueError(
            f"The parameter {name!r} of the network has no shape yet: a lazy layer "
            "gets it in the first call. Run the network once on a batch of images "
            "before you pass it to from_module."
        )


def _kinds(thing) -> list[str]:
    return [base.__name__ for base in type(thing).__mro__]


def copy_of(net):
    """A deep copy of a network in evaluation mode, or an error that says why not.

    Compiled modules are replaced by the modules that torch.compile was given, and
    DataParallel runs its module where the images are.
    """
    try:
        copied = copy.deepcopy(net, _copies_of_results(net))
    except Exception as error:  # copying an attribute may raise anything
        raise TypeError(
            "Backbone.from_module copies the network, and something in this "
            f"{type(net).__name__} cannot be copied: {error}. Keep it outside of the "
            f"network, for instance as a global of its module.{_hint(net)}"
        ) from error
    try:
        return evaluating(_on_one_device(_as_written(copied)))
    except NotImplementedError as error:  # of networks that torch.export returned
        raise TypeError(
            f"This {type(net).__name__} cannot be put into evaluation mode: {error} "
            "Pass the network that was exported."
        ) from error


def _copies_of_results(net) -> dict:
    """By identity, copies of tensors that modules keep and have computed from others,
    as pruning and old norms of weights do: torch does not copy these."""
    kept = [value for module in net.modules() for value in vars(module).values()]
    computed = [t for t in kept if getattr(t, "grad_fn", None) is not None]
    return {id(tensor): tensor.detach().clone() for tensor in computed}


def _hint(net) -> str:
    """What else to do about an error of a copy, or ""."""
    own = [type(m).__name__ for m in net.modules() if hasattr(type(m), "__deepcopy__")]
    return OWN_COPY.format(own[0]) if own else ""


def evaluating(net):
    """The same network in evaluation mode, whatever its methods return.

    Some networks return to training when they are copied.
    """
    net.eval()
    return net


def _as_written(net):
    """A network without torch.compile: modules compiled alone would hide the rest."""
    while "OptimizedModule" in _kinds(net):
        net = net._orig_mod
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if "OptimizedModule" in _kinds(child):
                setattr(module, name, _as_written(child))
    return net


def _on_one_device(net):
    """A network whose DataParallel modules do not know the GPUs of this machine."""
    for module in net.modules():
        if "DataParallel" in _kinds(module):
            for name in ("dim", "output_device", "src_device_obj"):
                vars(module).pop(name, None)
            module.device_ids = []
    return net


def keeping_ties(net, move):
    """What `move` makes of a network in place, in which modules share the same
    parameters as before: torch gives each its own on another kind of device."""
    owners: dict[int, list] = {}
    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((module, name))
    net = move(net)
    for (module, name), *others in owners.values():
        for other, other_name in others:
            other._parameters[other_name] = module._parameters[name]
    return net
