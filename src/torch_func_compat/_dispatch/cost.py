"""How many samples, rows or columns the autograd backend computes in place of a library, for warnings."""

from __future__ import annotations

from typing import Any, Mapping

from .._arguments.batch import batch_dims
from .._arguments.call import positions
from .._torch import pytree
from .._transforms.basis import count_elements

_PASSES = "by backward passes"
# These compute a row of the Hessian for each element of the inputs.
_ROWS_OF_HESSIANS = ("hessian", "value_grad_and_hessian", "hessian_diagonal", "laplacian")


def cost(transform: str, options: Mapping[str, Any], args: tuple[Any, ...]) -> str:
    """Describe the work that a call falls back to. Nothing is evaluated.

    Parameters
    ----------
    transform : str
        Its public name.
    options : mapping
        What the user passed to the transform; empty for products such as jvp.
    args : tuple
        The positional arguments of the call.
    """
    if transform == "vmap":
        count = _samples(options["in_dims"], args)
        return "1 sample by itself" if count == 1 else f"{count} samples one by one"
    if transform in ("jvp", "batch_hvp"):
        return f"one product {_PASSES}"
    _, batched, operator = transform.rpartition("batch_")
    if options.get("partition") is None and operator in ("jacfwd", *_ROWS_OF_HESSIANS):
        where = positions(options.get("argnums", 0), len(args))
        count = count_elements([args[i] for i in where])
        if batched:
            count //= max(batch_dims(transform, options["in_dims"], args, where)[1], 1)
        if operator == "jacfwd":
            return f"{_counted(count, 'column')} {_PASSES}"
        return f"{_counted(count, 'row')} of each {'sample' if batched else 'output'}'s Hessian {_PASSES}"
    return f"rows or columns {_PASSES}"  # which of them, and how many, depends on the size of the outputs


def _samples(in_dims: Any, args: tuple[Any, ...]) -> int:
    """The size of the mapped dimension, of arguments that `vmap` has checked."""
    leaves, spec = pytree.flatten(args)
    dims = pytree.broadcast_prefix(in_dims, spec) or []
    return next(int(leaf.size(dim)) for leaf, dim in zip(leaves, dims) if dim is not None)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
