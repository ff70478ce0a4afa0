"""Jacobians and Hessians of which most entries are zero, by as many products as there are colors.

Columns that have no row in common can be found by one product with the Jacobian, and so for rows; a coloring of the
pattern says which. A chain of thousands of atoms takes 15 products for its Hessian, where `hessian` takes one for each
coordinate.

>>> import torch
>>> from torch_func_compat.sparse import detect_pattern, sparse_jacobian
>>> heat = lambda u: u[2:] - 2 * u[1:-1] + u[:-2]
>>> u = torch.zeros(6)
>>> sparse_jacobian(heat, detect_pattern(heat, u))(u).to_dense()
tensor([[ 1., -2.,  1.,  0.,  0.,  0.],
        [ 0.,  1., -2.,  1.,  0.,  0.],
        [ 0.,  0.,  1., -2.,  1.,  0.],
        [ 0.,  0.,  0.,  1., -2.,  1.]])
"""

from __future__ import annotations

from ._coloring import Coloring, coloring
from ._derivatives import sparse_hessian, sparse_jacobian
from ._detection import detect_pattern
from ._patterns import Pattern, neighbor_pattern

__all__ = [
    "Coloring",
    "Pattern",
    "coloring",
    "detect_pattern",
    "neighbor_pattern",
    "sparse_hessian",
    "sparse_jacobian",
]
