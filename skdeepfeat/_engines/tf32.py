"""Makes a GPU round to TF32, or not, whatever the settings of the process are.

A convolution takes this as an argument of each call; its gradients do not, and follow
torch's setting. A matrix multiplication follows a setting of the process, which is
changed for the computation if necessary and then restored exactly. torch 2.9 and later
have two such settings: ``fp32_precision``, where "none" means that the value of the
backend applies, or else that of all backends; and an older one, which raises an error
if the two contradict each other.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .._processes import Lock

_one_at_a_time = Lock()

CONVOLUTION = torch.ops.aten.convolution.default
WITH_SETTINGS = torch.ops.aten._convolution.default  # has four more arguments

Part = tuple[str, str]  # a backend and an operation
MULTIPLICATION = ("cuda", "matmul")
ALSO_CHANGED = ("mkldnn", "matmul")  # by the older setting
_read: Any = getattr(torch._C, "_get_fp32_precision_getter", None)
_write: Any = getattr(torch._C, "_set_fp32_precision_setter", None)


@contextlib.contextmanager
def arithmetic(precision: str, kind: str) -> Iterator[None]:
    """A context in which a GPU rounds to TF32 if `precision` is "tf32", else never.

    By default torch rounds in convolutions, so features would differ from those of a
    CPU by up to a thousandth.
    """
    if kind == "cpu" or precision in ("bfloat16", "float16"):  # nothing to round
        yield
        return
    rounds = precision == "tf32"
    with multiplications(rounds), Convolutions(rounds):
        yield


class Convolutions(TorchFunctionMode):
    """A context in which the convolutions of this thread round or do not.

    Parameters
    ----------
    rounds : bool
    """

    def __init__(self, rounds: bool):
        super().__init__()
        self._steps = Steps(rounds)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Call a function of torch; only those named after convolutions compute any."""
        inside = "conv" in getattr(function, "__name__", "")
        with self._steps if inside else contextlib.nullcontext():
            return function(*args, **(kwargs or {}))


class Steps(TorchDispatchMode):
    """The same for all steps of a function, each of which then takes much longer.

    Parameters
    ----------
    rounds : bool
    """

    def __init__(self, rounds: bool):
        super().__init__()
        self._rounds = rounds

    @classmethod
    def _should_skip_dynamo(cls):
        """No: to keep its compiler away from here, torch would import it."""
        return False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Compute an operation, or the operations that it is composed of."""
        kwargs = kwargs or {}
        if function is CONVOLUTION:
            cudnn = torch.backends.cudnn
            how = (cudnn.benchmark, cudnn.deterministic, cudnn.enabled, self._rounds)
            return WITH_SETTINGS(*args, *how, **kwargs)
        with self:
            composed = function.decompose(*args, **kwargs)
        if composed is not NotImplemented:
            return composed
        return function(*args, **kwargs)


@contextlib.contextmanager
def multiplications(rounds: bool) -> Iterator[None]:
    """A context in which matrix multiplications round or do not."""
    with _one_at_a_time, contextlib.ExitStack() as undo:
        if _rounds() != rounds:
            _change(rounds, undo)
        yield


def _rounds() -> bool:
    """Whether multiplications round now."""
    if _read is None:
        return torch.backends.cuda.matmul.allow_tf32
    return _read(*MULTIPLICATION) == "tf32"


def _change(rounds: bool, undo: contextlib.ExitStack) -> None:
    """Change both settings, so that code that reads either one gets no error."""
    for part in (MULTIPLICATION, ALSO_CHANGED) if _read else ():
        undo.callback(_write, part[0], part[1], own_precision(part))
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the two already contradict each other
        _write(*MULTIPLICATION, "tf32" if rounds else "ieee")
        return
    undo.callback(torch.set_float32_matmul_precision, before)
    torch.set_float32_matmul_precision("high" if rounds else "highest")


def own_precision(part: Part) -> str:
    """What was set for a part: "none" if the setting above it applies."""
    holds, above = _read(*part), _above(part)
    if above is None or holds == "none":
        return holds
    kept = own_precision(above)
    _write(*above, "ieee" if holds == "tf32" else "tf32")
    follows = _read(*part) != holds
    _write(*above, kept)
    return "none" if follows else holds


def _above(part: Part) -> Part | None:
    """The part whose precision applies if this one has none of its own."""
    backend, operation = part
    if backend == "generic":
        return None
    return ("generic" if operation == "all" else backend), "all"
