"""Who answers: the rule that turns the settings into a backend.

The rule, in this order:

1. while torch.compile traces, and within a transform of torch.func or functorch that is already
   running, their backend answers: tensors there are theirs, and no other can see into them;
2. `use_backend` of this thread, else `set_backend`, else the environment variable
   ``TORCH_FUNC_COMPAT_BACKEND``, else the first one that there is of torch.func, functorch, autograd.

What happens where that backend refuses a function is in ``fallback.py``.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Callable, ContextManager

from .. import _backends
from .._arguments.protocol import Backend
from .._backends import BackendUnavailableError
from .._backends.native import NativeBackend
from .._torch import facts
from .._torch.setting import Setting

_setting = Setting("backend", _backends.load)
_automatic: Backend | None = None  # the first one that there is, found once


def available_backends() -> tuple[str, ...]:
    """Names of the backends that this environment has, the preferred one first.

    Looking for functorch means importing it (on torch 1.11-1.13 only).

    Returns
    -------
    tuple of str
        Some of ``"torch.func"``, ``"functorch"`` and ``"autograd"``; the last is always there.

    Examples
    --------
    >>> import torch_func_compat as tfc
    >>> "autograd" in tfc.available_backends()
    True
    """
    missing = _backends.unavailable()
    return tuple(name for name in _backends.NAMES if name not in missing)


def unavailable_backends() -> dict[str, str]:
    """Why each of the other backends is not available.

    Returns
    -------
    dict of str to str
        Name to reason; the reason says what to install.

    Examples
    --------
    >>> import torch_func_compat as tfc
    >>> set(tfc.available_backends()) & set(tfc.unavailable_backends())
    set()
    """
    return _backends.unavailable()


def get_backend() -> str:
    """Name of the backend that a transform called here and now would use.

    Returns
    -------
    str
        One of `available_backends()`.

    Examples
    --------
    >>> import torch_func_compat as tfc
    >>> with tfc.use_backend("autograd"):
    ...     tfc.get_backend()
    'autograd'
    """
    return (active_native() or chosen()).name


def set_backend(name: str | None) -> None:
    """Choose the backend for the whole process; None goes back to the automatic choice.

    A transform looks for its backend when it is called, not when it is made.

    Parameters
    ----------
    name : str or None
        One of `available_backends()`.

    Raises
    ------
    ValueError
        No backend has that name.
    ImportError
        This environment does not have it; the message says what to install.

    Examples
    --------
    >>> import torch_func_compat as tfc
    >>> tfc.set_backend("autograd")
    >>> tfc.set_backend(None)  # the automatic choice
    """
    _setting.set(name)


def use_backend(name: str) -> ContextManager[None]:
    """Choose the backend within a ``with`` block, in this thread (or asyncio task) only.

    Parameters
    ----------
    name : str
        One of `available_backends()`.

    Returns
    -------
    context manager
        For a ``with`` block.

    Raises
    ------
    ValueError, ImportError
        As for `set_backend`.

    Examples
    --------
    >>> import torch_func_compat as tfc
    >>> with tfc.use_backend("autograd"):
    ...     tfc.get_backend()
    'autograd'
    """
    return _setting.use(name)


def chosen() -> Backend:
    """The backend that the settings ask for."""
    global _automatic
    name = _setting.get()
    if name is not None:
        return _backends.load(name)
    if _automatic is None:
        _automatic = _backends.load(available_backends()[0])
    return _automatic


def traced() -> Backend:
    """The backend while torch.compile traces: of the libraries, it can trace torch.func."""
    return _backends.traced()


def native_transform(name: str) -> Callable[..., Any] | None:
    """The library's own transform of that name, or None where there is no library."""
    for backend in ("torch.func", "functorch"):
        try:
            library = _backends.native(backend).library
        except BackendUnavailableError:
            continue
        if hasattr(library, name):
            return getattr(library, name)  # type: ignore[no-any-return]
        return getattr(getattr(library, "experimental", None), name, None)  # functorch 0.2.1 has functionalize there
    return None


def active_native() -> NativeBackend | None:
    """The library's backend, if one of its transforms is running (also one that the user called directly)."""
    global _watched
    if _watched is None:
        _watched = _find_native()
        if _watched is None:
            return None
    return _watched if _watched.is_active() else None


# The library whose transforms can be running, once there is one.
_watched: NativeBackend | None = None


def _find_native() -> NativeBackend | None:
    if facts.has("torch_func"):
        return _backends.native("torch.func")
    # No transform of functorch can be running before functorch is imported, and this module must not import it.
    if "functorch" in sys.modules and facts.has("functorch_is_separate"):
        with contextlib.suppress(BackendUnavailableError):
            return _backends.native("functorch")
    return None
