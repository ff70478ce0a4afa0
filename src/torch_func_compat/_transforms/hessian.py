"""Hessians as Jacobians of Jacobians, of one function or of each sample of a batch."""

from __future__ import annotations

from typing import Any, Callable

from torch import Tensor

from .._arguments.call import Function, positions
from .._arguments.protocol import Backend
from .._arguments.required import require_floating
from .._torch import pytree
from .batch_first_call import verified
from .jacobian import by_mode, jacrev, with_value
from .mode import automatic, hessian_mode
from .options import Options


def hessian(
    backend: Backend,
    func: Function,
    options: Options,
    between: Callable[[Function], Function] = lambda first: first,
) -> Function:
    """See `torch_func_compat.hessian` and `torch_func_compat.batch_hessian`.

    The outer Jacobian is that of ``between(first)``, where `first` is the inner one.
    """

    def make(mode: str, function: Function) -> Function:
        outer, inner = mode.split("-")
        return by_mode(backend, outer, between(by_mode(backend, inner, function, options.inner())), options, 1)

    found = automatic(backend, func, options, "reverse-reverse", hessian_mode, make)

    def checked(*args: Any, **kwargs: Any) -> Any:
        # Reverse over reverse mode accepts the same primals as torch.func's forward over reverse mode.
        leaves = pytree.flatten([args[i] for i in positions(options.argnums, len(args))])[0]
        require_floating("primal", [leaf for leaf in leaves if isinstance(leaf, Tensor)])
        return found(*args, **kwargs)

    return verified(backend, checked, lambda: [func, jacrev(backend, func, options.inner())], options)


def value_grad_and_hessian(backend: Backend, func: Function, options: Options) -> Function:
    """See `torch_func_compat.value_grad_and_hessian`."""

    def with_gradient(first: Function) -> Function:
        def gradient(*args: Any, **kwargs: Any) -> Any:
            found, value = first(*args, **kwargs)
            return found, (value, found)

        return gradient

    all_three = hessian(backend, with_value(func, options.has_aux), options.with_aux(), with_gradient)

    def value_first(*args: Any, **kwargs: Any) -> Any:
        second, (value, first) = all_three(*args, **kwargs)
        return value, first, second

    return value_first
