"""The backends by name, made when first asked for."""

from __future__ import annotations

import functools

from .._arguments.protocol import Backend
from .._torch import facts
from .autograd import AutogradBackend
from .combined import CombinedBackend
from .native import NativeBackend

# In the order in which they are preferred.
NAMES: tuple[str, ...] = ("torch.func", "functorch", "autograd")


class BackendUnavailableError(ImportError):
    """A known backend that this environment does not have; the message says why and what to install."""


_loaded: dict[str, Backend] = {}
_natives: dict[str, NativeBackend] = {}
_refused: dict[str, str] = {}


def load(name: str) -> Backend:
    """Return the backend called `name`.

    Raises
    ------
    ValueError
        No backend has that name.
    BackendUnavailableError
        This environment lacks it. It is an ImportError.
    """
    backend = _loaded.get(name)
    if backend is not None:
        return backend
    if name not in NAMES:
        raise ValueError(f"unknown backend {name!r}: expected one of {', '.join(map(repr, NAMES))}")
    reason = _refused.get(name)
    if reason is None:
        try:
            backend = _loaded[name] = _make(name)
            return backend
        except BackendUnavailableError as error:
            reason = _refused[name] = str(error)
    raise BackendUnavailableError(reason)


def native(name: str) -> NativeBackend:
    """Return the backend of the library called `name` as it answers within its own transforms; raises as `load`."""
    load(name)
    return _natives[name]


def _make(name: str) -> Backend:
    if name == "autograd":
        return AutogradBackend()
    library = _natives[name] = _make_torch_func() if name == "torch.func" else _make_functorch()
    return CombinedBackend(library)


def _make_torch_func() -> NativeBackend:
    if not facts.has("torch_func"):
        raise BackendUnavailableError(
            f"the backend 'torch.func' needs torch >= 2.0 and this is torch {facts.VERSION}: upgrade torch"
        )
    from .torch_func import TorchFuncBackend

    return TorchFuncBackend()


@functools.lru_cache(None)
def traced() -> Backend:
    """torch.func without guards, for torch.compile."""
    from .traced import TracedBackend

    return TracedBackend()


def _make_functorch() -> NativeBackend:
    if not facts.has("functorch_is_separate"):
        why = "needs torch >= 1.11" if facts.TORCH < (1, 11) else "is part of torch.func from 2.0 on: use 'torch.func'"
        raise BackendUnavailableError(f"the backend 'functorch' {why} (this is torch {facts.VERSION})")
    try:
        from .functorch import FunctorchBackend

        return FunctorchBackend()
    # functorch patches torch while it is imported and can raise anything there: 0.2.1, for example, fails in
    # torch.jit when PYTORCH_JIT=0. After any error there is no functorch here.
    except Exception as error:
        raise BackendUnavailableError(
            f"functorch cannot be imported ({type(error).__name__}: {error}). torch 1.13 ships it; "
            f"install functorch==0.1.1 for torch 1.11 or functorch==0.2.1 for torch 1.12"
        ) from error


def unavailable() -> dict[str, str]:
    """The reason why each missing backend is missing."""
    for name in NAMES:
        try:
            load(name)
        except BackendUnavailableError:
            pass
    return dict(_refused)
