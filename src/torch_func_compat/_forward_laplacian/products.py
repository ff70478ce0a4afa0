"""Rules of products, which are linear in each factor: L(ab) = L(a) b + 2 (J(a), J(b)) + a L(b)."""

from __future__ import annotations

import math
from typing import Any, Callable

import torch
from torch import Tensor
from torch.nn import functional

from .carried import Carried, Refused, Run, make
from .elementwise import combined, scaled
from .parts import columns, constant, is_carried, lift, lifted, plain, total
from .registry import rule


@rule("mul multiply Tensor.__mul__ Tensor.__rmul__")
def mul(run: Run, func: Any, input: Any, other: Any) -> Any:
    if not is_carried(other):
        return scaled(run, input, other) if isinstance(input, Carried) else constant(run, input * plain(other))
    if not is_carried(input):
        return scaled(run, other, input)
    value = input.value * other.value
    dim = value.dim()
    one, two = lifted(input.jac, dim), lifted(other.jac, dim)
    pairs = run.pairs(one, two)
    jac = one * other.value + input.value * two
    terms = [
        None if input.lap is None else input.lap * other.value,
        None if other.lap is None else input.value * other.lap,
        2 * pairs,
    ]
    lap = total(terms)
    assert lap is not None
    return make(run, value, jac, lap.expand_as(value))


def bilinear(run: Run, one: Any, two: Any, op: Callable[[Tensor, Tensor], Tensor], equation: str) -> Any:
    """A product of tensors with the same number of dimensions, which takes more in front of both.

    `equation` contracts two Jacobians over their columns, too.
    """
    left, right = plain(one), plain(two)
    value = op(left, right)
    if not (is_carried(one) or is_carried(two)):
        return constant(run, value)
    jacs, laps = [], []
    if is_carried(one):
        jacs.append(op(_filled(one, -1), right.unsqueeze(0)))
        laps.append(None if one.lap is None else op(one.lap, right))
    if is_carried(two):
        jacs.append(op(left.unsqueeze(0), _filled(two, -2)))
        laps.append(None if two.lap is None else op(left, two.lap))
    if is_carried(one) and is_carried(two):
        laps.append(2 * torch.einsum(equation, run.weighted(columns(one)), columns(two)))
    jac = total(jacs)
    assert jac is not None
    return make(run, value, jac, total(laps))


def _filled(x: Any, dim: int) -> Tensor:
    """The Jacobian with its full size along a dimension, and along the others as it is."""
    jac: Tensor = x.jac
    shape = list(jac.shape)
    shape[dim] = x.value.shape[dim]
    return jac.expand(*shape)


@rule("matmul mm bmm mv dot Tensor.__matmul__ inner linalg.matmul")
def matmul(run: Run, func: Any, input: Any, other: Any) -> Any:
    one, two = input, other
    if getattr(func, "__name__", "") == "inner" and not (one.dim() == two.dim() == 1):
        raise Refused("inner of tensors that are no vectors")
    first, second = one.dim() == 1, two.dim() == 1
    if first:
        one = one.unsqueeze(0)
    if second:
        two = two.unsqueeze(-1)
    found = product(run, one, two)
    if second:
        found = found.squeeze(-1)
    if first:
        found = found.squeeze(-1 if second else -2)
    return found


@rule("Tensor.__rmatmul__")
def rmatmul(run: Run, func: Any, input: Any, other: Any) -> Any:
    return matmul(run, torch.matmul, other, input)


def product(run: Run, one: Any, two: Any) -> Any:
    """A product of matrices, or of batches of them."""
    dim = max(one.dim(), two.dim())
    one, two = (_lifted(x, dim) for x in (one, two))
    return bilinear(run, one, two, torch.matmul, "k...ij,k...jl->...il")


def _lifted(x: Any, dim: int) -> Any:
    if not isinstance(x, Carried):
        return lift(plain(x), dim)
    value = lift(x.value, dim)
    if not is_carried(x):
        return constant(x.run, value)
    return make(x.run, value, lifted(x.jac, dim), None if x.lap is None else lift(x.lap, dim))


@rule("F.linear")
def linear(run: Run, func: Any, input: Any, weight: Any, bias: Any = None) -> Any:
    if isinstance(weight, Carried) or isinstance(bias, Carried) or plain(input).dim() < 1:
        found = matmul(run, torch.matmul, input, weight.t())
        return found if bias is None else combined(run, found, bias, 1, 1)
    matrix, shift = plain(weight), plain(bias)
    value = functional.linear(input.value, matrix, shift)
    if not is_carried(input):
        return constant(run, value)
    lap = None if input.lap is None else functional.linear(input.lap, matrix)
    return make(run, value, functional.linear(_filled(input, -1), matrix), lap)


@rule("addmm baddbmm addmv")
def addmm(run: Run, func: Any, input: Any, one: Any, two: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    found = matmul(run, torch.matmul, one, two)
    if isinstance(found, Carried):
        return combined(run, found, input, alpha, beta)
    return combined(run, input, found, beta, alpha)


@rule("outer ger")
def outer(run: Run, func: Any, input: Any, vec2: Any) -> Any:
    return torch_mul(run, input.unsqueeze(-1), vec2)


def torch_mul(run: Run, one: Any, two: Any) -> Any:
    """`mul` for other rules; at least one factor is carried."""
    return mul(run, torch.mul, one, two)


@rule("einsum")
def einsum(run: Run, func: Any, equation: str, *operands: Any) -> Any:
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if not isinstance(equation, str):
        raise Refused("einsum without an equation")
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow:  # letters that appear once, in the order of the alphabet
        letters = inputs.replace(",", "").replace(".", "")
        result = ("..." if "..." in inputs else "") + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
    letter = next(x for x in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" if x not in equation)
    if len(terms) != len(operands):
        raise Refused(f"{len(operands)} operands of {equation!r}")
    values = plain(list(operands))
    value = torch.einsum(equation, *values)
    where = [k for k, x in enumerate(operands) if is_carried(x)]
    if not where:
        return constant(run, value)

    def replaced(parts: dict[int, Tensor], contracted: bool = False) -> Tensor:
        written = [
            letter + term if k in parts and parts[k].dim() > values[k].dim() else term for k, term in enumerate(terms)
        ]
        inner = [parts.get(k, x) for k, x in enumerate(values)]
        out = result if contracted or not any(t.startswith(letter) for t in written) else letter + result
        return torch.einsum(f"{','.join(written)}->{out}", *inner)

    full = {k: columns(operands[k]) for k in where}
    jac = total([replaced({k: full[k]}) for k in where])
    laps = [None if operands[k].lap is None else replaced({k: operands[k].lap}) for k in where]
    for position, i in enumerate(where):
        for j in where[position + 1 :]:
            laps.append(2 * replaced({i: run.weighted(full[i]), j: full[j]}, True))
    return make(run, value, jac, total(laps))


@rule("tensordot")
def tensordot(run: Run, func: Any, a: Any, b: Any, dims: Any = 2) -> Any:
    one, two = plain(a).dim(), plain(b).dim()
    if isinstance(dims, int):
        left, right = list(range(one - dims, one)), list(range(dims))
    else:
        left, right = (
            [d % n for d in ([part] if isinstance(part, int) else part)] for part, n in zip(dims, (one, two))
        )
    letters = "abcdefghijklmnopqrstuvwxyz"
    first, second = list(letters[:one]), list(letters[one : one + two])
    for i, j in zip(left, right):
        second[j] = first[i]
    out = [x for k, x in enumerate(first) if k not in left] + [x for k, x in enumerate(second) if k not in right]
    return einsum(run, torch.einsum, f"{''.join(first)},{''.join(second)}->{''.join(out)}", a, b)


@rule("F.bilinear torch.bilinear")
def bilinear_form(run: Run, func: Any, input1: Any, input2: Any, weight: Any, bias: Any = None) -> Any:
    found = einsum(run, torch.einsum, "...i,oij,...j->...o", input1, weight, input2)
    return found if bias is None else combined(run, found, bias, 1, 1)


@rule("torch.cross Tensor.cross linalg.cross")
def cross(run: Run, func: Any, input: Any, other: Any, dim: Any = None) -> Any:
    last = func is getattr(torch.linalg, "cross", None)
    if dim is None:
        if not last:
            raise Refused("cross without dim=")
        dim = -1
    sizes = [x.shape for x in (input, other)]
    if sizes[0] != sizes[1]:
        raise Refused("cross of tensors of different shapes")
    a, b = (x.unbind(dim) for x in (input, other))
    parts = [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
    return torch.stack(parts, dim)


@rule("F.conv1d F.conv2d F.conv3d torch.conv1d torch.conv2d torch.conv3d")
def convolution(run: Run, func: Any, input: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
    if isinstance(weight, Carried) or isinstance(bias, Carried) or input.dim() != weight.dim():
        raise Refused("convolution with kernels that depend on the coordinates, or without a batch")
    kernels = plain(weight)
    return folded(
        input,
        lambda x: func(x, kernels, plain(bias), *args, **kwargs),
        lambda x: func(x, kernels, None, *args, **kwargs),
    )


@rule("F.avg_pool1d F.avg_pool2d F.avg_pool3d F.adaptive_avg_pool1d F.adaptive_avg_pool2d")
def pooling(run: Run, func: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
    return folded(input, lambda x: func(x, *args, **kwargs), lambda x: func(x, *args, **kwargs))


def folded(x: Any, affine: Callable[[Tensor], Tensor], linear: Callable[[Tensor], Tensor]) -> Any:
    """An affine operation on batches, and its linear part, which takes the columns for samples."""
    value = affine(x.value)
    if not is_carried(x):
        return constant(x.run, value)
    jac = columns(x)
    found = linear(jac.reshape(math.prod(jac.shape[:2]), *jac.shape[2:]))
    lap = None if x.lap is None else linear(x.lap)
    return make(x.run, value, found.reshape(*jac.shape[:2], *found.shape[1:]), lap)
