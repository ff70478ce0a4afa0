"""The derivatives of functions of whole batches while torch.compile traces; see ``_compiled``.

Nothing is checked here that an eager call checks: shapes are the function's own affair.
"""

from __future__ import annotations

from typing import Any, Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .._arguments.call import Argnums, movedim, positions
from .._arguments.chunks import Chunks
from .._torch import facts, pytree

Function = Callable[..., Any]
Natives = Mapping[str, Callable[..., Any]]

_LEAKS = facts.has("compiled_pullbacks_leak")


def _chosen(values: Sequence[Any], where: Iterable[int]) -> tuple[Any, ...]:
    """Some of the values; in a loop, since a comprehension is a closure that holds them."""
    chosen = []
    for i in where:
        chosen.append(values[i])
    return tuple(chosen)


class _Leaves:
    """What is differentiated of a call, flat: `dims` are batch dimensions, `spec` the structure.

    With None for `in_dims` there is no batch, and dims are None.
    """

    def __init__(self, args: tuple[Any, ...], argnums: Argnums, in_dims: Any, check: bool) -> None:
        if check:
            raise ValueError("check=True looks at values, which torch.compile does not have: check one eager call")
        self.args = args
        self.single = isinstance(argnums, int)
        self.where = positions(argnums, len(args))
        primals, self.spec = pytree.flatten(_chosen(args, self.where))
        self.primals: tuple[Tensor, ...] = tuple(primals)
        if in_dims is None or isinstance(in_dims, int):
            dims: Any = [in_dims] * len(primals)
        else:
            dims = pytree.broadcast_prefix(_chosen(in_dims, self.where), self.spec)
        self.dims = [None if dim is None else dim % leaf.dim() for dim, leaf in zip(dims, primals)]
        self.shapes = [_sample(leaf, dim) for leaf, dim in zip(primals, self.dims)]

    def call(self, func: Function, leaves: tuple[Tensor, ...]) -> Any:
        args = list(self.args)
        for i, value in zip(self.where, pytree.unflatten(leaves, self.spec)):
            args[i] = value
        return func(*args)

    def select(self, flat: list[Any]) -> Any:
        trees = pytree.unflatten(flat, self.spec)
        return trees[0] if self.single else trees


def _sample(leaf: Tensor, dim: int | None) -> tuple[int, ...]:
    """The shape of one sample."""
    return tuple(leaf.shape) if dim is None else tuple(leaf.shape[:dim]) + tuple(leaf.shape[dim + 1 :])


def _count(leaf: Tensor, dim: int | None) -> int:
    """The elements of one sample."""
    return leaf.numel() if dim is None else leaf.numel() // max(leaf.shape[dim], 1)


def _basis(likes: list[Tensor], dims: list[int | None]) -> tuple[Tensor, ...]:
    """The standard basis of one sample, each vector in all samples."""
    counts = [_count(like, dim) for like, dim in zip(likes, dims)]
    total, offset, vectors = sum(counts), 0, []
    for like, dim, count in zip(likes, dims, counts):
        unit = torch.eye(total, dtype=like.dtype, device=like.device)[:, offset : offset + count]
        unit = unit.reshape(total, *_sample(like, dim))
        vectors.append(unit if dim is None else unit.unsqueeze(dim + 1).expand(total, *like.shape))
        offset += count
    return tuple(vectors)


def _recorded(natives: Natives, func: Function, own: _Leaves, has_aux: bool) -> tuple[Any, Function]:
    """What the function returns, and its pullback."""

    def call(*leaves: Tensor) -> Any:
        return own.call(func, leaves)

    output, pullback, *aux = natives["vjp"](call, *own.primals, has_aux=has_aux)
    return (output, aux[0]) if has_aux else output, pullback


def _rows(
    natives: Natives,
    func: Function,
    options: dict[str, Any],
    args: tuple[Any, ...],
    units: tuple[Tensor, ...],
    size: int | None,
) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """The pullback of each of the units, where pullbacks leak: the pass is made within vmap, where it is not batched.

    Also the leaves of aux of that pass: another one has other random numbers. No closure holds a tensor, either: see
    the fact "compiled_pullbacks_leak".
    """
    leaves, spec = pytree.flatten(args)
    floats = [
        i
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
    ]
    rest = [None if i in floats else leaf for i, leaf in enumerate(leaves)]
    where = positions(options["argnums"], len(args))
    marks = pytree.flatten([[i in where] * len(pytree.flatten(arg)[0]) for i, arg in enumerate(args)])[0]

    def flat(*values: Tensor) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        filled = list(rest)
        for i, value in zip(floats, values):
            filled[i] = value
        result, aux = func(*pytree.unflatten(filled, spec)), ()
        if options["has_aux"]:
            result, aux = result
        return tuple(pytree.flatten(result)[0]), tuple(pytree.flatten(aux)[0])

    def row(values: tuple[Tensor, ...], cotangents: tuple[Tensor, ...]) -> Any:
        _, pullback, aux = natives["vjp"](flat, *values, has_aux=True)
        return tuple(part for i, part in zip(floats, pullback(cotangents)) if marks[i]), aux

    mapped = natives["vmap"](row, in_dims=(None, 0), chunk_size=size)
    rows, aux = mapped(_chosen(leaves, floats), units)
    return rows, tuple([leaf[0] for leaf in aux])


def _columns(natives: Natives, func: Function, own: _Leaves, has_aux: bool, size: int | None) -> tuple[Tensor, ...]:
    """The tangents of the outputs along each unit vector of a sample."""

    def flat(*leaves: Tensor) -> tuple[Tensor, ...]:
        result = own.call(func, leaves)
        return tuple(pytree.flatten(result[0] if has_aux else result)[0])

    def push(*tangents: Tensor) -> Any:
        return natives["jvp"](flat, own.primals, tangents)[1]

    return natives["vmap"](push, chunk_size=size)(*_basis(list(own.primals), own.dims))  # type: ignore[no-any-return]


def by_mode(natives: Natives, mode: str, func: Function, options: dict[str, Any], chunks: Chunks | None) -> Function:
    size = chunks.size if chunks is not None and isinstance(chunks.size, int) else None
    has_aux = options["has_aux"]

    def wrapped(*args: Any) -> Any:
        own = _Leaves(args, options["argnums"], options["in_dims"], options["check"])

        pullback: Any = None
        if mode == "reverse" and not _LEAKS:
            result, pullback = _recorded(natives, func, own, has_aux)
        else:
            result = own.call(func, own.primals)  # for its structure and aux; the rest is dead code
        likes, spec = pytree.flatten(result[0] if has_aux else result)
        jacobians, aux = [], result[1] if has_aux else ()
        if mode == "reverse":
            batch = None if options["in_dims"] is None else 0
            units = _basis(likes, [batch] * len(likes))
            if pullback is None:
                rows, beside = _rows(natives, func, options, args, units, size)
                aux = pytree.unflatten(beside, pytree.flatten(aux)[1])
            else:
                row = lambda *unit: tuple(pytree.flatten(pullback(pytree.unflatten(unit, spec)))[0])
                rows = natives["vmap"](row, chunk_size=size)(*units)
            samples = [part if dim is None else movedim(part, dim + 1, 0) for part, dim in zip(rows, own.dims)]
            offset = 0
            for like in likes:
                count = _count(like, batch)
                around = tuple(like.shape)
                blocks = [
                    part.narrow(0 if batch is None else 1, offset, count).reshape(*around, *shape)
                    for part, shape in zip(samples, own.shapes)
                ]
                jacobians.append(own.select(blocks))
                offset += count
        else:
            columns = _columns(natives, func, own, has_aux, size)
            for like, column in zip(likes, columns):
                last = movedim(column, 0, -1)
                offset, blocks = 0, []
                for shape in own.shapes:
                    count = 1
                    for extent in shape:
                        count *= extent
                    blocks.append(last[..., offset : offset + count].reshape(*like.shape, *shape))
                    offset += count
                jacobians.append(own.select(blocks))
        found = pytree.unflatten(jacobians, spec)
        return (found, aux) if has_aux else found

    return wrapped


def _options(argnums: Argnums, in_dims: Any, has_aux: bool, check: bool) -> dict[str, Any]:
    return {"argnums": argnums, "in_dims": in_dims, "has_aux": has_aux, "check": check}


def batch_jacobian(
    natives: Natives,
    func: Function,
    argnums: Argnums,
    in_dims: Any,
    has_aux: bool,
    mode: str = "auto",
    check: bool = False,
    chunks: Chunks | None = None,
) -> Function:
    """In reverse mode unless outputs are many more than inputs: a compiled row costs as much as a column."""
    options = _options(argnums, in_dims, has_aux, check)

    def wrapped(*args: Any) -> Any:
        chosen = mode
        if mode == "auto":
            own = _Leaves(args, argnums, in_dims, check)
            result = func(*args)
            likes = pytree.flatten(result[0] if has_aux else result)[0]
            outputs, inputs = (sum(leaf.numel() for leaf in leaves) for leaves in (likes, own.primals))
            chosen = "forward" if outputs > 1.5 * inputs else "reverse"
        return by_mode(natives, chosen, func, options, chunks)(*args)

    return wrapped


def batch_hessian(
    natives: Natives,
    func: Function,
    argnums: Argnums,
    in_dims: Any,
    has_aux: bool,
    mode: str = "auto",
    check: bool = False,
    chunks: Chunks | None = None,
) -> Function:
    """In reverse over reverse mode unless told otherwise, as `_compiled.hessian`."""
    options = _options(argnums, in_dims, has_aux, check)
    outer, inner = ("reverse-reverse" if mode == "auto" else mode).split("-")
    return by_mode(natives, outer, by_mode(natives, inner, func, options, chunks), options, chunks)


def batch_hvp(
    natives: Natives, func: Function, primals: Any, tangents: Any, *, in_dims: Any, has_aux: bool, check: bool
) -> Any:
    """The pushforward of the gradient."""
    options = _options(tuple(range(len(primals))), in_dims, True, check)

    def valued(*args: Any) -> Any:
        result = func(*args)
        return (result[0], result) if has_aux else (result, result)

    gradient = by_mode(natives, "reverse", valued, options, None)
    _, product, value = natives["jvp"](gradient, primals, tangents, has_aux=True)
    return (value[0], product, value[1]) if has_aux else (value, product)


def batch_hessian_diagonal(
    natives: Natives,
    func: Function,
    argnums: Argnums,
    in_dims: Any,
    has_aux: bool,
    check: bool = False,
    chunks: Chunks | None = None,
) -> Function:
    """Cut out of the whole Hessian."""

    def wrapped(*args: Any) -> Any:
        own = _Leaves(args, argnums, in_dims, check)
        result = func(*args)
        likes, spec = pytree.flatten(result[0] if has_aux else result)
        found = batch_hessian(natives, func, argnums, in_dims, has_aux, chunks=chunks)(*args)
        blocks, count = pytree.flatten(found[0] if has_aux else found)[0], len(own.primals)
        diagonals = []
        for k, like in enumerate(likes):
            cut = []
            for i, shape in enumerate(own.shapes):
                block = blocks[(k * count + i) * count + i]
                size = 1
                for extent in shape:
                    size *= extent
                square = block.reshape(*like.shape, size, size)
                cut.append(square.diagonal(0, -2, -1).reshape(*like.shape, *shape))
            diagonals.append(own.select(cut))
        diagonal = pytree.unflatten(diagonals, spec)
        return (diagonal, found[1]) if has_aux else diagonal

    return wrapped


def batch_laplacian(
    natives: Natives,
    func: Function,
    argnums: Argnums,
    in_dims: Any,
    has_aux: bool,
    check: bool = False,
    chunks: Chunks | None = None,
) -> Function:
    """The sum of the diagonal."""

    def wrapped(*args: Any) -> Any:
        result = func(*args)
        likes, spec = pytree.flatten(result[0] if has_aux else result)
        found = batch_hessian_diagonal(natives, func, argnums, in_dims, has_aux, check, chunks)(*args)
        blocks = pytree.flatten(found[0] if has_aux else found)[0]
        each = len(blocks) // len(likes)
        traces = []
        for k, like in enumerate(likes):
            trace = like.new_zeros(like.shape)
            for block in blocks[k * each : (k + 1) * each]:
                trace = trace + block.reshape(*like.shape, -1).sum(-1)
            traces.append(trace)
        total = pytree.unflatten(traces, spec)
        return (total, found[1]) if has_aux else total

    return wrapped
