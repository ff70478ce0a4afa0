"""Diagonals and traces of Hessians without whole Hessians, of one function or of each sample of a batch."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from .._arguments.batch import SampleSpace
from .._arguments.call import Function
from .._arguments.chunks import in_chunks
from .._arguments.protocol import Backend
from .._arguments.required import require_floating
from .._torch import pytree
from .._torch.tensors import movedim, pieces
from .basis import basis, dimension
from .batch_first_call import test_rows, verified
from .jacobian import call_of, jacobian_of_columns, jacrev, space_of_inputs, space_of_outputs
from .mode import automatic, diagonal_mode
from .options import Options
from .products import jvp
from .vmap import vmap

_API = "hessian_diagonal(f)(*args)"


def hessian_diagonal(backend: Backend, func: Function, options: Options) -> Function:
    """See `torch_func_compat.hessian_diagonal` and `torch_func_compat.batch_hessian_diagonal`."""

    def make(mode: str, function: Function) -> Function:
        return (_by_rows if mode == "reverse" else _by_directions)(backend, function, options)

    found = automatic(backend, func, options, "reverse", diagonal_mode, make)
    return verified(backend, found, lambda: [func, jacrev(backend, func, options.inner())], options)


def _by_rows(backend: Backend, func: Function, options: Options) -> Function:
    """Each element of the gradient has a row of the Hessian; keep the entry of that element only."""
    gradient = jacrev(backend, func, options.inner(chunked=False))

    def diagonal(*args: Any, **kwargs: Any) -> Any:
        call = call_of(_API, "jacrev", gradient, args, kwargs, options)
        require_floating("primal", call.primals)
        blocks, pullback, aux = backend.vjp(call, call.primals)
        inputs, space = space_of_inputs(call), space_of_outputs(call, blocks)
        # As in a Jacobian, each output has one block for each primal; the primal's elements vary fastest.
        sizes = [like.numel() for like in inputs]
        offsets = [sum(sizes[:k]) for k in range(len(sizes))]
        columns = [
            offsets[k % len(sizes)] + torch.arange(block.numel(), device="cpu") % max(sizes[k % len(sizes)], 1)
            for k, block in enumerate(space)
        ]
        own = torch.cat(columns).to(blocks[0].device)
        first = inputs[0]
        lead = (first.size,) if isinstance(first, SampleSpace) else ()

        def run(start: int, rows: int) -> list[Tensor]:
            vectors = basis(space, start, rows)
            if rows == 1 and lead:
                found = [row.unsqueeze(0) for row in pullback(*[vector.squeeze(0) for vector in vectors])]
            else:
                found = pullback.batched(*vectors)
            parts = []
            for part, like, size in zip(found, inputs, sizes):
                front = movedim(part, like.dim + 1, 1) if isinstance(like, SampleSpace) else part
                parts.append(front.reshape(rows, *lead, size))
            whole = torch.cat(parts, -1)
            index = own[start : start + rows].reshape(rows, *[1 for _ in lead], 1)
            if not backend.remembers:
                # torch.compile of 2.6 fails on the backward of gather().
                chosen = index == torch.arange(whole.shape[-1], device=whole.device)
                return [(whole * chosen.to(whole.dtype)).sum(-1)]
            return [whole.gather(-1, index.expand(rows, *lead, 1)).squeeze(-1)]

        (flat,) = _chunked(backend, len(own), options, run, blocks)
        if backend.remembers:
            test_rows(backend, call, blocks, pullback, None, options, 1)
        parts = pieces(movedim(flat, 0, -1), [like.numel() for like in space], -1)
        return call.with_aux(call.output([p.reshape(b.shape).to(b.dtype) for p, b in zip(parts, blocks)]), aux)

    return diagonal


def _by_directions(backend: Backend, func: Function, options: Options) -> Function:
    """The second derivative of all outputs along each element of the input (of a sample, in all samples at once)."""
    product = Options(options.name, options.func, has_aux=True)
    randomness = "error" if options.in_dims is None else "same"
    mapping = Options("vmap", options.func, in_dims=0, randomness=randomness)

    def diagonal(*args: Any, **kwargs: Any) -> Any:
        call = call_of(_API, "jacfwd", func, args, kwargs, options)
        require_floating("primal", call.primals)
        primals, state = tuple(call.primals), backend.draws(call)

        def flat(*inner: Tensor) -> Any:
            outputs, rest = call(*inner)
            return tuple(outputs), tuple(rest)

        def along(*direction: Tensor) -> Any:
            def slope(*inner: Tensor) -> Any:
                _, tangents, rest = jvp(backend, flat, inner, direction, options=product)
                return tangents, rest

            _, second, rest = jvp(backend, slope, primals, direction, options=product)
            return second, rest

        aux: list[Tensor] = []
        inputs = space_of_inputs(call)

        def run(start: int, rows: int) -> list[Tensor]:
            if start:
                state.restore()
            second, rest = vmap(backend, along, mapping)(*basis(inputs, start, rows))
            aux[:] = [value[0] for value in rest]
            return list(second)

        found = _chunked(backend, dimension(inputs), options, run, primals)
        return call.with_aux(jacobian_of_columns(call, found), aux)

    return diagonal


def _chunked(backend: Backend, total: int, options: Options, run: Any, like: Sequence[Tensor]) -> list[Tensor]:
    in_place = backend.innermost() is None
    device = like[0].device
    found, size = in_chunks(total, options.chunks, run, label=options.label, device=device, in_place=in_place)
    options.report_chunk(size)
    return found


def laplacian(backend: Backend, func: Function, options: Options) -> Function:
    """See `torch_func_compat.laplacian` and `torch_func_compat.batch_laplacian`."""

    def with_output(*args: Any, **kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        return (result[0], tuple(result)) if options.has_aux else (result, (result,))

    diagonal = hessian_diagonal(backend, with_output, options.with_aux())

    def trace(*args: Any, **kwargs: Any) -> Any:
        found, (output, *aux) = diagonal(*args, **kwargs)
        outputs, spec = pytree.flatten(output)
        blocks = pytree.flatten(found)[0]
        each = len(blocks) // len(outputs)
        traces = []
        for k, out in enumerate(outputs):
            own = blocks[k * each : (k + 1) * each]
            traces.append(sum([_sum_over_inputs(block, out.dim()) for block in own]))
        result = pytree.unflatten(traces, spec)
        return (result, aux[0]) if options.has_aux else result

    return trace


def _sum_over_inputs(block: Tensor, first: int) -> Tensor:
    """The sum over all dimensions from the first one on."""
    return block.sum(tuple(range(first, block.dim()))) if block.dim() > first else block
