"""What a function can reach without being given it."""

from __future__ import annotations

import functools
import types
from collections import deque
from typing import Any

import torch
from torch import Tensor


def captured(root: Any, limit: int = 200, parameters: bool = False) -> list[Any]:
    """Tensors and random generators that a function can reach, as far as one can see from outside.

    Closures, default arguments, partials, bound methods, buffers of modules, attributes of other objects, the
    globals that the function names, and built-in containers of those; `limit` objects at most. Of modules also the
    `parameters`, where asked for.
    """
    found: list[Any] = []
    seen: dict[int, Any] = {}
    queue: deque[Any] = deque([root])
    while queue and len(seen) < limit:
        value = queue.popleft()
        if id(value) in seen or isinstance(value, (type, types.ModuleType, str, int, float)):
            continue
        seen[id(value)] = value
        if isinstance(value, (Tensor, torch.Generator)):
            found.append(value)
        elif isinstance(value, torch.nn.Module):
            queue.extend(value.buffers())
            if parameters:
                queue.extend(value.parameters())
        elif isinstance(value, functools.partial):
            queue.extend((value.func, *value.args, *value.keywords.values()))
        elif isinstance(value, types.MethodType):
            queue.extend((value.__func__, value.__self__))
        elif isinstance(value, types.FunctionType):
            queue.extend(value.__defaults__ or ())
            queue.extend(cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell))
            names = (value.__globals__.get(name) for name in value.__code__.co_names)
            queue.extend(x for x in names if not callable(x))
        elif isinstance(value, (list, tuple, deque)):
            queue.extend(value)
        elif isinstance(value, dict):
            queue.extend(value.values())
        else:
            queue.extend(getattr(value, "__dict__", {}).values())
    return found


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
