"""Operations whose higher derivatives torch.func gets wrong without an error, and how they are caught.

Forward mode within another derivative (``jacrev(jacfwd(f))``, ``jvp(jvp(f))``) takes what these saved for
constant, and third derivatives of normalisations do so in any mode; forward mode drops what a custom operator
does, and has some wrong formulas. No graph shows it in time; so where torch.func is about to do one of these, the
function runs under a mode that sees its operations.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable

import torch
from torch import Tensor
from torch._functorch.autograd_function import custom_function_call
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode

from .._torch import facts
from .by_graph import IN_FORWARD_MODE, NORMALISATIONS, below, kept_outside
from .by_profile import GradModeSwitches, refused_grad_mode
from .compositions.table import compositions, functions
from .recorder import derivatives, levels
from .wrong_answers import (
    MISTAKEN_FORMULA,
    MISTAKEN_NESTING,
    MISTAKEN_TANGENT,
    SYMMETRIC,
    WRONG_FORMULAS,
    MistakenRule,
)

_FORMULAS_BY_NAME = tuple(f"{prefix}{name}" for name in WRONG_FORMULAS for prefix in ("", "Tensor."))
# Zero at a singular matrix in forward mode, and not a number in a batched second derivative where singular values
# coincide. Smaller matrices than of four rows are composed.
_DETERMINANTS_BY_NAME = ("det", "Tensor.det", "linalg.det")
_IN_FORWARD_MODE = (
    "linalg.householder_product",  # measured: no upstream issue found
    *("orgqr", "Tensor.orgqr"),
    # NaN: for eigenvectors, and for products with a zero, which are part of Vandermonde matrices
    *("linalg.eigh", "linalg.eig", "cumprod", "Tensor.cumprod", "linalg.vander"),
    *_DETERMINANTS_BY_NAME,  # rounding errors as large as the inverse, next to a singular matrix
    "masked_select",
    "Tensor.masked_select",
)
# https://github.com/pytorch/pytorch/issues/192540, mended in torch 2.15
_UNTIL_2_15 = (
    *("logdet", "Tensor.logdet", "slogdet", "Tensor.slogdet"),
    *("linalg.slogdet", "linalg.solve", "linalg.solve_ex", "linalg.tensorsolve"),
)
WATCHED = (*_FORMULAS_BY_NAME, *_IN_FORWARD_MODE, *(_UNTIL_2_15 if facts.TORCH < (2, 15) else ()))


def _find(names: tuple[str, ...]) -> set[Any]:
    """The functions of these names, and the operators that those call."""
    found: set[Any] = set()
    for name in names:
        operator = name.replace("nn.functional.", "").replace("Tensor.", "").replace("linalg.", "linalg_")
        found.update(functions(name), functions(f"ops.aten.{operator}"))
    return found


_DETERMINANTS = _find(_DETERMINANTS_BY_NAME) if facts.TORCH < (2, 15) else set()
_FORMULAS = _find(_FORMULAS_BY_NAME) | _DETERMINANTS
FORWARD = _FORMULAS | _find(WATCHED)
_SYMMETRIC = _find(SYMMETRIC)
# The jvp rule of a torch.autograd.Function is evaluated with forward mode off:
# https://github.com/pytorch/pytorch/issues/197867
_FORWARD_TWICE = FORWARD | {custom_function_call}


# Namespaces of torch's own operators with such a kernel that users' functions do not consist of. Where there are
# others, jvp and jacfwd look at each operation, which costs microseconds.
_OWN = set(
    "prims nvprims rngprims quantized_decomposed flex_lib flex_gemm debug_mode_ops export onnx onnx_symbolic streams "
    "inductor mempool _dtensor coor".split()
)
# Those of torch.distributed, which torch imports by itself; without a group of processes there is nothing to collect.
_COLLECTIVES = "_c10d_functional"
_has_processes: Callable[[], bool] = getattr(torch.distributed, "is_initialized", bool)
# The last answers, with and without collectives, by the number of kernels that were registered.
_lossy: dict[int, tuple[set[str], set[str]]] = {}


def without_tangents() -> set[str]:
    """Operators with an autograd kernel in Python (``register_autograd``), which forward mode ignores.

    Their tangents are dropped without an error: jvp and jacfwd are zero (measured on torch 2.6 to 2.15).
    """
    registered = getattr(torch.library, "_impls", ())
    known = _lossy.get(len(registered))
    if known is None:
        # a copy, since a library that is garbage-collected removes its kernels
        split = [kernel.split("/") for kernel in set(registered)]
        found = {f"{key[0]}::{key[1].split('.')[0]}" for key in split if key[-1] == "Autograd" and key[0] not in _OWN}
        known = found, {name for name in found if not name.startswith(_COLLECTIVES)}
        _lossy.clear()
        _lossy[len(split)] = known
    return known[not _has_processes()]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


# no_grad(), enable_grad() and set_grad_enabled() call it. Forward mode of torch ignores it.
_SET_GRAD_ENABLED: Any = torch._C._set_grad_enabled


def _with_symmetric_tangent(matrix: Any) -> Any:
    """The same matrix, whose tangent is the Hermitian part of what it was."""
    half = (matrix.transpose(-2, -1).conj() - matrix) / 2
    return matrix + (half - half.detach())


def _share_memory(written: Any, others: tuple[Any, ...]) -> bool:
    """Whether one of the others reads the memory of the tensor that is written to, as far as their extents tell."""
    others = tuple([x for x in others if isinstance(x, Tensor)])
    if not others or not isinstance(written, Tensor):
        return False
    with torch._C.DisableTorchFunction():  # these questions are no operations of the function
        first, *extents = map(_extent, below((written, *others), torch._C._functorch))
    return any(memory == first[0] and start < first[2] and first[1] < end for memory, start, end in extents)


def _extent(tensor: Tensor) -> tuple[Any, Any, Any]:
    if tensor.layout != torch.strided or not tensor.numel():
        return id(tensor), 0, 1
    start, size = tensor.storage_offset(), tensor.element_size()
    steps = [(size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride())]
    # in bytes, since the real part of complex numbers has other elements
    return tensor.untyped_storage()._cdata, start * size, (start + sum(steps) + 1) * size


class _Watch(TorchFunctionMode):
    """Composes some operations, refuses others, and lets the rest pass."""

    def __init__(
        self,
        compositions: dict[Any, Callable[..., Any]],
        fragile: set[Any],
        lossy: set[str],
        symmetric: set[Any],
    ) -> None:
        super().__init__()
        self._symmetric = symmetric
        self._compositions = compositions
        self._fragile = fragile
        self._lossy = lossy
        self._grad_mode = GradModeSwitches()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        compose = self._compositions.get(func)
        if compose is not None:
            result = compose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        if func in self._fragile:
            name = str(getattr(func, "__name__", func)).partition(".")[0]
            if func is _SET_GRAD_ENABLED:
                self._grad_mode.switch(*args)
            elif func not in _FORMULAS:
                raise MistakenRule(MISTAKEN_NESTING.format(name))
            elif not name.startswith("scatter") or "prod" in filter(_is_text, (*args, *(kwargs or {}).values())):
                raise MistakenRule(MISTAKEN_FORMULA.format(name))
        if self._lossy and isinstance(func, (OpOverload, OpOverloadPacket)):
            packet: Any = func.overloadpacket if isinstance(func, OpOverload) else func
            if packet._qualified_op_name in self._lossy:
                raise MistakenRule(MISTAKEN_TANGENT.format(packet._qualified_op_name))
        # The formula of an operation in place overwrites the tangent of the tensor before it reads that of the other.
        if self._symmetric and len(args) + len(kwargs or ()) > 1:
            name = str(getattr(func, "__name__", func)).partition(".")[0]
            in_place = name.startswith("__i") or (name[-1:] == "_" and name[-2:] != "__")
            if in_place and _share_memory(args[0], (*args[1:], *(kwargs or {}).values())):
                raise MistakenRule(MISTAKEN_FORMULA.format(name))
        if args and func in self._symmetric:
            args = (_with_symmetric_tangent(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))


def watched(func: Callable[..., Any], *, forward: bool) -> Callable[..., Any]:
    """`func`, raising where torch would get its next derivative wrong (one in forward mode, or not).

    Operations that can be composed of others that torch gets right are evaluated in those.
    """
    around = derivatives()
    if forward:
        fragile = _FORMULAS | {_SET_GRAD_ENABLED}
        if around:
            fragile |= _FORWARD_TWICE if "j" in levels() else FORWARD
        # The forward formula of a fused operation cannot be differentiated again.
        order = 3 if around else 2
        lossy = without_tangents()
        func = kept_outside(func, torch._C._functorch, IN_FORWARD_MODE)
    else:
        if not around:
            return func
        order = around + 1
        fragile, lossy = _DETERMINANTS, set()
        if "j" in levels():  # that may be torch's own, which sees no operations
            fragile = _FORMULAS
        func = kept_outside(func, torch._C._functorch, NORMALISATIONS)
    replaced = compositions(order)
    unseen = refused_grad_mode if forward and not facts.has("modes_see_grad_mode") else contextlib.nullcontext

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with _Watch(replaced, fragile, lossy, _SYMMETRIC if forward else set()), unseen():
            return func(*args, **kwargs)

    return wrapper
