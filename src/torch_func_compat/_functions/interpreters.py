"""A Function on the levels of torch.func (torch >= 2.0): one for each transform that is running.

The innermost level evaluates first. It peels its own layer off the arguments, evaluates the Function on the
level below, where it is differentiated and mapped in turn, and puts its layer around the results. Torch has
such rules as well; these differ where torch's are wrong or refuse:

- a ``jvp`` rule is evaluated on the level below, so that every other derivative reaches into it. Torch turns
  forward mode off meanwhile and drops what jvp(jvp(f)) would add (https://github.com/pytorch/pytorch/issues/197867);
- what ``setup_context`` computes is recorded, so that second derivatives reach it;
- without a ``jvp`` rule there is the transpose of ``backward``, without ``vmap`` there is a loop;
- a context may have tensors as attributes.
"""

from __future__ import annotations

import itertools
from typing import Any, Callable, Sequence

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.function import FunctionMeta

from .._torch import pytree
from .._torch.grad_mode import no_grad
from .._torch.random_state import RandomState
from .closed_over import depth
from .context import Context, attributes, is_differentiable
from .delayed_error import LEFT, ONCE, seal
from .forward_by_transpose import pushed
from .generated_vmap import make_vmapped, move_to_front, remove_batch
from .rules import backward_of, has, is_once_differentiable, untraced
from .untracked_backward import leaves_torch
from .vmap_rule import VmapInfo, by_rule, has_vmap_rule, matched

_private: Any = torch._C._functorch
_Kind: Any = _private.TransformType
_Base: Any = torch.autograd.function._SingleLevelFunction

unwrap_if_dead: Callable[[Tensor], Tensor] = _private.unwrap_if_dead

Call = Callable[..., Any]


def _map(func: Callable[[Tensor], Any], tree: Any) -> Any:
    return pytree.map(lambda x: func(x) if isinstance(x, Tensor) else x, tree)


@untraced
def evaluate(definition: Any, args: Sequence[Any], call: Call) -> Any:
    """Apply a definition on the innermost level."""
    interpreter: Any = retrieve_current_functorch_interpreter()
    kind = interpreter.key()
    # a tuple, as torch's own rules have them
    operands = tuple(_map(unwrap_if_dead, tuple(args)))
    if kind == _Kind.Vmap:
        return _map_over(interpreter, definition, operands, call)
    if kind == _Kind.Functionalize:
        raise RuntimeError("an autograd.Function cannot be functionalized")
    operands, _ = interpreter.lift(operands, {})
    if kind == _Kind.Jvp:
        return _push_forward(interpreter, definition, operands, call)
    return _record(interpreter, definition, operands, call)


def _around(outputs: Any, below: Sequence[Any], operands: Sequence[Any], wrap: Callable[[Tensor], Tensor]) -> Any:
    """`outputs` in this level's layer; inputs that were modified in place are the same objects as before."""
    same = {id(lower): upper for lower, upper in zip(below, operands) if isinstance(lower, Tensor)}
    return _map(lambda x: same[id(x)] if id(x) in same else wrap(x), outputs)


def _record(interpreter: Any, definition: Any, operands: Sequence[Any], call: Call) -> Any:
    """Reverse mode: a node in the graph of this level."""
    level = interpreter.level()
    backward = backward_of(definition)
    once = is_once_differentiable(backward)

    def forward(*operands: Any) -> Any:
        below = _map(lambda x: _private._unwrap_for_grad(x, level), operands)
        # apply() turned both off
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), interpreter.lower():
            outputs = call(definition, below)
        return _around(outputs, below, operands, lambda x: _private._wrap_for_grad(x, level))

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            definition.setup_context(ctx, inputs, output)

    def differentiate(ctx: Any, *grads: Any) -> Any:
        if not once and depth():
            return backward(ctx, *grads)
        if not once:  # torch 2.0, which is below all levels here, where numbers may leave torch without an error
            below = _below(ctx)
            results = backward(below, *grads)
            lost = leaves_torch(backward, below, grads, results)
            return seal(results, lost, LEFT, call) if lost else results
        with no_grad():
            results = backward(ctx, *grads)
        return seal(results, [x for x in (*operands, *grads) if is_differentiable(x)], ONCE, call)

    node: Any = FunctionMeta(
        definition.__name__,
        (_Base,),
        {
            "forward": staticmethod(forward),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(differentiate),
        },
    )
    with enable_single_level_autograd_function():
        return node.apply(*operands)


def _below(ctx: Any) -> Context:
    """A context without the layers of levels that are over."""
    context = Context(ctx.needs_input_grad)
    context.to_save, own = _map(unwrap_if_dead, (ctx.saved_tensors, attributes(ctx)))
    vars(context).update(own)
    return context


def _push_forward(interpreter: Any, definition: Any, operands: Sequence[Any], call: Call) -> Any:
    """Forward mode: values and tangents, both computed on the level below."""
    level = interpreter.level()

    def peel(x: Tensor) -> Tensor:
        return _private._unwrap_for_grad(x, level)  # type: ignore[no-any-return]

    tangents = [forward_ad.unpack_dual(x).tangent if is_differentiable(x) else None for x in operands]
    below, below_tangents = _map(peel, operands), [None if t is None else peel(t) for t in tangents]
    moving = any(t is not None for t in tangents)
    with interpreter.lower():
        outputs = call(definition, below)
        several = isinstance(outputs, (tuple, list))
        flat = list(outputs) if several else [outputs]
        results: list[Any] = [None] * len(flat)
        if moving:
            context = Context([t is not None for t in tangents])
            definition.setup_context(context, tuple(below), outputs)
            if has(definition, "jvp"):
                results = _by_rule(definition, context, below, below_tangents, several)
            else:
                results = pushed(definition, below, below_tangents, flat, call)
            fixed = {id(x) for x in context.non_differentiable}
            results = [None if id(x) in fixed else t for x, t in zip(flat, results)]
    same = {id(lower): i for i, lower in enumerate(below) if isinstance(lower, Tensor)}
    wrapped = []
    for output, tangent in zip(flat, results):
        if not isinstance(output, Tensor):
            wrapped.append(output)
            continue
        upper_tangent = None if tangent is None else _private._wrap_for_grad(tangent, level)
        if id(output) in same:
            wrapped.append(_modified(operands[same[id(output)]], tangents[same[id(output)]], upper_tangent))
            continue
        if upper_tangent is not None and any(step == 0 and n > 1 for step, n in zip(output.stride(), output.shape)):
            with interpreter.lower():
                output = output.clone(memory_format=torch.contiguous_format)  # tangents are laid out like values
        upper = _private._wrap_for_grad(output, level)
        if upper_tangent is not None and is_differentiable(output):
            upper = forward_ad.make_dual(upper, upper_tangent)
        wrapped.append(upper)
    return tuple(wrapped) if several else wrapped[0]


def _modified(operand: Tensor, before: Tensor | None, tangent: Tensor | None) -> Tensor:
    """An input that was modified in place, and its tangent with it."""
    if before is not None:
        if tangent is None:
            before.zero_()
        elif tangent is not before:
            before.copy_(tangent)
    elif tangent is not None:
        raise RuntimeError(
            "Trying to use forward AD with a Function that does not support it: it modifies in place an input that has "
            "no tangent"
        )
    return operand


def _by_rule(
    definition: Any, context: Context, primals: Sequence[Any], tangents: Sequence[Any], several: bool
) -> list[Any]:
    if context.saved_for_forward is not None:
        context.to_save = context.saved_for_forward
    if context.materialize_grads:
        tangents = [torch.zeros_like(x) if t is None and is_differentiable(x) else t for x, t in zip(primals, tangents)]
    results = definition.jvp(context, *tangents)
    return list(results) if several else [results]


def _map_over(interpreter: Any, definition: Any, operands: Sequence[Any], call: Call) -> Any:
    """vmap: by the rule of the definition, or sample by sample."""
    level, size, randomness = interpreter.level(), interpreter.batch_size(), interpreter.randomness()
    below, dims = remove_batch(operands, level)
    with interpreter.lower():
        if all(dim is None for dim in pytree.flatten(dims)[0]):
            return call(definition, below)
        if has_vmap_rule(definition):
            outputs, out_dims = by_rule(definition, VmapInfo(size, randomness), dims, below)
        elif definition.generate_vmap_rule:
            in_front = pytree.map(lambda dim: None if dim is None else 0, dims)
            below = tuple(pytree.unflatten(*move_to_front(below, dims)))
            outputs = call(make_vmapped(definition, in_front, level, size, randomness), below)
            out_dims = _map(lambda x: 0, outputs)
        else:
            outputs, out_dims = _loop(definition, below, dims, size, randomness, call)
    same = {id(lower): upper for lower, upper in zip(below, operands) if isinstance(lower, Tensor)}
    flat, flat_dims, spec = matched(definition, outputs, out_dims)

    def wrap(x: Any, dim: Any) -> Any:
        if id(x) in same:
            return same[id(x)]
        return x if dim is None or not isinstance(x, Tensor) else _private._add_batch_dim(x, dim, level)

    return pytree.unflatten(map(wrap, flat, flat_dims), spec)


def _loop(definition: Any, below: Any, dims: Any, size: int, randomness: str, call: Call) -> tuple[Any, Any]:
    """One sample after another: works for any forward, and is differentiable on the levels below."""
    if size == 0:
        raise RuntimeError(f"vmap: the fallback path does not support vmap over dims of size 0 ({definition.__name__})")
    (flat, spec), flat_dims = pytree.flatten(below), pytree.flatten(dims)[0]
    state = RandomState() if randomness != "different" else None
    # The views of one tensor share a version: a write to one sample would count as a write to all of them.
    columns = [
        itertools.repeat(x, size) if dim is None else [sample.clone() for sample in x.unbind(dim)]
        for x, dim in zip(flat, flat_dims)
    ]
    results: list[list[Any]] = []
    several = False
    owner: dict[int, int] = {}
    for i, sample in enumerate(zip(*columns)):
        if state is not None and i and randomness == "same":
            state.restore()
        outputs = call(definition, pytree.unflatten(sample, spec))
        if state is not None and i == 0 and randomness == "error":
            state.forbid_draws()
        several = isinstance(outputs, (tuple, list))
        results.append(list(outputs) if several else [outputs])
        # an input that was modified in place comes back as it is
        ids = {id(x): k for k, x in enumerate(sample) if isinstance(x, Tensor)}
        owner = {n: ids[id(x)] for n, x in enumerate(results[-1]) if id(x) in ids}
        if any(flat_dims[k] is None for k in owner.values()):
            raise RuntimeError(
                f"vmap: {definition.__name__} modifies in place a tensor that all samples share. Work on a clone(), or "
                f"give it a batch dimension"
            )
    stacked = [_stack(definition, column) for column in zip(*results)]
    for n, k in owner.items():
        stacked[n] = flat[k].copy_(stacked[n].movedim(0, flat_dims[k]))
    out_dims = [flat_dims[owner[n]] if n in owner else 0 for n in range(len(stacked))]
    return (tuple(stacked), tuple(out_dims)) if several else (stacked[0], out_dims[0])


def _stack(definition: Any, column: Sequence[Any]) -> Any:
    first = column[0]
    for value in column:
        if isinstance(first, Tensor) and isinstance(value, Tensor):
            alike = first.shape == value.shape and first.dtype == value.dtype
        else:
            alike = value is first or (type(value) is type(first) and bool(value == first))
        if not alike:
            raise RuntimeError(
                f"vmap: {definition.__name__} must return the same shapes, dtypes and non-tensors for every sample, "
                f"and returned {_describe(first)} for the first and {_describe(value)} for another"
            )
    return torch.stack(list(column)) if isinstance(first, Tensor) else first


def _describe(value: Any) -> str:
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else repr(value)
