"""A row of the table of compositions."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

from ..._torch import facts


class Composition(NamedTuple):
    """A fused operation.

    Attributes
    ----------
    functions : tuple of str
        Its names in torch. Names in ``ops.aten`` stand for all overloads, too.
    nodes : tuple of str
        What the names of its backward nodes start with; none where plain autograd is right.
    order : int
        The first derivative that torch lacks or gets wrong.
    compose : callable
        Evaluates it in elementary operations; the parameters are those of the functions. It returns NotImplemented for
        arguments that only torch's own operation knows.
    reason : str
        What is wrong, with a link or the releases on which it was measured.
    until : tuple of int, optional
        The first release on which torch's own derivative was measured to be right.
    """

    functions: tuple[str, ...]
    nodes: tuple[str, ...]
    order: int
    compose: Callable[..., Any]
    reason: str
    until: tuple[int, int] | None = None

    def is_needed(self) -> bool:
        """Whether this torch lacks the derivative."""
        return self.until is None or facts.TORCH < self.until
