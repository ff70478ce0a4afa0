"""What is computed: every operator, derived once on the primitives of a backend.

``grad`` is a pullback of one, ``jacrev`` a pullback of the standard basis, ``jacfwd`` its pushforward, ``hessian`` a
Jacobian of a Jacobian. The derivations do not know which backend answers, nor whether torch.compile is tracing.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping

from . import diagonal, hessian, jacobian, products, vmap

# Transforms of a function: (backend, func, options) -> the transformed function.
TRANSFORMS: Mapping[str, Callable[..., Any]] = {
    "vmap": vmap.vmap,
    "grad": products.grad,
    "grad_and_value": products.grad_and_value,
    "jacrev": jacobian.jacrev,
    "jacfwd": jacobian.jacfwd,
    "jacobian": jacobian.jacobian,
    "hessian": hessian.hessian,
    "value_and_jacobian": jacobian.value_and_jacobian,
    "value_grad_and_hessian": hessian.value_grad_and_hessian,
    "hessian_diagonal": diagonal.hessian_diagonal,
    "laplacian": diagonal.laplacian,
    "batch_jacobian": jacobian.jacobian,
    "batch_hessian": hessian.hessian,
    "batch_hessian_diagonal": diagonal.hessian_diagonal,
    "batch_laplacian": diagonal.laplacian,
}

# Evaluated at once: (backend, func, *vectors, options=...) -> the result.
PRODUCTS: Mapping[str, Callable[..., Any]] = {
    "vjp": products.vjp,
    "jvp": products.jvp,
    "linearize": products.linearize,
    "hvp": products.hvp,
    "vhp": products.vhp,
    "batch_hvp": products.batch_hvp,
}
