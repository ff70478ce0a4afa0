"""The backend of torch >= 2.0: torch.func itself."""

from __future__ import annotations

import torch
import torch.func

from ._native import NativeBackend

_peek = torch._C._functorch.peek_interpreter_stack


def is_active() -> bool:
    """Whether a torch.func transform is running in this thread."""
    return _peek() is not None


class TorchFuncBackend(NativeBackend):
    """`torch.func`, whose transforms are used as they are wherever they have the parameters asked for."""

    name = "torch.func"

    def __init__(self) -> None:
        super().__init__(torch.func, torch._C._functorch)
        self.natives = {
            name: getattr(torch.func, name)
            for name in ("vmap", "vjp", "jvp", "grad", "grad_and_value", "jacrev", "jacfwd", "hessian")
        }
