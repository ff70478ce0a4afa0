"""A level: one run of the user's function on variables of its own.

Every differentiated input is aliased, and the alias is what the function sees and what is
differentiated. Two transforms over the same tensor therefore never confuse their perturbations, and
nothing of the caller's (requires_grad, .grad, the tensor itself) is touched.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any, ContextManager, Sequence

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..._arguments.protocol import Differentiable
from ..._torch import facts
from ..._torch.tensors import version
from .graph import OWNER, depends_on_outside


class _Thread(threading.local):
    recordings = 0


_thread = _Thread()


def recordings() -> int:
    """How many functions are being recorded for a derivative in this thread, one within another."""
    return _thread.recordings


class Level:
    """Variables of one run. While `running`, they count as outside for the levels within."""

    __slots__ = ("hooked", "running", "__weakref__")

    def __init__(self) -> None:
        self.running = False
        self.hooked = False  # whether hooks were registered, by the function or by another thread, meanwhile

    def variable(self, tensor: Tensor) -> Tensor:
        """An alias of `tensor` that requires grad, and through which outer levels still reach it."""
        if tensor.requires_grad:
            return alias(tensor)
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise RuntimeError(
                f"only Tensors of floating point and complex dtype can require gradients, got one of {tensor.dtype}"
            )
        if _is_inference(tensor):
            tensor = tensor.clone()  # inference tensors cannot require grad
        return self.own((alias(tensor) if is_dual() else tensor.detach()).requires_grad_())

    def own(self, leaf: Tensor) -> Tensor:
        """Mark a leaf as this level's, so that nobody takes it for the user's."""
        setattr(leaf, OWNER, self)
        if facts.has("leaves_keep_python_attributes"):
            return leaf
        # Old torch forgets the mark once only the graph holds the leaf: let the graph hold it.
        holder = alias(leaf)
        holder.register_hook(lambda grad, leaf=leaf: None)
        return holder

    def release(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors as seen from outside: they require grad only if something outside did."""
        if not torch.is_grad_enabled():
            return [tensor.detach() if tensor.requires_grad else tensor for tensor in tensors]
        inside: set[Any] = set()
        return [
            tensor.detach() if tensor.requires_grad and not depends_on_outside(tensor, inside) else tensor
            for tensor in tensors
        ]


def _is_inference(tensor: Tensor) -> bool:
    if hasattr(tensor, "is_inference"):  # from torch 1.10 on
        return tensor.is_inference()
    try:
        return tensor._version < 0
    except RuntimeError:  # what torch 1.9 says of inference tensors, which do not count
        return True


def is_dual() -> bool:
    """Whether detach() would drop the tangent of an enclosing forward-mode level."""
    return facts.has("forward_ad_levels") and getattr(forward_ad, "_current_level", -1) >= 0


def alias(tensor: Tensor) -> Tensor:
    """The same values through a node of their own; sparse tensors have no views."""
    return tensor.view_as(tensor) if tensor.layout == torch.strided else tensor.clone()


def recording() -> ContextManager[Any]:
    """Grad mode on, also within no_grad and inference_mode."""
    if not (facts.has("inference_mode") and torch.is_inference_mode_enabled()):
        return torch.enable_grad()
    stack = contextlib.ExitStack()
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.enable_grad())
    return stack


def run(
    func: Differentiable, primals: Sequence[Tensor], *, copy: bool = False
) -> tuple[Level, list[Tensor], list[Tensor], list[Tensor]]:
    """Evaluate `func` on variables of a new level: (level, variables, outputs, aux).

    With `copy`, as forward mode has it, the function may change its inputs in place; the caller's tensors
    change with them.
    """
    level = Level()
    captured = [tensor for tensor in func.captured() if not tensor.requires_grad]
    if is_dual():  # where there are no stand-ins for these either
        captured += [tensor for tensor in func.others() if not tensor.requires_grad]
    with recording():
        # where variables are views (see own), writing to the caller's memory would cost them their nodes
        private = copy and not facts.has("leaves_keep_python_attributes")
        variables = [level.variable(primal.clone() if private else primal) for primal in primals]
        # The function sees an alias of the variable: hooks that it puts there run (on torch < 2.0 they
        # would not on what is differentiated), and the variable survives what happens to the alias.
        arguments = [variable.clone() if copy else alias(variable) for variable in variables]
        before = [version(argument) for argument in arguments]
        # What is not differentiated may be written to, also with values that are: the caller's memory is to
        # have them, and the caller's tensors are not to have their graph.
        put_others = getattr(func, "put_others", None)  # calls that are made within the library have none
        others = func.others() if put_others else []
        if put_others and others:
            put_others([x if x.requires_grad or is_dual() else x.detach() for x in others])
        level.running = True
        _thread.recordings += 1
        hooks = RemovableHandle.next_id
        try:
            outputs, aux = func(*arguments)
        finally:
            _thread.recordings -= 1
            level.running = False
            level.hooked = hooks != RemovableHandle.next_id
            if put_others and others:
                put_others(others)
        for primal, argument, count in zip(primals, arguments, before):
            if version(argument) != count:
                _write_back(primal, argument, copy)
    # For captured tensors torch.func refuses that: there is no stand-in for them.
    leaked = [tensor for tensor in captured if tensor.grad_fn is not None]
    for tensor in leaked:
        tensor.detach_()
    if leaked:
        raise RuntimeError(
            "the function provided attempted to call an in-place operation that would mutate a captured Tensor with "
            "values that depend on a differentiated input. Return what is to be changed as aux instead."
        )
    return level, variables, outputs, aux


def _write_back(primal: Tensor, argument: Tensor, copied: bool) -> None:
    if copied and not primal.requires_grad:
        with torch.no_grad():
            primal.copy_(argument)
        return
    # torch raises this itself in most cases; an alias of a differentiable tensor needs the check, for its
    # gradient would silently be taken at the overwritten value.
    raise RuntimeError(
        "a leaf Variable that requires grad is being used in an in-place operation: the function modified "
        "an input (or the memory of an input) with respect to which it is differentiated. Work on a clone()."
    )
