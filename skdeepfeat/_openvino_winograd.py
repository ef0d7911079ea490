"""Convolutions of a network of OpenVINO → the same with fewer multiplications."""

import numpy as np
import openvino.opset13 as ops

from ._winograd import (
    KERNEL,
    RESULTS,
    TILE,
    WINDOW,
    P,
    Q,
    padding,
    pays,
    tiles,
    weights_at_points,
)

MUST_BE_ONE = ("strides", "dilations", "pads_begin", "pads_end")


def multiply_less(model) -> None:
    """Replace the convolutions of a network of fixed shapes where that pays."""
    for step in model.get_ordered_ops():
        if step.get_type_name() == "Convolution" and _suits(step):
            kernels = step.input_value(1).get_node().data
            made = _convolve(step.input_value(0), weights_at_points(kernels))
            for reader in step.output(0).get_target_inputs():
                reader.replace_source_output(made.output(0))


def _suits(step) -> bool:
    """Whether a convolution is of the kind, and gains from it."""
    maps, kernels = step.input_value(0), step.input_value(1).get_node()
    if kernels.get_type_name() != "Constant" or maps.partial_shape.is_dynamic:
        return False
    k, _, *sides = kernels.shape
    if sides != [KERNEL, KERNEL]:  # there may be more or less than two
        return False
    (n, c, h, w), options = maps.shape, step.get_attributes()
    plain = all(list(options[name]) == [1, 1] for name in MUST_BE_ONE)
    return plain and pays(n, c, h, w, k)


def _convolve(maps, weights: np.ndarray):
    """(n, c, h, w) → (n, k, h, w), of weights (36, k, c)."""
    (n, c, h, w), k = maps.shape, weights.shape[1]
    down, across = tiles(h), tiles(w)
    (above, below), (left, right) = padding(h), padding(w)
    zeros = [0, above, left, 0], [0, below, right, 0]
    x = ops.pad(ops.transpose(maps, [0, 2, 3, 1]), *zeros, "constant", np.float32(0))
    rows = _to_points(x, 1, down)  # (6 * n, down, padded width, c)
    both = _to_points(rows, 2, across)  # (6 * 6 * n, down, across, c)
    both = _reshape(both, WINDOW**2, n * down * across, c)
    products = ops.matmul(both, ops.constant(weights), False, True)
    products = _reshape(products, WINDOW**2, n * down * across * k)
    results = ops.matmul(ops.constant(RESULTS), products, False, False)
    results = _reshape(results, TILE, TILE, n, down, across, k)  # columns, then rows
    results = ops.transpose(results, [2, 5, 3, 1, 4, 0])
    results = _reshape(results, n, k, down * TILE, across * TILE)
    return ops.slice(results, [0, 0], [h, w], [1, 1], [2, 3])


def _reshape(x, *shape: int):
    return ops.reshape(x, list(shape), special_zero=False)


def _to_points(x, axis: int, count: int):
    """(b, ...) → (6 * b, ...): each window along an axis, at each point.

    A point has the coefficients of the polynomial that is 0 at all others:
    x (x² - q²) (x ± p) for ±p, and (x² - p²) (x² - q²), times x for infinity.
    """
    last = TILE * (count - 1) + 1
    d = [ops.slice(x, [i], [i + last], [TILE], [axis]) for i in range(WINDOW)]

    def less(first, second, factor):
        return ops.subtract(first, ops.multiply(second, np.float32(factor)))

    pairs = []
    for p, q in ((P, Q), (Q, P)):
        even = less(d[4], d[2], q * q)
        odd = ops.multiply(less(d[3], d[1], q * q), np.float32(p))
        pairs += [ops.add(even, odd), ops.subtract(even, odd)]
    zero, infinity = (  # the last coefficient times P² Q², which is 1
        ops.add(less(d[i + 4], d[i + 2], P * P + Q * Q), d[i]) for i in (0, 1)
    )
    return ops.concat([zero, *pairs, infinity], 0)
