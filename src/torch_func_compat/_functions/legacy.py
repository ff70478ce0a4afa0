"""The rules of a Function in the old style, ``forward(ctx, *args)``, as those of the new one."""

from __future__ import annotations

import threading
from typing import Any, Sequence

from torch import Tensor

from .._guards.wrong_answers import LEGACY_IN_PLACE, MistakenRule
from .._torch import pytree
from .context import Context, attributes
from .rules import has


class _Last(threading.local):
    """The context of the forward that ran last in this thread, until setup_context() asks for it."""

    outputs: Any = None
    context: Context | None = None


def rules(old: Any) -> dict[str, Any]:
    """``forward`` and ``setup_context`` made of the forward of `old`, which does both.

    On plain autograd it runs once. On every level above, setup_context() runs it again on that level's tensors:
    what it saves is then part of the graph there, and its derivatives are those of the operations that it is made of.
    """
    last = _Last()
    in_place: list[bool] = []

    def forward(*args: Any) -> Any:
        context = Context([isinstance(x, Tensor) and x.requires_grad for x in args])
        last.outputs = last.context = None
        outputs = old.forward(context, *args)
        last.outputs, last.context = outputs, context
        if context.dirty_tensors and not in_place:
            in_place.append(True)
        return outputs

    def setup_context(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        outputs, context = last.outputs, last.context
        last.outputs = last.context = None
        if context is None or outputs is not output:
            if in_place:
                raise MistakenRule(LEGACY_IN_PLACE.format(old.__name__))
            context = Context(ctx.needs_input_grad)
            context.outputs = output
            outputs = old.forward(context, *inputs)
        _transfer(context, ctx, _several(outputs), _several(output))

    return {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        **{name: staticmethod(getattr(old, name)) for name in ("backward", "vjp", "jvp") if has(old, name)},
    }


def _several(outputs: Any) -> tuple[Any, ...]:
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def _transfer(context: Context, ctx: Any, own: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Repeat on `ctx` what the old forward did to its context; `own` are the outputs that it made."""
    place = {id(x): i for i, x in enumerate(own) if isinstance(x, Tensor)}
    for x in context.dirty_tensors:  # an input that is an output as well
        place.pop(id(x), None)

    def replaced(x: Any) -> Any:
        return outputs[place[id(x)]] if id(x) in place else x

    ctx.save_for_backward(*map(replaced, context.to_save))
    if context.saved_for_forward is not None:
        ctx.save_for_forward(*map(replaced, context.saved_for_forward))
    if context.dirty_tensors:
        ctx.mark_dirty(*context.dirty_tensors)
    if context.non_differentiable:
        ctx.mark_non_differentiable(*map(replaced, context.non_differentiable))
    if not context.materialize_grads:
        ctx.set_materialize_grads(False)
    for name, value in attributes(context).items():
        setattr(ctx, name, pytree.map(replaced, value))
