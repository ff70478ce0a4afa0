"""A level: one run of the user's function on variables of its own.

The function sees variables of its own in place of the inputs, and these are differentiated. Two transforms over the
same tensor therefore never confuse their perturbations, and nothing of the caller's (requires_grad, .grad, the tensor
itself) is touched.
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
from ..._guards.compositions import composing, given, plain
from ..._torch import facts
from ..._torch.closures import names_in
from ..._torch.grad_mode import no_grad
from ..._torch.tensors import is_inference, with_attributes
from .graph import OWNER, depends_on_outside, gradients


class _Thread(threading.local):
    recordings = 0


_thread = _Thread()


def recordings() -> int:
    """How many functions are being recorded for a derivative in this thread, one within another."""
    return _thread.recordings


class Level:
    """Variables of one run. While `running`, they count as outside for the levels within.

    Parameters
    ----------
    func, primals : optional
        What ran and where, to be evaluated again by tests.
    """

    __slots__ = ("func", "has_leaves", "hooked", "primals", "running", "__weakref__")

    def __init__(self, func: Differentiable | None = None, primals: Sequence[Tensor] = ()) -> None:
        self.func = func
        self.primals = primals
        self.running = False
        self.has_leaves = False  # or every variable is the alias of a tensor from outside
        self.hooked = False  # whether hooks were registered, by the function or by another thread, meanwhile

    def variable(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """A variable through which outer levels still reach `tensor`, and the tensor for the function."""
        if tensor.requires_grad:
            variable = alias(tensor)
            # Hooks of a variable that is differentiated may not run; those of an alias of it do.
            return variable, variable if facts.has("hooks_of_inputs_run") else alias(variable)
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise RuntimeError(
                f"only Tensors of floating point and complex dtype can require gradients, got one of {tensor.dtype}: "
                f"convert it, as in x.double()"
            )
        if is_inference(tensor):
            tensor = tensor.clone()  # inference tensors cannot require grad
        return self.mark((alias(tensor) if is_dual() else tensor.detach()).requires_grad_())

    def mark(self, leaf: Tensor) -> tuple[Tensor, Tensor]:
        """Mark a leaf as this level's and not the user's; returns it and the tensor to use in its place."""
        setattr(leaf, OWNER, self)
        self.has_leaves = True
        if facts.has("leaves_keep_python_attributes"):
            return leaf, leaf
        # Old torch forgets the attribute once only the graph holds the leaf. The node of the leaf does not forget.
        used = alias(leaf)
        node: Any = used.grad_fn
        node.next_functions[0][0].metadata[OWNER] = self
        return leaf, used

    def gradients(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        vectors: Sequence[Tensor],
        create_graph: bool,
        retain_graph: bool = True,
    ) -> list[Tensor | None]:
        """One backward pass. What a custom backward differentiates within it depends on the variables of this level."""
        before, self.running = self.running, True
        if create_graph:  # autograd saves them
            vectors = [vector.clone() if is_inference(vector) else vector for vector in vectors]
        try:
            return gradients(outputs, inputs, vectors, create_graph=create_graph, retain_graph=retain_graph)
        finally:
            self.running = before

    def release(self, tensors: Sequence[Tensor], inside: set[Any] | None = None) -> list[Tensor]:
        """The tensors as seen from outside: they require grad only if something outside did.

        `inside` are nodes that are known to have no leaf from outside below.
        """
        if not torch.is_grad_enabled():
            return [cut(tensor) if tensor.requires_grad else tensor for tensor in tensors]
        if not self.has_leaves:
            return list(tensors)
        inside = set() if inside is None else inside
        return [
            cut(tensor) if tensor.requires_grad and not depends_on_outside(tensor, inside) else tensor
            for tensor in tensors
        ]


def is_dual() -> bool:
    """Whether detach() would drop the tangent of an enclosing forward-mode level."""
    return forward_ad._current_level >= 0


def cut(tensor: Tensor) -> Tensor:
    """`tensor` without its graph, and with its tangent of an enclosing forward-mode level."""
    if forward_ad._current_level < 0:
        return tensor.detach()
    tangent = forward_ad.unpack_dual(tensor).tangent
    if tangent is None:
        return tensor.detach()
    dual: Tensor = forward_ad.make_dual(tensor.detach(), tangent.detach())
    return dual


def alias(tensor: Tensor) -> Tensor:
    """The same values through a node of their own; sparse tensors have no views."""
    return tensor.view_as(tensor) if tensor.layout == torch.strided else tensor.clone()


_AS_IT_IS = contextlib.nullcontext()


def recording() -> ContextManager[Any]:
    """Grad mode on, also within no_grad and inference_mode."""
    if facts.has("inference_mode") and torch.is_inference_mode_enabled():
        stack = contextlib.ExitStack()
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        return stack
    return _AS_IT_IS if torch.is_grad_enabled() else torch.enable_grad()


def run(
    func: Differentiable, primals: Sequence[Tensor], *, copy: bool = False, order: int = 0
) -> tuple[Level, list[Tensor], list[Tensor], list[Tensor]]:
    """Evaluate `func` on variables of a new level: (level, variables, outputs, aux).

    With `copy`, as forward mode has it, the function may change its inputs in place; the caller's tensors
    change with them. With `order`, fused operations are evaluated in elementary ones as far as derivatives up to that
    order need it.
    """
    level, dual = Level(func, primals), is_dual()
    others = func.others()
    captured = [tensor for tensor in func.captured() if not tensor.requires_grad]
    if dual:  # where there are no stand-ins for these either
        captured += [tensor for tensor in others if not tensor.requires_grad]
    with recording():
        variables, arguments, before = [], [], []
        for primal in primals:
            variable, argument = level.variable(primal)
            if copy:
                argument = argument.clone()
            if type(primal) is not Tensor:
                argument = with_attributes(argument, primal, but=OWNER)
            variables.append(variable)
            arguments.append(argument)
            before.append(argument._version)
        # The function may write differentiated values into tensors that are not differentiated. The caller's memory
        # then has the values, and the caller's tensors do not get their graph.
        if others:
            func.put_others([x if x.requires_grad or dual else x.detach() for x in others])
        level.running = True
        _thread.recordings += 1
        hooks = RemovableHandle.next_id
        try:
            inference = "inference_mode" in names_in(func.func) or any(map(is_inference, [*others, *captured]))
            outputs, aux = _composed(func, arguments, order, inference) if order or inference else func(*arguments)
        finally:
            _thread.recordings -= 1
            level.running = False
            level.hooked = hooks != RemovableHandle.next_id
            if others:
                func.put_others(others)
        for primal, argument, count in zip(primals, arguments, before):
            if argument._version != count:
                _write_back(primal, argument, copy)
    # torch.func refuses to write differentiated values into captured tensors: there are no stand-ins for them.
    leaked = [tensor for tensor in captured if tensor.grad_fn is not None]
    for tensor in leaked:
        tensor.detach_()
    if leaked:
        raise RuntimeError(
            "the function provided attempted to call an in-place operation that would mutate a captured Tensor with "
            "values that depend on a differentiated input. Return what is to be changed as aux instead."
        )
    return level, variables, outputs, aux


def _composed(
    func: Differentiable, arguments: Sequence[Tensor], order: int, inference: bool
) -> tuple[list[Tensor], list[Tensor]]:
    with composing(order, inference):
        outputs, aux = func(*given(arguments, order, inference))
    return plain(outputs), plain(aux)


def _write_back(primal: Tensor, argument: Tensor, copied: bool) -> None:
    if copied and not primal.requires_grad:
        with no_grad():
            primal.copy_(argument)
        return
    # torch raises this itself in most cases; an alias of a differentiable tensor needs the check, for its
    # gradient would silently be taken at the overwritten value.
    raise RuntimeError(
        "a leaf Variable that requires grad is being used in an in-place operation: the function modified "
        "an input (or the memory of an input) with respect to which it is differentiated. Work on a clone()."
    )
