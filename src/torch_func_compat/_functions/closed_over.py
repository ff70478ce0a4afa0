"""Tensors that a custom rule uses without having them as arguments, where a level of torch.func has wrapped them.

Rules are evaluated on the levels below. There torch treats a tensor of a derivative above as a constant (2.13) or fails
an assertion, and could mistake the batch of a vmap above for another one. So it is an error.
"""

from __future__ import annotations

import contextlib
from typing import Any, ContextManager

import torch
from torch import Tensor

from .._guards.wrong_answers import FOREIGN, MistakenRule
from .._torch import facts, pytree

if facts.has("torch_func"):
    from torch.overrides import TorchFunctionMode

    _private: Any = torch._C._functorch

    def depth() -> int:
        """How many levels there are here and now."""
        interpreter = _private.peek_interpreter_stack()
        return 0 if interpreter is None else int(interpreter.level())

    def is_foreign(value: Any) -> bool:
        """Whether a tensor belongs to a level that is not running."""
        return isinstance(value, Tensor) and _private.maybe_get_level(value) > depth()

    class _Watch(TorchFunctionMode):
        def __init__(self, name: str) -> None:
            super().__init__()
            self._name = name

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if any(map(is_foreign, pytree.flatten((args, kwargs))[0])):
                raise MistakenRule(FOREIGN.format(self._name))
            return func(*args, **kwargs)

    def watched(name: str) -> ContextManager[Any]:
        """Raise where an operation takes a tensor of a level that is not running."""
        return _Watch(name)

else:

    def watched(name: str) -> ContextManager[Any]:
        return contextlib.nullcontext()
