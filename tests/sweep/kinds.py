"""The kinds of derivatives of a case, by the library's transforms.

The levels under which an operation runs are those of `torch_func_compat._guards.recorder`; an "a" in front says that
plain autograd differentiates the result.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
from points import Point, Prepared, curvature, dot, slope, stacked
from torch import Tensor

import torch_func_compat as tfc

# levels, what it is called, whether it takes derivatives, and the function that computes (got, wanted)
KINDS: list[tuple[str, str, int, Callable[[Prepared], Any]]] = []


def kind(levels: str, order: int) -> Callable[[Any], Any]:
    def note(function: Any) -> Any:
        KINDS.append((levels, function.__name__, order, function))
        return function

    return note


def _vmap(f: Any, *args: Any, in_dims: Any = 0, randomness: str = "same") -> Any:
    return tfc.vmap(f, in_dims=in_dims, randomness=randomness)(*args)


@kind("v", 0)
def values(r: Prepared) -> Any:
    got = _vmap(lambda x, c: r.all_outputs(x, c), r.stack("x"), r.stack("c"), in_dims=_dims(r, 0, 0))
    return got, r.wanted(lambda p: p.y)


def _dims(r: Prepared, x: Any, c: Any) -> Any:
    """in_dims for lists of primals and others, which must not be empty where they are mapped."""
    return (x if r.points[0].x else None, c if r.points[0].c else None)


def _call(r: Prepared, tensors: list[Tensor]) -> list[Tensor]:
    chosen = r.case.primal
    return r.all_outputs([x for x, p in zip(tensors, chosen) if p], [x for x, p in zip(tensors, chosen) if not p])


@kind("v", 0)
def values_of_the_first(r: Prepared) -> Any:
    """The first tensor is mapped, over its last dimension, and no other one."""
    _, *others = r.case.points[0]
    batch = torch.stack([r.case.points[k][0] for k in r.pattern], -1)
    got = _vmap(lambda first: _call(r, [first, *others]), batch, in_dims=-1)
    return got, stacked(_call(r, [first, *others]) for first in batch.unbind(-1))


@kind("v", 0)
def values_of_the_others(r: Prepared) -> Any:
    """All tensors are mapped but the first one."""
    if len(r.case.primal) < 2:
        return [], []
    first = r.case.points[0][0]
    rest = [torch.stack([r.case.points[k][i] for k in r.pattern]) for i in range(1, len(r.case.primal))]
    got = _vmap(lambda rest: _call(r, [first, *rest]), rest)
    want = {k: _call(r, [first, *r.case.points[k][1:]]) for k in set(r.pattern)}
    return got, stacked(want[k] for k in r.pattern)


@kind("v", 0)
def values_nested(r: Prepared) -> Any:
    x = [torch.stack([t, t.flip(0)]) for t in r.stack("x")]
    c = [torch.stack([t, t.flip(0)]) for t in r.stack("c")]
    dims = _dims(r, 0, 0)
    got = _vmap(lambda x, c: _vmap(lambda x, c: r.all_outputs(x, c), x, c, in_dims=dims), x, c, in_dims=dims)
    return got, [torch.stack([t, t.flip(0)]) for t in r.wanted(lambda p: p.y)]


def _gradient(r: Prepared, x: Any, c: Any, u: Any) -> Any:
    return tfc.grad(lambda x: dot(u, r.outputs(x, c)))(list(x))


def _push(r: Prepared, x: Any, c: Any, t: Any) -> Any:
    return tfc.jvp(lambda *x: tuple(r.outputs(x, c)), tuple(x), tuple(t))[1]


@kind("j", 1)
def jvp(r: Prepared) -> Any:
    p = r.points[0]
    pushed = _push(r, p.x, p.c, p.t)
    return [dot(p.u, pushed), dot(p.u2, pushed)], [slope(p), slope(p, "u2")]


def _over(r: Prepared, f: Any, *names: str) -> Any:
    """f of points and of each of the named vectors, mapped over all of them."""
    lists = [r.stack(name) for name in ("x", "c", *names)]
    dims = tuple(0 if part else None for part in lists)
    return _vmap(f, *lists, in_dims=dims)


def _numbers(r: Prepared, make: Callable[[Point], Tensor]) -> list[Tensor]:
    return [torch.stack([make(r.points[k]) for k in r.pattern])]


@kind("vj", 1)
def vmap_of_jvp(r: Prepared) -> Any:
    got = _over(r, lambda x, c, t, u: dot(u, _push(r, x, c, t)), "t", "u")
    return [got], _numbers(r, slope)


@kind("vj", 1)
def columns(r: Prepared) -> Any:
    p = r.points[0]
    tangents = [torch.stack(pair) for pair in zip(p.t, p.s)]
    got = _vmap(lambda t: dot(p.u, _push(r, p.x, p.c, t)), tangents)
    return [got], [torch.stack([slope(p), slope(p, t="s")])]


@kind("jv", 1)
def jvp_of_vmap(r: Prepared) -> Any:
    x, t, u = r.stack("x"), r.stack("t"), r.stack("u")
    pushed = tfc.jvp(lambda *x: tuple(_mapped(r, lambda x, c: r.outputs(x, c), list(x))), tuple(x), tuple(t))[1]
    return [dot(u, pushed)], [_numbers(r, slope)[0].sum()]


@kind("vj", 1)
def vmap_of_columns(r: Prepared) -> Any:
    """As in vmap(jacfwd(f)): the tangents are mapped once more than the rest."""

    def both(x: Any, c: Any, u: Any, t: Any, s: Any) -> Any:
        return _vmap(lambda t: dot(u, _push(r, x, c, t)), [torch.stack(pair) for pair in zip(t, s)])

    return [_over(r, both, "u", "t", "s")], _numbers(r, lambda p: torch.stack([slope(p), slope(p, t="s")]))


@kind("vg", 1)
def vmap_of_grad(r: Prepared) -> Any:
    return _over(r, lambda x, c, u: _gradient(r, x, c, u), "u"), r.wanted(lambda p: p.first())


@kind("vg", 1)
def vmap_of_grad_of_primals(r: Prepared) -> Any:
    if not r.points[0].c:
        return [], []
    c = r.points[0].c
    got = _vmap(lambda x, u: _gradient(r, x, c, u), r.stack("x"), r.stack("u"))
    want = {k: Point(r, r.tensors(r.points[k].x, c), 10 * k) for k in set(r.pattern)}
    return got, stacked(want[k].first() for k in r.pattern)


def _rows(r: Prepared, x: Any, c: Any, *rows: Any) -> Any:
    pull = tfc.vjp(lambda *x: tuple(r.outputs(x, c)), *x)[1]
    stacked = tuple(torch.stack(row) for row in zip(*rows))
    return list(_vmap(lambda *u: pull(u), *stacked))


@kind("vg", 1)
def vmap_of_rows(r: Prepared) -> Any:
    got = _over(r, lambda x, c, u, u2: _rows(r, x, c, u, u2), "u", "u2")
    return got, r.wanted(lambda p: [torch.stack(pair) for pair in zip(p.first("u"), p.first("u2"))])


@kind("jg", 2)
def jvp_of_grad(r: Prepared) -> Any:
    p = r.points[0]
    got = tfc.jvp(lambda *x: tuple(_gradient(r, x, p.c, p.u)), tuple(p.x), tuple(p.t))[1]
    return list(got), p.second()


def _push_gradient(r: Prepared, x: Any, c: Any, u: Any, t: Any) -> Any:
    return list(tfc.jvp(lambda *x: tuple(_gradient(r, x, c, u)), tuple(x), tuple(t))[1])


@kind("vjg", 2)
def vmap_of_jvp_of_grad(r: Prepared) -> Any:
    return _over(r, lambda x, c, u, t: _push_gradient(r, x, c, u, t), "u", "t"), r.wanted(lambda p: p.second())


@kind("vjg", 2)
def columns_of_rows(r: Prepared) -> Any:
    p = r.points[0]
    tangents = [torch.stack(pair) for pair in zip(p.t, p.s)]

    def column(t: Any) -> Any:
        return list(tfc.jvp(lambda *x: tuple(_rows(r, x, p.c, p.u, p.u2)), tuple(p.x), tuple(t))[1])

    want = [[p.second(u, t) for u in ("u", "u2")] for t in ("t", "s")]
    stacked = [torch.stack([torch.stack([row[k] for row in rows]) for rows in want]) for k in range(len(p.x))]
    return _vmap(column, tangents), stacked


@kind("vjg", 2)
def vmap_of_columns_of_grad(r: Prepared) -> Any:
    """As in vmap(hessian(f))."""

    def both(x: Any, c: Any, u: Any, t: Any, s: Any) -> Any:
        return _vmap(lambda t: _push_gradient(r, x, c, u, t), [torch.stack(pair) for pair in zip(t, s)])

    want = r.wanted(lambda p: [torch.stack(pair) for pair in zip(p.second(), p.second(t="s"))])
    return _over(r, both, "u", "t", "s"), want


@kind("jj", 2)
def jvp_of_jvp(r: Prepared) -> Any:
    p = r.points[0]
    pushed = tfc.jvp(lambda *x: tuple(_push(r, x, p.c, p.t)), tuple(p.x), tuple(p.s))[1]
    return [dot(p.u, pushed)], [curvature(p)]


@kind("vjj", 2)
def vmap_of_jvp_of_jvp(r: Prepared) -> Any:
    def twice(x: Any, c: Any, u: Any, t: Any, s: Any) -> Any:
        return dot(u, tfc.jvp(lambda *x: tuple(_push(r, x, c, t)), tuple(x), tuple(s))[1])

    return [_over(r, twice, "u", "t", "s")], _numbers(r, curvature)


@kind("vjj", 2)
def vmap_of_columns_of_columns(r: Prepared) -> Any:
    """As in vmap(jacfwd(jacfwd(f)))."""

    def number(x: Any, c: Any, u: Any, t: Any, s: Any) -> Any:
        column = lambda *x: (_vmap(lambda t: dot(u, _push(r, x, c, t)), [v.unsqueeze(0) for v in t]),)
        return _vmap(lambda s: tfc.jvp(column, tuple(x), tuple(s))[1][0], [v.unsqueeze(0) for v in s]).sum()

    return [_over(r, number, "u", "t", "s")], _numbers(r, curvature)


@kind("vgj", 2)
def vmap_of_grad_of_jvp(r: Prepared) -> Any:
    def twice(x: Any, c: Any, u: Any, t: Any) -> Any:
        return tfc.grad(lambda x: dot(u, _push(r, x, c, t)))(x)

    return _over(r, twice, "u", "t"), r.wanted(lambda p: p.second())


def _twice(r: Prepared, x: Any, c: Any, u: Any, t: Any) -> Any:
    return tfc.grad(lambda x: dot(t, _gradient(r, x, c, u)))(x)


@kind("vgg", 2)
def vmap_of_grad_of_grad(r: Prepared) -> Any:
    return _over(r, lambda x, c, u, t: _twice(r, x, c, u, t), "u", "t"), r.wanted(lambda p: p.second())


@kind("vgg", 2)
def vmap_of_rows_of_grad(r: Prepared) -> Any:
    def hessian(x: Any, c: Any, u: Any, t: Any, s: Any) -> Any:
        pull = tfc.vjp(lambda *x: tuple(_gradient(r, x, c, u)), *x)[1]
        return list(_vmap(lambda *v: pull(v), *(torch.stack(pair) for pair in zip(t, s))))

    want = r.wanted(lambda p: [torch.stack(pair) for pair in zip(p.second(), p.second(t="s"))])
    return _over(r, hessian, "u", "t", "s"), want


def _backward(r: Prepared, f: Callable[[list[Tensor]], Tensor], x: list[Tensor]) -> list[Tensor]:
    x = [t.detach().clone().requires_grad_() for t in x]
    value = f(x)
    if not value.requires_grad:
        return [torch.zeros_like(t) for t in x]
    found = torch.autograd.grad(value, x, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(x, found)]


def _mapped(r: Prepared, f: Any, x: list[Tensor], *names: str) -> Any:
    lists = [x, *(r.stack(name) for name in ("c", *names))]
    return _vmap(f, *lists, in_dims=tuple(0 if part else None for part in lists))


@kind("av", 1)
def backward_through_vmap(r: Prepared) -> Any:
    def value(x: list[Tensor]) -> Tensor:
        return dot(r.stack("u"), _mapped(r, lambda x, c: r.outputs(x, c), x))

    return _backward(r, value, r.stack("x")), r.wanted(lambda p: p.first())


@kind("avg", 2)
def backward_through_vmap_of_grad(r: Prepared) -> Any:
    def value(x: list[Tensor]) -> Tensor:
        return dot(r.stack("t"), _mapped(r, lambda x, c, u: _gradient(r, x, c, u), x, "u"))

    return _backward(r, value, r.stack("x")), r.wanted(lambda p: p.second())


@kind("aj", 2)
def backward_through_jvp(r: Prepared) -> Any:
    p = r.points[0]
    return _backward(r, lambda x: dot(p.u, _push(r, x, p.c, p.t)), p.x), p.second()


@kind("avj", 2)
def backward_through_vmap_of_jvp(r: Prepared) -> Any:
    def value(x: list[Tensor]) -> Tensor:
        return _mapped(r, lambda x, c, u, t: dot(u, _push(r, x, c, t)), x, "u", "t").sum()

    return _backward(r, value, r.stack("x")), r.wanted(lambda p: p.second())
