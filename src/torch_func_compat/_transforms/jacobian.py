"""Jacobians by rows or by columns, of one function or of each sample of a batch.

With ``options.in_dims``, the function takes a whole batch whose samples are independent. Its Jacobian is
block-diagonal, so the same unit vector in all samples gives the same row (or column) of every block: a Jacobian of the
batch takes as many passes as that of one sample.
"""

from __future__ import annotations

import functools
from typing import Any, Sequence

from torch import Tensor

from .._arguments.batch import BatchCall, Like, SampleSpace
from .._arguments.call import Call, Function, name_of
from .._arguments.mapped import check_randomness
from .._arguments.partition import PartialResult
from .._arguments.protocol import Backend, LinearMap
from .._arguments.required import require_differentiable, require_floating, require_real, require_tensors
from .._torch import pytree
from .._torch.tensors import movedim, pieces
from .basis import dimension, map_basis
from .batch_first_call import test_rows, verified
from .mode import automatic, jacobian_mode
from .options import Options


def call_of(
    api: str, mode: str, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
) -> Call:
    """The user's call, checked; of a batch where `options` has batch dimensions."""
    if options.in_dims is not None:
        return BatchCall(options.name, func, args, kwargs, options.argnums, options.has_aux, options.in_dims)
    require_real(mode, pytree.flatten(args)[0], "inputs")
    call = Call(api, func, args, kwargs, options.argnums, options.has_aux)
    require_tensors(call.primals)
    return call


def space_of_inputs(call: Call) -> Sequence[Like]:
    """The spaces of the primals; for a batch, the spaces of one sample."""
    return call.space if isinstance(call, BatchCall) else call.primals


def space_of_outputs(call: Call, outputs: Sequence[Tensor]) -> Sequence[Like]:
    """The same for the outputs."""
    return [SampleSpace(output, 0) for output in outputs] if isinstance(call, BatchCall) else outputs


def jacrev(backend: Backend, func: Function, options: Options, order: int = 0) -> Function:
    """See `torch_func_compat.jacrev`; one pullback of each row. `func` is a derivative of that order."""

    def jacobian(*args: Any, **kwargs: Any) -> Any:
        call = call_of("vjp(f, *primals)", "jacrev", func, args, kwargs, options)
        call.takes_rows = True
        outputs, pullback, aux = backend.vjp(call, call.primals)
        require_real("jacrev", outputs, "outputs")
        require_differentiable(outputs)
        space = space_of_outputs(call, outputs)
        whole = functools.partial(jacobian_of_rows, call, outputs, space)
        if order and len({x.dtype for x in (*outputs, *call.primals)}) > 1:
            whole = functools.partial(_with_dtypes_of_rows, call, outputs, whole)
        if options.partition is None:
            rows = map_basis(backend, pullback, space, options)
            if backend.remembers:
                test_rows(backend, call, outputs, pullback, rows, options, order)
            return call.with_aux(whole(rows), aux)
        total = dimension(space)
        share = options.partition.bounds(total)
        rows = map_basis(backend, pullback, space, options, share)
        return call.with_aux(PartialResult("rows", *share, total, rows, call.select, whole), aux)

    return jacobian


def jacobian_of_rows(call: Call, outputs: Sequence[Tensor], space: Sequence[Like], rows: Sequence[Tensor]) -> Any:
    """A Jacobian's structure, from rows of each primal: the elements of all outputs, one output after another."""
    sizes = [like.numel() for like in space]
    jacobians = []
    for part, like in zip(rows, space_of_inputs(call)):
        if isinstance(like, SampleSpace):
            blocks = pieces(movedim(part, like.dim + 1, 0), sizes, 1)  # of (samples, rows, *sample)
        else:
            blocks = pieces(part, sizes)
        jacobians.append([block.reshape((*out.shape, *like.shape)) for block, out in zip(blocks, outputs)])
    return call.output([call.select(row) for row in zip(*jacobians)])


def _with_dtypes_of_rows(call: Call, outputs: Sequence[Tensor], whole: Function, rows: Sequence[Tensor]) -> Any:
    """The Jacobian of a gradient, whose blocks have the dtype of their row, as forward over reverse mode gives them."""
    rows, spec = pytree.flatten(whole(rows))
    count = len(rows) // len(outputs)
    return pytree.unflatten([block.to(outputs[k // count].dtype) for k, block in enumerate(rows)], spec)


def jacfwd(backend: Backend, func: Function, options: Options) -> Function:
    """See `torch_func_compat.jacfwd`; one pushforward of each column."""
    check_randomness(options.randomness)

    def jacobian(*args: Any, **kwargs: Any) -> Any:
        call = call_of("jvp(f, primals, tangents)", "jacfwd", func, args, kwargs, options)
        require_floating("primal", call.primals)
        batched = isinstance(call, BatchCall)
        # All columns of a batch, in all chunks, belong to one draw: it is the Jacobian of one realisation, as in
        # reverse mode.
        push, aux = backend.pushforward(call, call.primals, "same" if batched else options.randomness)
        linear = _Redrawn(push, backend.draws(call)) if batched and not options.chunks.trivial else push
        space = space_of_inputs(call)
        total = dimension(space)
        share = None if options.partition is None else options.partition.bounds(total)
        columns = map_basis(backend, linear, space, options, share)
        require_real("jacfwd", columns, "outputs")
        whole = functools.partial(jacobian_of_columns, call)
        if share is None:
            return call.with_aux(whole(columns), aux())
        return call.with_aux(PartialResult("columns", *share, total, columns, call.output, whole), aux())

    return jacobian


def jacobian_of_columns(call: Call, columns: Sequence[Tensor]) -> Any:
    """A Jacobian's structure, from columns of each output: the elements of all primals, one primal after another."""
    space = space_of_inputs(call)
    sizes = [like.numel() for like in space]
    jacobians = []
    for column in columns:
        blocks = pieces(movedim(column, 0, -1), sizes, -1)
        jacobians.append(
            call.select([block.reshape((*column.shape[1:], *like.shape)) for block, like in zip(blocks, space)])
        )
    return call.output(jacobians)


class _Redrawn:
    """A linear map that starts from the same random state each time."""

    batches_itself = False

    def __init__(self, linear: LinearMap, state: Any) -> None:
        self._linear = linear
        self._state = state

    def __call__(self, *vectors: Tensor) -> list[Tensor]:
        self._state.restore()
        return self._linear(*vectors)

    def batched(self, *vectors: Tensor) -> list[Tensor]:
        self._state.restore()
        return self._linear.batched(*vectors)


def by_mode(backend: Backend, mode: str, func: Function, options: Options, order: int = 0) -> Function:
    """The Jacobian by 'reverse' or 'forward' mode."""
    return jacrev(backend, func, options, order) if mode == "reverse" else jacfwd(backend, func, options)


def jacobian(backend: Backend, func: Function, options: Options) -> Function:
    """See `torch_func_compat.jacobian` and `torch_func_compat.batch_jacobian`."""

    def make(mode: str, function: Function) -> Function:
        return by_mode(backend, mode, function, options)

    found = automatic(backend, func, options, "reverse", jacobian_mode, make)
    return verified(backend, found, lambda: [func], options)


def with_value(func: Function, has_aux: bool) -> Function:
    """`func` with its whole result as its aux."""

    def valued(*args: Any, **kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if not has_aux:
            return result, result
        if not (isinstance(result, tuple) and len(result) == 2):
            raise RuntimeError(
                f"{name_of(func)}: output of function f should be a tuple: (output, aux) if has_aux is True"
            )
        return result[0], result

    return valued


def value_and_jacobian(backend: Backend, func: Function, options: Options) -> Function:
    """See `torch_func_compat.value_and_jacobian`."""
    both = jacobian(backend, with_value(func, options.has_aux), options.with_aux())

    def value_first(*args: Any, **kwargs: Any) -> Any:
        found, value = both(*args, **kwargs)
        return value, found

    return value_first
