"""Jacobians and Hessians of functions that take a whole batch: of shape (B, M, N), never (B, M, B, N)."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from .._arguments.call import Argnums
from .._arguments.chunks import Chunks, ChunkSize, Memory
from .._arguments.ragged import ragged, samples_first
from .._dispatch.transform import call, transform
from .._forward_laplacian.choice import Laplacian
from .._transforms.mode import HESSIAN_MODES, JACOBIAN_MODES, check_mode
from . import estimated
from .internals import P, jacrev, vmap

__all__ = [
    "batch_hessian",
    "batch_hessian_diagonal",
    "batch_hvp",
    "batch_jacobian",
    "batch_laplacian",
    "bjacrev",
]


def batch_jacobian(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    in_dims: Any = 0,
    out_dims: Any = 0,
    batch_index: Tensor | None = None,
    mode: str = "auto",
    has_aux: bool = False,
    check: bool | None = None,
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    progress: bool = False,
    create_graph: bool | None = None,
) -> Callable[P, Any]:
    """Jacobian of each sample, of a function of the whole batch.

    Parameters
    ----------
    func : callable
        Takes a batch of B samples, as an ``nn.Module`` does, and returns a pytree of real tensors with the samples
        along dimension 0, or ``(output, aux)`` with `has_aux`. The result for one sample must not depend on the other
        samples: see `check`.
    argnums : int or tuple of int
        Positional arguments to differentiate; they have a batch dimension.
    in_dims : int or nested tuple
        The batch dimension: an int for all arguments that are differentiated; or one for each argument, as in `vmap`,
        with None for arguments that all samples share.
    out_dims : int or nested structure of int
        The dimension along which `func` returns the samples, for all outputs or each. In the result they are along
        dimension 0.
    batch_index : Tensor, optional
        For samples of different sizes in one tensor, as graph networks have them. Its shape is (N,), and it holds the
        number, from 0 to B - 1, of the sample that each of the N rows belongs to; rows lie along dimension 0 of the
        differentiated tensors. `func` still returns B samples. The result has a list in place of each tensor: for each
        sample b a tensor of shape ``(*output, n_b, *row)``, where n_b is its number of rows.
    mode : {'auto', 'forward', 'reverse'}
        'reverse' is one backward pass over the whole batch for each element of a sample's output, 'forward' one
        forward-mode pass for each element of a sample's input; 'auto' chooses as `jacobian` does. `explain` tells
        which it was.
    has_aux : bool
        Whether `func` returns tensors beside its output that are not differentiated.
    check : bool, optional
        Raise where samples depend on each other at these arguments. By default the first call with each function and
        shapes tests it, for one more backward pass in reverse mode; True tests each call, for one more forward and
        two more backward passes; False tests nothing.
    chunk_size, memory, progress
        Rows or columns at a time; see `jacobian`.
    create_graph : bool, optional
        False says that nothing outside is to differentiate the result: no graph of it is kept, not even to parameters
        that require grad, which saves memory. By default the result is as differentiable as the function.

    Returns
    -------
    callable
        Returns tensors of shape ``(B, *output of a sample, *input of a sample)``, in the structure of the output and,
        within it, of the arguments; and aux. Differentiable.

    Raises
    ------
    ValueError
        `in_dims` do not fit, an output has other than B samples, an argument that is differentiated is shared,
        `chunk_size` is not positive, or there is no such mode.
    RuntimeError
        Complex or non-tensor outputs, `argnums` that do not fit, samples that depend on each other.

    See Also
    --------
    bjacrev : for functions of single samples.

    Notes
    -----
    With ``check=False``, a function that mixes samples (batch normalisation in train mode, a softmax over the batch)
    gives sums of the derivatives by several samples. By default it raises in the first call; later calls with the same
    shapes, and modules in the same mode, are not tested. Nothing is tested within ``vmap`` and other transforms of
    torch.func, while torch.compile traces, or with ``set_checks('off')``.

    Cost: one forward pass, and one backward pass over the batch for each element of a sample's output, all
    vectorised; or one forward-mode pass for each element of a sample's input. The B x B blocks of the whole Jacobian
    are never made. No batching rules of the samples are needed: custom Functions and loops within `func` stay as
    they are.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import batch_jacobian
    >>> network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh())
    >>> batch_jacobian(network)(torch.ones(4, 3)).shape
    torch.Size([4, 5, 3])
    """
    check_mode("batch_jacobian", mode, JACOBIAN_MODES)
    chunks = Chunks.checked("batch_jacobian", chunk_size, memory, progress)
    options = dict(argnums=argnums, in_dims=in_dims, has_aux=has_aux, mode=mode, check=check)
    if out_dims != 0:
        func = samples_first("batch_jacobian", func, out_dims, has_aux)

    def made(func: Callable[..., Any]) -> Callable[..., Any]:
        return transform("batch_jacobian", func, **options, chunks=chunks, create_graph=create_graph)

    return made(func) if batch_index is None else ragged(batch_index, "batch_jacobian", made, func, argnums, has_aux, 1)


def batch_hessian(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    in_dims: Any = 0,
    batch_index: Tensor | None = None,
    mode: str = "auto",
    has_aux: bool = False,
    check: bool | None = None,
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    progress: bool = False,
    create_graph: bool | None = None,
) -> Callable[P, Any]:
    """Hessian of each sample, of a function of the whole batch.

    Parameters
    ----------
    func, argnums, in_dims, has_aux, check, chunk_size, memory, progress, create_graph
        See `batch_jacobian`.
    batch_index : Tensor, optional
        See `batch_jacobian`: the result has lists of tensors of shape ``(*output, n_b, *row, n_b, *row)``.
    mode : {'auto', 'reverse-reverse', 'forward-reverse', 'reverse-forward', 'forward-forward'}
        Modes of the outer and the inner `batch_jacobian`; 'auto' chooses as `hessian` does, by the number of outputs
        of a sample.

    Returns
    -------
    callable
        Returns tensors of shape ``(B, *output of a sample, *input of a sample, *input of a sample)``, in the structure
        of the output and, within it, twice that of the arguments; and aux. For outputs of shape (B,) and inputs of
        shape (B, N), the shape is (B, N, N).

    Raises
    ------
    ValueError, RuntimeError
        As for `batch_jacobian`.

    Notes
    -----
    Cost for one output per sample: one forward and one backward pass over the batch, and one more pass back through
    both for each element of a sample's input, all vectorised (the sum trick: the gradient of the sum over the
    batch holds the gradient of each sample).

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import batch_hessian
    >>> batch_hessian(lambda x: x.pow(3).sum(1))(torch.ones(4, 2)).shape
    torch.Size([4, 2, 2])
    """
    check_mode("batch_hessian", mode, HESSIAN_MODES)
    chunks = Chunks.checked("batch_hessian", chunk_size, memory, progress)
    options = dict(argnums=argnums, in_dims=in_dims, has_aux=has_aux, mode=mode, check=check)

    def made(func: Callable[..., Any]) -> Callable[..., Any]:
        return transform("batch_hessian", func, **options, chunks=chunks, create_graph=create_graph)

    return made(func) if batch_index is None else ragged(batch_index, "batch_hessian", made, func, argnums, has_aux, 2)


def batch_hvp(
    func: Callable[P, Any],
    primals: Any,
    tangents: Any,
    *,
    in_dims: Any = 0,
    has_aux: bool = False,
    check: bool | None = None,
    create_graph: bool | None = None,
) -> Any:
    """Values of a function of the whole batch, and each sample's Hessian times a vector of its own.

    Parameters
    ----------
    func, in_dims, has_aux, check
        See `batch_jacobian`; all arguments are differentiated.
    primals : tuple of pytrees of tensors
        Where to evaluate.
    tangents : tuple of pytrees of tensors
        The vectors, in the structure and shapes of `primals`.
    create_graph : bool, optional
        False says that nothing outside is to differentiate the result: no graph of it is kept, not even to parameters
        that require grad, which saves memory. By default the result is as differentiable as the function.

    Returns
    -------
    value : pytree
    product : pytree
        Tensors of shape ``(B, *output of a sample, *input of a sample)``, in the structure of the output and, within
        it, of the tuple of primals; and aux, with `has_aux`.

    Raises
    ------
    ValueError, RuntimeError
        As for `batch_jacobian`; and for tangents that do not match the primals.

    Notes
    -----
    Cost: a few passes over the batch for each element of a sample's output.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import batch_hvp
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> batch_hvp(lambda x: x.pow(3).sum(1), (x,), (torch.ones(2, 2),))
    (tensor([ 9., 91.]), (tensor([[ 6., 12.],
            [18., 24.]]),))
    """
    options = dict(in_dims=in_dims, has_aux=has_aux, check=check)
    return call("batch_hvp", func, primals, tangents, **options, create_graph=create_graph)


def batch_hessian_diagonal(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    in_dims: Any = 0,
    has_aux: bool = False,
    check: bool | None = None,
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    progress: bool = False,
    create_graph: bool | None = None,
) -> Callable[P, Any]:
    """Second derivatives of each sample's outputs by each element of its inputs: u_xx for a whole batch.

    Parameters
    ----------
    func, argnums, in_dims, has_aux, check, chunk_size, memory, progress, create_graph
        See `batch_jacobian`.

    Returns
    -------
    callable
        Returns tensors of shape ``(B, *output of a sample, *input of a sample)``, in the structure of the output and,
        within it, of the arguments; and aux. Differentiable.

    Raises
    ------
    ValueError, RuntimeError
        As for `batch_jacobian`.

    Notes
    -----
    Cost: with one output per sample, one pass through the gradient of the batch for each element of a sample's
    input; with several, one pass of forward over forward mode for each, where there is forward mode.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import batch_hessian_diagonal
    >>> batch_hessian_diagonal(lambda x: x.pow(3).sum(1))(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[ 6., 12.],
            [18., 24.]])
    """
    chunks = Chunks.checked("batch_hessian_diagonal", chunk_size, memory, progress)
    return transform(
        "batch_hessian_diagonal",
        func,
        argnums=argnums,
        in_dims=in_dims,
        has_aux=has_aux,
        check=check,
        chunks=chunks,
        create_graph=create_graph,
    )


def batch_laplacian(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    in_dims: Any = 0,
    batch_index: Tensor | None = None,
    mode: str = "auto",
    weight: Tensor | None = None,
    has_aux: bool = False,
    check: bool | None = None,
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    progress: bool = False,
    estimator: str = "exact",
    samples: int = 100,
    generator: torch.Generator | None = None,
) -> Callable[P, Any]:
    """Laplacian of each sample's outputs by its inputs, of a function of the whole batch.

    Parameters
    ----------
    func, argnums, in_dims, has_aux, check, chunk_size, memory, progress
        See `batch_jacobian`.
    batch_index : Tensor, optional
        See `batch_jacobian`; not together with `weight`. The result has B samples, as the output.
    mode : {'auto', 'rows', 'forward'}
        See `laplacian`.
    weight : Tensor, optional
        See `laplacian`, for the N elements of a sample; or of shape (B, N, N), for weights of each sample.
    estimator, samples, generator
        See `hessian_diagonal`.

    Returns
    -------
    callable
        Returns the structure and the shapes of the output; and aux. Differentiable. Outputs may be complex. An estimate
        comes with its standard error as aux: ``(laplacian, error)``, or ``(laplacian, (error, aux))`` with `has_aux`.

    Raises
    ------
    ValueError, RuntimeError
        As for `batch_jacobian`; and for a `weight` of another shape.

    See Also
    --------
    laplacian : for a function of one sample.
    batch_hvp : a product in place of the whole.

    Notes
    -----
    Cost of 'forward': one evaluation with N + 2 values in place of each value, for the N elements of a sample's input,
    and nothing is kept for a backward pass. Cost of 'rows': that of `batch_hessian_diagonal`. An estimate costs a
    `batch_hvp` for each of its samples.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import batch_laplacian
    >>> batch_laplacian(lambda x: x.pow(3).sum(1))(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([18., 42.])
    """
    chunks = Chunks.checked("batch_laplacian", chunk_size, memory, progress)
    if estimated.check_estimator("batch_laplacian", estimator, samples):
        return estimated.batch_trace(batch_hvp, func, argnums, in_dims, has_aux, check, samples, generator)

    def rows(func: Callable[..., Any], argnums: Argnums) -> Callable[..., Any]:
        options: dict[str, Any] = dict(argnums=argnums, in_dims=in_dims, has_aux=has_aux, check=check)
        return transform("batch_laplacian", func, **options, chunks=chunks)

    def whole(func: Callable[..., Any], argnums: Argnums, has_aux: bool) -> Callable[..., Any]:
        options: dict[str, Any] = dict(argnums=argnums, in_dims=0, has_aux=has_aux, mode="auto", check=check)
        return transform("batch_hessian", func, **options, chunks=chunks)

    def made(func: Callable[..., Any]) -> Callable[..., Any]:
        return Laplacian(
            "batch_laplacian",
            func,
            argnums,
            has_aux,
            chunks,
            mode,
            weight,
            rows=rows,
            hessian=whole,
            in_dims=in_dims,
            check=check,
        ).made()

    if batch_index is None:
        return made(func)
    if weight is not None:
        raise ValueError("batch_laplacian: weight= is for samples of one size, and not for those of batch_index=")
    return ragged(batch_index, "batch_laplacian", made, func, argnums, has_aux, 0)


def bjacrev(
    func: Callable[P, Any], argnums: Argnums = 0, *, in_dims: Any = 0, out_dims: Any = 0, **options: Any
) -> Callable[..., Any]:
    """Jacobian of each sample, of a function of single samples: ``vmap(jacrev(func))``.

    Parameters
    ----------
    func, argnums
        See `jacrev`.
    in_dims, out_dims
        See `vmap`.
    **options
        Those of `jacrev`.

    Returns
    -------
    callable
        Takes what `func` takes, with a batch dimension more where `in_dims` says so.

    Raises
    ------
    ValueError, RuntimeError
        As for `vmap` and `jacrev`.

    Notes
    -----
    Cost: that of `jacrev`, batched over the samples; a loop over them on the autograd backend, where
    `batch_jacobian` of a function of the whole batch is the faster way.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import bjacrev
    >>> bjacrev(torch.square)(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))[1]
    tensor([[6., 0.],
            [0., 8.]])
    """
    return vmap(jacrev(func, argnums, **options), in_dims=in_dims, out_dims=out_dims)
