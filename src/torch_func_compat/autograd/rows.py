"""The Jacobian of a tensor that has been computed already, from its graph."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["jac"]


def jac(a: Tensor, b: Tensor, create_graph: bool | None = None, retain_graph: bool = True) -> Tensor:
    """Jacobian of one tensor with respect to another that it was computed from, row by row.

    Parameters
    ----------
    a : Tensor
        The tensor to differentiate, of any shape.
    b : Tensor
        The tensor to differentiate by; it requires grad and is in the graph of `a`.
    create_graph : bool, optional
        Whether the Jacobian can be differentiated again; by default, whether grad mode is on.
    retain_graph : bool
        Whether the graph of `a` is kept after the last row.

    Returns
    -------
    Tensor
        Of shape ``(*a.shape, b.numel())``; zeros where `a` has no graph at all.

    Raises
    ------
    RuntimeError
        By torch: `b` requires no grad, or is not in the graph of `a`.

    Notes
    -----
    Cost: a backward pass per element of `a`. Where `a` can be had as a function of `b`, ``jacrev`` batches them.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.rows import jac
    >>> b = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> jac(b.square(), b, create_graph=False)
    tensor([[2., 0.],
            [0., 4.]])
    """
    if a.grad_fn is None and a is not b:
        return b.new_zeros((*a.shape, b.numel()))
    create = torch.is_grad_enabled() if create_graph is None else create_graph
    elements = a.reshape(-1)
    rows = []
    for i in range(elements.numel()):
        retain = retain_graph or create or i + 1 < elements.numel()
        (row,) = torch.autograd.grad(elements[i], b, create_graph=create, retain_graph=retain)
        rows.append(row.reshape(-1))
    return torch.stack(rows).reshape(*a.shape, b.numel()) if rows else a.new_zeros((*a.shape, b.numel()))
