"""The derivatives of functions of whole batches while torch.compile traces; see ``_compiled``.

Nothing is checked here that an eager call checks: shapes are the function's own affair.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping

import torch
from torch import Tensor

from . import _tree
from ._arguments import Argnums, movedim, positions
from ._chunks import Chunks

Function = Callable[..., Any]
Natives = Mapping[str, Callable[..., Any]]


class _Leaves:
    """What is differentiated of a call, flat: `dims` are batch dimensions, `spec` the structure."""

    def __init__(self, args: tuple[Any, ...], argnums: Argnums, in_dims: Any, check: bool) -> None:
        if check:
            raise ValueError("check=True looks at values, which torch.compile does not have: check one eager call")
        self.args = args
        self.single = isinstance(argnums, int)
        self.where = positions(argnums, len(args))
        primals, self.spec = _tree.flatten(tuple(args[i] for i in self.where))
        self.primals: tuple[Tensor, ...] = tuple(primals)
        if isinstance(in_dims, int):
            dims: Any = [in_dims] * len(primals)
        else:
            dims = _tree.broadcast_prefix(tuple(in_dims[i] for i in self.where), self.spec)
        self.dims = [dim % leaf.dim() for dim, leaf in zip(dims, primals)]
        self.shapes = [tuple(leaf.shape[:dim]) + tuple(leaf.shape[dim + 1 :]) for leaf, dim in zip(primals, self.dims)]

    def call(self, func: Function, leaves: tuple[Tensor, ...]) -> Any:
        args = list(self.args)
        for i, value in zip(self.where, _tree.unflatten(leaves, self.spec)):
            args[i] = value
        return func(*args)

    def select(self, flat: list[Any]) -> Any:
        trees = _tree.unflatten(flat, self.spec)
        return trees[0] if self.single else trees


def _basis(likes: list[Tensor], dims: list[int]) -> tuple[Tensor, ...]:
    """The standard basis of one sample, each vector in all samples."""
    counts = [like.numel() // max(like.shape[dim], 1) for like, dim in zip(likes, dims)]
    total, offset, vectors = sum(counts), 0, []
    for like, dim, count in zip(likes, dims, counts):
        unit = torch.eye(total, dtype=like.dtype, device=like.device)[:, offset : offset + count]
        shape = tuple(like.shape[:dim]) + tuple(like.shape[dim + 1 :])
        vectors.append(unit.reshape(total, *shape).unsqueeze(dim + 1).expand(total, *like.shape))
        offset += count
    return tuple(vectors)


def _by(natives: Natives, mode: str, func: Function, options: dict[str, Any], chunks: Chunks | None) -> Function:
    size = chunks.size if chunks is not None and isinstance(chunks.size, int) else None
    has_aux = options["has_aux"]

    def wrapped(*args: Any) -> Any:
        own = _Leaves(args, options["argnums"], options["in_dims"], options["check"])

        def flat(*leaves: Tensor) -> Any:
            result = own.call(func, leaves)
            output, aux = result if has_aux else (result, ())
            return tuple(_tree.flatten(output)[0]), aux

        result = own.call(func, own.primals)  # to see its structure: dead code
        likes, spec = _tree.flatten(result[0] if has_aux else result)
        jacobians = []
        if mode == "reverse":
            _, pull, aux = natives["vjp"](flat, *own.primals, has_aux=True)
            rows = natives["vmap"](lambda *cotangents: pull(cotangents), chunk_size=size)(
                *_basis(likes, [0] * len(likes))
            )
            samples = [movedim(part, dim + 1, 0) for part, dim in zip(rows, own.dims)]
            offset = 0
            for like in likes:
                count = like.numel() // max(like.shape[0], 1)
                blocks = [
                    part[:, offset : offset + count].reshape(*like.shape, *shape)
                    for part, shape in zip(samples, own.shapes)
                ]
                jacobians.append(own.select(blocks))
                offset += count
        else:
            aux = result[1] if has_aux else ()

            def push(*tangents: Tensor) -> Any:
                return natives["jvp"](lambda *leaves: flat(*leaves)[0], own.primals, tangents)[1]

            columns = natives["vmap"](push, chunk_size=size)(*_basis(list(own.primals), own.dims))
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
        found = _tree.unflatten(jacobians, spec)
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
            likes = _tree.flatten(result[0] if has_aux else result)[0]
            outputs, inputs = (sum(leaf.numel() for leaf in leaves) for leaves in (likes, own.primals))
            chosen = "forward" if outputs > 1.5 * inputs else "reverse"
        return _by(natives, chosen, func, options, chunks)(*args)

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
    return _by(natives, outer, _by(natives, inner, func, options, chunks), options, chunks)


def batch_hvp(
    natives: Natives, func: Function, primals: Any, tangents: Any, *, in_dims: Any, has_aux: bool, check: bool
) -> Any:
    """The pushforward of the gradient."""
    options = _options(tuple(range(len(primals))), in_dims, True, check)

    def valued(*args: Any) -> Any:
        result = func(*args)
        return (result[0], result) if has_aux else (result, result)

    gradient = _by(natives, "reverse", valued, options, None)
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
        likes, spec = _tree.flatten(result[0] if has_aux else result)
        found = batch_hessian(natives, func, argnums, in_dims, has_aux, chunks=chunks)(*args)
        blocks, count = _tree.flatten(found[0] if has_aux else found)[0], len(own.primals)
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
        diagonal = _tree.unflatten(diagonals, spec)
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
        likes, spec = _tree.flatten(result[0] if has_aux else result)
        found = batch_hessian_diagonal(natives, func, argnums, in_dims, has_aux, check, chunks)(*args)
        blocks = _tree.flatten(found[0] if has_aux else found)[0]
        each = len(blocks) // len(likes)
        traces = []
        for k, like in enumerate(likes):
            trace = like.new_zeros(like.shape)
            for block in blocks[k * each : (k + 1) * each]:
                trace = trace + block.reshape(*like.shape, -1).sum(-1)
            traces.append(trace)
        total = _tree.unflatten(traces, spec)
        return (total, found[1]) if has_aux else total

    return wrapped
