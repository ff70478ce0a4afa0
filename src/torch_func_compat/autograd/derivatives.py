"""Beyond torch.func: Jacobians by the cheaper mode, products with Hessians, diagonals and traces of them."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from .._arguments.call import Argnums
from .._arguments.chunks import Chunks, ChunkSize, Memory
from .._dispatch.transform import call, transform
from .._forward_laplacian.choice import Laplacian
from .._transforms.mode import HESSIAN_MODES, JACOBIAN_MODES, check_mode
from . import estimated
from .internals import P

__all__ = [
    "hessian_diagonal",
    "hvp",
    "jacobian",
    "laplacian",
    "value_and_jacobian",
    "value_grad_and_hessian",
    "vhp",
]


def jacobian(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    mode: str = "auto",
    has_aux: bool = False,
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    progress: bool = False,
    create_graph: bool | None = None,
) -> Callable[P, Any]:
    """Jacobian by the cheaper of reverse and forward mode.

    Parameters
    ----------
    func : callable
        Returns a pytree of real tensors, or ``(output, aux)`` with `has_aux`.
    argnums : int or tuple of int
        Positional arguments to differentiate.
    mode : {'auto', 'forward', 'reverse'}
        'reverse' is `jacrev`, 'forward' is `jacfwd`. 'auto' is 'forward' if the outputs have more than 1.5 times as
        many elements as the arguments (on the autograd backend 3 times as many, and at least 256). `explain` tells
        which it was.
    has_aux : bool
        Whether `func` returns tensors beside its output that are not differentiated.
    chunk_size : int, 'auto' or None
        Rows or columns at a time; see `vmap`.
    memory : int or str, optional
        Bytes that a chunk of ``chunk_size='auto'`` may need beside the result; see `vmap`.
    progress : bool
        Show how many rows or columns are done.
    create_graph : bool, optional
        False says that nothing outside is to differentiate the result: no graph of it is kept, not even to parameters
        that require grad, which saves memory. By default the result is as differentiable as the function.

    Returns
    -------
    callable
        Returns tensors of shape ``output.shape + argument.shape``, in the structure of the output and, within it, of
        the arguments; and aux.

    Raises
    ------
    ValueError
        `chunk_size` is not positive, or there is no such mode.
    RuntimeError
        Complex or non-tensor outputs, `argnums` that do not fit.

    Notes
    -----
    Cost: that of `jacrev` or `jacfwd`. The size of the output is found in the first call for arguments of new
    shapes; if forward mode is taken then, that evaluation of `func` is thrown away.

    Examples
    --------
    >>> import torch
    >>> import torch_func_compat as tfc
    >>> jacobian = tfc.jacobian(lambda x: x.repeat(400))
    >>> jacobian(torch.ones(1)).shape
    torch.Size([400, 1])
    >>> "It took forward mode, since 400 outputs > " in tfc.explain(jacobian)
    True
    """
    check_mode("jacobian", mode, JACOBIAN_MODES)
    chunks = Chunks.checked("jacobian", chunk_size, memory, progress)
    return transform(
        "jacobian", func, argnums=argnums, has_aux=has_aux, mode=mode, chunks=chunks, create_graph=create_graph
    )


def value_and_jacobian(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    mode: str = "auto",
    has_aux: bool = False,
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    progress: bool = False,
    create_graph: bool | None = None,
) -> Callable[P, Any]:
    """`jacobian` that also returns the function's value, from the same forward pass.

    Parameters
    ----------
    func, argnums, mode, has_aux, chunk_size, memory, progress, create_graph
        See `jacobian`.

    Returns
    -------
    callable
        Returns ``(value, jacobian)``, or ``((value, aux), jacobian)`` with `has_aux`.

    Raises
    ------
    ValueError, RuntimeError
        As for `jacobian`.

    See Also
    --------
    jacobian : without the value.

    Notes
    -----
    Cost: that of `jacobian`; the value comes from the same evaluation.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import value_and_jacobian
    >>> value_and_jacobian(torch.square)(torch.tensor([3.0]))
    (tensor([9.]), tensor([[6.]]))
    """
    check_mode("value_and_jacobian", mode, JACOBIAN_MODES)
    chunks = Chunks.checked("value_and_jacobian", chunk_size, memory, progress)
    return transform(
        "value_and_jacobian",
        func,
        argnums=argnums,
        has_aux=has_aux,
        mode=mode,
        chunks=chunks,
        create_graph=create_graph,
    )


def value_grad_and_hessian(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    mode: str = "auto",
    has_aux: bool = False,
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    progress: bool = False,
    create_graph: bool | None = None,
) -> Callable[P, Any]:
    """Value, gradient and Hessian from one evaluation, as Newton's method needs them.

    Parameters
    ----------
    func, argnums, mode, has_aux, chunk_size, memory, progress, create_graph
        See `hessian`.

    Returns
    -------
    callable
        Returns ``(value, gradient, hessian)``, or ``((value, aux), gradient, hessian)`` with `has_aux`. For a function
        with several outputs, the gradient is the Jacobian.

    Raises
    ------
    ValueError, RuntimeError
        As for `hessian`.

    See Also
    --------
    hessian : without value and gradient.

    Notes
    -----
    Cost: that of `hessian`; value and gradient come from the same evaluation.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import value_grad_and_hessian
    >>> value_grad_and_hessian(lambda x: x**3)(torch.tensor(2.0))
    (tensor(8.), tensor(12.), tensor(12.))
    """
    check_mode("value_grad_and_hessian", mode, HESSIAN_MODES)
    chunks = Chunks.checked("value_grad_and_hessian", chunk_size, memory, progress)
    return transform(
        "value_grad_and_hessian",
        func,
        argnums=argnums,
        has_aux=has_aux,
        mode=mode,
        chunks=chunks,
        create_graph=create_graph,
    )


def hvp(
    func: Callable[P, Any], primals: Any, tangents: Any, *, has_aux: bool = False, create_graph: bool | None = None
) -> Any:
    """Value of a function and the product of its Hessian with a vector.

    Parameters
    ----------
    func : callable
        Returns a tensor of no dimensions, or ``(that, aux)`` with `has_aux`.
    primals : tuple of pytrees of tensors
        Where to evaluate.
    tangents : tuple of pytrees of tensors
        The vector, in the structure and shapes of `primals`.
    has_aux : bool
        Whether `func` returns tensors beside its output that are not differentiated.
    create_graph : bool, optional
        False says that nothing outside is to differentiate the result: no graph of it is kept, not even to parameters
        that require grad, which saves memory. By default the result is as differentiable as the function.

    Returns
    -------
    value : Tensor
    product : tuple of pytrees
        In the structure of `primals`; and aux, with `has_aux`.

    Raises
    ------
    RuntimeError
        Primals are no tuple, tangents have another structure or shape, the output is no number.

    Notes
    -----
    Reverse over reverse mode, since a Hessian is symmetric.
    Cost: one forward and two backward passes, the second one through the first, whatever the number of elements.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import hvp
    >>> hvp(lambda x: x.pow(3).sum(), (torch.tensor([1.0, 2.0]),), (torch.tensor([1.0, 0.0]),))
    (tensor(9.), (tensor([6., 0.]),))
    """
    return call("hvp", func, primals, tangents, has_aux=has_aux, create_graph=create_graph)


def vhp(
    func: Callable[P, Any], primals: Any, cotangents: Any, *, has_aux: bool = False, create_graph: bool | None = None
) -> Any:
    """Value of a function and the product of a vector with its Hessian.

    The same as `hvp` wherever the Hessian is symmetric, in reverse over reverse mode.

    Parameters
    ----------
    func, primals, has_aux
        See `hvp`.
    cotangents : tuple of pytrees of tensors
        The vector, in the structure and shapes of `primals`.
    create_graph : bool, optional
        False says that nothing outside is to differentiate the result: no graph of it is kept, not even to parameters
        that require grad, which saves memory. By default the result is as differentiable as the function.

    Returns
    -------
    value : Tensor
    product : tuple of pytrees
        In the structure of `primals`; and aux, with `has_aux`.

    Raises
    ------
    RuntimeError
        As for `hvp`.

    Notes
    -----
    Cost: one forward and two backward passes, the second one through the first.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import vhp
    >>> vhp(lambda x: x.pow(3).sum(), (torch.tensor([1.0, 2.0]),), (torch.tensor([1.0, 0.0]),))
    (tensor(9.), (tensor([6., 0.]),))
    """
    return call("vhp", func, primals, cotangents, has_aux=has_aux, create_graph=create_graph)


def hessian_diagonal(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    progress: bool = False,
    estimator: str = "exact",
    samples: int = 100,
    generator: torch.Generator | None = None,
    create_graph: bool | None = None,
) -> Callable[P, Any]:
    """Second derivatives of each output by each element of the arguments: the diagonal of `hessian`.

    Parameters
    ----------
    func : callable
        Returns a pytree of real tensors, or ``(output, aux)`` with `has_aux`.
    argnums, has_aux, memory, progress
        See `jacobian`.
    chunk_size : int, 'auto' or None
        Elements of the diagonal at a time.
    estimator : {'exact', 'hutchinson'}
        'hutchinson' estimates the diagonal by products with random signs; see
        `torch_func_compat.autograd.estimators.hutchinson_diagonal`.
    samples : int
        How many products an estimate takes, at least two.
    generator : torch.Generator, optional
        Draws the signs; by default torch's own.
    create_graph : bool, optional
        See `jacobian`.

    Returns
    -------
    callable
        Returns tensors of shape ``output.shape + argument.shape``, in the structure of the output and, within it, of
        the arguments; and aux. An estimate comes with its standard error, in the same structure, as aux:
        ``(diagonal, error)``, or ``(diagonal, (error, aux))`` with `has_aux`.

    Raises
    ------
    ValueError
        `chunk_size` is not positive; there is no such estimator, or too few samples.
    RuntimeError
        As for `jacobian`.

    Notes
    -----
    Cost: as many passes through the gradient as the arguments have elements, as for the Hessian; but only the
    diagonal is kept, so that the memory is that of a chunk. A function with several outputs is differentiated twice
    along each element in forward mode, where there is forward mode. An estimate: one evaluation, for the shapes and
    aux, then as many passes as there are samples (times the number of outputs, if there are several).

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import hessian_diagonal
    >>> hessian_diagonal(lambda x: x.pow(3).sum())(torch.tensor([1.0, 2.0]))
    tensor([ 6., 12.])
    """
    chunks = Chunks.checked("hessian_diagonal", chunk_size, memory, progress)
    if estimated.check_estimator("hessian_diagonal", estimator, samples):
        many = dict(chunk_size=chunk_size, memory=memory, progress=progress)
        return estimated.diagonal(func, argnums, has_aux, samples, generator, many)
    return transform(
        "hessian_diagonal", func, argnums=argnums, has_aux=has_aux, chunks=chunks, create_graph=create_graph
    )


def laplacian(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    mode: str = "auto",
    weight: Tensor | None = None,
    has_aux: bool = False,
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    progress: bool = False,
    estimator: str = "exact",
    samples: int = 100,
    generator: torch.Generator | None = None,
) -> Callable[P, Any]:
    """Sum of the second derivatives of each output by every element of the arguments: the trace of `hessian`.

    Parameters
    ----------
    func : callable
        Returns a pytree of real or complex tensors, or ``(output, aux)`` with `has_aux`.
    argnums, has_aux
        See `jacobian`.
    mode : {'auto', 'rows', 'forward'}
        'forward' carries the value, the Jacobian and the Laplacian through the function in one pass. 'rows' takes the
        diagonal from rows of the Hessian. 'auto' is 'forward', which was faster in all that was measured. Both go by
        rows within transforms of torch.func, while torch.compile traces, with ``progress=True``, with
        ``chunk_size='auto'``, and where the function has an operation without a rule. `explain` tells why.
    weight : Tensor, optional
        For N elements of all arguments together, of shape (N, N) or (N,): weights of the second derivatives by each
        pair of elements, or by each element twice. The second-order part of a diffusion operator has its diffusion
        matrix for `weight`.
    chunk_size, memory, progress
        Elements at a time; see `jacobian`.
    estimator, samples, generator
        See `hessian_diagonal`.

    Returns
    -------
    callable
        Returns the structure and the shapes of the output; and aux. Outputs may be complex. An estimate comes with its
        standard error as aux: ``(laplacian, error)``, or ``(laplacian, (error, aux))`` with `has_aux`.

    Raises
    ------
    ValueError
        `chunk_size` is not positive, `weight` has another shape, there is no such mode or estimator, or there are too
        few samples.
    RuntimeError
        As for `jacobian`.

    See Also
    --------
    hessian_diagonal : the cost of 'rows'.

    Notes
    -----
    Cost of 'forward': one evaluation of N + 2 values in the place of one, with nothing kept for a backward pass. It is
    the forward Laplacian of R. Li et al., Nature Machine Intelligence 6, 209 (2024),
    doi:10.1038/s42256-024-00794-x. A whole number for `chunk_size` is how many of the N are carried at a time, and the
    function is evaluated once for each chunk.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import laplacian
    >>> laplacian(lambda x: x.pow(3).sum())(torch.tensor([1.0, 2.0]))
    tensor(18.)
    """
    chunks = Chunks.checked("laplacian", chunk_size, memory, progress)
    if estimated.check_estimator("laplacian", estimator, samples):
        many = dict(chunk_size=chunk_size, memory=memory, progress=progress)
        return estimated.trace(func, argnums, has_aux, samples, generator, many)

    def rows(func: Callable[..., Any], argnums: Argnums) -> Callable[..., Any]:
        return transform("laplacian", func, argnums=argnums, has_aux=has_aux, chunks=chunks)

    def whole(func: Callable[..., Any], argnums: Argnums, has_aux: bool) -> Callable[..., Any]:
        return transform("hessian", func, argnums=argnums, has_aux=has_aux, chunks=chunks)

    return Laplacian("laplacian", func, argnums, has_aux, chunks, mode, weight, rows=rows, hessian=whole).made()
