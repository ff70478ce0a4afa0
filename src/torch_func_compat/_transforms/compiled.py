"""What the libraries lack while torch.compile traces: compositions of the transforms that it knows to trace.

Nothing is looked up, remembered, measured or restored here, and chunks other than a number are all at once.
Where a choice depends on the size of the output, the function is evaluated once more to see it: dead
code, which the compiler removes.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping

from torch import Tensor

from .._arguments.call import Argnums, positions
from .._arguments.chunks import Chunks
from .._torch import pytree
from . import compiled_batched as _compiled_batched

Function = Callable[..., Any]
Natives = Mapping[str, Callable[..., Any]]


def _elements(tree: Any) -> int:
    return sum(leaf.numel() for leaf in pytree.flatten(tree)[0] if isinstance(leaf, Tensor))


def _jac(natives: Natives, mode: str, func: Function, argnums: Argnums, has_aux: bool, chunks: Chunks | None) -> Any:
    """The Jacobian by that mode.

    Rows are not those of torch.func's jacrev: within vmap each sample would have unit vectors of its own, though the
    first product of each is with what all samples share (two thirds of the time of the Hessians of a network).
    """
    if mode == "forward":
        return jacfwd(natives, func, argnums, has_aux=has_aux)
    options = {"argnums": argnums, "in_dims": None, "has_aux": has_aux, "check": False}
    return _compiled_batched.by_mode(natives, "reverse", func, options, chunks)


def vmap(natives: Natives, func: Function, *, chunks: Chunks | None = None, **options: Any) -> Function:
    """vmap in chunks. What torch gets wrong of nested dimensions, it refuses."""
    size = chunks.size if chunks is not None and isinstance(chunks.size, int) else None
    return natives["vmap"](func, **options, chunk_size=size)  # type: ignore[no-any-return]


def jacrev(natives: Natives, func: Function, argnums: Argnums, has_aux: bool, chunks: Chunks | None = None) -> Function:
    """jacrev in chunks."""
    return _jac(natives, "reverse", func, argnums, has_aux, chunks)  # type: ignore[no-any-return]


def jacfwd(
    natives: Natives, func: Function, argnums: Argnums, *, chunks: Chunks | None = None, **options: Any
) -> Function:
    """jacfwd, which torch has without chunks, and wrong for negative argnums."""

    def wrapped(*args: Any) -> Any:
        found = positions(argnums, len(args))
        return natives["jacfwd"](func, found if isinstance(argnums, tuple) else found[0], **options)(*args)

    return wrapped


def jacobian(
    natives: Natives, func: Function, argnums: Argnums, has_aux: bool, mode: str = "auto", chunks: Chunks | None = None
) -> Function:
    """The Jacobian by the cheaper mode."""

    def wrapped(*args: Any) -> Any:
        chosen = mode
        if mode == "auto":
            result = func(*args)
            outputs = _elements(result[0] if has_aux else result)
            inputs = _elements([args[i] for i in positions(argnums, len(args))])
            chosen = "forward" if outputs > 1.5 * inputs else "reverse"
        return _jac(natives, chosen, func, argnums, has_aux, chunks)(*args)

    return wrapped


def hessian(
    natives: Natives,
    func: Function,
    argnums: Argnums,
    has_aux: bool = False,
    mode: str = "auto",
    chunks: Chunks | None = None,
) -> Function:
    """The Hessian in reverse over reverse mode unless told otherwise.

    A vmap over forward over reverse mode fails to compile on several releases
    (https://github.com/pytorch/pytorch/issues/183015, 160508, 154284).
    """
    outer, inner = ("reverse-reverse" if mode == "auto" else mode).split("-")
    first = _jac(natives, inner, func, argnums, has_aux, chunks)
    return _jac(natives, outer, first, argnums, has_aux, chunks)  # type: ignore[no-any-return]


def value_and_jacobian(natives: Natives, func: Function, argnums: Argnums, has_aux: bool, **options: Any) -> Function:
    """The value comes as aux of the Jacobian."""

    def both(*args: Any) -> Any:
        result = func(*args)
        return (result[0], result) if has_aux else (result, result)

    def wrapped(*args: Any) -> Any:
        found, value = jacobian(natives, both, argnums, True, **options)(*args)
        return value, found

    return wrapped


def value_grad_and_hessian(
    natives: Natives,
    func: Function,
    argnums: Argnums,
    has_aux: bool,
    mode: str = "auto",
    chunks: Chunks | None = None,
) -> Function:
    """Value and gradient come as aux of the Hessian."""
    outer, inner = ("reverse-reverse" if mode == "auto" else mode).split("-")

    def gradient(*args: Any) -> Any:
        def both(*args: Any) -> Any:
            result = func(*args)
            return (result[0], result) if has_aux else (result, result)

        found, value = _jac(natives, inner, both, argnums, True, chunks)(*args)
        return found, (value, found)

    def wrapped(*args: Any) -> Any:
        second, (value, first) = _jac(natives, outer, gradient, argnums, True, chunks)(*args)
        return value, first, second

    return wrapped


def hvp(natives: Natives, func: Function, primals: Any, tangents: Any, *, has_aux: bool = False) -> Any:
    """The pullback of the gradient: a real Hessian is symmetric."""
    return vhp(natives, func, primals, tangents, has_aux=has_aux)


def vhp(natives: Natives, func: Function, primals: Any, cotangents: Any, *, has_aux: bool = False) -> Any:
    """The pullback of the gradient."""
    gradient = natives["grad_and_value"](func, tuple(range(len(primals))), has_aux)
    _, pullback, value = natives["vjp"](gradient, *primals, has_aux=True)
    product = pullback(cotangents)
    return (value[0], product, value[1]) if has_aux else (value, product)


def linearize(natives: Natives, func: Function, *primals: Any) -> Any:
    """The double-backward trick on the library's vjp."""
    output = func(*primals)
    zeros = pytree.unflatten(
        [leaf.new_zeros(leaf.shape) for leaf in pytree.flatten(output)[0]], pytree.flatten(output)[1]
    )

    def pull(cotangents: Any) -> Any:
        return natives["vjp"](func, *primals)[1](cotangents)

    return output, lambda *tangents: natives["vjp"](pull, zeros)[1](tangents)[0]


def hessian_diagonal(
    natives: Natives, func: Function, argnums: Argnums, has_aux: bool, chunks: Chunks | None = None
) -> Function:
    """Cut out of the whole Hessian."""

    def wrapped(*args: Any) -> Any:
        whole = hessian(natives, func, argnums, has_aux, chunks=chunks)(*args)
        first = _jac(natives, "reverse", func, argnums, has_aux, chunks)(*args)
        blocks = pytree.flatten(whole[0] if has_aux else whole)[0]
        likes, spec = pytree.flatten(first[0] if has_aux else first)
        primals = pytree.flatten([args[i] for i in positions(argnums, len(args))])[0]
        count = len(primals)
        diagonals = []
        for k, like in enumerate(likes):
            block, primal = blocks[k * count + k % count], primals[k % count]
            around = block.shape[: block.dim() - 2 * primal.dim()]
            square = block.reshape(*around, primal.numel(), primal.numel())
            diagonals.append(square.diagonal(0, -2, -1).reshape(like.shape))
        result = pytree.unflatten(diagonals, spec)
        return (result, first[1]) if has_aux else result

    return wrapped


def laplacian(
    natives: Natives, func: Function, argnums: Argnums, has_aux: bool, chunks: Chunks | None = None
) -> Function:
    """The sum of the diagonal."""

    def wrapped(*args: Any) -> Any:
        result = func(*args)
        outputs, spec = pytree.flatten(result[0] if has_aux else result)
        found = hessian_diagonal(natives, func, argnums, has_aux, chunks)(*args)
        blocks = pytree.flatten(found[0] if has_aux else found)[0]
        each = len(blocks) // len(outputs)
        traces = []
        for k, output in enumerate(outputs):
            trace = output.new_zeros(output.shape)
            for block in blocks[k * each : (k + 1) * each]:
                trace = trace + block.reshape(*output.shape, -1).sum(-1)
            traces.append(trace)
        total = pytree.unflatten(traces, spec)
        return (total, found[1]) if has_aux else total

    return wrapped


# By the names of the transforms.
TRANSFORMS: Mapping[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        vmap,
        jacrev,
        jacfwd,
        jacobian,
        hessian,
        value_and_jacobian,
        value_grad_and_hessian,
        hvp,
        vhp,
        linearize,
        hessian_diagonal,
        laplacian,
        _compiled_batched.batch_jacobian,
        _compiled_batched.batch_hessian,
        _compiled_batched.batch_hvp,
        _compiled_batched.batch_hessian_diagonal,
        _compiled_batched.batch_laplacian,
    )
}
