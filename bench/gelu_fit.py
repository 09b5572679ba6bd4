"""Fits the polynomial q of GELU for 16-bit types on GPUs, Φ(z) = 1 / (1 + 2^(z q(z²))) (csrc/core/gelu.h).

`python -m bench.gelu_fit` prints its coefficients and the largest error of z Φ(z).
"""

import math

import numpy as np
from numpy.polynomial.polynomial import polyval
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.special import log_ndtr, ndtr

DEGREE, END, NODES = 4, 6.0, 200

Array = NDArray[np.float64]


def fit() -> Array:
    """q's coefficients, in float32: minimax of the error of z Φ, by a linear program on Chebyshev nodes, linearised
    about the exact exponent p = z q: ∂Φ / ∂p = −ln 2 · Φ (1 − Φ)."""
    z = END * (1 - np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES)) / 2
    p = (log_ndtr(-z) - log_ndtr(z)) / math.log(2)
    weight = z * math.log(2) * ndtr(z) * ndtr(-z)
    terms = weight[:, None] * z[:, None] ** (2 * np.arange(DEGREE + 1) + 1)
    bound = np.ones((NODES, 1))
    solution = linprog(
        c=[0.0] * (DEGREE + 1) + [1.0],
        A_ub=np.block([[terms, -bound], [-terms, -bound]]),
        b_ub=np.concatenate([weight * p, -weight * p]),
        bounds=[(None, None)] * (DEGREE + 1) + [(0, None)],
    )
    return np.float32(solution.x[:-1]).astype(np.float64)


def largest_error(q: Array) -> float:
    """Of z Φ(z), computed in float64 on a dense grid of |z| ≤ 20."""
    z = np.linspace(-20, 20, 100_001)
    with np.errstate(over="ignore"):  # 2^∞: Φ is 0
        cdf = 1 / (1 + np.exp2(z * polyval(z * z, q)))
    return float(np.abs(z * (cdf - ndtr(z))).max())


if __name__ == "__main__":
    q = fit()
    print("coefficients of t^0, t^1 …:", ", ".join(float(x).hex() for x in q))
    print(f"largest error: {largest_error(q):.2e}")
