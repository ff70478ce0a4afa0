"""Jacobians and maps that never wrap a tensor: they always use the autograd backend."""

from __future__ import annotations

import functools
from typing import Any, Callable

import torch
from torch import Tensor

from .._arguments.call import positions
from ..autograd.internals import jacfwd, jacrev, use_backend, vmap

__all__ = ["jacrev_compat", "vmap_compat"]


def jacrev_compat(
    f: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    create_graph: bool = True,
    strict: bool = False,
    vectorize: bool = False,
    strategy: str = "reverse-mode",
    **kwargs: Any,
) -> Callable[..., Any]:
    """`jacrev` by the autograd backend, with the options of ``torch.autograd.functional.jacobian``.

    Parameters
    ----------
    f : callable
        Returns a tensor.
    argnums : int or tuple of int
        Tensors to differentiate by; the other arguments may be anything.
    create_graph : bool
        Whether the result can be differentiated by what required grad before the call.
    strict : bool
        Raise where the output does not depend on an argument, instead of giving zeros.
    vectorize : bool
        All rows at once, which is faster and takes more memory, instead of one by one.
    strategy : {'reverse-mode', 'forward-mode'}
        `jacrev` or `jacfwd`.
    **kwargs
        Of `jacrev`: ``has_aux``, ``chunk_size``.

    Returns
    -------
    callable
        Returns a tensor of shape ``output.shape + argument.shape``, or a tuple of them for a tuple `argnums`.

    Raises
    ------
    RuntimeError
        An argument to differentiate by is no tensor, or `strict` is not met.
    ValueError
        There is no such strategy.

    Notes
    -----
    Cost: one forward pass, and a backward pass for each element of the output, one by one unless `vectorize`.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.tad_mctc import jacrev_compat
    >>> jacrev_compat(torch.square)(torch.tensor([1.0, 2.0]))
    tensor([[2., 0.],
            [0., 4.]])
    """
    jacobian = _jacobian(f, argnums, create_graph, vectorize, strategy, kwargs)

    @functools.wraps(f)
    def wrapped(*args: Any) -> Any:
        chosen = positions(argnums, len(args))
        for i in chosen:
            if not isinstance(args[i], Tensor):
                raise RuntimeError(f"argument {i} is differentiated: expected a tensor, got {type(args[i])}")
        if strict:
            return _strictly(f, argnums, args, chosen, create_graph, strategy)
        with use_backend("autograd"):
            return jacobian(*args)

    return wrapped


def _jacobian(
    f: Callable[..., Any],
    argnums: int | tuple[int, ...],
    create_graph: bool,
    vectorize: bool,
    strategy: str,
    options: dict[str, Any],
) -> Callable[..., Any]:
    """The Jacobian by the backend of the moment."""
    modes: dict[str, Callable[..., Any]] = {"reverse-mode": jacrev, "forward-mode": jacfwd}
    if strategy not in modes:
        raise ValueError(f"unknown strategy {strategy!r}: expected one of {', '.join(map(repr, modes))}")
    if not vectorize:
        options = {"chunk_size": 1, **options}
    jacobian = modes[strategy](f, argnums, **options)

    def wrapped(*args: Any) -> Any:
        with torch.set_grad_enabled(create_graph and torch.is_grad_enabled()):
            return jacobian(*args)

    return wrapped


def _strictly(
    f: Callable[..., Any],
    argnums: int | tuple[int, ...],
    args: tuple[Any, ...],
    chosen: tuple[int, ...],
    create_graph: bool,
    strategy: str,
) -> Any:
    """The Jacobian by torch.autograd.functional, which has `strict`."""
    if strategy != "reverse-mode":
        raise RuntimeError("torch.autograd.functional.jacobian: `strict=True` and `strategy='forward-mode'` exclude")

    def of_chosen(*tensors: Tensor) -> Any:
        merged = list(args)
        for i, tensor in zip(chosen, tensors):
            merged[i] = tensor
        return f(*merged)

    jacobian: Callable[..., Any] = torch.autograd.functional.jacobian
    blocks = jacobian(of_chosen, tuple(args[i] for i in chosen), create_graph=create_graph, strict=True)
    return blocks[0] if isinstance(argnums, int) else blocks


def vmap_compat(
    func: Callable[..., Any], in_dims: Any = 0, out_dims: Any = 0, randomness: str = "different", **kwargs: Any
) -> Callable[..., Any]:
    """`vmap` by the autograd backend: a call of `func` for each sample, with plain tensors.

    Parameters
    ----------
    func, in_dims, out_dims
        See `torch_func_compat.vmap`.
    randomness : {'error', 'different', 'same'}
        What random operations in `func` do; by default each sample draws its own, as in a loop.
    **kwargs
        The other options of `torch_func_compat.vmap`.

    Returns
    -------
    callable
        Takes what `func` takes, with a batch dimension more where `in_dims` says so.

    Raises
    ------
    ValueError, RuntimeError
        As for `torch_func_compat.vmap`.

    Notes
    -----
    Cost: one evaluation per sample.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.tad_mctc import vmap_compat
    >>> vmap_compat(torch.dot)(torch.ones(2, 3), torch.ones(2, 3))
    tensor([3., 3.])
    """
    mapped = vmap(func, in_dims, out_dims, randomness, **kwargs)

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with use_backend("autograd"):
            return mapped(*args, **kwargs)

    return wrapped
