"""The operators that can be checked: how each is called, and its expected result."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

from torch import Tensor

from .. import autograd
from . import _trees
from ._point import Point, flat


class Operator(NamedTuple):
    """One operator of the library.

    `call(transform, function, point, inputs, vector)` evaluates it at inputs of the kind of `point`; `expected(point,
    reference, vector)` builds the same from a reference. `vector` is that of a product, and None for other operators.
    """

    name: str
    call: Callable[..., Any]
    expected: Callable[..., Any]
    vector: str = ""  # "tangents", in the structure of the arguments, or "cotangents", in that of the output
    scalar: bool = False  # takes functions with one number for output only
    exact: bool = False  # whose dtypes are those of the arguments and the output, also where these differ
    batch: bool = False  # takes a function of a whole batch


def _derivative(transform: Any, function: Any, point: Point, inputs: Any, vector: Any) -> Any:
    return transform(function, point.argnums)(*inputs)


def _vjp(transform: Any, function: Any, point: Point, inputs: Any, vector: Any) -> Any:
    output, pullback = transform(point.closed(function, inputs), *point.chosen(inputs))
    return output, pullback(vector)


def _linearize(transform: Any, function: Any, point: Point, inputs: Any, vector: Any) -> Any:
    output, pushforward = transform(point.closed(function, inputs), *point.chosen(inputs))
    return output, pushforward(*vector)


def _product(transform: Any, function: Any, point: Point, inputs: Any, vector: Any) -> Any:
    return transform(point.closed(function, inputs), point.chosen(inputs), vector)


def _vmap(transform: Any, function: Any, point: Point, inputs: Any, vector: Any) -> Any:
    return transform(function, in_dims(point))(*inputs)


def _batch(transform: Any, function: Any, point: Point, inputs: Any, vector: Any) -> Any:
    return transform(function, point.argnums, in_dims=in_dims(point))(*inputs)


def _batch_product(transform: Any, function: Any, point: Point, inputs: Any, vector: Any) -> Any:
    return transform(point.closed(function, inputs), point.chosen(inputs), vector)


def in_dims(point: Point) -> tuple[int | None, ...]:
    """Samples are along dimension 0 of what is differentiated; all else is shared."""
    return tuple(0 if i in point.positions else None for i in range(len(point.inputs)))


def _flat(vector: Any) -> Tensor:
    return flat(_trees.flatten(vector)[0])


def _value(point: Point, r: Any) -> Any:
    return point.outputs_of(r.value)


def _gradient(point: Point, r: Any) -> Any:
    return point.arguments_of(r.jacobian()[0])


def _pushed(point: Point, r: Any, v: Any) -> Any:
    return _value(point, r), point.outputs_of(r.jacobian() @ _flat(v))


def _second_product(point: Point, r: Any, v: Any) -> Any:
    return _value(point, r), point.primals_of(r.hessian()[0] @ _flat(v))


TABLE = (
    Operator("vmap", _vmap, lambda p, r, v: _value(p, r), exact=True),
    Operator("grad", _derivative, lambda p, r, v: _gradient(p, r), scalar=True, exact=True),
    Operator("grad_and_value", _derivative, lambda p, r, v: (_gradient(p, r), _value(p, r)), scalar=True, exact=True),
    Operator(
        "vjp",
        _vjp,
        lambda p, r, v: (_value(p, r), p.primals_of(_flat(v) @ r.jacobian())),
        vector="cotangents",
        exact=True,
    ),
    Operator("jvp", _product, _pushed, vector="tangents", exact=True),
    Operator("linearize", _linearize, _pushed, vector="tangents", exact=True),
    Operator("jacrev", _derivative, lambda p, r, v: p.rows_of(r.jacobian()), exact=True),
    Operator("jacfwd", _derivative, lambda p, r, v: p.rows_of(r.jacobian())),
    Operator("jacobian", _derivative, lambda p, r, v: p.rows_of(r.jacobian())),
    Operator("value_and_jacobian", _derivative, lambda p, r, v: (_value(p, r), p.rows_of(r.jacobian()))),
    Operator("hessian", _derivative, lambda p, r, v: p.second_of(r.hessian())),
    Operator(
        "value_grad_and_hessian",
        _derivative,
        lambda p, r, v: (_value(p, r), p.rows_of(r.jacobian()), p.second_of(r.hessian())),
    ),
    Operator("hvp", _product, _second_product, vector="tangents", scalar=True),
    Operator("vhp", _product, _second_product, vector="tangents", scalar=True),
    Operator("hessian_diagonal", _derivative, lambda p, r, v: p.rows_of(r.diagonal())),
    Operator("laplacian", _derivative, lambda p, r, v: p.outputs_of(r.diagonal().sum(1))),
)

BATCH_TABLE = (
    Operator("batch_jacobian", _batch, lambda p, r, v: p.rows_of(r.jacobian()), batch=True),
    Operator("batch_hessian", _batch, lambda p, r, v: p.second_of(r.hessian()), batch=True),
    Operator("batch_hessian_diagonal", _batch, lambda p, r, v: p.rows_of(r.diagonal()), batch=True),
    Operator("batch_laplacian", _batch, lambda p, r, v: p.outputs_of(r.diagonal().sum(1)), batch=True),
    Operator(
        "batch_hvp",
        _batch_product,
        lambda p, r, v: (_value(p, r), p.products_of(r.hessian() @ _flat(v))),
        vector="tangents",
        batch=True,
    ),
)

BY_NAME = {operator.name: operator for operator in (*TABLE, *BATCH_TABLE)}

OPERATORS: tuple[str, ...] = tuple(operator.name for operator in TABLE)
"""Names of the operators that take a function of one sample."""

BATCH_OPERATORS: tuple[str, ...] = tuple(operator.name for operator in BATCH_TABLE)
"""Names of the operators that take a function of a whole batch."""


def transform_of(name: str) -> Callable[..., Any]:
    """The library's own."""
    transform: Callable[..., Any] = getattr(autograd, name)
    return transform
