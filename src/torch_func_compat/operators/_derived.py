"""The operators of functions."""

from __future__ import annotations

from typing import Any, Callable

from torch import Tensor

from ..autograd import grad, vjp
from ..autograd.internals import P
from ._operator import LinearOperator
from ._products import Chain, Product
from ._trees import Space

__all__ = ["ggn_operator", "hessian_operator", "jacobian_operator"]


def jacobian_operator(
    func: Callable[P, Any],
    *primals: Any,
    chunk_size: int | str | None = None,
    memory: int | str | None = None,
    progress: bool = False,
) -> LinearOperator:
    """Jacobian as a linear operator, of one recorded evaluation.

    Parameters
    ----------
    func : callable
        Returns a pytree of real tensors.
    *primals : pytrees of tensors
        Where to evaluate; all are differentiated. The tensors have one dtype and device, and so have those of the
        output.
    chunk_size, memory, progress
        Columns at a time, of products with matrices; see `vmap`.

    Returns
    -------
    LinearOperator
        Of shape ``(elements of the output, elements of the primals)``, each in the order of the tensors. For pytrees,
        from a tuple of tangents to the output's.

    Raises
    ------
    TypeError
        A primal or output is no tensor and no tuple, list or dict of tensors.
    ValueError
        There are several dtypes or devices.

    See Also
    --------
    linearize, vjp : products alone.

    Notes
    -----
    Cost: one forward and one backward pass. Each product with the transpose is a backward pass, one with the operator
    itself a pass back through the recorded one (the double-backward trick,
    https://j-towns.github.io/2017/06/12/A-new-trick.html). Products are differentiable.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.operators import jacobian_operator
    >>> operator = jacobian_operator(lambda x: x[1:] * x[:-1], torch.tensor([1.0, 2.0, 3.0]))
    >>> operator
    jacobian_operator(2 x 3, torch.float32, cpu)
    >>> operator @ torch.tensor([1.0, 0.0, 0.0]), operator.T @ torch.tensor([1.0, 0.0])
    (tensor([2., 0.]), tensor([2., 1., 0.]))
    """
    arguments = Space(primals, "jacobian_operator: primals")
    outputs: list[Space] = []

    def flat(vector: Tensor) -> Tensor:
        output = (func(*arguments.tree(vector)),)  # type: ignore[call-arg]
        outputs[:] = [Space(output, "jacobian_operator: output")]
        return outputs[0].vector(output)

    output, pull = vjp(flat, arguments.vector(primals))
    backward = Product(pull, dict(chunk_size=chunk_size, memory=memory, progress=progress))
    forward = backward.transposed(output)
    return LinearOperator("jacobian_operator", forward, backward, arguments, outputs[0], of_output=True)


def hessian_operator(
    func: Callable[P, Any],
    *primals: Any,
    chunk_size: int | str | None = None,
    memory: int | str | None = None,
    progress: bool = False,
) -> LinearOperator:
    """Hessian as a linear operator, of one recorded evaluation of the gradient.

    Parameters
    ----------
    func : callable
        Returns a tensor of no dimensions.
    *primals : pytrees of tensors
        Where to evaluate; see `jacobian_operator`.
    chunk_size, memory, progress
        Columns at a time, of products with matrices; see `vmap`.

    Returns
    -------
    LinearOperator
        Square, and its own transpose. For pytrees, from a tuple of tangents to a tuple of the same structure.

    Raises
    ------
    TypeError, ValueError
        As for `jacobian_operator`.
    RuntimeError
        The output is no number.

    See Also
    --------
    hvp : a single product.

    Notes
    -----
    Cost: one forward and one backward pass, and one backward pass through both for each product: reverse over reverse
    mode, which is the fastest for many products at one point.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.operators import hessian_operator
    >>> operator = hessian_operator(lambda x: x.pow(3).sum(), torch.tensor([1.0, 2.0]))
    >>> operator @ torch.tensor([1.0, 0.0]), operator.trace()
    (tensor([6., 0.]), tensor(18.))
    """
    arguments = Space(primals, "hessian_operator: primals")

    def scalar(vector: Tensor) -> Any:
        return func(*arguments.tree(vector))  # type: ignore[call-arg]

    _, pull = vjp(grad(scalar), arguments.vector(primals))
    product = Product(pull, dict(chunk_size=chunk_size, memory=memory, progress=progress))
    return LinearOperator("hessian_operator", product, product, arguments, arguments)


def ggn_operator(
    func: Callable[P, Any],
    loss: Callable[[Any], Any],
    *primals: Any,
    chunk_size: int | str | None = None,
    memory: int | str | None = None,
    progress: bool = False,
) -> LinearOperator:
    """Generalised Gauss-Newton matrix of ``loss(func(*primals))``: its Hessian without the curvature of `func`.

    With the Jacobian J of `func` and the Hessian H of `loss`, it is ``J.T @ H @ J``: positive semidefinite where the
    loss is convex. For a square loss it is the Gauss-Newton matrix, and for the cross-entropy the Fisher information
    of its softmax.

    Parameters
    ----------
    func : callable
        The model: returns a pytree of real tensors.
    loss : callable
        Takes what `func` returns, and returns a tensor of no dimensions.
    *primals : pytrees of tensors
        Where to evaluate; see `jacobian_operator`.
    chunk_size, memory, progress
        Columns at a time, of products with matrices; see `vmap`.

    Returns
    -------
    LinearOperator
        Square, and its own transpose. For pytrees, from a tuple of tangents to a tuple of the same structure.

    Raises
    ------
    TypeError, ValueError
        As for `jacobian_operator`.
    RuntimeError
        The loss is no number.

    Notes
    -----
    Cost: one forward and one backward pass of `func`, and one of `loss` and its gradient. A product is a pass back
    through the backward pass of `func`, one through that of `loss`, and a backward pass of `func`.
    Source: N. N. Schraudolph, Neural Comput. 14, 1723 (2002).

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.operators import ggn_operator
    >>> operator = ggn_operator(torch.sin, lambda y: y.pow(2).sum(), torch.zeros(2))
    >>> operator @ torch.tensor([1.0, 3.0])
    tensor([2., 6.])
    """
    arguments = Space(primals, "ggn_operator: primals")
    outputs: list[Space] = []

    def flat(vector: Tensor) -> Tensor:
        output = (func(*arguments.tree(vector)),)  # type: ignore[call-arg]
        outputs[:] = [Space(output, "ggn_operator: output")]
        return outputs[0].vector(output)

    output, pull = vjp(flat, arguments.vector(primals))

    def scalar(vector: Tensor) -> Any:
        return loss(*outputs[0].tree(vector))

    _, curve = vjp(grad(scalar), output)
    chunks = dict(chunk_size=chunk_size, memory=memory, progress=progress)
    backward, curvature = Product(pull, chunks), Product(curve, chunks)
    chain = Chain(backward.transposed(output), curvature, backward, chunk_size=chunk_size)
    return LinearOperator("ggn_operator", chain, chain, arguments, arguments)
