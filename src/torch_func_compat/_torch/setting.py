"""A setting of this package: for a ``with`` block, else for the process, else from the environment."""

from __future__ import annotations

import contextlib
import os
from contextvars import ContextVar
from typing import Callable, Iterator

# TORCH_FUNC_COMPAT: from the package's name, so that a vendored copy has its own variables
_PREFIX = __name__.rsplit(".", 2)[0].replace(".", "_").upper()


class Setting:
    """One choice among names.

    Parameters
    ----------
    name : str
        Its environment variable is ``TORCH_FUNC_COMPAT_<NAME>``.
    check : callable
        Raises a clear error for a value that cannot be chosen.
    """

    def __init__(self, name: str, check: Callable[[str], object]) -> None:
        self.variable = f"{_PREFIX}_{name.upper()}"
        self._check = check
        # A ContextVar is thread-local, and right in coroutines, too.
        self._scoped: ContextVar[str | None] = ContextVar(name, default=None)
        self._chosen: str | None = None
        self._from_environment: list[str | None] = []  # read once, when first needed

    def get(self) -> str | None:
        """The value that holds here and now; None if none was chosen."""
        value = self._scoped.get() or self._chosen
        if value is None:
            value = self._from_environment[0] if self._from_environment else self._environment()
        return value

    def _environment(self) -> str | None:
        if not self._from_environment:
            value = os.environ.get(self.variable) or None
            if value is not None:
                try:
                    self._check(value)
                except (ValueError, ImportError) as error:
                    raise type(error)(f"{self.variable}={value}: {error}") from None
            self._from_environment.append(value)
        return self._from_environment[0]

    def set(self, value: str | None) -> None:
        """Choose for the process; None goes back to the environment."""
        if value is not None:
            self._check(value)
        self._chosen = value

    @contextlib.contextmanager
    def use(self, value: str) -> Iterator[None]:
        """Choose within a ``with`` block, in this thread (or asyncio task) only."""
        self._check(value)
        token = self._scoped.set(value)
        try:
            yield
        finally:
            self._scoped.reset(token)
