"""The record of a transform, and `explain`, which reads it."""

from __future__ import annotations

from typing import Any, Callable, Mapping

from .._guards.capability import Capability
from .._transforms.options import Report


class Record(Report):
    """The record of a transform: its options, its backend, and its refusal.

    Parameters
    ----------
    options : mapping, optional
        The options that the user passed to the transform.

    Attributes
    ----------
    backend : str or None
        The backend that answered last.
    is_plain : bool
        Whether a backend with a library took a derivative by plain autograd.
    refused : Capability or None
        A refusal of its library.
    """

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.options = {} if options is None else options
        self.backend: str | None = None
        self.is_plain = False
        self.refused: Capability | None = None


def explain(transformed: Callable[..., Any]) -> str:
    """Tell which backend answered a transformed function last, and why.

    Parameters
    ----------
    transformed : callable
        What vmap, grad, jacrev, ... of this library returned.

    Returns
    -------
    str
        One or two sentences.

    Raises
    ------
    TypeError
        `transformed` was not made by this library.

    Examples
    --------
    >>> import torch
    >>> import torch_func_compat as tfc
    >>> gradient = tfc.grad(torch.sin)
    >>> with tfc.use_backend("autograd"):
    ...     _ = gradient(torch.ones(()))
    >>> tfc.explain(gradient)
    'The backend that answered last is autograd.'
    """
    record = getattr(getattr(transformed, "__transform__", None), "record", None)
    if not isinstance(record, Record):
        raise TypeError(f"expected a function transformed by this library, got {transformed!r}")
    if record.backend is None:
        return "It was not called yet."
    last = f"The backend that answered last is {record.backend}."
    if record.is_plain:
        last += " Its reverse mode needs no library."
    if record.mode:
        last += f" It took {record.mode}."
    if record.chunk_size is not None:
        last += f" It took chunks of {record.chunk_size}."
    if record.refused is None:
        return last
    return (
        f"{last} The native backend refused, because {record.refused.meaning}. To stay native: {record.refused.advice}."
    )
