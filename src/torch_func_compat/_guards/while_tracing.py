"""Operations that torch gets wrong without an error, while torch.compile traces: the graph breaks there.

Neither profiles nor the recorder nor a test on the spot work on the tensors of a tracer. A TorchFunctionMode does, if
it needs nothing but names. Its error makes torch.compile run the transform eagerly, with all its guards, or raise, if
``fullgraph=True``.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .._torch.compiling import functions_traced
from . import by_operation
from .compositions import composed
from .recorder import derivatives, levels
from .wrong_answers import MISTAKEN_COMPILED, MistakenRule

# Under vmap these give values of other samples, or other elements of the same sample.
_BATCH = ("roll", "resize_", "resize_as_", "as_strided_scatter")
# Batched backward passes (see by_graph.py).
_ROWS = ("cdist", "_cdist_forward", "prelu", "_prelu_kernel", "native_group_norm")
# Torch batches the backward of these with a constant mean and deviation. A derivative of such rows lacks terms.
_NORMALISATIONS = ("layer_norm", "native_layer_norm", "batch_norm", "native_batch_norm", "instance_norm")
# Forward mode alone: at singular matrices, by factors, and of triangular matrices.
_FORWARD = (
    *("logdet", "slogdet", "linalg_slogdet", "_linalg_det", "_linalg_slogdet"),
    *("linalg_solve", "linalg_solve_ex", "linalg_tensorsolve", "_linalg_solve_ex"),
    *("cholesky_solve", "triangular_solve", "cholesky_inverse", "scatter_reduce", "scatter_reduce_"),
    *("quantile", "nanquantile", "addr", "native_group_norm"),  # torch cannot trace their forward mode (2.6 to 2.15)
)
# Further names of operations in torch.ops.aten, by the names of torch's functions.
_ATEN = {
    "batch_norm": ("_native_batch_norm_legit", "_batch_norm_with_update"),
    "linalg_eigh": ("_linalg_eigh",),
    "_weight_norm": ("_weight_norm_interface",),
}
_POWERS = ("pow", "__rpow__", "float_power")
# What these make has no batch, and vmap refuses to write mapped values into it. Before torch 2.14 its error within a
# trace ends the program, and the graph does not break.
_FACTORIES = ("zeros", "ones", "empty", "full", "eye")


def _names(functions: Any) -> set[str]:
    found = {getattr(function, "__name__", "") for function in functions}
    return found.union(*(_ATEN.get(name, ()) for name in found))


def fragile(kind: str) -> tuple[str, ...]:
    """Names of operations that torch may get wrong in a transform of that kind that starts here.

    The kinds are 'vmap', 'reverse', 'forward' and 'transposed', a pullback of a pullback.

    torch.compile calls this while it traces, and takes the result for constant.
    """
    if kind == "vmap":
        return _BATCH
    around = derivatives()
    if kind == "reverse":
        return (*_BATCH, *_ROWS, *sorted(_names(composed(around + 1))))
    if kind == "transposed":
        return (*_BATCH, *_ROWS, *sorted(_names(composed(around + 2))))
    names = _names(composed(3 if around else 2))
    if around:
        names |= _names(by_operation.FORWARD)
    lossy = {name.partition("::")[2] for name in by_operation.without_tangents()}
    return (*_BATCH, *_FORWARD, *sorted(names | lossy), *_POWERS)


fragile._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_within_derivative() -> bool:
    """Whether a derivative is being taken around this one. A constant, too."""
    return derivatives() > 0


is_within_derivative._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_mapped() -> bool:
    """Whether this runs under a vmap. A constant, too."""
    return "v" in levels()


is_mapped._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _name(func: Any) -> str:
    """The name of the operation, without its overload. A constant, too: torch 2.13 does not trace `__name__`."""
    return str(getattr(func, "__name__", "")).partition(".")[0]


_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Watch(TorchFunctionMode):
    def __init__(self, names: tuple[str, ...], mapped: bool, normalisations: list[str]) -> None:
        super().__init__()
        self._names = names
        self._mapped = mapped
        self._made: list[Tensor] = []
        self._normalisations = normalisations
        self._functions = functions_traced()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = _name(func)
        if name in self._names and not (name in _POWERS and _is_real(args)):
            raise MistakenRule(MISTAKEN_COMPILED.format(name))
        if self._mapped and self._writes(name, args):
            raise MistakenRule(MISTAKEN_COMPILED.format(name))
        if name in _NORMALISATIONS or name in _ATEN["batch_norm"]:
            self._normalisations.append(name)
        self.refuse_functions()
        result = func(*args, **(kwargs or {}))
        if name in _FACTORIES:
            self._made.append(result)
        return result

    def _writes(self, name: str, args: Any) -> bool:
        """Whether an operation writes a tensor into one that the function has made, or to places given by tensors."""
        if name == "__setitem__" and isinstance(args[1], tuple):
            # Torch may write to other places, where a slice is between the tensors.
            if len([part for part in args[1] if isinstance(part, Tensor)]) > 1:
                return True
        if name != "__setitem__" and (name[-1:] != "_" or name[-2:] == "__"):
            return False
        for made in self._made:
            if args and made is args[0]:
                return any(isinstance(arg, Tensor) for arg in args[1:])
        return False

    def refuse_functions(self) -> None:
        """Raise if a Function may have been called: torch may differentiate its forward and not use its backward."""
        now = functions_traced()
        if now is None or self._functions is None or now > self._functions:
            raise MistakenRule(MISTAKEN_COMPILED.format("torch.autograd.Function"))


def _is_real(args: Any) -> bool:
    for arg in args:
        if isinstance(arg, complex) or (isinstance(arg, Tensor) and torch.is_complex(arg)):
            return False
    return True


def watched(func: Callable[..., Any], kind: str, normalisations: list[str] | None = None) -> Callable[..., Any]:
    """`func`, raising at an operation that torch may get wrong in a transform of that kind.

    The normalisations that it uses are noted in the list, for `refuse_rows`.
    """
    names = fragile(kind)
    noted = [] if normalisations is None else normalisations

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        watch = _Watch(names, kind == "vmap", noted)
        with watch:
            result = func(*args, **kwargs)
        watch.refuse_functions()
        return result

    return wrapper


def refuse_rows(normalisations: Sequence[str]) -> None:
    """Raise before rows of these are batched and differentiated."""
    if normalisations:
        raise MistakenRule(MISTAKEN_COMPILED.format(normalisations[0]))
