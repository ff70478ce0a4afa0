"""What a row of the table of compositions is."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple


class Composition(NamedTuple):
    """A fused operation.

    Attributes
    ----------
    functions : tuple of str
        Its names in torch.
    node : str
        What the name of its backward node starts with.
    order : int
        The first derivative that torch lacks or gets wrong.
    compose : callable
        Evaluates it in elementary operations; the parameters are those of the functions.
    reason : str
        What is wrong, with a link or the releases on which it was measured.
    """

    functions: tuple[str, ...]
    node: str
    order: int
    compose: Callable[..., Any]
    reason: str
