"""Where a thread is within transforms of this library, and what is refused there."""

from __future__ import annotations

import threading
from typing import Any, Callable, Iterable, TypeVar

import torch
from torch import Tensor

from .._torch.closures import captured, names_in

_hooks: Any = torch._C._autograd
_CHECKPOINTS = "torch.func's transforms don't yet support saved tensor hooks"
# Names by which functions use hooks of saved tensors.
_USES = frozenset(("saved_tensors_hooks", "save_on_cpu", "checkpoint", "checkpoint_sequential"))
Result = TypeVar("Result")


def _refuse_hooks() -> bool:
    """Refuse hooks of saved tensors from here on, unless they are used or refused already; whether that was done.

    What plain autograd records within a transform, a checkpoint cannot compute once more after it.
    """
    if not hasattr(_hooks, "_saved_tensors_hooks_get_disabled_error_message"):
        return False
    if _hooks._saved_tensors_hooks_get_disabled_error_message() is not None:
        return False
    try:
        _hooks._saved_tensors_hooks_disable(_CHECKPOINTS)
    except RuntimeError:  # hooks are around all of this, and see the tensors of plain autograd
        _hooks._saved_tensors_hooks_enable()  # torch refuses them before it raises
        return False
    return True


class Entered(threading.local):
    """How many transforms of this library, one within another, a thread has entered.

    Within them, with grad mode on, hooks of saved tensors are refused where plain autograd records something.
    """

    count = 0
    _refusing = False

    def __enter__(self) -> None:
        if not self.count:
            self._refusing = torch.is_grad_enabled() and _refuse_hooks()
        self.count += 1

    def __exit__(self, *error: object) -> None:
        self.count -= 1
        if not self.count and self._refusing:
            _hooks._saved_tensors_hooks_enable()

    def run(
        self, func: Callable[..., Any], inputs: Any, compute: Callable[[], Result], leaves: Callable[[Any], list[Any]]
    ) -> Result:
        """The result of a transform of `func`, of which ``leaves(result)`` are the tensors.

        Where `func` names hooks of saved tensors, and nothing that it can reach requires grad, they are not refused.
        """
        if self.count or not torch.is_grad_enabled() or _USES.isdisjoint(names_in(func)):
            with self:
                return compute()
        if _require_grad(captured([func, inputs], parameters=True)):
            with self:
                return compute()
        self.count, self._refusing = 1, False
        try:
            result = compute()
        finally:
            self.count = 0
        if _require_grad(leaves(result)):
            raise RuntimeError(_CHECKPOINTS)
        return result


def _require_grad(values: Iterable[Any]) -> bool:
    return any(isinstance(value, Tensor) and value.requires_grad for value in values)
