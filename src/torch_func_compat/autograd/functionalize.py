"""The transform that removes in-place operations."""

from __future__ import annotations

from typing import Any, Callable

from .._dispatch import choice as _policy
from .._torch import facts
from .internals import P

__all__ = ["functionalize"]


def functionalize(func: Callable[P, Any], *, remove: str = "mutations") -> Callable[P, Any]:
    """Replace the in-place operations of a function by ones that make new tensors.

    It is the transform of torch.func or functorch: the operators are exchanged below what Python sees, which
    torch.autograd cannot do. The values are those of `func`; what differs is what a tracer such as ``make_fx`` sees.

    Parameters
    ----------
    func : callable
        Takes and returns pytrees with tensors.
    remove : {'mutations', 'mutations_and_views'}
        Whether views are replaced by copies, too.

    Returns
    -------
    callable
        Takes what `func` takes. Arguments that `func` modifies in place are modified.

    Raises
    ------
    NotImplementedError
        This torch has no such transform: there is one in torch 2, torch 1.13, and functorch 0.2 for torch 1.12.
    RuntimeError
        `remove` is something else.

    Notes
    -----
    Cost: one evaluation of `func`.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import functionalize
    >>> square = lambda x: x.clone().mul_(x)
    >>> try:  # torch 2 and 1.13 have it
    ...     print(functionalize(square)(torch.tensor([1.0, 2.0])))
    ... except NotImplementedError:
    ...     print(square(torch.tensor([1.0, 2.0])))
    tensor([1., 4.])
    """
    if remove not in ("mutations", "mutations_and_views"):
        raise RuntimeError(
            f"functionalize: expected remove to be 'mutations' (in-place operations and out= go) or "
            f"'mutations_and_views' (views become copies, too), got {remove!r}"
        )
    native = _policy.native_transform("functionalize")
    if native is None:
        raise NotImplementedError(
            f"functionalize needs torch >= 2.0, torch 1.13, or torch 1.12 with functorch 0.2, and this is torch "
            f"{facts.VERSION}: it exchanges operators below what torch.autograd can see. Write the function without "
            f"in-place operations, or upgrade torch."
        )
    transformed: Callable[..., Any] = native(func, remove=remove)
    return transformed
