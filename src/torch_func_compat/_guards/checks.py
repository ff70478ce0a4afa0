"""The setting that says when the results of a library are tested, and whether a test is running."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import ContextManager, Iterator

from .._torch.setting import Setting

CHECKS = ("first-call", "always", "off")


def _check(when: str) -> None:
    if when not in CHECKS:
        raise ValueError(f"unknown checks {when!r}: expected one of {', '.join(map(repr, CHECKS))}")


_setting = Setting("checks", _check)


def get_checks() -> str:
    """The setting here and now of when results are tested: 'first-call', 'always' or 'off'.

    Returns
    -------
    str
        The choice of `use_checks`, else of `set_checks`, else of the environment variable
        ``TORCH_FUNC_COMPAT_CHECKS``, else 'first-call'.

    Examples
    --------
    >>> import torch_func_compat as tfc
    >>> tfc.get_checks()
    'first-call'
    """
    return _setting.get() or "first-call"


def set_checks(when: str | None) -> None:
    """Choose for the whole process when the results of torch's batching and forward mode are tested.

    A batch is compared with one of its samples computed alone. Tangents are compared with a reverse-mode derivative
    by the adjoint test. Batched rows of a Jacobian are compared with one backward pass. Where torch is wrong, the
    autograd backend computes the result.

    Parameters
    ----------
    when : {'first-call', 'always', 'off'} or None
        Test the first call with each function and shapes, unless all its operations are proven to be right on this
        torch; test every call; or test nothing. None goes back to the environment variable
        ``TORCH_FUNC_COMPAT_CHECKS``, else to 'first-call'.

    Raises
    ------
    ValueError
        There is no such choice.

    Notes
    -----
    Cost: a tested ``vmap`` evaluates the function once more, for one sample. A tested ``jvp`` or ``jacfwd`` evaluates
    it once more and takes one backward pass. A function that draws random numbers, or that changes tensors in place, is
    not evaluated again, and so is not tested.

    Examples
    --------
    >>> import torch_func_compat as tfc
    >>> tfc.set_checks("off")
    >>> tfc.get_checks()
    'off'
    >>> tfc.set_checks(None)
    """
    _setting.set(when)


def use_checks(when: str) -> ContextManager[None]:
    """`set_checks` within a ``with`` block, for this thread (or asyncio task) only.

    Parameters
    ----------
    when : {'first-call', 'always', 'off'}
        See `set_checks`.

    Returns
    -------
    context manager
        For a ``with`` block.

    Raises
    ------
    ValueError
        There is no such choice.

    Examples
    --------
    >>> import torch_func_compat as tfc
    >>> with tfc.use_checks("always"):
    ...     tfc.get_checks()
    'always'
    """
    return _setting.use(when)


_testing: ContextVar[bool] = ContextVar("testing", default=False)


def is_testing() -> bool:
    """Whether a function is being evaluated once more for a test; nothing is warned about then."""
    return _testing.get()


@contextlib.contextmanager
def testing() -> Iterator[None]:
    """Around the evaluation of a function for a test."""
    token = _testing.set(True)
    try:
        yield
    finally:
        _testing.reset(token)
