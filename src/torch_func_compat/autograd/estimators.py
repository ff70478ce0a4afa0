"""Estimate traces and diagonals of matrices from products with random vectors.

Each function takes the products of all vectors at once: ``multiply(vectors)`` gets ``(samples, n)`` and returns the
matrix times each of them, ``(samples, n)``.
"""

from __future__ import annotations

from typing import Callable, Tuple

import torch
from torch import Tensor

__all__ = ["hutch_plus_plus", "hutchinson_diagonal", "hutchinson_trace", "mean_and_error", "rademacher"]

Multiply = Callable[[Tensor], Tensor]
Estimate = Tuple[Tensor, Tensor]


def rademacher(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Numbers that are 1 or -1, each with probability 1/2.

    Parameters
    ----------
    shape : tuple of int
    like : Tensor
        Its dtype and device are those of the result.
    generator : torch.Generator, optional
        Torch's own one by default. It may be on another device.

    Returns
    -------
    Tensor

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.estimators import rademacher
    >>> rademacher((2, 3), torch.ones(1)).abs()
    tensor([[1., 1., 1.],
            [1., 1., 1.]])
    """
    device = like.device if generator is None else generator.device
    signs = torch.randint(0, 2, shape, generator=generator, device=device)
    return (2 * signs - 1).to(device=like.device, dtype=like.dtype)


def mean_and_error(values: Tensor) -> Estimate:
    """Mean over dimension 0, and its standard error: the deviation of the samples by the root of their number.

    Parameters
    ----------
    values : Tensor
        ``(samples, ...)``, with at least two samples.

    Returns
    -------
    mean, error : Tensor
        ``(...)`` each.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.estimators import mean_and_error
    >>> mean_and_error(torch.tensor([1.0, 3.0]))
    (tensor(2.), tensor(1.))
    """
    samples = values.shape[0]
    mean = values.sum(0) / samples
    # not std(), whose derivative is NaN if all samples are equal
    variance = (values.detach() - mean.detach()).pow(2).sum(0) / (samples - 1)
    return mean, (variance / samples).sqrt()


def check_samples(api: str, samples: int, least: int = 2) -> None:
    """Raise ValueError unless there are enough samples."""
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < least:
        raise ValueError(f"{api}: expected samples= to be an int of at least {least}, got {samples!r}")


def hutchinson_trace(
    multiply: Multiply, size: int, like: Tensor, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """Trace of a square matrix, as the mean of ``v @ A @ v`` over random signs ``v``.

    Parameters
    ----------
    multiply : callable
        The products with the rows of its argument.
    size : int
        Rows of the matrix.
    like : Tensor
        Of the dtype and on the device of the matrix.
    samples : int
        How many vectors, at least two.
    generator : torch.Generator, optional
        Torch's own one by default.

    Returns
    -------
    trace, error : Tensor
        Of no dimensions: the estimate and its standard error.

    Raises
    ------
    ValueError
        There are fewer than two samples.

    Notes
    -----
    Cost: `samples` products. The variance of a sample is twice the sum of the squares of the entries off the diagonal,
    for a symmetric matrix.
    Source: M. F. Hutchinson, Commun. Stat. Simul. Comput. 18, 1059 (1989).

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.estimators import hutchinson_trace
    >>> diagonal = torch.tensor([1.0, 2.0, 3.0])  # of a diagonal matrix, for which each sample is exact
    >>> hutchinson_trace(lambda vectors: vectors * diagonal, 3, diagonal, 2)
    (tensor(6.), tensor(0.))
    """
    check_samples("trace", samples)
    vectors = rademacher((samples, size), like, generator)
    return mean_and_error((vectors * multiply(vectors)).sum(1))


def hutchinson_diagonal(
    multiply: Multiply, size: int, like: Tensor, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """Diagonal of a square matrix, as the mean of ``v * (A @ v)`` over random signs ``v``.

    Parameters
    ----------
    multiply, size, like, samples, generator
        See `hutchinson_trace`.

    Returns
    -------
    diagonal, error : Tensor
        ``(size,)`` each: the estimates and their standard errors.

    Raises
    ------
    ValueError
        There are fewer than two samples.

    Notes
    -----
    Cost: `samples` products. The variance of a sample of an element is the sum of the squares of the other entries of
    its row.
    Source: C. Bekas, E. Kokiopoulou, Y. Saad, Appl. Numer. Math. 57, 1214 (2007).

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.estimators import hutchinson_diagonal
    >>> diagonal = torch.tensor([1.0, 2.0, 3.0])
    >>> hutchinson_diagonal(lambda vectors: vectors * diagonal, 3, diagonal, 2)
    (tensor([1., 2., 3.]), tensor([0., 0., 0.]))
    """
    check_samples("diagonal", samples)
    vectors = rademacher((samples, size), like, generator)
    return mean_and_error(vectors * multiply(vectors))


def hutch_plus_plus(
    multiply: Multiply, size: int, like: Tensor, samples: int, generator: torch.Generator | None = None
) -> Estimate:
    """Trace of a square matrix: exact on a random subspace that holds its largest part, estimated for the rest.

    Parameters
    ----------
    multiply, size, like, generator
        See `hutchinson_trace`.
    samples : int
        Products in all, at least six: a third of them finds the subspace, a third is the trace on it and the last one
        the estimate. With three times as many as the matrix has rows, or more, the result is exact.

    Returns
    -------
    trace, error : Tensor
        Of no dimensions: the estimate and its standard error.

    Raises
    ------
    ValueError
        There are fewer than six samples.

    Notes
    -----
    Cost: `samples` products, and a QR factorisation of a third as many vectors. For a positive semidefinite matrix the
    error falls with the number of products, and with its root for `hutchinson_trace`.
    Source: R. A. Meyer, C. Musco, C. Musco, D. P. Woodruff, SOSA 2021, 142, doi:10.1137/1.9781611976496.16.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.estimators import hutch_plus_plus
    >>> ones = torch.ones(4, 4, dtype=torch.float64)  # of rank one
    >>> trace, error = hutch_plus_plus(lambda vectors: vectors @ ones, 4, ones, 6)
    >>> bool((trace - 4).abs() < 1e-12), bool(error < 1e-12)
    (True, True)
    """
    check_samples("trace", samples, 6)
    third = samples // 3
    sketch = rademacher((min(third, size), size), like, generator)
    # any subspace gives the right mean of the estimate and of its derivative
    with torch.no_grad():
        basis, _ = torch.linalg.qr(multiply(sketch).detach().t())
    basis = basis.t()
    on_basis = (basis * multiply(basis)).sum()
    if third >= size:
        return on_basis, torch.zeros_like(on_basis)
    vectors = rademacher((samples - 2 * third, size), like, generator)
    rest = vectors - vectors.matmul(basis.t()).matmul(basis)
    mean, error = mean_and_error((rest * multiply(rest)).sum(1))
    return on_basis + mean, error
