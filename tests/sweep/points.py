"""A case at two points: its derivatives by plain autograd and by finite differences."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterable, Iterator

import torch
from cases import Case, is_number, leaves
from torch import Tensor

from torch_func_compat._guards.recorder import recorded

H = 2.0**-12


class Unknown(Exception):
    """Plain autograd does not know, either."""


def dot(u: list[Tensor], y: list[Tensor]) -> Tensor:
    total: Any = 0
    for a, b in zip(u, y):
        product = (a.conj() * b).real if b.is_complex() or a.is_complex() else a * b
        total = total + (product if product.dtype == torch.float64 else product.double()).sum()
    return total


def _like(tensors: list[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for x in tensors:
        values = torch.rand(x.shape, generator=generator, dtype=torch.float64) + 0.5
        values = values * (1 - 2 * (torch.rand(x.shape, generator=generator) < 0.5).double())
        if x.is_complex():
            values = torch.complex(values, torch.rand(x.shape, generator=generator, dtype=torch.float64) - 0.5)
        found.append(values.to(x.dtype))
    return found


class Point:
    """A case at one point, by plain autograd and finite differences."""

    def __init__(self, run: Prepared, tensors: list[Tensor], seed: int) -> None:
        self.run = run
        self.x = [t for t, p in zip(tensors, run.case.primal) if p]
        self.c = [t for t, p in zip(tensors, run.case.primal) if not p]
        self.y = [y.detach() for y in run.all_outputs(self.x, self.c)]
        self.outputs = [y.detach() for y in run.outputs(self.x, self.c)]
        self.u, self.u2 = _like(self.outputs, seed), _like(self.outputs, seed + 1)
        self.t, self.s = _like(self.x, seed + 2), _like(self.x, seed + 3)
        self._known: dict[str, Any] = {}

    def phi(self, x: list[Tensor], u: list[Tensor]) -> Tensor:
        return dot(u, self.run.outputs(x, self.c))

    def _plain(self, at: list[Tensor], u: list[Tensor], order: int, vectors: list[list[Tensor]]) -> list[Tensor]:
        x = [t.detach().clone().requires_grad_() for t in at]
        value = self.phi(x, u)
        for k in range(order):
            if not value.requires_grad:
                return [torch.zeros_like(t) for t in x]
            last = k == order - 1
            found = torch.autograd.grad(value, x, create_graph=not last, allow_unused=True)
            found = [torch.zeros_like(t) if g is None else g for t, g in zip(x, found)]
            if last:
                return [g.detach() for g in found]
            value = dot(vectors[k], found)
        raise AssertionError

    def known(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._known:
            try:
                self._known[name] = make()
            except Exception as error:  # noqa: BLE001
                self._known[name] = Unknown(str(error)[:200])
        if isinstance(self._known[name], Unknown):
            raise self._known[name]
        return self._known[name]

    def first(self, u: str = "u") -> list[Tensor]:
        """J^T u."""
        return self.known(f"first {u}", lambda: self._plain(self.x, getattr(self, u), 1, []))

    def second(self, u: str = "u", t: str = "t") -> list[Tensor]:
        """The derivative of <J^T u, t>."""

        def make() -> list[Tensor]:
            return self._plain(self.x, getattr(self, u), 2, [getattr(self, t)])

        return self.known(f"second {u} {t}", make)

    def differences(self, f: Callable[[list[Tensor]], Tensor], t: list[Tensor]) -> Tensor | None:
        """The derivative of f along t by finite differences; None where f has a kink."""

        def at(h: float) -> Tensor:
            return f([x + h * v for x, v in zip(self.x, t)]).detach()

        right, left, middle = at(H), at(-H), at(0.0)
        scale = 1 + (abs(right - left) / (2 * H)).max()
        if not bool((abs(right - 2 * middle + left) / H <= 0.02 * scale).all()):
            return None
        far = (at(2 * H) - at(-2 * H)) / (4 * H)
        near = (right - left) / (2 * H)
        if not bool((abs(far - near) <= 1e-4 * scale).all()):
            return None
        return (4 * near - far) / 3


class Prepared:
    """A case with its points, batched."""

    def __init__(self, case: Case) -> None:
        if not any(case.primal):  # a number, by which what is computed is multiplied
            call, points = case.function, [[*tensors, torch.rand((), dtype=torch.float64)] for tensors in case.points]
            case = case._replace(function=lambda *given: call(*given[:-1]), points=points, primal=[*case.primal, True])
            self.constant = True
        else:
            self.constant = False
        self.case = case
        self.main: set[tuple[str, str]] = set()
        self.random = False
        self.points = []
        for k, tensors in enumerate(case.points):
            self.points.append(Point(self, tensors, 10 * k))
        again = self.all_outputs(self.points[0].x, self.points[0].c)
        self.random = not same(again, self.points[0].y)
        numbers = [x.dtype for x in (*again, *self.points[0].x) if is_number(x)]
        self.tolerance = max((4 * torch.finfo(dtype).eps ** 0.5 for dtype in numbers), default=0.0)
        first = next(iter(case.points[0]), None)
        rows = first.shape[0] if first is not None and first.dim() else 0
        self.pattern = [0, 1, 1, 0, 1, 0][: rows if 2 <= rows <= 5 else 3]

    def tensors(self, x: Any, c: Any) -> list[Tensor]:
        x, c = iter(x), iter(c)
        return [next(x) if p else next(c) for p in self.case.primal]

    def all_outputs(self, x: Any, c: Any) -> list[Tensor]:
        if self.random:
            torch.manual_seed(0)
        with recorded() as pairs:
            result = self.case.function(*self.tensors(x, c))
        self.main |= pairs
        return [y for y in leaves(self.case.finish(result)) if isinstance(y, Tensor)]

    def outputs(self, x: Any, c: Any) -> list[Tensor]:
        """What is differentiated: the numbers, and all else times a number, so that its value counts."""
        found = []
        for y in self.all_outputs(x, c):
            if is_number(y) and not self.constant:
                found.append(y)
            elif not y.is_floating_point():
                found.append((y if y.is_complex() else y.double()) * _weight(x))
            else:
                found.append(y * _weight(x).to(y.dtype))
        return found

    def stack(self, name: str) -> list[Tensor]:
        columns = zip(*(getattr(self.points[k], name) for k in self.pattern))
        return [torch.stack(column) for column in columns]

    def wanted(self, make: Callable[[Point], list[Tensor]]) -> list[Tensor]:
        return stacked(make(self.points[k]) for k in self.pattern)


def _weight(x: Any) -> Tensor:
    total: Any = 1.0
    for t in x:
        total = total + (t.real if t.is_complex() else t).double().sum()
    return total


def stacked(samples: Iterable[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(column) for column in zip(*samples)]


def _same(a: Tensor, b: Tensor, tolerance: float = 0.0) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not is_number(b):
        return bool((a == b).all())
    if b.is_complex():
        a, b = (torch.stack([v.real, v.imag]) for v in (a, b))
    finite = b[torch.isfinite(b)].abs()
    scale = 1 + float(finite.max()) if finite.numel() else 1.0
    close = (a - b).abs() <= max(tolerance, 4 * torch.finfo(b.dtype).eps ** 0.5) * scale
    return bool((close | (a == b) | (torch.isnan(a) & torch.isnan(b))).all())


def is_nan_only(got: list[Tensor], want: list[Tensor]) -> bool:
    """Whether plain autograd has no number where there is one: it is as good as any."""
    if len(got) != len(want) or any(a.shape != b.shape or not is_number(b) for a, b in zip(got, want)):
        return False
    kept = [torch.isnan(b) & ~torch.isnan(a.detach()) for a, b in zip(got, want)]
    zero = [(a.detach().masked_fill(k, 0), b.detach().masked_fill(k, 0)) for a, b, k in zip(got, want, kept)]
    return any(map(torch.any, kept)) and all(_same(a, b) for a, b in zero)


def same(got: list[Tensor], want: list[Tensor], tolerance: float = 0.0) -> bool:
    """Whether numbers agree, where they are none, too; by default to half of their digits."""
    return len(got) == len(want) and all(_same(a.detach(), b.detach(), tolerance) for a, b in zip(got, want))


def slope(p: Point, u: str = "u", t: str = "t") -> Tensor:
    return dot(getattr(p, t), p.first(u)).detach()


def curvature(p: Point, u: str = "u") -> Tensor:
    return dot(p.s, p.second(u)).detach()


def plain(r: Prepared) -> Iterator[tuple[str, list[Tensor], list[Tensor]]]:
    """First and second derivatives by plain autograd, and by finite differences."""
    p = r.points[0]
    with contextlib.suppress(Unknown):
        slope_ = slope(p)
        found = p.differences(lambda x: p.phi(x, p.u), p.t)
        if found is not None:
            yield "r", [slope_], [found]
    with contextlib.suppress(Unknown):
        curvature_ = curvature(p)
        found = p.differences(lambda x: dot(p.t, p._plain(x, p.u, 1, [])), p.s)
        if found is not None:
            yield "rr", [curvature_], [found]
