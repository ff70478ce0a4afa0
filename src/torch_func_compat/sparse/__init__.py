"""Sparse Jacobians and Hessians, by as many products as there are colors.

Columns without a common row can share one product with the Jacobian, and rows without a common column likewise. A
coloring of the pattern tells which share. The Hessian of a chain of thousands of atoms takes 15 products; `hessian`
takes one for each coordinate.

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
