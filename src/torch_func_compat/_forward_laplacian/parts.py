"""Parts of rules: columns, constants, and operations that are linear in carried tensors."""

from __future__ import annotations

import functools
from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from .carried import Carried, Refused, Run, make, placeholder


def plain(tree: Any) -> Any:
    """Values in place of carried tensors."""
    if isinstance(tree, Carried):
        return tree.value
    if isinstance(tree, dict):
        return {key: plain(part) for key, part in tree.items()}
    if isinstance(tree, (list, tuple)) and type(tree) in (list, tuple):
        return type(tree)([plain(part) for part in tree])
    if isinstance(tree, Tensor):
        _require_real_memory(tree)
    return tree


def _require_real_memory(tensor: Tensor) -> None:
    """Raise where a tensor was made of a placeholder."""
    if tensor.device.type == "meta":
        raise Refused("a part of the function does not go through torch's Python functions")
    if not _has_meta() and tensor.is_floating_point() and bool((tensor != tensor).any()):
        raise Refused("a tensor has NaN in it, or was not made by torch's Python functions")


@functools.lru_cache(maxsize=None)
def _has_meta() -> bool:
    return placeholder().device.type == "meta"


def is_carried(x: Any) -> Any:
    """Whether a value has derivatives."""
    return isinstance(x, Carried) and x.jac is not None


def constant(run: Run, value: Any) -> Any:
    """A value without derivatives that depends on the coordinates, so that no number may be made of it."""
    if isinstance(value, Tensor):
        return make(run, value, None, None)
    if isinstance(value, (list, tuple)):
        parts = [constant(run, part) for part in value]
        return type(value)(parts) if type(value) in (list, tuple) else tuple(parts)
    return value


def columns(x: Any) -> Tensor:
    """The Jacobian in full."""
    assert x.jac is not None
    return x.jac.expand(x.run.size, *x.value.shape)  # type: ignore[no-any-return]


def lifted(jac: Tensor | None, dim: int) -> Tensor:
    """A Jacobian of a value that was broadcast to `dim` dimensions."""
    assert jac is not None
    missing = dim + 1 - jac.dim()
    return jac.reshape(jac.shape[0], *[1] * missing, *jac.shape[1:]) if missing else jac


def lift(value: Tensor, dim: int) -> Tensor:
    """A value with dimensions of size one in front."""
    missing = dim - value.dim()
    return value.reshape(*[1] * missing, *value.shape) if missing else value


def zero_or(lap: Tensor | None, like: Tensor) -> Tensor:
    """A Laplacian in full."""
    return torch.zeros_like(like) if lap is None else lap


def trailing(x: Any, op: Callable[[Tensor], Tensor], compact: bool = False) -> Any:
    """A linear operation that acts on the last dimensions and takes more in front.

    With `compact`, it also takes dimensions of size one in place of others.
    """
    if not is_carried(x):
        return constant(x.run, op(x.value))
    jac = x.jac if compact else columns(x)
    return make(x.run, op(x.value), op(jac), None if x.lap is None else op(x.lap))


def several(x: Any, op: Callable[[Tensor], Sequence[Tensor]]) -> tuple[Any, ...]:
    """The same for an operation with several results."""
    values = op(x.value)
    if not is_carried(x):
        return tuple([constant(x.run, value) for value in values])
    jacs = op(columns(x))
    laps: Sequence[Tensor | None] = [None] * len(values) if x.lap is None else op(x.lap)
    return tuple([make(x.run, value, jac, lap) for value, jac, lap in zip(values, jacs, laps)])


def reshaped(x: Any, value: Tensor) -> Any:
    """`x` with the elements of its value in another shape."""
    if not is_carried(x):
        return constant(x.run, value)
    jac = columns(x).reshape(x.run.size, *value.shape)
    return make(x.run, value, jac, None if x.lap is None else x.lap.reshape(value.shape))


def total(terms: Sequence[Tensor | None]) -> Tensor | None:
    """The sum of the terms that are there."""
    present = [term for term in terms if term is not None]
    return None if not present else sum(present[1:], present[0])


def negative(dim: int, ndim: int) -> int:
    """A dimension counted from the end."""
    if not isinstance(dim, int) or not -ndim <= dim < max(ndim, 1):
        raise Refused(f"dimension {dim!r} of a tensor of {ndim} dimensions")
    return dim if dim < 0 else dim - max(ndim, 1)
