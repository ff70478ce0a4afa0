"""Inspect the layers that transforms put around tensors.

While they run, torch.func and functorch wrap tensors, one layer for each transform: a batched layer by vmap, a
grad-tracking layer by grad, vjp, jvp and the transforms built on them. The checks look at every layer. Within a
transform of the autograd backend, tensors are plain, the checks return False, and everything that a plain tensor allows
is allowed.

While torch.compile traces, the checks cannot look at layers, and there are no values to look at. All of them return
True, so that code that treats wrapped tensors with care does so then, too, and nothing is unwrapped.
"""

from __future__ import annotations

import sys
from typing import Any, Callable, Iterator

import torch
from torch import Tensor

__all__ = ["is_batched", "is_functorch_tensor", "is_gradtracking", "unwrap", "unwrap_gradtracking"]

is_compiling: Callable[[], bool] = getattr(getattr(torch, "compiler", None), "is_compiling", lambda: False)


def is_batched(x: Any) -> bool:
    """Whether a vmap that is running maps this tensor, at any layer.

    Parameters
    ----------
    x : Tensor
        Anything else is not batched.

    Returns
    -------
    bool
        True within ``vmap``, also beneath the layers of ``grad``, ``jacrev``, ...; True while torch.compile
        traces. A tensor with a leading batch dimension is not batched in this sense.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.checks import is_batched
    >>> is_batched(torch.ones(3))
    False
    """
    if is_compiling():
        return True
    return _any_layer("is_batchedtensor", x) or _legacy_layer(x) is not None


def is_gradtracking(x: Any) -> bool:
    """Whether a grad, vjp or jvp of torch.func or functorch that is running tracks this tensor, at any layer.

    The transforms wrap their arguments, differentiated or not, and what is made of them. Plain autograd wraps
    nothing: see ``x.requires_grad``.

    Parameters
    ----------
    x : Tensor
        Anything else is not tracked.

    Returns
    -------
    bool
        True while torch.compile traces.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.checks import is_gradtracking
    >>> is_gradtracking(torch.ones(3, requires_grad=True))
    False
    """
    if is_compiling():
        return True
    return _any_layer("is_gradtrackingtensor", x)


def is_functorch_tensor(x: Any) -> bool:
    """Whether a transform that is running has wrapped this tensor: `is_batched` or `is_gradtracking`.

    Parameters
    ----------
    x : Tensor
        Anything else is never wrapped.

    Returns
    -------
    bool
        False while no transform runs.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.checks import is_functorch_tensor
    >>> is_functorch_tensor(torch.ones(3))
    False
    """
    return is_gradtracking(x) or is_batched(x)


def unwrap(x: Tensor) -> Tensor:
    """The plain tensor beneath all layers, to read its values.

    Parameters
    ----------
    x : Tensor
        Wrapped or not.

    Returns
    -------
    Tensor
        `x` itself where it has no layers. Else it has the batch dimensions of the removed layers as well, where the
        transforms keep them. No derivative passes through the unwrapping.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.checks import unwrap
    >>> x = torch.ones(3)
    >>> unwrap(x) is x
    True
    """
    if is_compiling():
        return x
    (*_, x) = _layers(native(), x)
    while True:
        beneath = _legacy_layer(x)
        if beneath is None:
            return x
        x = beneath


def unwrap_gradtracking(x: Tensor) -> Tensor:
    """The tensor beneath the grad-tracking layers; a batched layer stays, with all layers below it.

    For constants that are made within a transform and kept beyond it, for example in a cache. A wrapped constant would
    belong to a transform that is over. A tensor that depends on an argument of the transform loses its derivative.

    Parameters
    ----------
    x : Tensor

    Returns
    -------
    Tensor
        `x` itself where its outermost layer is no grad-tracking one, and while torch.compile traces.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.checks import unwrap_gradtracking
    >>> x = torch.ones(3)
    >>> unwrap_gradtracking(x) is x
    True
    """
    if is_compiling():
        return x
    library = native()
    while library.is_gradtrackingtensor(x):
        x = library.get_unwrapped(x)
    return x


class _NoLibrary:
    """In place of a library where there is none: it wraps nothing."""

    @staticmethod
    def is_functorch_wrapped_tensor(x: Any) -> bool:
        return False

    is_batchedtensor = is_gradtrackingtensor = is_functorch_wrapped_tensor

    @staticmethod
    def _is_vmap_fallback_enabled() -> bool:
        return True

    @staticmethod
    def _set_vmap_fallback_enabled(enabled: bool) -> None:
        pass


def native() -> Any:
    """The library's private module; looked up each time, since functorch may be imported at any moment."""
    # on torch 1.11 and 1.12 functorch is a package of its own
    return getattr(torch._C, "_functorch", getattr(sys.modules.get("functorch"), "_C", _NoLibrary))


def _any_layer(check: str, x: Any) -> bool:
    library = native()
    try:
        return any(getattr(library, check)(layer) for layer in _layers(library, x))
    except TypeError:  # no tensor
        return False


def _layers(library: Any, x: Any) -> Iterator[Any]:
    """`x`, then what lies beneath each of its layers; the last one has none."""
    yield x
    # torch 1.13 and later have another kind of layer, that of functionalize
    is_wrapped = getattr(library, "is_functorch_wrapped_tensor", None)
    while isinstance(x, Tensor):
        if not (is_wrapped(x) if is_wrapped else library.is_batchedtensor(x) or library.is_gradtrackingtensor(x)):
            return
        x = library.get_unwrapped(x)
        yield x


# A batch may have one of these sizes, but not both.
_SIZES = (3, 5)


def _legacy_layer(x: Any) -> Tensor | None:
    """The tensor that the vmap of torch < 2.0 has wrapped as `x`, if any.

    The newest torch still uses that vmap for ``torch.autograd.grad(..., is_grads_batched=True)``, so a custom backward
    can get its tensors. There is no check for them. But if a tensor has no such layer, removing one makes a batch of
    the size that is asked for.
    """
    nesting = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    if isinstance(x, Tensor):
        for level in range(nesting, 0, -1):
            for size in _SIZES:
                beneath: Tensor = torch._remove_batch_dim(x, level, size, 0)
                if beneath.shape[0] != size:
                    return beneath
    return None
