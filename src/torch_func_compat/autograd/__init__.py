"""The public transforms."""

from __future__ import annotations

from .._dispatch.refused import FallbackWarning
from . import functional
from .batched import batch_hessian, batch_hessian_diagonal, batch_hvp, batch_jacobian, batch_laplacian, bjacrev
from .custom_rules import custom_jvp, custom_vjp
from .derivatives import hessian_diagonal, hvp, jacobian, laplacian, value_and_jacobian, value_grad_and_hessian, vhp
from .fields import curl, divergence, partials
from .function import Function
from .functionalize import functionalize
from .internals import (
    available_backends,
    explain,
    get_backend,
    get_checks,
    get_fallback,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    set_backend,
    set_checks,
    set_fallback,
    unavailable_backends,
    use_backend,
    use_checks,
    use_fallback,
    vjp,
    vmap,
)
from .module import functional_call, replace_all_batch_norm_modules_, stack_module_state

__all__ = [
    "FallbackWarning",
    "Function",
    "available_backends",
    "custom_jvp",
    "custom_vjp",
    "batch_hessian",
    "batch_hessian_diagonal",
    "batch_hvp",
    "batch_jacobian",
    "batch_laplacian",
    "bjacrev",
    "explain",
    "functional",
    "functional_call",
    "functionalize",
    "get_backend",
    "get_checks",
    "get_fallback",
    "grad",
    "grad_and_value",
    "hessian",
    "hessian_diagonal",
    "hvp",
    "jacfwd",
    "jacobian",
    "jacrev",
    "jvp",
    "curl",
    "divergence",
    "laplacian",
    "partials",
    "linearize",
    "replace_all_batch_norm_modules_",
    "set_backend",
    "set_checks",
    "set_fallback",
    "stack_module_state",
    "unavailable_backends",
    "use_backend",
    "use_checks",
    "use_fallback",
    "value_and_jacobian",
    "value_grad_and_hessian",
    "vhp",
    "vjp",
    "vmap",
]
