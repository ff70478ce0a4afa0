"""The backend of torch >= 2.0: torch.func itself."""

from __future__ import annotations

import importlib
import types
from typing import Any, Callable, Sequence

import torch
import torch.func
from torch import Tensor

from .._arguments.mapped import BatchedCall
from .._arguments.protocol import Differentiable
from .._guards.by_operation import watched
from .._guards.mapped_inputs import attributed, forbid_autocast, require_plain
from .._torch import facts, pytree
from . import levels as _levels
from .native import NativeBackend
from .native_maps import Pull

# As it was found when this package was imported: a test suite may put this library into the place of torch.func.
LIBRARY: Any = types.ModuleType(torch.func.__name__)
vars(LIBRARY).update(facts.FUNC)

_LEVELS = _levels.are_known()
_peek = torch._C._functorch.peek_interpreter_stack


def is_active() -> bool:
    """Whether a torch.func transform is running in this thread."""
    return _peek() is not None


def is_plain(in_dims: Any, out_dims: Any) -> bool:
    """Whether torch.func's vmap gets these dimensions right.

    It refuses or mixes up dicts in another order of keys, outputs that are not mapped in another place than the first
    one, and chunks of shared outputs or generators.
    """
    flat = isinstance(in_dims, tuple) and all(dim is None or isinstance(dim, int) for dim in in_dims)
    return out_dims == 0 and (flat or isinstance(in_dims, int))


def native_vmap(func: Callable[..., Any], options: Any) -> Any:
    """torch.func's own vmap, or None where it does not get the dimensions right."""
    if not is_plain(options.in_dims, options.out_dims):
        return None
    return LIBRARY.vmap(func, options.in_dims, options.out_dims, options.randomness)


def _checked(mapped: Callable[..., Any], func: Callable[..., Any], in_dims: Any) -> Callable[..., Any]:
    """`mapped` of `func`, raising where torch's vmap would change what the function sees, or would say too little."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(args)
        for arg, dim in zip(args, dims):
            if dim is not None and type(arg) is not Tensor:
                leaves = pytree.flatten(arg)[0]
                if not all(isinstance(leaf, Tensor) for leaf in leaves):
                    BatchedCall(func, in_dims, 0, args, kwargs)  # raises
                require_plain(leaf for leaf in leaves if isinstance(leaf, Tensor))
        forbid_autocast()
        return mapped(*args, **kwargs)

    return wrapper


class TorchFuncBackend(NativeBackend):
    """`torch.func`, with a guard around each transform that would go wrong without an error."""

    name = "torch.func"

    def __init__(self) -> None:
        super().__init__(LIBRARY, torch._C._functorch, is_active)
        if facts.has("nested_tensors_draw_at_import"):
            importlib.import_module("torch.nested._internal.nested_tensor")

    def native(self, name: str, func: Callable[..., Any], options: Any) -> Any:
        mapped = native_vmap(func, options) if name == "vmap" else None
        return None if mapped is None else _checked(mapped, func, options.in_dims)

    def guard(self, func: Callable[..., Any], *, forward: bool) -> Callable[..., Any]:
        return watched(func, forward=forward)

    def given(self, func: Differentiable) -> Callable[..., tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """The same; the other tensors among the arguments are put on the level of the primals, too.

        So `func` may write differentiated values into them in place, as into arguments of torch.func's transforms.
        """
        given = super().given(func)

        def wrapped(*primals: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            others = func.others()
            if not others:
                return given(*primals)
            level = self._private.current_level()
            func.put_others([self._private._wrap_for_grad(other, level) for other in others])
            try:
                return given(*primals)
            finally:
                func.put_others(others)

        return wrapped

    def record(self, func: Callable[..., Any], primals: Sequence[Tensor]) -> tuple[list[Tensor], Pull, list[Tensor]]:
        if not _LEVELS or torch.is_inference_mode_enabled():
            return super().record(func, primals)
        require_plain(primals)
        return _levels.record(func, primals)

    def push(
        self, func: Callable[..., Any], primals: Sequence[Tensor], tangents: Sequence[Tensor], strict: bool
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        if not _LEVELS or torch.is_inference_mode_enabled():
            return super().push(func, primals, tangents, strict)
        require_plain(attributed(primals))
        return _levels.push(func, primals, tangents, strict)

    def at_once(
        self, apply: Callable[..., Sequence[Tensor]], vectors: Sequence[Tensor], randomness: str
    ) -> list[Tensor]:
        if not _LEVELS:
            return super().at_once(apply, vectors, randomness)
        forbid_autocast()
        return _levels.at_once(apply, vectors, randomness)
