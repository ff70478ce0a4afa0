"""Every operator as one table: what it makes of an elementwise function, and what that has to equal.

A clause of the contract changes one thing (the dtype, the shape, what surrounds the call, ...) and says it
of all of them. A new operator gets a row here, and with it every clause.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import pytest
import torch
from torch import Tensor

import torch_func_compat as tfc
from support.cases import spread


class Operator(NamedTuple):
    """`call(func, x, *rest)` differentiates or maps an elementwise function by its first argument.

    `expected(y, d, dd)` is the result, from values and first and second derivatives at each element of x.
    """

    name: str
    call: Callable[..., Any]
    expected: Callable[[Tensor, Tensor, Tensor], Any]
    forward: bool = False  # in forward mode where there is one; random numbers are an error then
    complex: bool = False  # takes complex numbers, as torch.func's does


def _one(func: Any, rest: tuple[Any, ...]) -> Any:
    return lambda x: func(x, *rest)


def _sum(func: Any, rest: tuple[Any, ...] = ()) -> Any:
    return lambda x, *more: func(x, *rest, *more).sum()


def _ones(x: Tensor) -> Tensor:
    return torch.ones_like(x)


def _pull(func: Any, x: Tensor, *rest: Any) -> Any:
    output, pullback = tfc.vjp(_one(func, rest), x)
    return output, pullback(_ones(output))


def _linearize(func: Any, x: Tensor, *rest: Any) -> Any:
    output, push = tfc.linearize(_one(func, rest), x)
    return output, push(_ones(x))


def _map(func: Any, x: Tensor, *rest: Any) -> Any:
    if not x.dim():  # what vmap takes has a dimension
        return tfc.vmap(func, in_dims=(0, *(None for _ in rest)))(x[None], *rest)[0]
    return tfc.vmap(func, in_dims=(0, *(None for _ in rest)))(x, *rest)


OPERATORS = (
    Operator("vmap", _map, lambda y, d, dd: y, complex=True),
    Operator("grad", lambda f, x, *r: tfc.grad(_sum(f))(x, *r), lambda y, d, dd: d),
    Operator("grad_and_value", lambda f, x, *r: tfc.grad_and_value(_sum(f))(x, *r), lambda y, d, dd: (d, y.sum())),
    Operator("vjp", _pull, lambda y, d, dd: (y, (d,)), complex=True),
    Operator(
        "jvp",
        lambda f, x, *r: tfc.jvp(_one(f, r), (x,), (_ones(x),)),
        lambda y, d, dd: (y, d),
        forward=True,
        complex=True,
    ),
    Operator("linearize", _linearize, lambda y, d, dd: (y, d), forward=True, complex=True),
    Operator("jacrev", lambda f, x, *r: tfc.jacrev(f)(x, *r), lambda y, d, dd: spread(d)),
    Operator("jacfwd", lambda f, x, *r: tfc.jacfwd(f)(x, *r), lambda y, d, dd: spread(d), forward=True),
    Operator("jacobian", lambda f, x, *r: tfc.jacobian(f)(x, *r), lambda y, d, dd: spread(d), forward=True),
    Operator(
        "value_and_jacobian",
        lambda f, x, *r: tfc.value_and_jacobian(f)(x, *r),
        lambda y, d, dd: (y, spread(d)),
        forward=True,
    ),
    Operator("hessian", lambda f, x, *r: tfc.hessian(_sum(f))(x, *r), lambda y, d, dd: spread(dd), forward=True),
    Operator(
        "value_grad_and_hessian",
        lambda f, x, *r: tfc.value_grad_and_hessian(_sum(f))(x, *r),
        lambda y, d, dd: (y.sum(), d, spread(dd)),
        forward=True,
    ),
    Operator(
        "hvp",
        lambda f, x, *r: tfc.hvp(_sum(f, r), (x,), (_ones(x),)),
        lambda y, d, dd: (y.sum(), (dd,)),
        forward=True,
    ),
    Operator(
        "vhp",
        lambda f, x, *r: tfc.vhp(_sum(f, r), (x,), (_ones(x),)),
        lambda y, d, dd: (y.sum(), (dd,)),
    ),
    Operator(
        "hessian_diagonal",
        lambda f, x, *r: tfc.hessian_diagonal(_sum(f))(x, *r),
        lambda y, d, dd: dd,
        forward=True,
    ),
    Operator("laplacian", lambda f, x, *r: tfc.laplacian(_sum(f))(x, *r), lambda y, d, dd: dd.sum(), forward=True),
    Operator(
        "vmap(grad)",
        lambda f, x, *r: _map(tfc.grad(_sum(f)), x, *r),
        lambda y, d, dd: d,
    ),
)

DIFFERENTIAL = tuple(operator for operator in OPERATORS if operator.name != "vmap")


def every(operators: tuple[Operator, ...] = OPERATORS) -> Any:
    """The decorator that runs a test for each of them."""
    return pytest.mark.parametrize("operator", operators, ids=[operator.name for operator in operators])


def cube(x: Tensor) -> Tensor:
    """x³, by products: in every dtype, on every torch."""
    return x * x * x


def of_cube(operator: Operator, x: Tensor, scale: Any = 1) -> Any:
    """What `operator` has to make of ``scale * cube``."""
    x = x.detach()
    return operator.expected(scale * x * x * x, 3 * scale * x * x, 6 * scale * x)
