"""The arithmetic of 3 x 3 convolutions with a quarter of the multiplications.

The inputs and the weights of 4 x 4 results are taken for coefficients of polynomials,
which are evaluated at six points, multiplied there, and interpolated; all of that along
both sides [1]_. Each engine does it in its own terms.

References
----------
.. [1] Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", 2016.
"""

import numpy as np

KERNEL = 3  # weights on a side
TILE = 4  # results on a side
WINDOW = 6  # inputs that these depend on, and points

# The points are 0, P, -P, Q, -Q and infinity. With these, rounding errors are as small
# as those of sums of products; with 1 and 2 they are three times as large. P Q is 1.
P, Q = 0.5**0.5, 2**0.5

# What was measured to pay, on two cores with AVX-512.
MIN_CHANNELS = 128  # going to the points and back costs as much for each channel
MIN_GAIN = 2  # times fewer multiplications; what tiles have beyond the map is lost
MIN_PRODUCTS = 200_000_000  # there are four times as many weights to be read


def pays(n: int, c: int, h: int, w: int, k: int) -> bool:
    """Whether it takes less time for (n, c, h, w) maps to become (n, k, h, w) ones."""
    direct = KERNEL**2 * h * w
    gain = direct / (WINDOW**2 * tiles(h) * tiles(w))
    return (
        min(c, k) >= MIN_CHANNELS
        and gain >= MIN_GAIN
        and direct * n * c * k >= MIN_PRODUCTS
    )


def tiles(side: int) -> int:
    """How many cover a side of a map."""
    return -(-side // TILE)


def padding(side: int) -> tuple[int, int]:
    """Zeros before and after a side, so that all its tiles have their windows."""
    return 1, tiles(side) * TILE + 1 - side


def weights_at_points(kernels: np.ndarray) -> np.ndarray:
    """(k, c, 3, 3) → (36, k, c), the points column by column."""
    k, c = kernels.shape[:2]
    columns = kernels.swapaxes(2, 3).reshape(k * c, -1)
    return (_WEIGHTS_AT_POINTS @ columns.T).astype(np.float32).reshape(-1, k, c)


def _matrices() -> tuple[np.ndarray, np.ndarray]:
    """(6, 3) from weights to points, (4, 6) from points to results, of one side."""
    points = np.array([0, P, -P, Q, -Q])
    apart = np.subtract.outer(points, points) + np.eye(len(points))
    weights = points[:, None] ** np.arange(KERNEL) / apart.prod(1, keepdims=True)
    results = points ** np.arange(TILE)[:, None]
    infinity = np.eye(TILE)[:, -1:]
    return np.vstack([weights, [[0, 0, 1]]]), np.hstack([results, infinity])


_WEIGHTS_AT_POINTS, _results = (np.kron(matrix, matrix) for matrix in _matrices())
RESULTS = _results.astype(np.float32)  # (16, 36), points to results of both sides
