"""Torch's switches that hide the levels of torch.func, as a failed trace of torch.compile leaves them behind.

Where an operation fails while torch.compile traces a transform (torch 2.13 to 2.15, a Hessian of layer norm under
vmap), the code that runs in place of the graph finds the dispatcher without autograd and without torch.func: each
derivative is zero, without an error.
"""

from __future__ import annotations

import functools
import operator
from typing import Any, ContextManager

import torch

_C: Any = torch._C
_keys: Any = getattr(_C, "DispatchKey", None)
_LEVELS: Any = getattr(_keys, "FuncTorchDynamicLayerFrontMode", None)
_guard: Any = getattr(_C, "_ForceDispatchKeyGuard", None)  # torch 2.1 at least; older ones trace no transform
_CAN_SHOW = _LEVELS is not None and _guard is not None


def levels_are_hidden() -> bool:
    """Whether an outermost transform of torch.func that starts now would do nothing."""
    hidden: bool = _CAN_SHOW and _C._dispatch_tls_is_dispatch_key_excluded(_LEVELS)
    return hidden and not torch.is_inference_mode_enabled()


def levels_shown() -> ContextManager[None]:
    """A context in which only autocast is switched off, where it is."""
    autocast = [_C.DispatchKeySet(getattr(_keys, name)) for name in dir(_keys) if name.startswith("Autocast")]
    off = _C._dispatch_tls_local_exclude_set() & functools.reduce(operator.or_, autocast)
    return _guard(_C._dispatch_tls_local_include_set(), off)  # type: ignore[no-any-return]
