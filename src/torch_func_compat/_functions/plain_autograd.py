"""A Function on plain autograd, on every torch."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionMeta

from .._torch import facts
from .._torch.grad_mode import no_grad
from .._torch.tensors import version, wave
from .context import KEPT, Context, attributes, is_differentiable, same, tensors_in
from .delayed_error import LEFT, NOT_REPEATED, ONCE, seal
from .rules import backward_of, has, is_once_differentiable, untraced
from .untracked_backward import leaves_torch

Call = Callable[..., Any]
# whether torch knows setup_context(), and calls it itself
_SPLIT = hasattr(torch.autograd.Function, "setup_context")


class Kept:
    """The inputs of one evaluation, for the second derivative of its saved tensors.

    Tensors that are saved beside inputs and outputs (a factorisation, say) were computed without recording, so that
    plain torch treats them as constants in a second derivative and returns a wrong one without an error
    (https://github.com/pytorch/pytorch/issues/76185).
    """

    def __init__(self, inputs: Sequence[Any], repeatable: bool) -> None:
        self.inputs = inputs
        self.repeatable = repeatable
        self.versions = [version(x) for x in inputs if isinstance(x, Tensor)]

    def unchanged(self) -> bool:
        return self.repeatable and self.versions == [version(x) for x in self.inputs if isinstance(x, Tensor)]


def _is_passed_on(saved: Any, inputs: Sequence[Any], output: Any) -> bool:
    """Whether all that is saved are inputs and outputs: the common case, and the fast way to see it."""
    for x in saved or ():
        if x is output:
            continue
        for y in inputs:
            if x is y:
                break
        else:
            return False
    return True


def _has_own(ctx: Any, inputs: Sequence[Any], output: Any) -> bool:
    """Whether something differentiable is saved or an attribute that is neither an input nor an output."""
    known = {id(x) for x in (*inputs, *(output if isinstance(output, (tuple, list)) else (output,)))}
    return any(is_differentiable(x) and id(x) not in known for x in (*(ctx.to_save or ()), *tensors_in(ctx.__dict__)))


def _again(definition: Any, call: Call, ctx: Any, kept: Kept) -> Context | None:
    """The context, made once more from inputs and outputs in the graph; None where that does not help."""
    if not kept.unchanged():
        return None
    with torch.enable_grad():
        context, known = _evaluated(definition, call, ctx, kept.inputs)
    before, now = _saved(ctx), _saved(context)
    if len(before) != len(now) or not all(map(same, before, now)):
        return None
    outside = [i for i, x in enumerate(now) if is_differentiable(x) and not x.requires_grad and id(x) not in known]
    if outside and _varies(definition, call, ctx, kept, now, outside):
        return None
    return context


def _evaluated(definition: Any, call: Call, ctx: Any, inputs: Sequence[Any]) -> tuple[Context, set[int]]:
    """A context made of these inputs, and the ids of inputs and outputs."""
    output = call(definition, inputs)
    context = Context(ctx.needs_input_grad)
    definition.setup_context(context, tuple(inputs), output)
    return context, {id(x) for x in (*inputs, *(output if isinstance(output, (tuple, list)) else (output,)))}


def _saved(ctx: Any) -> list[Any]:
    return [*ctx.saved_tensors, *tensors_in(attributes(ctx))]


def _varies(definition: Any, call: Call, ctx: Any, kept: Kept, now: Sequence[Any], outside: Sequence[int]) -> bool:
    """Whether tensors that were saved unseen by autograd (through numpy, say) depend on the inputs."""
    with no_grad():
        moved = [
            x + 1e-3 * (1 + x.abs()) * wave(x) if is_differentiable(x) and needed else x
            for x, needed in zip(kept.inputs, ctx.needs_input_grad)
        ]
        there = _saved(_evaluated(definition, call, ctx, moved)[0])
    return len(there) != len(now) or not all(same(now[i], there[i]) for i in outside)


def _as_outputs(name: str, output: Any) -> Any:
    """The output in a form that autograd differentiates rightly: a tensor, or a tuple of different ones.

    If a tensor is there twice, autograd differentiates its last place only. A tensor within another container would get
    no gradient, without an error.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)):
        seen: list[Any] = []
        for x in output:
            seen.append(x.clone() if isinstance(x, Tensor) and any(x is y for y in seen) else x)
        if not any(_holds_tensors(x) for x in seen):
            # the same tuple, if it is in order: a Function in the old style compares its output by identity
            return output if isinstance(output, tuple) and all(x is y for x, y in zip(output, seen)) else tuple(seen)
    elif not _holds_tensors(output):
        return output
    raise TypeError(f"expected {name}.forward to return a tensor or a tuple of tensors, got tensors within {output!r}")


def _holds_tensors(value: Any) -> bool:
    return not isinstance(value, Tensor) and any(True for _ in tensors_in(value))


@untraced
def make(definition: Any, call: Call) -> Call:
    """The ``apply`` of a torch.autograd.Function with the rules of `definition`.

    ``call(definition, args)`` evaluates it at the level of that moment.
    """
    backward = backward_of(definition)
    once = is_once_differentiable(backward)
    read_once = getattr(definition, "clear_saved_tensors_on_access", False)
    set_up, evaluate, name = definition.setup_context, definition.forward, definition.__name__

    # In the old style, which every torch has. setup_context() would cost one more call, and 10 microseconds on 2.15.
    def forward(ctx: Any, *args: Any) -> Any:
        output = evaluate(*args)
        if type(output) is not Tensor:
            output = _as_outputs(name, output)
        set_up(ctx, args, output)
        if once or ctx.__dict__ or not _is_passed_on(ctx.to_save, args, output):
            if any(ctx.needs_input_grad) and (once or _has_own(ctx, args, output)):
                setattr(ctx, KEPT, Kept(args, not ctx.dirty_tensors))
        return output

    if facts.has("frames_lose_ctx"):
        forward = untraced(forward)

    def differentiate(ctx: Any, *grads: Any) -> Any:
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        kept = ctx.__dict__.get(KEPT)
        if kept is None:
            results = backward(ctx, *grads)
            lost = [] if read_once else leaves_torch(backward, ctx, grads, results)
            return seal(results, lost, LEFT, call) if lost else results
        anchors = [x for x in (*kept.inputs, *grads) if isinstance(x, Tensor) and x.requires_grad]
        if once:
            with no_grad():
                results = backward(ctx, *grads)
            return seal(results, anchors, ONCE, call)
        context = _again(definition, call, ctx, kept)
        if context is None:
            return seal(backward(ctx, *grads), anchors, NOT_REPEATED, call)
        results = backward(context, *grads)
        return seal(results, anchors, LEFT, call) if leaves_torch(backward, context, grads, results) else results

    rules: dict[str, Any] = {
        "forward": staticmethod(forward),
        "backward": staticmethod(differentiate),
        "__module__": definition.__module__,
    }
    if has(definition, "jvp"):
        rules.update(jvp=staticmethod(definition.jvp))
    if read_once:
        rules.update(clear_saved_tensors_on_access=True)
    function: Any = FunctionMeta(definition.__name__, (torch.autograd.Function,), rules)
    if not hasattr(torch.autograd.Function, "save_for_forward"):
        function._backward_cls.save_for_forward = lambda ctx, *tensors: None  # those torches call no jvp rule
    # past torch's own apply(), which looks at the signature and for levels once more
    apply: Call = super(torch.autograd.Function, function).apply
    return apply


def traced(definition: Any) -> Any:
    """The same as a class that torch.compile takes whole; None where it would go wrong.

    It forgets that an input was modified in place, unless the output is used in its place
    (https://github.com/pytorch/pytorch/issues/184113); and a torch that knows no setup_context() has none to take.
    """
    if not _SPLIT or not has(definition, "setup_context") or modifies(definition.setup_context):
        return None
    evaluate, name = definition.forward, definition.__name__

    def forward(*args: Any) -> Any:
        return _as_outputs(name, evaluate(*args))

    rules = {name: staticmethod(getattr(definition, name)) for name in ("setup_context", "backward")}
    rules.update(forward=staticmethod(forward))
    return FunctionMeta(definition.__name__, (torch.autograd.Function,), {**rules, "__module__": definition.__module__})


def modifies(rule: Any) -> bool:
    """Whether a rule is seen to call mark_dirty()."""
    return "mark_dirty" in getattr(getattr(rule, "__code__", None), "co_names", ())
