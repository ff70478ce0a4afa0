"""Forward-mode rules of torch's own custom functions that can be differentiated in forward mode once more."""

from __future__ import annotations

import functools
from typing import Any, Callable

import torch
from torch import Tensor

from .._torch import pytree

__all__ = ["nested_jvp"]


def nested_jvp(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Make the ``jvp`` rule of a `torch.autograd.Function` visible to transforms around it.

    torch evaluates such a rule with forward mode switched off (torch 2.0-2.15, pytorch issue 197867), so that
    ``torch.func.jacfwd(jacfwd(f))`` misses how the tangent depends on the inputs, without an error. With this
    decorator the rule is evaluated where the transforms around see it. `Function` of this library does that by
    itself, and the transforms of this library notice a rule without it.

    Parameters
    ----------
    rule : callable
        ``rule(ctx, *tangents)``, made of differentiable operations on the tangents and on what ctx has. The decorator
        goes below ``@staticmethod``.

    Returns
    -------
    callable
        For ``jvp``.

    Raises
    ------
    NotImplementedError
        Called in the vmap that ``generate_vmap_rule`` makes, within another forward mode, which cannot see the rule
        there. Give the function a ``vmap`` rule of its own instead.

    Notes
    -----
    Cost: that of the rule.
    On torch < 2.0, where forward mode has one level only, it is the rule itself.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.nested import nested_jvp
    >>> class Square(torch.autograd.Function):
    ...     @staticmethod
    ...     def forward(x):
    ...         return x * x
    ...     @staticmethod
    ...     def setup_context(ctx, inputs, output):
    ...         ctx.save_for_forward(*inputs)
    ...     @staticmethod
    ...     @nested_jvp
    ...     def jvp(ctx, tangent):
    ...         return 2 * ctx.saved_tensors[0] * tangent
    """

    @functools.wraps(rule)
    def jvp(ctx: Any, *tangents: Any) -> Any:
        private = getattr(torch._C, "_functorch", None)
        if private is None or getattr(private, "peek_interpreter_stack", lambda: None)() is None:
            return rule(ctx, *tangents)
        from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
        from torch.autograd.forward_ad import _set_fwd_grad_enabled

        interpreter: Any = retrieve_current_functorch_interpreter()
        forward = private.TransformType.Jvp
        if interpreter.key() != forward:
            if sum(level.key() == forward for level in _stack(private)) > 1:
                raise NotImplementedError(
                    f"{rule.__qualname__} is evaluated in a generated vmap rule, where the forward mode around that "
                    f"cannot see it: give the function a vmap rule, or take the outer derivatives in reverse mode"
                )
            return rule(ctx, *tangents)

        level = interpreter.level()

        def below(value: Any) -> Any:
            return private._unwrap_for_grad(value, level) if isinstance(value, Tensor) else value

        with interpreter.lower(), _set_fwd_grad_enabled(True):
            result = rule(_Below(ctx, below), *map(below, tangents))
        leaves, spec = pytree.flatten(result)
        wrapped = [private._wrap_for_grad(leaf, level) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return pytree.unflatten(wrapped, spec)

    return jvp


def _stack(private: Any) -> Any:
    """The transforms that are running; empty on torch 2.0, which does not list them."""
    return getattr(private, "get_interpreter_stack", list)() or ()


class _Below:
    """The contents of a context without the layer of one transform."""

    def __init__(self, ctx: Any, below: Callable[[Any], Any]) -> None:
        self._ctx = ctx
        self._below = below

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        return tuple(self._below(tensor) for tensor in self._ctx.saved_tensors)

    def __getattr__(self, name: str) -> Any:
        leaves, spec = pytree.flatten(getattr(self._ctx, name))
        return pytree.unflatten([self._below(leaf) for leaf in leaves], spec)
