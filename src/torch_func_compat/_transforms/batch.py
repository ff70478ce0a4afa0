"""Derivatives of functions that take a whole batch, whose samples are independent of each other.

Of such a function's Jacobian only the blocks on the diagonal are not zero, and one vector gives a row of all of
them at once: the cotangent that is one unit vector in every sample (of a function with one output per sample, the
gradient of its sum). So the rows of a single sample are as many passes as those of the whole batch. Forward mode
has the columns in the same way, and a Hessian is the Jacobian of the Jacobian, which is such a function, too.
"""

from __future__ import annotations

import functools
from typing import Any, Sequence

import torch
from torch import Tensor

from .._arguments.call import Argnums, Call, movedim, name_of, pieces, positions, require_real, require_tensors
from .._arguments.chunks import AT_ONCE, Chunks, Taken, in_chunks
from .._arguments.protocol import Backend, LinearMap
from .._torch import pytree
from .._torch.random_state import RandomState
from .batch_independence import require_independent
from .diagonal import diagonal_mode, trace, with_output
from .jacobian import automatic, hessian_mode, jacobian_mode, with_value
from .products import (
    Function,
    Samples,
    basis,
    check_tangents,
    jvp,
    map_basis,
    require_differentiable,
    require_floating,
    vmap,
)


class BatchCall(Call):
    """A call of a function of a whole batch, whose outputs have their samples along dimension 0.

    Attributes
    ----------
    dims : list of int
        Where the primals have their samples.
    size : int
        How many samples there are.
    space : list of Samples
        The primals as the space that one sample of them is of.
    """

    def __init__(
        self, api: str, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> None:
        super().__init__(api, func, args, kwargs, options["argnums"], options["has_aux"])
        require_tensors(self.primals)
        require_real(api, self.primals, "inputs")
        require_floating("primal", self.primals)
        self.dims, self.size = batch_dims(api, options["in_dims"], args, self.positions)
        self.space = [Samples(primal, dim) for primal, dim in zip(self.primals, self.dims)]

    def __call__(self, *primals: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        outputs, aux = super().__call__(*primals)
        require_real(self.api, outputs, "outputs")
        require_differentiable(outputs)
        for output in outputs:
            if output.dim() == 0 or output.shape[0] != self.size:
                raise ValueError(
                    f"{self.api}: expected a function of the whole batch, which returns {self.size} samples along "
                    f"dimension 0, got an output of shape {tuple(output.shape)}. Of a function of one sample, take "
                    f"vmap(jacobian(f)), vmap(hessian(f)) and the like"
                )
        return outputs, aux

    def of_columns(self, column: Tensor) -> Any:
        """Derivatives of one output by each primal, from those by all their elements, stacked."""
        sizes = [like.numel() for like in self.space]
        blocks = pieces(movedim(column, 0, -1), sizes, -1)
        return self.select([b.reshape(*column.shape[1:], *like.shape) for b, like in zip(blocks, self.space)])


def batch_dims(api: str, in_dims: Any, args: tuple[Any, ...], wanted: Sequence[int]) -> tuple[list[int], int]:
    """The batch dimension of each leaf to differentiate (not negative), and how many samples there are."""
    # an int is of what is differentiated; the other arguments are what they are
    where = wanted if isinstance(in_dims, int) else range(len(args))
    leaves, spec = pytree.flatten(tuple([args[i] for i in where]))
    owners = [i for i, child in zip(where, spec.children) for _ in range(child.num_leaves)]
    if isinstance(in_dims, int):
        dims: list[Any] | None = [in_dims] * len(leaves)
    else:
        dims = pytree.broadcast_prefix(in_dims, spec) if isinstance(in_dims, tuple) else None
    if dims is None:
        raise ValueError(
            f"{api}: expected in_dims to be an int or a tuple with the structure of the arguments, got {in_dims}"
        )
    chosen: dict[int, list[int]] = {i: [] for i in wanted}
    sizes = []
    for leaf, dim, owner in zip(leaves, dims, owners):
        if dim is None:
            if owner in chosen:
                raise ValueError(
                    f"{api}: argument {owner} is differentiated and shared by all samples (its in_dims is None). Its "
                    f"derivatives are not those of single samples: take vmap(jacobian(f)) of a function of one sample"
                )
            continue
        if not (isinstance(leaf, Tensor) and isinstance(dim, int) and -leaf.dim() <= dim < leaf.dim()):
            kind = f"tensor of shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else str(type(leaf))
            raise ValueError(f"{api}: in_dims={in_dims} asks for batch dimension {dim} of a {kind} in argument {owner}")
        sizes.append(leaf.shape[dim])
        if owner in chosen:
            chosen[owner].append(dim % leaf.dim())
    if len(set(sizes)) != 1:
        raise ValueError(f"{api}: expected as many samples in all tensors with a batch dimension, got {sizes}")
    return [dim for i in wanted for dim in chosen[i]], sizes[0]


def _reverse(backend: Backend, func: Function, options: dict[str, Any], chunks: Chunks | None, label: str) -> Function:
    """Row by row of a sample's outputs."""

    taken = Taken()

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call = BatchCall(label, func, args, kwargs, options)
        outputs, pullback, aux = backend.vjp(call, call.primals)
        space = [Samples(output, 0) for output in outputs]
        rows, taken.chunk = map_basis(backend, pullback, space, None, chunks, lambda: f"{label}({name_of(func)})")
        sizes = [like.numel() for like in space]
        blocks = []
        for part, primal in zip(rows, call.space):
            samples = movedim(part, primal.dim + 1, 0)  # (B, rows, *sample)
            blocks.append([b.reshape(*out.shape, *primal.shape) for b, out in zip(pieces(samples, sizes, 1), outputs)])
        return call.with_aux(call.output([call.select(row) for row in zip(*blocks)]), aux)

    wrapped.taken = taken  # type: ignore[attr-defined]
    return wrapped


def _forward(backend: Backend, func: Function, options: dict[str, Any], chunks: Chunks | None, label: str) -> Function:
    """Column by column of a sample's inputs."""

    taken = Taken()

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call = BatchCall(label, func, args, kwargs, options)
        # one draw for all columns, in all chunks: the Jacobian is that of one realisation, as in reverse mode
        push, aux = backend.pushforward(call, call.primals, "same")
        linear = push if (chunks or AT_ONCE).trivial else _Redrawn(push, RandomState(call.generators()))
        columns, taken.chunk = map_basis(backend, linear, call.space, None, chunks, lambda: f"{label}({name_of(func)})")
        jacobians = [call.of_columns(column) for column in columns]
        return call.with_aux(call.output(jacobians), aux())

    wrapped.taken = taken  # type: ignore[attr-defined]
    return wrapped


class _Redrawn:
    """A linear map that starts from the same random state each time."""

    def __init__(self, linear: LinearMap, state: RandomState) -> None:
        self._linear = linear
        self._state = state

    def __call__(self, *vectors: Tensor) -> list[Tensor]:
        self._state.restore()
        return self._linear(*vectors)

    def batched(self, *vectors: Tensor) -> list[Tensor]:
        self._state.restore()
        return self._linear.batched(*vectors)


def _by(
    backend: Backend, mode: str, func: Function, options: dict[str, Any], chunks: Chunks | None, label: str
) -> Function:
    return (_reverse if mode == "reverse" else _forward)(backend, func, options, chunks, label)


def _options(argnums: Argnums, in_dims: Any, has_aux: bool) -> dict[str, Any]:
    return dict(argnums=argnums, in_dims=in_dims, has_aux=has_aux)


def batch_jacobian(
    backend: Backend,
    func: Function,
    argnums: Argnums,
    in_dims: Any,
    has_aux: bool,
    *,
    mode: str = "auto",
    check: bool = False,
    chunks: Chunks | None = None,
) -> Function:
    """See `torch_func_compat.batch_jacobian`."""
    options, label = _options(argnums, in_dims, has_aux), "batch_jacobian"

    def make(mode: str, function: Function) -> Function:
        return _by(backend, mode, function, options, chunks, label)

    rule = functools.partial(jacobian_mode, backend.has_forward_mode)
    found = make(mode, func) if mode != "auto" else _automatic(label, func, options, "reverse", rule, make)
    return _verified(backend, found, label, [func], options) if check else found


def batch_hessian(
    backend: Backend,
    func: Function,
    argnums: Argnums,
    in_dims: Any,
    has_aux: bool,
    *,
    mode: str = "auto",
    check: bool = False,
    chunks: Chunks | None = None,
) -> Function:
    """See `torch_func_compat.batch_hessian`."""
    options, label = _options(argnums, in_dims, has_aux), "batch_hessian"

    def make(mode: str, function: Function) -> Function:
        outer, inner = mode.split("-")
        return _by(backend, outer, _by(backend, inner, function, options, chunks, label), options, chunks, label)

    rule = functools.partial(hessian_mode, backend.has_forward_mode)
    found = make(mode, func) if mode != "auto" else _automatic(label, func, options, "reverse-reverse", rule, make)
    return _verified(backend, found, label, _twice(backend, func, options, label), options) if check else found


def batch_hvp(
    backend: Backend, func: Function, primals: Any, tangents: Any, *, in_dims: Any, has_aux: bool, check: bool
) -> Any:
    """See `torch_func_compat.batch_hvp`."""
    label = "batch_hvp(f, primals, tangents)"
    if not isinstance(primals, tuple):
        raise RuntimeError(f"{label}: Expected primals to be a tuple. E.g. it should be valid to call f(*primals).")
    argnums = tuple(range(len(primals)))
    options = _options(argnums, in_dims, True)
    valued = with_value(func, has_aux)
    call = BatchCall(label, valued, primals, {}, options)
    check_tangents(call, tangents)
    if check:
        _verify(backend, label, _twice(backend, valued, options, label), options, primals, {})
    gradient = _reverse(backend, valued, options, None, label)
    _, product, value = jvp(backend, gradient, primals, tangents, strict=False, has_aux=True)
    return (value[0], product, value[1]) if has_aux else (value, product)


def batch_hessian_diagonal(
    backend: Backend,
    func: Function,
    argnums: Argnums,
    in_dims: Any,
    has_aux: bool,
    *,
    check: bool = False,
    chunks: Chunks | None = None,
) -> Function:
    """See `torch_func_compat.batch_hessian_diagonal`."""
    options, label = _options(argnums, in_dims, has_aux), "batch_hessian_diagonal"

    def make(mode: str, function: Function) -> Function:
        diagonal = _by_rows if mode == "reverse" else _by_directions
        return diagonal(backend, function, options, chunks or AT_ONCE)

    found = _automatic(label, func, options, "reverse", functools.partial(diagonal_mode, backend), make)
    return _verified(backend, found, label, _twice(backend, func, options, label), options) if check else found


def batch_laplacian(
    backend: Backend,
    func: Function,
    argnums: Argnums,
    in_dims: Any,
    has_aux: bool,
    *,
    check: bool = False,
    chunks: Chunks | None = None,
) -> Function:
    """See `torch_func_compat.batch_laplacian`."""
    valued = with_output(func, has_aux)
    diagonal = batch_hessian_diagonal(backend, valued, argnums, in_dims, True, check=check, chunks=chunks)
    return trace(func, diagonal, has_aux)


def _by_rows(backend: Backend, func: Function, options: dict[str, Any], chunks: Chunks) -> Function:
    """From the row of the Hessian that belongs to an element of the gradient, keep that element's own entry."""
    label = "batch_hessian_diagonal"

    taken = Taken()

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call = BatchCall(label, _reverse(backend, func, options, None, label), args, kwargs, options)
        blocks, pullback, aux = backend.vjp(call, call.primals)
        space = [Samples(block, 0) for block in blocks]
        # the blocks are those of a Jacobian: for each output, one for each primal, whose elements vary fastest
        sizes = [sample.numel() for sample in call.space]
        offsets = [sum(sizes[:k]) for k in range(len(sizes))]
        columns = [
            offsets[k % len(sizes)] + torch.arange(block.numel()) % max(sizes[k % len(sizes)], 1)
            for k, block in enumerate(space)
        ]
        own = torch.cat(columns).to(blocks[0].device)

        def run(start: int, rows: int) -> list[Tensor]:
            vectors = basis(space, start, rows)
            if rows == 1:
                found = [row.unsqueeze(0) for row in pullback(*(vector.squeeze(0) for vector in vectors))]
            else:
                found = pullback.batched(*vectors)
            parts = [
                movedim(part, dim + 1, 1).reshape(rows, call.size, size)
                for part, dim, size in zip(found, call.dims, sizes)
            ]
            index = own[start : start + rows, None, None].expand(rows, call.size, 1)
            return [torch.cat(parts, 2).gather(2, index).squeeze(2)]

        (flat,), taken.chunk = in_chunks(
            len(own),
            chunks,
            run,
            label=lambda: f"{label}({name_of(func)})",
            device=blocks[0].device,
            in_place=backend.innermost() is None,
        )
        parts = pieces(flat.transpose(0, 1), [block.numel() for block in space], 1)
        return call.with_aux(call.output([p.reshape(b.shape).to(b.dtype) for p, b in zip(parts, blocks)]), aux)

    wrapped.taken = taken  # type: ignore[attr-defined]
    return wrapped


def _by_directions(backend: Backend, func: Function, options: dict[str, Any], chunks: Chunks) -> Function:
    """The second derivative of all outputs along each element of a sample, in all samples at once."""
    label = "batch_hessian_diagonal"

    taken = Taken()

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call = BatchCall(label, func, args, kwargs, options)
        primals = tuple(call.primals)
        state = RandomState(call.generators())

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
            if start:
                state.restore()
            second, rest = vmap(backend, along, 0, 0, "same")(*basis(call.space, start, rows))
            aux = [value[0] for value in rest]
            return list(second)

        found, taken.chunk = in_chunks(
            sum([like.numel() for like in call.space]),
            chunks,
            run,
            label=lambda: f"{label}({name_of(func)})",
            device=primals[0].device,
            in_place=backend.innermost() is None,
        )
        return call.with_aux(call.output([call.of_columns(column) for column in found]), aux)

    wrapped.taken = taken  # type: ignore[attr-defined]
    return wrapped


def _automatic(label: str, func: Function, options: dict[str, Any], first: str, rule: Any, make: Any) -> Function:
    """`automatic`, whose rules see the sizes of one sample."""
    argnums, in_dims = options["argnums"], options["in_dims"]

    def samples(args: tuple[Any, ...]) -> int:
        return batch_dims(label, in_dims, args, positions(argnums, len(args)))[1]

    return automatic(func, argnums, options["has_aux"], first, rule, make, samples=samples)


def _twice(backend: Backend, func: Function, options: dict[str, Any], label: str) -> list[Function]:
    return [func, _reverse(backend, func, options, None, label)]


def _verify(
    backend: Backend,
    label: str,
    stages: Sequence[Function],
    options: dict[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Check each of the functions that are differentiated on the arguments."""
    state = RandomState()
    for order, stage in enumerate(stages):
        call = BatchCall(label, stage, args, kwargs, options)
        require_independent(backend, call, order, call.primals, call.dims, call.size)
    state.restore()


def _verified(
    backend: Backend, found: Function, label: str, stages: Sequence[Function], options: dict[str, Any]
) -> Function:
    """`found`, after each of the functions that it differentiates was checked on the arguments."""

    @functools.wraps(found)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        _verify(backend, label, stages, options, args, kwargs)
        return found(*args, **kwargs)

    wrapped.taken = getattr(found, "taken", None)  # type: ignore[attr-defined]
    wrapped.choice = getattr(found, "choice", None)  # type: ignore[attr-defined]
    return wrapped
