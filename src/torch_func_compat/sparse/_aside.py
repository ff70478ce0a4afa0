"""Constants that are made while a transform runs."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, TypeVar

import torch

from ..autograd.checks import is_functorch_tensor

F = TypeVar("F", bound=Callable[..., Any])


def aside(compute: F) -> F:
    """`compute` outside of the running transforms: its tensors are plain ones and can be kept.

    A transform of torch.func or functorch wraps the results of all operations in its thread, also of constants. Wrapped
    tensors give no lists on torch < 2.7, and belong to a transform that ends. Another thread has no
    transforms.
    """

    @functools.wraps(compute)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not is_functorch_tensor(torch.zeros(1, device="cpu") + 0):
            return compute(*args, **kwargs)
        with ThreadPoolExecutor(1) as other:
            return other.submit(compute, *args, **kwargs).result()

    return wrapped  # type: ignore[return-value]
