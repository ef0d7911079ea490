"""Torch's global generators and its default dtype, which all threads share."""

import threading

import numpy as np
import torch

from skdeepfeat import PretrainedCNNFeatures, clear_caches
from skdeepfeat._networks.building import single_precision
from skdeepfeat._networks.generators import Draws


def new_draws():
    return Draws(3, torch.device("cpu"))


def alone():
    """What these draw in two turns if nobody else draws."""
    draws = new_draws()
    with draws.turn():
        first = torch.rand(4)
    with draws.turn():
        return torch.cat([first, torch.rand(4)])


def test_what_others_draw_between_two_turns_changes_neither():
    torch.manual_seed(0)
    theirs = torch.rand(8)
    torch.manual_seed(0)
    draws = new_draws()
    with draws.turn():
        first = torch.rand(4)
    between = torch.rand(8)
    with draws.turn():
        second = torch.rand(4)
    assert torch.equal(torch.cat([first, second]), alone())
    assert torch.equal(between, theirs)


def test_a_network_is_built_after_the_turn_of_another_thread(photos):
    features = PretrainedCNNFeatures("lenet5", weights=None, cache=None)
    expected, found = features.transform(photos), []
    clear_caches()
    building = threading.Thread(target=lambda: found.append(features.transform(photos)))
    draws = new_draws()
    with draws.turn():
        first = torch.rand(4)
        building.start()
        building.join(0.3)
        assert building.is_alive()
        rest = torch.rand(4)
    building.join()
    assert torch.equal(torch.cat([first, rest]), alone())
    np.testing.assert_array_equal(found[0], expected)


def test_the_last_thread_that_leaves_restores_the_default_dtype(request):
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.float64)
    entered, may_leave = threading.Event(), threading.Event()

    def stay():
        with single_precision:
            entered.set()
            may_leave.wait()

    other = threading.Thread(target=stay)
    with single_precision:
        other.start()
        entered.wait()
    assert torch.get_default_dtype() == torch.float32  # the other is still inside
    may_leave.set()
    other.join()
    assert torch.get_default_dtype() == torch.float64
