"""The newest torch.func API on every PyTorch from 1.8 on.

>>> import torch
>>> from torch_func_compat import hessian
>>> hessian(lambda x: x.pow(3).sum())(torch.tensor([1.0, 2.0]))
tensor([[ 6.,  0.],
        [ 0., 12.]])
"""

from __future__ import annotations

from .autograd import (
    FallbackWarning,
    Function,
    available_backends,
    batch_hessian,
    batch_hessian_diagonal,
    batch_hvp,
    batch_jacobian,
    batch_laplacian,
    bjacrev,
    explain,
    functional,
    functional_call,
    functionalize,
    get_backend,
    get_fallback,
    grad,
    grad_and_value,
    hessian,
    hessian_diagonal,
    hvp,
    jacfwd,
    jacobian,
    jacrev,
    jvp,
    laplacian,
    linearize,
    replace_all_batch_norm_modules_,
    set_backend,
    set_fallback,
    stack_module_state,
    unavailable_backends,
    use_backend,
    use_fallback,
    value_and_jacobian,
    value_grad_and_hessian,
    vhp,
    vjp,
    vmap,
)

__version__ = "0.1.0"
# The release of torch whose torch.func the names, signatures and semantics follow.
__api_version__ = "2.15"

__all__ = [
    "__api_version__",
    "__version__",
    "FallbackWarning",
    "Function",
    "available_backends",
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
    "laplacian",
    "linearize",
    "replace_all_batch_norm_modules_",
    "set_backend",
    "set_fallback",
    "stack_module_state",
    "unavailable_backends",
    "use_backend",
    "use_fallback",
    "value_and_jacobian",
    "value_grad_and_hessian",
    "vhp",
    "vjp",
    "vmap",
]
