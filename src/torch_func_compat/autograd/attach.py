"""Attach a known gradient to a value, so that its evaluation is not differentiated."""

from __future__ import annotations

from typing import Any, Callable

from torch import Tensor

from .function import Function

__all__ = ["attach_gradient"]


def attach_gradient(function: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> Tensor:
    """``function(x)``, whose derivatives are those of a gradient that is given.

    For functions that are expensive or impossible to differentiate: a quadrature, a solver, a function in numpy. The
    first derivative is `gradient`, and every higher one is a derivative of `gradient`. So they are right, to any order
    and under every transform, if `gradient` is computed from `x` by differentiable operations.

    Parameters
    ----------
    function : callable
        Takes a tensor like `x`, also with more batch dimensions in front, and returns a value for each of its
        leading indices. It may do anything.
    x : Tensor
        Of shape ``(*batch, *event)``, where ``batch`` is the shape of the result.
    gradient : Tensor
        Of the shape of `x`: the derivative of each value by its own part of `x`.

    Returns
    -------
    Tensor
        Of shape ``batch``.

    Raises
    ------
    ValueError
        `gradient` has another shape than `x`.

    Notes
    -----
    Cost: one evaluation of `function`; a product for each derivative.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import hessian
    >>> from torch_func_compat.autograd.attach import attach_gradient
    >>> cubes = lambda x: attach_gradient(lambda x: (x**3).sum(-1), x, 3 * x**2)
    >>> hessian(cubes)(torch.tensor([1.0, 2.0]))
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    """
    if gradient.shape != x.shape:
        raise ValueError(
            f"expected a gradient of the shape of x, {tuple(x.shape)}, got one of shape {tuple(gradient.shape)}"
        )
    value: Tensor = _Attached.apply(x, gradient, function)
    return value


class _Attached(Function):
    @staticmethod
    def forward(x: Tensor, gradient: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, gradient, _ = inputs
        ctx.event = x.dim() - output.dim()
        ctx.save_for_backward(gradient)
        ctx.save_for_forward(gradient)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return cotangent.reshape(cotangent.shape + (1,) * ctx.event) * gradient, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        (gradient,) = ctx.saved_tensors
        product = gradient * tangent
        summed: Tensor = product.sum(tuple(range(-ctx.event, 0))) if ctx.event else product
        return summed

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, gradient: Tensor, function: Callable[[Tensor], Tensor]) -> Any:
        x, gradient = (_in_front(t, dim, info.batch_size) for t, dim in zip((x, gradient), in_dims))
        return _Attached.apply(x, gradient, function), 0


def _in_front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
