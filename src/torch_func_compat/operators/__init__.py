"""Jacobians, Hessians and Gauss-Newton matrices as linear operators, for sizes at which the matrix is too large.

The function is evaluated once. Each product with a vector costs a few passes, whatever the size. The eigensolvers and
linear solvers of scipy take the result of `LinearOperator.to_scipy`.

>>> import torch
>>> from torch_func_compat.operators import hessian_operator
>>> operator = hessian_operator(lambda x: (x[1:] - x[:-1]).pow(2).sum(), torch.zeros(1000))
>>> operator.shape
torch.Size([1000, 1000])
>>> (operator @ torch.ones(1000)).abs().max()  # a shift costs nothing
tensor(0.)
"""

from __future__ import annotations

from ._derived import ggn_operator, hessian_operator, jacobian_operator
from ._operator import LinearOperator

__all__ = ["LinearOperator", "ggn_operator", "hessian_operator", "jacobian_operator"]
