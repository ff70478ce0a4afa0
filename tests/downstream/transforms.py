"""The transforms that acceptance tests use: torch.func's, which may be ours, or functorch's where there is none."""

from __future__ import annotations

import types

try:
    import torch.func as _library
except ImportError:
    try:
        import functorch as _library
    except ImportError:
        _library = types.SimpleNamespace()


def __getattr__(name):
    return getattr(_library, name)
