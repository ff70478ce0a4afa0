"""Products of a Jacobian with many vectors at once: one evaluation of the function, batched as `jacrev` is."""

from __future__ import annotations

import functools
from typing import Any, Callable, NamedTuple

from torch import Tensor

from ..autograd import jacfwd, jacrev

# (rows and columns of the Jacobian, a tensor with its dtype and device) -> the vectors to multiply with
SeedsOf = Callable[[int, int, Tensor], Tensor]


class Options(NamedTuple):
    """Parameters of all derivatives here."""

    argnums: int
    has_aux: bool
    chunks: dict[str, Any]

    def chosen(self, api: str, args: tuple[Any, ...]) -> Tensor:
        """The argument that is differentiated."""
        if isinstance(self.argnums, bool) or not isinstance(self.argnums, int):
            raise TypeError(f"{api}: expected argnums= to be one int, got {self.argnums!r}")
        if not -len(args) <= self.argnums < len(args):
            raise ValueError(f"{api}: argnums={self.argnums}, but there are {len(args)} positional arguments")
        x = args[self.argnums]
        if not isinstance(x, Tensor):
            raise TypeError(f"{api}: expected argument {self.argnums} to be a tensor, got {type(x).__name__}")
        return x

    def output(self, api: str, result: Any) -> tuple[Tensor, Any]:
        """The output of the function as a vector, and its aux."""
        aux = None
        if self.has_aux:
            if not (isinstance(result, tuple) and len(result) == 2):
                raise RuntimeError(f"{api}: output of function f should be a tuple: (output, aux) if has_aux is True")
            result, aux = result
        if not isinstance(result, Tensor):
            raise TypeError(f"{api}: expected the function to return one tensor, got {type(result).__name__}")
        return result.reshape(-1), aux


def by_rows(
    api: str,
    func: Callable[..., Any],
    options: Options,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    seeds_of: SeedsOf,
) -> tuple[Tensor, Any]:
    """Seeds times the Jacobian, ``(seeds, columns)``, by reverse mode; and aux."""
    columns = options.chosen(api, args).numel()

    @functools.wraps(func)
    def weighted(*inner: Any, **named: Any) -> Any:
        flat, aux = options.output(api, func(*inner, **named))
        product = seeds_of(flat.numel(), columns, flat).matmul(flat)
        return (product, aux) if options.has_aux else product

    found = jacrev(weighted, options.argnums, has_aux=options.has_aux, **options.chunks)(*args, **kwargs)
    products, aux = found if options.has_aux else (found, None)
    return products.reshape(products.shape[0], columns), aux


def by_columns(
    api: str,
    func: Callable[..., Any],
    options: Options,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    seeds_of: SeedsOf,
) -> tuple[Tensor, Any]:
    """The Jacobian times seeds, ``(seeds, rows)``, by forward mode along each of them; and aux."""
    x = options.chosen(api, args)
    seeds = seeds_of(-1, x.numel(), x)

    @functools.wraps(func)
    def along(steps: Tensor) -> Any:
        inner = list(args)
        inner[options.argnums] = x + steps.matmul(seeds).reshape(x.shape)
        output, aux = options.output(api, func(*inner, **kwargs))
        return (output, aux) if options.has_aux else output

    found = jacfwd(along, 0, options.has_aux, **options.chunks)(seeds.new_zeros(len(seeds)))
    products, aux = found if options.has_aux else (found, None)
    return products.t(), aux
