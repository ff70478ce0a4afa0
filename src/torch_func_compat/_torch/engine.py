"""The autograd engine: without checks that this library has done already, and without freeing graphs."""

from __future__ import annotations

import contextlib
from typing import AbstractSet, Any, ContextManager, Sequence

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from . import facts

# torch.autograd.grad spends a fifth of a small gradient's time before it calls this (torch 1.8 to 2.15).
_engine: Any = getattr(torch.autograd.Variable, "_execution_engine", None)


def grad(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    vectors: Sequence[Tensor],
    retain_graph: bool,
    create_graph: bool,
) -> list[Tensor | None]:
    """`torch.autograd.grad` with ``allow_unused=True``."""
    outputs, inputs, vectors = tuple(outputs), tuple(inputs), tuple(vectors)
    plain = _engine is not None and not has_torch_function((*outputs, *inputs, *vectors))
    for output, vector in zip(outputs, vectors):
        # The engine would broadcast and cast.
        if vector.shape != output.shape or vector.dtype is not output.dtype:
            plain = False
    if plain:
        return list(
            _engine.run_backward(outputs, vectors, retain_graph, create_graph, inputs, True, accumulate_grad=False)
        )
    flags = {"retain_graph": retain_graph, "create_graph": create_graph, "allow_unused": True}
    return list(torch.autograd.grad(outputs, inputs, vectors, **flags))


def graphs_kept(names: AbstractSet[str]) -> ContextManager[Any]:
    """A function of these names may differentiate one graph again and again, as in a batch, where it does so once.

    Only a function that calls torch.autograd.grad changes anything. Below torch 2.0 no mode sees that call, and the
    function has to ask for ``retain_graph=True``.
    """
    if not ({"autograd", "grad"} <= names or "_make_grads" in names):  # the latter by another name
        return contextlib.nullcontext()
    return _keeping() if facts.has("torch_function_modes") else contextlib.nullcontext()


def _keeping() -> ContextManager[Any]:
    from torch.overrides import TorchFunctionMode

    class Keeping(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            return func(*args, **({**kwargs, "retain_graph": True} if func is torch.autograd.grad else kwargs))

    return Keeping()
