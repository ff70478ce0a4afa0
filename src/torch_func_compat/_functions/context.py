"""The ctx of a rule that is evaluated here and not by autograd's engine."""

from __future__ import annotations

from typing import Any, Iterator, Sequence

import torch
from torch import Tensor


class Context:
    """torch's ctx in plain Python: ``setup_context`` writes to it, ``backward`` and ``jvp`` read it."""

    def __init__(self, needs_input_grad: Sequence[bool]) -> None:
        self.needs_input_grad = tuple(needs_input_grad)
        self.materialize_grads = True
        self.to_save: tuple[Any, ...] = ()
        self.saved_for_forward: tuple[Any, ...] | None = None
        self.dirty_tensors: tuple[Any, ...] = ()
        self.non_differentiable: tuple[Any, ...] = ()
        # the known outputs, where the forward runs again for the context alone
        self.outputs: Any = None

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        return self.to_save

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.to_save = tensors

    def save_for_forward(self, *tensors: Tensor | None) -> None:
        self.saved_for_forward = tensors

    def mark_dirty(self, *tensors: Tensor) -> None:
        self.dirty_tensors = tensors

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        self.non_differentiable = tensors

    def set_materialize_grads(self, value: bool) -> None:
        self.materialize_grads = value


OWN = frozenset(vars(Context(())))


def attributes(ctx: Any) -> dict[str, Any]:
    """The attributes that the user's rules have put on ctx, by name."""
    own = OWN if isinstance(ctx, Context) else ()
    return {name: value for name, value in ctx.__dict__.items() if name not in own and name != KEPT}


# The one attribute that this library puts on ctx.
KEPT = "_kept_by_torch_func_compat"


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Tensors among attributes, also within built-in containers of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def is_differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def same(first: Any, second: Any) -> bool:
    """Equal but for rounding."""
    if first is second:
        return True
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return first is None and second is None
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if not is_differentiable(first):
        return torch.equal(first, second)
    if first.is_complex():
        first, second = torch.view_as_real(first), torch.view_as_real(second)
    eps = torch.finfo(first.dtype).eps ** 0.5
    return bool(torch.isclose(first, second, eps, eps, equal_nan=True).all())
