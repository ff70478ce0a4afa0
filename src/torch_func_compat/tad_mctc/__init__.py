"""The names of ``tad_mctc.autograd``: of 0.8 and older, which have a shim, and of 0.11, which has none.

For packages that import them::

    from torch_func_compat import tad_mctc as autograd   # instead of: from tad_mctc import autograd

Signatures, defaults and submodules are those of that package. The rest of this library does the work, so that results
are the same on every torch, and batched Hessians, tuples of arguments, ``in_dims`` and the checks work everywhere. New
code should use the rest of this library directly.
"""

from __future__ import annotations

from .attach import attach_gradient
from .batched import bjacrev
from .checks import is_batched, is_functorch_tensor, is_gradtracking, is_vmapped
from .compat import jacrev_compat, vmap_compat
from .gradcheck import (
    dgradcheck,
    dgradgradcheck,
    dgradgradgradcheck,
    jacfwd_matches_jacrev,
    jacrev_matches_finite_diff,
    no_vmap_fallback,
    numgrad,
    positions_gradchecker,
    vmap_matches_loop,
)
from .hessian import hess_fn_rev, hessian
from .internals import jacrev, vmap
from .nested import nested_jvp
from .nonfunctorch import jac
from .unwrap import unwrap_gradtracking

__all__ = [
    "attach_gradient",
    "bjacrev",
    "dgradcheck",
    "dgradgradcheck",
    "dgradgradgradcheck",
    "fjacrev",
    "fvmap",
    "hess_fn_rev",
    "hessian",
    "is_batched",
    "is_functorch_tensor",
    "is_gradtracking",
    "is_vmapped",
    "jac",
    "jacfwd_matches_jacrev",
    "jacrev",
    "jacrev_compat",
    "jacrev_matches_finite_diff",
    "nested_jvp",
    "no_vmap_fallback",
    "numgrad",
    "positions_gradchecker",
    "unwrap_gradtracking",
    "vmap",
    "vmap_compat",
    "vmap_matches_loop",
]


def __getattr__(name: str) -> object:
    if name in ("fjacrev", "fvmap"):
        from . import internals

        return getattr(internals, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
