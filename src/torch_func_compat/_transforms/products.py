"""Every derived operator, written once on a backend's primitives.

``grad`` is a pullback of one, ``jacrev`` a pullback of the standard basis, ``jacfwd`` its pushforward,
``hessian`` a Jacobian of a Jacobian: the algebra does not know which backend answers. Each function
here takes the backend first and returns what the public function of the same name returns.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Callable, Sequence, Union

import torch
from torch import Tensor

from .._arguments.call import (
    ALL,
    Argnums,
    BatchedCall,
    Call,
    check_out_dims,
    check_randomness,
    movedim,
    name_of,
    pieces,
    require_real,
    require_tensors,
)
from .._arguments.chunks import AT_ONCE, Chunks, Taken, in_chunks
from .._arguments.partition import Part, Share
from .._arguments.protocol import Backend, LinearMap, Pullback
from .._torch import pytree
from .._torch.random_state import RandomState

Function = Callable[..., Any]


def vmap(
    backend: Backend, func: Function, in_dims: Any, out_dims: Any, randomness: str, *, chunks: Chunks | None = None
) -> Function:
    """See `torch_func_compat.vmap`."""
    check_randomness(randomness)
    chunks = chunks or AT_ONCE

    taken = Taken()

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        check_out_dims(func, out_dims)
        call = BatchedCall(func, in_dims, out_dims, args, kwargs)
        if backend.library is None and isinstance(func, VjpFunction) and func.backend is backend:
            at_once = func.mapped(call)
            if at_once is not None:
                return at_once
        # without a library there is a loop, whose chunks are samples
        if chunks.trivial or (backend.library is None and not chunks.progress):
            return call.result(*backend.vmap(call, call.tensors, randomness))
        state = RandomState(call.generators()) if randomness == "same" else None
        shared: list[Any] = []

        def run(start: int, rows: int) -> list[Tensor]:
            nonlocal shared
            if state is not None:
                state.restore()
            chunk = [tensor.narrow(dim, start, rows) for tensor, dim in zip(call.tensors, call.dims)]
            stacked, shared = backend.vmap(call, chunk, randomness)
            return stacked

        stacked, taken.chunk = in_chunks(
            call.batch_size,
            chunks,
            run,
            label=lambda: f"vmap({call.name})",
            device=call.tensors[0].device,
            in_place=backend.innermost() is None,
        )
        return call.result(stacked, shared)

    wrapped.taken = taken  # type: ignore[attr-defined]
    return wrapped


class VjpFunction:
    """What vjp returns beside the output: cotangents -> gradients of the primals.

    ``vjp_fn(cotangents, retain_graph=True, create_graph=None)``, where the cotangents have the structure of
    the function's output and the result is a tuple with one entry for each primal.
    """

    def __init__(self, backend: Backend, call: Call, pullback: Pullback, outputs: Sequence[Tensor]) -> None:
        self.backend = backend
        self._call = call
        self._pullback = pullback
        self._outputs = outputs
        # raises where the graph below the outputs must not be used as it is about to be
        self.check: Callable[[Sequence[Tensor]], None] | None = None

    def __call__(self, cotangents: Any, retain_graph: bool = True, create_graph: bool | None = None) -> Any:
        flat, spec = pytree.flatten(cotangents)
        self._require(spec)
        if self.check is not None:
            self.check(self._outputs)
        return self._call.select(self._pullback.pull(flat, retain_graph, create_graph))

    def _require(self, spec: pytree.TreeSpec) -> None:
        if spec != self._call.output_spec:
            raise RuntimeError(
                f"Expected pytree structure of cotangents to be the same as pytree structure of outputs to the "
                f"function. cotangents: {spec}, primal output: {self._call.output_spec}"
            )

    def mapped(self, call: BatchedCall) -> Any:
        """The value of a vmap over this, from all cotangents at once; None where a loop must do it."""
        if call.kwargs or len(call.spec.children) != 1 or len(call.where) < len(call.leaves) or not call.batch_size:
            return None
        self._require(call.spec.children[0])
        stacked = [movedim(tensor, dim, 0) for tensor, dim in zip(call.tensors, call.dims)]
        return call.whole(self._call.select(self._pullback.batched(*stacked)))


def vjp(backend: Backend, func: Function, *primals: Any, has_aux: bool) -> Any:
    """See `torch_func_compat.vjp`."""
    call = Call("vjp(f, *primals)", func, primals, {}, ALL, has_aux)
    require_tensors(call.primals)
    outputs, pullback, aux = backend.vjp(call, call.primals)
    require_differentiable(outputs)
    result = (call.output(outputs), VjpFunction(backend, call, pullback, outputs))
    return (*result, call.aux(aux)) if has_aux else result


def jvp(backend: Backend, func: Function, primals: Any, tangents: Any, *, strict: bool, has_aux: bool) -> Any:
    """See `torch_func_compat.jvp`."""
    call = directional_call("jvp(f, primals, tangents)", func, primals, has_aux)
    flat_tangents = check_tangents(call, tangents)
    outputs, output_tangents, aux = backend.jvp(call, call.primals, flat_tangents, strict)
    result = (call.output(outputs), call.output(output_tangents))
    return (*result, call.aux(aux)) if has_aux else result


def directional_call(api: str, func: Function, primals: Any, has_aux: bool) -> Call:
    """The call of a function at a tuple of primals, all of which are differentiated."""
    if not isinstance(primals, tuple):
        raise RuntimeError(f"{api}: Expected primals to be a tuple. E.g. it should be valid to call f(*primals).")
    return Call(api, func, primals, {}, ALL, has_aux)


def check_tangents(call: Call, tangents: Any) -> list[Tensor]:
    """The tangents as a flat list, which must match the primals."""
    api = call.api
    flat_tangents, spec = pytree.flatten(tangents)
    if spec != call.primals_spec:
        raise RuntimeError(
            f"{api}: Expected primals and tangents to have the same python structure. For example, if primals is a "
            f"tuple of 3 tensors, tangents also must be. Got primals with structure {call.primals_spec} and tangents "
            f"with structure {spec}"
        )
    for name, leaves in (("primals", call.primals), ("tangents", flat_tangents)):
        if not leaves:
            raise RuntimeError(f"{api}: Expected {name} to contain at least one Tensor.")
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise RuntimeError(f"{api}: Expected {name} to only contain Tensors, got {type(leaf)}")
    require_floating("primal", call.primals)
    require_floating("tangent", flat_tangents)
    for primal, tangent in zip(call.primals, flat_tangents):
        if primal.is_complex() != tangent.is_complex():
            raise RuntimeError(
                f"{api}: Expected primal and tangent to be both real or both complex, got a tangent of "
                f"{tangent.dtype} for a primal of {primal.dtype}"
            )
        if primal.shape != tangent.shape:
            raise RuntimeError(
                f"{api}: Expected tangent to have the same shape as its primal, got {tuple(tangent.shape)} for a "
                f"primal of shape {tuple(primal.shape)}"
            )
    return flat_tangents


def grad_and_value(backend: Backend, func: Function, argnums: Argnums, has_aux: bool) -> Function:
    """See `torch_func_compat.grad_and_value`."""
    api = "grad_and_value(f)(*args)"

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call = ScalarCall(api, func, args, kwargs, argnums, has_aux)
        require_tensors(call.primals)
        outputs, pullback, aux = backend.vjp(call, call.primals)
        # Without grad mode nothing can ask for this graph again: free it on the way.
        gradients = pullback.pull([torch.ones_like(outputs[0])], torch.is_grad_enabled(), None)
        return call.select(gradients), call.with_aux(call.output(outputs), aux)

    return wrapped


def require_floating(role: str, tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise ValueError(f"Expected {role} to be floating point or complex, but got: {tensor.dtype}")


class ScalarCall(Call):
    """A call whose output must be one number."""

    def check_output(self, output: Any) -> None:
        """Raise unless the output is a real tensor of no dimensions."""
        if not isinstance(output, Tensor):
            raise RuntimeError(f"{self.api}: Expected f(*args) to return a Tensor, got {type(output)}")
        if output.dim() != 0:
            raise RuntimeError(
                f"{self.api}: Expected f(*args) to return a scalar Tensor, got tensor with {output.dim()} dims. "
                f"Maybe you wanted to use the vjp or jacrev APIs instead?"
            )
        if output.is_complex():
            raise RuntimeError(f"grad can be implicitly created only for real scalar outputs but got {output.dtype}")


def require_differentiable(outputs: Sequence[Tensor]) -> None:
    for output in outputs:
        if not (output.is_floating_point() or output.is_complex()):
            raise RuntimeError(
                f"vjp(f, ...): All outputs of f must be floating-point or complex Tensors, got Tensor with dtype "
                f"{output.dtype}"
            )


def grad(backend: Backend, func: Function, argnums: Argnums, has_aux: bool) -> Function:
    """See `torch_func_compat.grad`."""
    both = grad_and_value(backend, func, argnums, has_aux)

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        gradient, value = both(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return wrapped


def jacrev(
    backend: Backend,
    func: Function,
    argnums: Argnums,
    *,
    has_aux: bool,
    chunks: Chunks | None = None,
    part: Part | None = None,
) -> Function:
    """See `torch_func_compat.jacrev`; with `part`, a `Share` of the rows."""

    taken = Taken()

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        require_real("jacrev", pytree.flatten(args)[0], "inputs")
        call = Call("vjp(f, *primals)", func, args, kwargs, argnums, has_aux)
        require_tensors(call.primals)
        outputs, pullback, aux = backend.vjp(call, call.primals)
        require_real("jacrev", outputs, "outputs")
        require_differentiable(outputs)
        which = (0, elements(outputs)) if part is None else part.bounds(elements(outputs))
        rows, taken.chunk = map_basis(backend, pullback, outputs, which, chunks, lambda: f"jacrev({name_of(func)})")
        whole = functools.partial(jacobian_of_rows, call, outputs)
        if part is None:
            return call.with_aux(whole(rows), aux)
        return call.with_aux(Share("rows", *which, elements(outputs), rows, call.select, whole), aux)

    wrapped.taken = taken  # type: ignore[attr-defined]
    return wrapped


def jacobian_of_rows(call: Call, outputs: Sequence[Tensor], rows: Sequence[Tensor]) -> Any:
    """Rows of each primal (the elements of all outputs one after another) in the structure of a Jacobian."""
    sizes = [output.numel() for output in outputs]
    jacobians = [
        [block.reshape(output.shape + primal.shape) for block, output in zip(pieces(part, sizes), outputs)]
        for part, primal in zip(rows, call.primals)
    ]
    return call.output([call.select(row) for row in zip(*jacobians)])


def jacfwd(
    backend: Backend,
    func: Function,
    argnums: Argnums,
    has_aux: bool,
    *,
    randomness: str,
    chunks: Chunks | None = None,
    part: Part | None = None,
) -> Function:
    """See `torch_func_compat.jacfwd`; with `part`, a `Share` of the columns."""
    check_randomness(randomness)

    taken = Taken()

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        require_real("jacfwd", pytree.flatten(args)[0], "inputs")
        call = Call("jvp(f, primals, tangents)", func, args, kwargs, argnums, has_aux)
        require_tensors(call.primals)
        require_floating("primal", call.primals)
        push, aux = backend.pushforward(call, call.primals, randomness)
        which = (0, elements(call.primals)) if part is None else part.bounds(elements(call.primals))
        columns, taken.chunk = map_basis(backend, push, call.primals, which, chunks, lambda: f"jacfwd({name_of(func)})")
        require_real("jacfwd", columns, "outputs")
        whole = functools.partial(jacobian_of_columns, call)
        if part is None:
            return call.with_aux(whole(columns), aux())
        return call.with_aux(Share("columns", *which, elements(call.primals), columns, call.output, whole), aux())

    wrapped.taken = taken  # type: ignore[attr-defined]
    return wrapped


def jacobian_of_columns(call: Call, columns: Sequence[Tensor]) -> Any:
    """Columns of each output (the elements of all primals one after another) in the structure of a Jacobian."""
    sizes = [primal.numel() for primal in call.primals]
    jacobians = []
    for column in columns:
        shape = column.shape[1:]
        blocks = pieces(movedim(column, 0, -1), sizes, -1)
        jacobians.append(
            call.select([block.reshape(shape + primal.shape) for block, primal in zip(blocks, call.primals)])
        )
    return call.output(jacobians)


def linearize(backend: Backend, func: Function, *primals: Any) -> Any:
    """See `torch_func_compat.linearize`."""
    api = "linearize(f, *primals)"
    call = Call(api, func, primals, {}, ALL, False)
    require_tensors(call.primals)
    require_floating("primal", call.primals)
    outputs, push, _ = backend.linearize(call, call.primals)

    def jvp_fn(*tangents: Any) -> Any:
        flat, spec = pytree.flatten(tangents)
        if spec != call.primals_spec:
            raise RuntimeError(
                f"Expected the tangents {spec} to have the same argspec as the primals {call.primals_spec}"
            )
        for index, (tangent, primal) in enumerate(zip(flat, call.primals)):
            for what in ("shape", "device", "dtype"):
                if getattr(tangent, what) != getattr(primal, what):
                    raise RuntimeError(
                        f"tangent:{index} with {what} {getattr(tangent, what)} in flattened pytree doesn't match the "
                        f"{what} {getattr(primal, what)} of the corresponding primal."
                    )
        return call.output(push(*flat))

    return call.output(outputs), jvp_fn


def elements(tree: Any) -> int:
    """How many elements the tensors of a pytree have."""
    return sum(leaf.numel() for leaf in pytree.flatten(tree)[0] if isinstance(leaf, Tensor))


def map_basis(
    backend: Backend,
    linear: LinearMap,
    space: Sequence[Like],
    which: tuple[int, int] | None,
    chunks: Chunks | None,
    label: Callable[[], str],
) -> tuple[list[Tensor], int]:
    """Apply `linear` to vectors of the standard basis of the space that `space` is a vector of.

    Returns the results of those from ``which[0]`` to ``which[1]``, or of all, stacked, and the size of the chunks.
    """
    chunks = chunks or AT_ONCE
    total = sum([tensor.numel() for tensor in space])
    first, last = which or (0, total)
    if first == last and total:
        # None of many: of one, so that shapes, aux, what depends on what and what is refused are as for the others.
        found, size = map_basis(backend, linear, space, (0, 1), chunks, label)
        return [part[:0] for part in found], size

    def run(start: int, rows: int) -> list[Tensor]:
        vectors = basis(space, first + start, rows)
        if rows == 1 and (chunks.size is not None or total == 1):
            # as in torch.func: a plain loop, for functions that cannot be batched
            return [row.unsqueeze(0) for row in linear(*(vector.squeeze(0) for vector in vectors))]
        return linear.batched(*vectors)

    in_place = backend.innermost() is None
    return in_chunks(last - first, chunks, run, label=label, device=space[0].device, in_place=in_place)


class Samples:
    """A batch, as the space of what is the same for each of its samples: it has as many elements as one of them.

    Attributes
    ----------
    shape : tuple of int
        Of one sample.
    size, dim : int
        How many samples there are, and along which dimension.
    """

    __slots__ = ("shape", "size", "dim", "dtype", "device", "_numel")

    def __init__(self, batch: Tensor, dim: int) -> None:
        shape = tuple(batch.shape)
        self.shape = shape[:dim] + shape[dim + 1 :]
        self.size = shape[dim]
        self.dim = dim
        self.dtype = batch.dtype
        self.device = batch.device
        self._numel = math.prod(self.shape)

    def numel(self) -> int:
        """How many elements a sample has."""
        return self._numel


Like = Union[Tensor, Samples]


def basis(space: Sequence[Like], start: int, rows: int) -> list[Tensor]:
    """Rows of the identity matrix from `start` on, cut into the tensors of `space`."""
    vectors, offset = [], 0
    for like in space:
        size = like.numel()
        around = (like.size,) if isinstance(like, Samples) else ()
        if rows == size == 1 and start == offset:
            block = torch.ones((1, *around, 1), dtype=like.dtype, device=like.device)
        else:
            block = torch.zeros((rows, *around, size), dtype=like.dtype, device=like.device)
            # row r of the chunk is basis vector start + r, whose one is in column start + r - offset
            block.diagonal(start - offset, 0, -1).fill_(1)
        vector = block.view(rows, *around, *like.shape)
        vectors.append(movedim(vector, 1, like.dim + 1) if isinstance(like, Samples) and like.dim else vector)
        offset += size
    return vectors
