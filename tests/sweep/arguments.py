"""The kinds of arguments that an entry of our own tables is made of.

A kind makes a tensor from a generator of random numbers, and says whether it is differentiated.
"""

from __future__ import annotations

from typing import Any, Callable, Iterator

import torch
from cases import Case
from torch import Tensor

Kind = Callable[[torch.Generator], "tuple[Tensor, bool]"]
D, C = torch.float64, torch.complex128


def normal(*shape: int) -> Kind:
    return lambda g: (torch.randn(shape, generator=g, dtype=D), True)


def positive(*shape: int) -> Kind:
    return lambda g: (torch.rand(shape, generator=g, dtype=D) + 0.5, True)


def single(*shape: int) -> Kind:
    return lambda g: (torch.randn(shape, generator=g), True)


def complex_(*shape: int) -> Kind:
    def make(g: torch.Generator) -> tuple[Tensor, bool]:
        return torch.complex(torch.randn(shape, generator=g, dtype=D), torch.randn(shape, generator=g, dtype=D)), True

    return make


def integers(high: int, *shape: int) -> Kind:
    return lambda g: (torch.randint(high, shape, generator=g), False)


def permutation(n: int) -> Kind:
    return lambda g: (torch.randperm(n, generator=g), False)


def mask(*shape: int) -> Kind:
    return lambda g: (torch.rand(shape, generator=g) < 0.5, False)


def constant(*shape: int) -> Kind:
    return lambda g: (torch.randn(shape, generator=g, dtype=D), False)


def at(*values: float) -> Kind:
    """A point, the same for all samples."""
    return lambda g: (torch.tensor(values, dtype=D), True)


def zeros(*shape: int) -> Kind:
    return lambda g: (torch.zeros(shape, dtype=D), True)


def matrix(n: int) -> Kind:
    return lambda g: (torch.randn(n, n, generator=g, dtype=D) + 2 * torch.eye(n, dtype=D), True)


def factor(n: int) -> Kind:
    return lambda g: (torch.randn(n, n, generator=g, dtype=D).tril() + 3 * torch.eye(n, dtype=D), True)


def complex_matrix(n: int) -> Kind:
    def make(g: torch.Generator) -> tuple[Tensor, bool]:
        return complex_(n, n)(g)[0] + 3 * torch.eye(n, dtype=C), True

    return make


def singular(n: int) -> Kind:
    def make(g: torch.Generator) -> tuple[Tensor, bool]:
        a = torch.randn(n, n, generator=g, dtype=D)
        a[-1] = a[0]
        return a, True

    return make


def symmetric(a: Tensor) -> Tensor:
    return a + a.transpose(-2, -1)


def hermitian(a: Tensor) -> Tensor:
    return a + a.transpose(-2, -1).conj()


def gram(a: Tensor) -> Tensor:
    return a @ a.transpose(-2, -1) + torch.eye(a.shape[-1], dtype=a.dtype)


def degenerate(g: torch.Generator) -> tuple[Tensor, bool]:
    q = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=D))[0]
    return q @ torch.diag(torch.tensor([1.0, 1.0, 2.0], dtype=D)) @ q.T, True


ROWS: list[tuple[str, Callable[..., Any], tuple[Kind, ...]]] = []
TABLE: dict[str, Callable[[], Iterator[Case]]] = {}


def add(
    name: str,
    function: Callable[..., Any],
    *kinds: Kind,
    finish: Callable[..., Any] = lambda y: y,
    differences: bool = True,
) -> None:
    """One entry; the name is that of the operation, and what is particular about it after a space.

    `finish` is what is made of its result, and is not under test; `differences` are those of `Case`.
    """

    def cases() -> Iterator[Case]:
        torch.manual_seed(0)
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        points = [[kind(generator) for kind in kinds] for generator in generators]
        yield Case(
            name, function, [[x for x, _ in point] for point in points], [p for _, p in points[0]], finish, differences
        )

    assert name not in TABLE, name
    TABLE[name] = cases


def each(where: str, kinds: tuple[Kind, ...], *functions: Callable[..., Any]) -> None:
    """An entry for each function, so that one knows which of them is wrong."""
    for k, function in enumerate(functions):
        add(f"{where}, {k}", function, *kinds)


def written(write: Callable[..., Any]) -> Callable[..., Any]:
    """A function that writes into a copy of its first argument."""

    def function(x: Tensor, *others: Tensor) -> Tensor:
        x = x.clone()
        result = write(x, *others)
        return result if isinstance(result, Tensor) else x

    return function


def made(*shape: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A function that writes into a tensor of zeros that it makes."""

    def decorate(write: Callable[..., Any]) -> Callable[..., Any]:
        def function(*others: Tensor) -> Tensor:
            out = torch.zeros(shape, dtype=D)
            write(out, *others)
            return out

        return function

    return decorate


def put(place: Any, out: Tensor, value: Any) -> None:
    out[place] = value


def permutation_rows(n: int, m: int) -> Kind:
    return lambda g: (torch.stack([torch.randperm(n, generator=g) for _ in range(m)], 1), False)
