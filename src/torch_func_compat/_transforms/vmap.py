"""vmap on a backend's primitive: chunks, and results put into the user's structures."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._arguments.call import Function
from .._arguments.chunks import in_chunks
from .._arguments.mapped import BatchedCall, check_out_dims, check_randomness
from .._arguments.protocol import Backend
from .linear_functions import JvpFunction, VjpFunction
from .options import Options


def vmap(backend: Backend, func: Function, options: Options) -> Function:
    """See `torch_func_compat.vmap`."""
    check_randomness(options.randomness)
    chunks, randomness = options.chunks, options.randomness

    def mapped(*args: Any, **kwargs: Any) -> Any:
        check_out_dims(func, options.out_dims)
        call = BatchedCall(func, options.in_dims, options.out_dims, args, kwargs)
        # torch.compile does not trace a test of the type of a function.
        if backend.remembers and isinstance(func, (JvpFunction, VjpFunction)):
            whole = func.mapped(call) if func.batches_itself and backend.innermost() is None else None
            if whole is not None:
                return whole
        # A loop needs no chunks: it takes one sample at a time.
        if chunks.trivial or (backend.loops and not chunks.progress):
            return call.result(*backend.vmap(call, call.tensors, randomness))
        state = backend.draws(call) if randomness == "same" else None
        shared: list[Any] = []

        def run(start: int, rows: int) -> list[Tensor]:
            if state is not None:
                state.restore()
            chunk = [tensor.narrow(dim, start, rows) for tensor, dim in zip(call.tensors, call.dims)]
            stacked, shared[:] = backend.vmap(call, chunk, randomness)
            return stacked

        device, in_place = call.tensors[0].device, backend.innermost() is None
        stacked, size = in_chunks(call.batch_size, chunks, run, label=options.label, device=device, in_place=in_place)
        options.report_chunk(size)
        return call.result(stacked, shared)

    return mapped
