"""The Laplacian of a function, from one evaluation on carried tensors."""

from __future__ import annotations

import math
from typing import Any, Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from .._guards.recognition import ends_recomputation
from .._torch import pytree
from .carried import Carried, Refused, RefusedNow, Run, make, values_of_ended
from .ranges import require_finite

Function = Callable[..., Any]


def laplacian(
    func: Function, primals: Sequence[Tensor], *, weight: Tensor | None = None, chunk_size: int | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Values and Laplacians of each tensor that ``func(*primals)`` returns, by all elements of the primals.

    Parameters
    ----------
    func : callable
        Takes as many tensors as there are primals; returns a tensor or a list or tuple of them.
    primals : sequence of Tensor
        Real, of any shapes.
    weight : Tensor, optional
        Weights of the second derivatives: of shape (N,) or (N, N) for N elements of all primals together.
    chunk_size : int, optional
        Columns of the Jacobian that are carried at a time; the function is evaluated once for each chunk.

    Returns
    -------
    values, laplacians : list of Tensor
        Differentiable by what `func` and the primals depend on.

    Raises
    ------
    Refused
        The function has an operation without a rule.
    """
    return _forward(func, primals, [None] * len(primals), weight, chunk_size)


def batch_laplacian(
    func: Function,
    primals: Sequence[Tensor],
    dims: Sequence[int],
    *,
    weight: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The same for each sample of a function of a whole batch, whose samples are independent.

    Parameters
    ----------
    dims : sequence of int
        The batch dimension of each primal.
    """
    return _forward(func, primals, dims, weight, chunk_size)


def _forward(
    func: Function, primals: Sequence[Tensor], dims: Sequence[int | None], weight: Tensor | None, chunk_size: int | None
) -> tuple[list[Tensor], list[Tensor]]:
    counts = []
    primals = values_of_ended(list(primals))
    for primal, dim in zip(primals, dims):
        if isinstance(primal, Carried):
            raise Refused("forward Laplacians are nested")
        if type(primal) not in (Tensor, Parameter):
            raise RefusedNow(f"a primal of {type(primal).__name__}, whose operations may be its own")
        if not primal.is_floating_point():
            raise Refused(f"a primal of {primal.dtype}")
        counts.append(math.prod([n for d, n in enumerate(primal.shape) if d != dim]))
    size = sum(counts)
    if not size:
        raise Refused("there are no elements to differentiate by")
    step = size if chunk_size is None else min(chunk_size, size)
    if step < size and weight is not None and weight.dim() > 1:
        step = size  # a matrix takes all columns at once
    values: list[Tensor] = []
    laps: list[Tensor] = []
    runs: list[Run] = []
    try:
        for start in range(0, size, step):
            stop = min(start + step, size)
            part = None if weight is None else weight if weight.dim() > 1 else weight[start:stop]
            runs.append(Run(stop - start, part, torch.is_grad_enabled()))
            try:
                values, found = _chunk(func, primals, dims, counts, start, runs[-1])
            finally:
                runs[-1].ended = runs[-1].replaced = True
            laps = found if not laps else [one + two for one, two in zip(laps, found)]
    except Refused as error:
        error.runs = runs
        raise
    for run in runs:
        run.replaced = False
    return values, laps


def _chunk(
    func: Function,
    primals: Sequence[Tensor],
    dims: Sequence[int | None],
    counts: Sequence[int],
    start: int,
    run: Run,
) -> tuple[list[Tensor], list[Tensor]]:
    """The part of the Laplacians that belongs to some of the columns."""
    offset, arguments = 0, []
    for primal, dim, count in zip(primals, dims, counts):
        block = torch.zeros(run.size, count, dtype=primal.dtype, device=primal.device)
        if -run.size < start - offset < count:
            block.diagonal(start - offset, 0, 1).fill_(1)
        shape = list(primal.shape) if dim is None else [n for d, n in enumerate(primal.shape) if d != dim]
        jac = block.reshape(run.size, *shape)
        arguments.append(make(run, primal, jac if dim is None else jac.unsqueeze(dim + 1), None))
        offset += count
    with torch.enable_grad():
        try:
            result = func(*arguments)
        except Refused:
            raise
        # The function may fail in any way on carried tensors. If it fails on plain ones, too, the caller's next
        # attempt, which takes rows of the Hessian, raises its error.
        except Exception as error:
            if ends_recomputation(error):
                raise
            raise Refused(f"the function fails on carried tensors ({type(error).__name__}: {error})") from error
    if run.refused is not None:
        raise run.refused
    outputs = pytree.flatten(result)[0]
    for output in outputs:
        if not isinstance(output, Carried) or output.run is not run or output.jac is None:
            raise Refused("an output does not depend on the coordinates, or not by torch's Python functions")
        require_finite(output.lap)
    values = [output.value for output in outputs]
    # no two elements in one place, so that they can be written to
    return values, [torch.zeros_like(o.value) if o.lap is None else o.lap.contiguous() for o in outputs]
