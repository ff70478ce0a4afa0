"""What arguments and results of transforms have to be, with the error types of torch.func."""

from __future__ import annotations

from numbers import Number
from typing import Any, Iterator, Sequence

import torch
from torch import Tensor


def require_real(api: str, tensors: Sequence[Any], role: str) -> None:
    """Jacobians of complex functions are ambiguous (the function need not be holomorphic)."""
    for index, tensor in enumerate(tensors):
        if isinstance(tensor, Tensor) and tensor.is_complex():
            raise RuntimeError(
                f"{api}: Expected all {role} to be real but received complex tensor at flattened input idx: {index}"
            )


def require_tensors(tensors: Sequence[Any]) -> None:
    """Raise torch.func's ValueError where something to be differentiated is no tensor."""
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise ValueError(f"Thing passed to transform API must be Tensor, got {type(tensor)}: {way_to(tensor)}")


def way_to(value: Any) -> str:
    """What to do with something that has to be a tensor."""
    if isinstance(value, torch.nn.Module):
        return "pass dict(module.named_parameters()), and call the module with functional_call"
    if isinstance(value, Iterator):
        return "make a list, tuple or dict of it"
    if isinstance(value, Number) or hasattr(value, "__array__"):
        return "convert numbers and arrays with torch.as_tensor()"
    return "choose the arguments to differentiate with argnums, or close over the others"


def require_callable(name: str, func: Any) -> None:
    """Raise TypeError unless there is a function to transform."""
    if not callable(func):
        raise TypeError(
            f"{name} takes a function, got {type(func)}: write the function itself, without its arguments, as in "
            f"grad(f)(x)"
        )


def require_floating(role: str, tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise ValueError(
                f"Expected {role} to be floating point or complex, but got: {tensor.dtype}: convert it, as in "
                f"x.double()"
            )


def require_differentiable(outputs: Sequence[Tensor]) -> None:
    for output in outputs:
        if not (output.is_floating_point() or output.is_complex()):
            raise RuntimeError(
                f"vjp(f, ...): All outputs of f must be floating-point or complex Tensors, got Tensor with dtype "
                f"{output.dtype}"
            )


def require_tuple(api: str, primals: Any) -> None:
    if not isinstance(primals, tuple):
        raise RuntimeError(f"{api}: Expected primals to be a tuple. E.g. it should be valid to call f(*primals).")
