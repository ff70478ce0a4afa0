"""Backwards that leave torch, as for numpy: the graph of a second derivative lacks what they compute there."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from .._guards.exits import MEMORY, NUMBERS
from .._guards.wrong_answers import LEFT_BY_ROWS, MistakenRule
from .._torch import pytree
from .._torch.grad_mode import no_grad
from .._torch.random_state import RandomState
from .._torch.tensors import wave
from .context import Context, attributes, is_differentiable, tensors_in


class _Observed(Tensor):
    """A tensor that notes whether it, or a tensor made of it, leaves torch."""

    left = False

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in MEMORY | NUMBERS:
            cls.left = True
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


def leaves_torch(backward: Callable[..., Any], ctx: Any, grads: Sequence[Any], results: Any) -> list[Tensor]:
    """The tensors that `results` depend on through numbers that left torch, which the graph does not show.

    The backward is evaluated once more, with the tensors that the graph does not reach moved. It may depend on none of
    them, or on their signs only.
    """
    state = ctx.saved_tensors, attributes(ctx)
    tensors = [x for x in tensors_in((*state, tuple(grads))) if is_differentiable(x) and x.requires_grad]
    flat = _differentiable(results)
    if not tensors or not flat:
        return []
    if _is_batched(grads, tensors[0]):
        plain = [x if x is None else torch.ones(x.shape, dtype=x.dtype, device=x.device) for x in grads]
        if leaves_torch(backward, ctx, plain, backward(ctx, *plain)):
            raise MistakenRule(LEFT_BY_ROWS)
        return []
    lost = _unreached(flat, tensors)
    if not lost:
        return []

    class Observed(_Observed):
        left = False

    ids = {*map(id, lost)}

    def evaluated(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The backward at changed tensors, and at cotangents other than these, which may be zero."""
        others = tuple(wave(x) + 1 if is_differentiable(x) else x for x in grads)
        lost_others = tuple(change(x) if id(g) in ids else x for x, g in zip(others, grads))
        to_save, own = pytree.map(lambda x: change(x.detach()) if id(x) in ids else x, state)
        context = Context(ctx.needs_input_grad)
        context.to_save = to_save
        vars(context).update(own)
        return _differentiable(backward(context, *lost_others))

    random = RandomState()
    try:
        with no_grad():
            here = evaluated(lambda x: x)
            there = evaluated(lambda x: _moved(x).as_subclass(Observed))
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        return lost if Observed.left else []  # an error of the changed numbers: the first ones gave none
    finally:
        random.restore()
    # If no number left torch, detach() cut the graph, on purpose.
    return lost if Observed.left and any(map(_moves, here, there)) else []


def _differentiable(results: Any) -> list[Tensor]:
    return [x for x in (results if isinstance(results, (tuple, list)) else (results,)) if is_differentiable(x)]


def _is_batched(grads: Sequence[Any], variable: Tensor) -> bool:
    """Whether the cotangents are batched, so that their graph cannot be seen."""
    zero = variable.reshape(-1)[:1].sum() * 0
    return any(isinstance(x, Tensor) and is_differentiable(x) and not (x * zero).requires_grad for x in grads)


def _edge(x: Tensor) -> tuple[Any, int]:
    if x.grad_fn is not None:
        return x.grad_fn, x.output_nr
    with torch.enable_grad():
        alias: Any = x.view_as(x)
    return alias.grad_fn.next_functions[0]  # type: ignore[no-any-return]


def _unreached(results: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that are not in the graph of the results; the search ends at each tensor."""
    edges = [_edge(x) for x in tensors]
    stop = set(edges)
    seen: set[Any] = set()
    stack = [_edge(x) for x in results if x.requires_grad]
    while stack:
        edge = stack.pop()
        if edge[0] is None or edge in seen:
            continue
        seen.add(edge)
        if edge not in stop:
            stack.extend(edge[0].next_functions)
    return [x for x, edge in zip(tensors, edges) if edge not in seen]


def _moved(x: Tensor) -> Tensor:
    step: float = torch.finfo(x.dtype).eps ** 0.3
    return x + step * (1 + x.abs()) * wave(x)


def _moves(here: Tensor, there: Tensor) -> bool:
    """Whether a result moved by about as much as its argument, and did not jump as a sign does."""
    if here.shape != there.shape:
        return True
    change, step = (there - here).abs(), torch.finfo(here.dtype).eps ** 0.3
    scale = here.abs().max() if here.numel() else 0.0
    return bool(((change > step**2 * (scale + step)) & (change < step**0.5 * (1 + scale))).any())
