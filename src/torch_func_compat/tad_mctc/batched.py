"""Batched Jacobians."""

from __future__ import annotations

from typing import Any, Callable

from .internals import jacrev, vmap

__all__ = ["bjacrev"]


def bjacrev(func: Callable[..., Any], argnums: int | tuple[int, ...] = 0, **kwargs: Any) -> Callable[..., Any]:
    """`jacrev` mapped over dimension 0 of every argument.

    Parameters
    ----------
    func : callable
        Takes and returns one sample.
    argnums : int or tuple of int
        Arguments to differentiate.
    **kwargs
        Options of `jacrev`.

    Returns
    -------
    callable
        Returns tensors of shape ``(B, *output of a sample, *input of a sample)``.

    Raises
    ------
    ValueError, RuntimeError
        As for `torch_func_compat.vmap` and `torch_func_compat.jacrev`.

    Notes
    -----
    Cost: one forward pass over the batch, and as many backward passes as the output of a sample has elements, batched.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.tad_mctc import bjacrev
    >>> bjacrev(torch.square)(torch.ones(4, 3)).shape
    torch.Size([4, 3, 3])
    """
    return vmap(jacrev(func, argnums, **kwargs), in_dims=0, out_dims=0)
