"""``generate_vmap_rule``: the definition whose rules are those of another one, batched by torch.func's vmap."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._guards.wrong_answers import FOREIGN, MistakenRule
from .._torch import pytree
from .closed_over import depth, is_foreign
from .context import Context, attributes
from .rules import backward_of, has, is_once_differentiable

_private: Any = torch._C._functorch


def remove_batch(tree: Any, level: int) -> tuple[Any, Any]:
    """The tensors without their batch dimension of this level, and the place of that dimension, or None."""
    leaves, spec = pytree.flatten(tree)
    pairs = [_private._unwrap_batched(x, level) if isinstance(x, Tensor) else (x, None) for x in leaves]
    return pytree.unflatten([x for x, _ in pairs], spec), pytree.unflatten([dim for _, dim in pairs], spec)


def _add_batch(tree: Any, dims: Any, level: int) -> Any:
    leaves, spec = pytree.flatten(tree)
    flat_dims = pytree.flatten(dims)[0]
    return pytree.unflatten(
        [x if dim is None else _private._add_batch_dim(x, dim, level) for x, dim in zip(leaves, flat_dims)], spec
    )


def _front(value: Any, dim: int | None, size: int) -> Any:
    """The batch dimension in front, also where all samples are the same."""
    if not isinstance(value, Tensor):
        return value
    if dim is None:
        return value.unsqueeze(0).expand(size, *value.shape)
    return value.movedim(dim, 0) if dim else value


def move_to_front(tree: Any, dims: Any) -> tuple[list[Any], pytree.TreeSpec]:
    """Leaves with their batch dimension in front, where they have one; and the structure."""
    leaves, spec = pytree.flatten(tree)
    return [x.movedim(dim, 0) if dim else x for x, dim in zip(leaves, pytree.flatten(dims)[0])], spec


@contextlib.contextmanager
def _mapped(number: int, size: int, randomness: str) -> Iterator[int]:
    """Enter the level again, under its old number, so that no tensor of another level is mistaken for its batch."""
    missing = max(0, number - 1 - depth())
    for _ in range(missing):
        _private._vmap_increment_nesting(1, "same")
    level = _private._vmap_increment_nesting(size, randomness)
    try:
        yield level
    finally:
        for _ in range(missing + 1):
            _private._vmap_decrement_nesting()


def make_vmapped(definition: Any, dims: Any, number: int, size: int, randomness: str) -> Any:
    """`definition` over a batch: inputs have it in front or, where `dims` is None, not at all; outputs in front."""
    backward_rule = backward_of(definition)

    def split(outputs: Any, level: int) -> Any:
        values, out_dims = remove_batch(outputs, level)
        leaves, spec = pytree.flatten(values)
        return pytree.unflatten([_front(x, dim, size) for x, dim in zip(leaves, pytree.flatten(out_dims)[0])], spec)

    def forward(*inputs: Any) -> Any:
        with _mapped(number, size, randomness) as level:
            results = split(definition.forward(*_add_batch(inputs, dims, level)), level)
        if any(map(is_foreign, pytree.flatten(results)[0])):
            raise MistakenRule(FOREIGN.format(definition.__name__))
        return results

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        several = isinstance(output, (tuple, list))
        outputs = tuple(output) if several else (output,)
        with _mapped(number, size, randomness) as level:
            inner = _add_batch(tuple(inputs), dims, level)
            results = [_private._add_batch_dim(x, 0, level) if isinstance(x, Tensor) else x for x in outputs]
            context = Context(ctx.needs_input_grad)
            definition.setup_context(context, inner, tuple(results) if several else results[0])
            state = (context.to_save, context.saved_for_forward, attributes(context))
            values, value_dims = remove_batch(state, level)
            ctx.shapes = [x.shape if isinstance(x, Tensor) else None for x in inner]
        leaves, spec = pytree.flatten(values)
        places = [isinstance(x, Tensor) for x in leaves]
        ctx.layout = spec, places, [x for x, place in zip(leaves, places) if not place], pytree.flatten(value_dims)[0]
        ctx.several = several
        tensors = [x for x, place in zip(leaves, places) if place]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(context.materialize_grads)
        dirty = {id(x) for x in context.dirty_tensors}
        if dirty:
            ctx.mark_dirty(*[x for x, own in zip(inputs, inner) if id(own) in dirty])
        fixed = {id(x) for x in context.non_differentiable}
        if fixed:
            ctx.mark_non_differentiable(*[x for x, own in zip(outputs, results) if id(own) in fixed])

    def restored(ctx: Any, level: int) -> Context:
        spec, places, others, value_dims = ctx.layout
        tensors, rest = iter(ctx.saved_tensors), iter(others)
        leaves = [next(tensors) if place else next(rest) for place in places]
        context = Context(ctx.needs_input_grad)
        context.to_save, context.saved_for_forward, own = _add_batch(pytree.unflatten(leaves, spec), value_dims, level)
        vars(context).update(own)
        return context

    def batched(vectors: Sequence[Any], level: int) -> list[Any]:
        return [_private._add_batch_dim(v, 0, level) if isinstance(v, Tensor) else v for v in vectors]

    def backward(ctx: Any, *grads: Any) -> Any:
        with _mapped(number, size, randomness) as level:
            found = backward_rule(restored(ctx, level), *batched(grads, level))
            found = tuple(found) if isinstance(found, (tuple, list)) else (found,)
            found += (None,) * (len(ctx.shapes) - len(found))
            return (
                tuple(_to_input(x, shape, dim, size, level) for x, shape, dim in zip(found, ctx.shapes, dims))
                + found[len(ctx.shapes) :]
            )

    def jvp(ctx: Any, *tangents: Any) -> Any:
        inner = [
            t if d is not None or t is None else t.unsqueeze(0).expand(size, *t.shape) for t, d in zip(tangents, dims)
        ]
        with _mapped(number, size, randomness) as level:
            context = restored(ctx, level)
            if context.saved_for_forward is not None:
                context.to_save = context.saved_for_forward
            return split(definition.jvp(context, *batched(inner, level)), level)

    once = is_once_differentiable(backward_rule)
    rules: dict[str, Any] = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(once_differentiable(backward) if once else backward),
        "generate_vmap_rule": True,
        "__module__": definition.__module__,
    }
    if has(definition, "jvp"):
        rules["jvp"] = staticmethod(jvp)
    return type(definition.__name__, (), rules)


def _to_input(grad: Any, shape: Any, in_dim: Any, size: int, level: int) -> Any:
    """The gradient of one sample's input as that of the batched one, or summed for one that samples share."""
    if grad is None or shape is None:
        return None
    if grad.shape != shape:
        grad = grad.sum_to_size(shape)  # a backward may leave broadcasting to autograd
    value, dim = _private._unwrap_batched(grad, level)
    if in_dim is not None:
        return _front(value, dim, size)
    return value * size if dim is None else value.sum(dim)
