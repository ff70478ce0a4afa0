"""The setting for a library's refusal: warn, stay silent, or raise the library's error."""

from __future__ import annotations

from typing import ContextManager

from .._torch.setting import Setting

MODES = ("warn", "silent", "error")


def _check(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"unknown fallback {mode!r}: expected one of {', '.join(map(repr, MODES))}")


_setting = Setting("fallback", _check)


def get_fallback() -> str:
    """The setting here and now for functions that the native backend refuses.

    Returns
    -------
    str
        'warn', 'silent' or 'error'.

    Examples
    --------
    >>> import torch_func_compat as tfc
    >>> tfc.get_fallback()
    'warn'
    """
    return _setting.get() or "warn"


def set_fallback(mode: str | None) -> None:
    """Choose for the whole process what happens if the native backend refuses a function.

    Parameters
    ----------
    mode : {'warn', 'silent', 'error'} or None
        Compute on the autograd backend with one `FallbackWarning` per function, do so without a warning, or let
        torch's error pass. None goes back to the environment variable ``TORCH_FUNC_COMPAT_FALLBACK``, else to
        'warn'.

    Raises
    ------
    ValueError
        There is no such mode.

    Examples
    --------
    >>> import torch_func_compat as tfc
    >>> tfc.set_fallback("silent")
    >>> tfc.get_fallback()
    'silent'
    >>> tfc.set_fallback(None)
    """
    _setting.set(mode)


def use_fallback(mode: str) -> ContextManager[None]:
    """`set_fallback` within a ``with`` block, for this thread (or asyncio task) only.

    Parameters
    ----------
    mode : {'warn', 'silent', 'error'}
        See `set_fallback`.

    Returns
    -------
    context manager
        For a ``with`` block.

    Raises
    ------
    ValueError
        There is no such mode.

    Examples
    --------
    >>> import torch_func_compat as tfc
    >>> with tfc.use_fallback("error"):
    ...     tfc.get_fallback()
    'error'
    """
    return _setting.use(mode)
