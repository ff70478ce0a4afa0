"""Products with second derivatives, and their diagonals and traces, without whole Hessians."""

from __future__ import annotations

import functools
from typing import Any, Sequence

import torch
from torch import Tensor

from .._arguments.call import Argnums, Call, movedim, name_of, pieces, require_tensors
from .._arguments.chunks import AT_ONCE, Chunks, Taken, in_chunks
from .._arguments.protocol import Backend
from .._torch import pytree
from .jacobian import automatic
from .products import (
    Function,
    basis,
    check_tangents,
    directional_call,
    grad_and_value,
    jacrev,
    jvp,
    require_floating,
    vjp,
    vmap,
)


def hvp(backend: Backend, func: Function, primals: Any, tangents: Any, *, has_aux: bool) -> Any:
    """See `torch_func_compat.hvp`."""
    call = directional_call("hvp(f, primals, tangents)", func, primals, has_aux)
    flat = check_tangents(call, tangents)
    gradient = _gradient(backend, func, primals, has_aux)
    if backend.has_forward_mode or any(tensor.is_complex() for tensor in flat):
        _, product, value = jvp(backend, gradient, primals, tangents, strict=False, has_aux=True)
    else:  # a real Hessian is symmetric, and one pullback is cheaper than the transpose of one
        _, pullback, value = vjp(backend, gradient, *primals, has_aux=True)
        product = pullback(tangents)
    return (value[0], product, value[1]) if has_aux else (value, product)


def vhp(backend: Backend, func: Function, primals: Any, cotangents: Any, *, has_aux: bool) -> Any:
    """See `torch_func_compat.vhp`."""
    call = directional_call("vhp(f, primals, cotangents)", func, primals, has_aux)
    check_tangents(call, cotangents)
    _, pullback, value = vjp(backend, _gradient(backend, func, primals, has_aux), *primals, has_aux=True)
    product = pullback(cotangents)
    return (value[0], product, value[1]) if has_aux else (value, product)


def _gradient(backend: Backend, func: Function, primals: tuple[Any, ...], has_aux: bool) -> Function:
    """The gradient by all primals, with the value (and the aux) as its aux."""
    return grad_and_value(backend, func, tuple(range(len(primals))), has_aux)


def diagonal_mode(backend: Backend, outputs: int, inputs: int, samples: int = 1) -> tuple[str, str]:
    """The cheaper way to the diagonal for so many elements of outputs, and why."""
    # torch's forward mode within forward mode can fail on tensors without elements
    if outputs <= 1 or not inputs or not backend.has_forward_mode:
        return "reverse", f"rows of the Hessian by reverse mode, since the function has {outputs} output(s)"
    return "forward", f"forward over forward mode, since the function has {outputs} outputs"


def hessian_diagonal(
    backend: Backend, func: Function, argnums: Argnums, has_aux: bool, *, chunks: Chunks | None = None
) -> Function:
    """See `torch_func_compat.hessian_diagonal`."""

    def make(mode: str, function: Function) -> Function:
        diagonal = _by_rows if mode == "reverse" else _by_directions
        return diagonal(backend, function, argnums, has_aux, chunks or AT_ONCE)

    return automatic(func, argnums, has_aux, "reverse", functools.partial(diagonal_mode, backend), make)


def laplacian(
    backend: Backend, func: Function, argnums: Argnums, has_aux: bool, *, chunks: Chunks | None = None
) -> Function:
    """See `torch_func_compat.laplacian`."""
    return trace(func, hessian_diagonal(backend, with_output(func, has_aux), argnums, True, chunks=chunks), has_aux)


def trace(func: Function, diagonal: Any, has_aux: bool) -> Function:
    """Sums over what `diagonal` gives for ``with_output(func)``."""

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        found, (output, *aux) = diagonal(*args, **kwargs)
        outputs, spec = pytree.flatten(output)
        blocks = pytree.flatten(found)[0]
        each = len(blocks) // len(outputs)
        traces = [
            sum(_over_inputs(block, out.dim()) for block in blocks[k * each : (k + 1) * each])
            for k, out in enumerate(outputs)
        ]
        result = pytree.unflatten(traces, spec)
        return (result, aux[0]) if has_aux else result

    wrapped.choice = diagonal.choice  # type: ignore[attr-defined]
    return wrapped


def _over_inputs(block: Tensor, first: int) -> Tensor:
    """The sum over all dimensions from the first one on."""
    return block.sum(tuple(range(first, block.dim()))) if block.dim() > first else block


def with_output(func: Function, has_aux: bool) -> Function:
    """`func` with ``(output,)`` or ``(output, aux)`` for its aux."""

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        return (result[0], tuple(result)) if has_aux else (result, (result,))

    return wrapped


def _by_rows(backend: Backend, func: Function, argnums: Argnums, has_aux: bool, chunks: Chunks) -> Function:
    """From the row of the Hessian that belongs to an element of the gradient, keep that element's own entry."""

    taken = Taken()

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        gradient = jacrev(backend, func, argnums, has_aux=has_aux)
        call = Call("hessian_diagonal(f)(*args)", gradient, args, kwargs, argnums, has_aux)
        require_tensors(call.primals)
        require_floating("primal", call.primals)
        blocks, pullback, aux = backend.vjp(call, call.primals)
        # the blocks are those of a Jacobian: for each output, one for each primal, whose elements vary fastest
        offsets = [sum(primal.numel() for primal in call.primals[:k]) for k in range(len(call.primals))]
        columns = [
            offsets[k % len(offsets)] + torch.arange(block.numel()) % max(call.primals[k % len(offsets)].numel(), 1)
            for k, block in enumerate(blocks)
        ]
        own = torch.cat(columns).to(blocks[0].device)

        def run(start: int, rows: int) -> list[Tensor]:
            found = pullback.batched(*basis(blocks, start, rows))
            whole = torch.cat([part.reshape(rows, primal.numel()) for part, primal in zip(found, call.primals)], 1)
            return [whole.gather(1, own[start : start + rows, None]).squeeze(1)]

        (flat,), taken.chunk = in_chunks(
            len(own),
            chunks,
            run,
            label=lambda: f"hessian_diagonal({name_of(func)})",
            device=blocks[0].device,
            in_place=backend.innermost() is None,
        )
        parts = pieces(flat, [block.numel() for block in blocks])
        return call.with_aux(call.output([p.reshape(b.shape).to(b.dtype) for p, b in zip(parts, blocks)]), aux)

    wrapped.taken = taken  # type: ignore[attr-defined]
    return wrapped


def _by_directions(backend: Backend, func: Function, argnums: Argnums, has_aux: bool, chunks: Chunks) -> Function:
    """The second derivative of all outputs along each element of the input."""

    taken = Taken()

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call = Call("hessian_diagonal(f)(*args)", func, args, kwargs, argnums, has_aux)
        require_tensors(call.primals)
        require_floating("primal", call.primals)
        primals = tuple(call.primals)
        total = sum(primal.numel() for primal in primals)

        def flat(*inner: Tensor) -> Any:
            outputs, rest = call(*inner)
            return tuple(outputs), tuple(rest)

        def along(*direction: Tensor) -> Any:
            def slope(*inner: Tensor) -> Any:
                _, tangents, rest = jvp(backend, flat, inner, direction, strict=False, has_aux=True)
                return tangents, rest

            _, second, rest = jvp(backend, slope, primals, direction, strict=False, has_aux=True)
            return second, rest

        aux: Sequence[Tensor] = ()

        def run(start: int, rows: int) -> list[Tensor]:
            nonlocal aux
            second, rest = vmap(backend, along, 0, 0, "error")(*basis(primals, start, rows))
            aux = [value[0] for value in rest]
            return list(second)

        found, taken.chunk = in_chunks(
            total,
            chunks,
            run,
            label=lambda: f"hessian_diagonal({name_of(func)})",
            device=primals[0].device,
            in_place=backend.innermost() is None,
        )
        diagonals = []
        for column in found:
            blocks = pieces(movedim(column, 0, -1), [primal.numel() for primal in primals], -1)
            diagonals.append(
                call.select([block.reshape(column.shape[1:] + primal.shape) for block, primal in zip(blocks, primals)])
            )
        return call.with_aux(call.output(diagonals), aux)

    wrapped.taken = taken  # type: ignore[attr-defined]
    return wrapped
