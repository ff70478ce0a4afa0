"""Hessians by reverse over reverse mode, for which custom functions need no forward mode."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from .._arguments.call import positions
from ..autograd.internals import grad
from .compat import _jacobian, jacrev_compat
from .internals import jacrev, vmap

__all__ = ["hess_fn_rev", "hessian"]


def hess_fn_rev(f: Callable[..., Any], argnums: int | tuple[int, ...] = 0) -> Callable[..., Any]:
    """Hessian of `f` as ``jacrev(jacrev(f))``.

    Parameters
    ----------
    f : callable
        Returns a tensor.
    argnums : int or tuple of int
        Arguments to differentiate.

    Returns
    -------
    callable
        Returns tensors of shape ``output.shape + argument.shape + argument.shape``.

    Raises
    ------
    RuntimeError
        As for `torch_func_compat.jacrev`.

    Notes
    -----
    Cost: one forward and one backward pass per element of the output, and as many passes through both as the arguments
    have elements.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.tad_mctc import hess_fn_rev
    >>> hess_fn_rev(lambda x: x.pow(3).sum())(torch.tensor([1.0, 2.0]))
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    """
    return jacrev(jacrev(f, argnums), argnums)


def hessian(
    f: Callable[..., Any],
    inputs: tuple[Any, ...],
    argnums: int | tuple[int, ...],
    is_batched: bool = False,
    *,
    in_dims: Any = None,
    create_graph: bool = True,
    strict: bool = False,
    vectorize: bool = False,
    strategy: str = "reverse-mode",
) -> Any:
    """Hessian of the sum of `f`'s output.

    Parameters
    ----------
    f : callable
        Returns a real tensor; that of one sample where the Hessian is batched.
    inputs : tuple
        What `f` is called with: tensors, and anything else.
    argnums : int or tuple of int
        Tensors to differentiate by.
    is_batched : bool
        One Hessian for each of the samples along dimension 0, by `vmap`: of the tensors that are differentiated,
        and of those that have as many samples. All else is shared by the samples.
    in_dims : tuple, optional
        That of `vmap`, to say what is mapped and what is shared.
    create_graph, strict, vectorize, strategy
        As in `jacrev_compat`.

    Returns
    -------
    Tensor
        Of shape ``(*x.shape, *x.shape)`` for the input `x`, ``(B, *x.shape[1:], *x.shape[1:])`` batched; a tuple of
        tuples of such blocks for a tuple `argnums`.

    Raises
    ------
    ValueError
        An input to differentiate by is no tensor; batch sizes differ; or it cannot be told whether an input is
        mapped or shared, for which there is `in_dims`.

    Notes
    -----
    Cost: one gradient, and a backward pass through it per element of the inputs. A single Hessian is computed on
    plain tensors, by the autograd backend; batched ones by the backend of the moment.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.tad_mctc import hessian
    >>> hessian(lambda x, power: x.pow(power).sum(), (torch.tensor([1.0, 2.0]), 3), argnums=0)
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    """
    chosen = positions(argnums, len(inputs))
    for i in chosen:
        if not isinstance(inputs[i], Tensor):
            raise ValueError(f"input {i} is differentiated: expected a tensor, got {type(inputs[i])}")

    gradient = grad(lambda *args: f(*args).sum(), argnums)
    if not is_batched:
        options = dict(create_graph=create_graph, strict=strict, vectorize=vectorize, strategy=strategy)
        return jacrev_compat(gradient, argnums, **options)(*inputs)  # type: ignore[arg-type]
    if strict:
        raise ValueError("strict=True and is_batched=True exclude each other: check a single sample")
    dims = _batch_dims(f, inputs, chosen) if in_dims is None else in_dims
    return vmap(_jacobian(gradient, argnums, create_graph, vectorize, strategy, {}), in_dims=dims)(*inputs)


def _batch_dims(f: Callable[..., Any], inputs: tuple[Any, ...], chosen: tuple[int, ...]) -> tuple[int | None, ...]:
    """0 for mapped inputs, None for shared ones; raises if the sizes do not tell which."""
    sizes = {inputs[i].shape[:1] for i in chosen}
    if len(sizes) != 1 or sizes == {torch.Size()}:
        shapes = [tuple(inputs[i].shape) for i in chosen]
        raise ValueError(f"is_batched=True: expected one batch size in dimension 0 of the inputs, got shapes {shapes}")
    (size,) = sizes
    mapped = tuple(0 if isinstance(x, Tensor) and x.shape[:1] == size else None for x in inputs)
    shared = tuple(0 if i in chosen else None for i in range(len(inputs)))
    if mapped == shared or not any(size[0] in inputs[i].shape[1:] for i in chosen):
        return mapped
    # There are as many samples as a sample has rows, so the others could be mapped or shared. The output of f may tell.
    found = {dims: _shape_of_a_sample(f, inputs, dims) for dims in (mapped, shared)}
    possible = [dims for dims in found if found[dims] is not None]
    if not possible or found[mapped] == found[shared]:
        doubtful = [i for i in range(len(inputs)) if mapped[i] != shared[i]]
        raise ValueError(
            f"is_batched=True: inputs {doubtful} could be mapped or shared, for there are {size[0]} samples and a "
            f"sample has that size, too: pass in_dims, {mapped} for the one and {shared} for the other"
        )
    # if both are possible, a batch within a sample makes the output larger
    return min(possible, key=lambda dims: len(found[dims] or ()))


def _shape_of_a_sample(f: Callable[..., Any], inputs: tuple[Any, ...], dims: tuple[int | None, ...]) -> Any:
    """Shape of the output for the first sample, None where it cannot be computed."""
    first = [x if dim is None else x[0] for x, dim in zip(inputs, dims)]
    try:
        with torch.no_grad():
            return tuple(f(*first).shape)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
        return None
