"""Torch's global generators, from which all threads draw: they take turns.

Builders of networks, dropout and augmentation take no generator of their own. Whoever
runs them takes a turn, and leaves the generators to the others as they were.
"""

import contextlib
from collections.abc import Iterator

import torch

from .._caches import turn


@contextlib.contextmanager
def restored(seed: int | None = None) -> Iterator[None]:
    """A turn with the generator of the CPU, which starts from a seed if one is given,
    and is afterwards as it was."""
    with turn, torch.random.fork_rng([]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        yield


class Draws:
    """Random numbers of a training, the same whoever else takes turns.

    Parameters
    ----------
    seed : int
    device : torch.device
        The device that draws, in addition to the CPU.
    """

    def __init__(self, seed: int, device: torch.device):
        self.device = device
        with self._restored():
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            self._states = self._read()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """A turn in which the generators go on from where the last one ended."""
        with self._restored():
            self._write(self._states)
            yield
            self._states = self._read()

    @contextlib.contextmanager
    def _restored(self) -> Iterator[None]:
        """A turn after which the generators are as they were."""
        with turn, torch.random.fork_rng(self._devices):
            yield

    @property
    def _devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def _read(self) -> list[torch.Tensor]:
        """The states of the generators of the CPU and of the device."""
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._devices)]

    def _write(self, states: list[torch.Tensor]) -> None:
        cpu, *others = states
        torch.set_rng_state(cpu)
        for device, state in zip(self._devices, others, strict=True):
            torch.cuda.set_rng_state(state, device)
