"""Diagonals and traces of Hessians from random vectors, for ``estimator='hutchinson'``."""

from __future__ import annotations

import functools
from typing import Any, Callable

import torch
from torch import Tensor

from .._arguments.call import Argnums, positions
from .._torch import pytree
from .._torch.tensors import movedim
from .estimators import check_samples, mean_and_error, rademacher
from .internals import grad, jacrev, jvp, vmap

ESTIMATORS = ("exact", "hutchinson")


def check_estimator(api: str, estimator: str, samples: int) -> bool:
    """Whether an estimate is asked for; raises ValueError for an unknown estimator."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"{api}: unknown estimator {estimator!r}, expected one of {', '.join(map(repr, ESTIMATORS))}")
    if estimator == "exact":
        return False
    check_samples(api, samples)
    return True


class _Call:
    """One call of a function, as a function of its differentiated tensors."""

    def __init__(
        self,
        func: Callable[..., Any],
        argnums: Argnums,
        has_aux: bool,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._func, self._has_aux, self._args, self._kwargs = func, has_aux, args, kwargs
        self._chosen = positions(argnums, len(args))
        self.single = isinstance(argnums, int)
        leaves, self._spec = pytree.flatten([args[i] for i in self._chosen])
        self.primals = tuple(leaves)
        self.all = tuple(range(len(self.primals)))

    def full(self, *primals: Tensor) -> Any:
        """The result of the function."""
        args = list(self._args)
        for i, value in zip(self._chosen, pytree.unflatten(primals, self._spec)):
            args[i] = value
        return self._func(*args, **self._kwargs)

    def tensors(self, *primals: Tensor) -> tuple[Tensor, ...]:
        """The tensors of its output."""
        result = self.full(*primals)
        return tuple(pytree.flatten(result[0] if self._has_aux else result)[0])

    def look(self) -> tuple[list[Tensor], Any, Any]:
        """Tensors and structure of the output, and aux, from an evaluation of its own."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._has_aux):
            result = self.full(*self.primals)
        output, aux = result if self._has_aux else (result, None)
        return (*pytree.flatten(output), aux)

    def by_arguments(self, blocks: list[Tensor]) -> Any:
        """A tensor for each of those that are differentiated, in the structure of the arguments."""
        found = pytree.unflatten(blocks, self._spec)
        return found[0] if self.single else tuple(found)

    def draw(self, samples: int, generator: torch.Generator | None) -> list[Tensor]:
        """Random signs for each of them."""
        return [rademacher((samples, *primal.shape), primal, generator) for primal in self.primals]

    def products(self, vectors: list[Tensor], chunks: dict[str, Any]) -> tuple[Tensor, ...]:
        """The Hessian of one output times each of the vectors: one evaluation, and a row for each."""

        def number(*primals: Tensor) -> Tensor:
            return self.tensors(*primals)[0].sum()

        def weighted(*primals: Tensor) -> Tensor:
            gradients = grad(number, self.all)(*primals)
            products = [v.reshape(len(v), -1).matmul(g.reshape(-1)) for v, g in zip(vectors, gradients)]
            return torch.stack(products).sum(0)

        found = jacrev(weighted, self.all, **chunks)(*self.primals)
        # a subclass may multiply in its own way
        return tuple([x if type(x) is Tensor else x.as_subclass(Tensor) for x in found])


def diagonal(
    func: Callable[..., Any],
    argnums: Argnums,
    has_aux: bool,
    samples: int,
    generator: torch.Generator | None,
    chunks: dict[str, Any],
) -> Callable[..., Any]:
    """See `hessian_diagonal`."""

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call = _Call(func, argnums, has_aux, args, kwargs)
        outputs, spec, aux = call.look()
        vectors = call.draw(samples, generator)
        if sum(output.numel() for output in outputs) == 1:
            rows = [[v * p for v, p in zip(vectors, call.products(vectors, chunks))]]
        else:

            def along(*vector: Tensor) -> Any:
                slope = lambda *primals: jvp(call.tensors, primals, vector)[1]
                blocks = jacrev(slope, call.all)(*call.primals)
                return tuple(tuple(block * v for block, v in zip(row, vector)) for row in blocks)

            rows = [list(row) for row in vmap(along, **chunks)(*vectors)]
        means, errors = [], []
        for output, row in zip(outputs, rows):
            shapes = [output.shape + primal.shape for primal in call.primals]
            pairs = [mean_and_error(values.reshape(samples, *shape)) for values, shape in zip(row, shapes)]
            means.append(call.by_arguments([mean for mean, _ in pairs]))
            errors.append(call.by_arguments([error for _, error in pairs]))
        found, error = pytree.unflatten(means, spec), pytree.unflatten(errors, spec)
        return found, ((error, aux) if has_aux else error)

    return wrapped


def trace(
    func: Callable[..., Any],
    argnums: Argnums,
    has_aux: bool,
    samples: int,
    generator: torch.Generator | None,
    chunks: dict[str, Any],
) -> Callable[..., Any]:
    """See `laplacian`."""

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call = _Call(func, argnums, has_aux, args, kwargs)
        outputs, spec, aux = call.look()
        vectors = call.draw(samples, generator)
        if sum(output.numel() for output in outputs) == 1:
            products = call.products(vectors, chunks)
            parts = [(v * p).reshape(samples, -1).sum(1) for v, p in zip(vectors, products)]
            values = [torch.stack(parts).sum(0)]
        else:

            def along(*vector: Tensor) -> Any:
                slope = lambda *primals: jvp(call.tensors, primals, vector)[1]
                return jvp(slope, call.primals, vector)[1]

            values = list(vmap(along, **chunks)(*vectors))
        pairs = [mean_and_error(value.reshape(samples, *output.shape)) for value, output in zip(values, outputs)]
        found, error = (pytree.unflatten([pair[k] for pair in pairs], spec) for k in (0, 1))
        return found, ((error, aux) if has_aux else error)

    return wrapped


def batch_trace(
    product: Callable[..., Any],
    func: Callable[..., Any],
    argnums: Argnums,
    in_dims: Any,
    has_aux: bool,
    check: bool | None,
    samples: int,
    generator: torch.Generator | None,
) -> Callable[..., Any]:
    """See `batch_laplacian`; `product` is `batch_hvp`."""

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        chosen = positions(argnums, len(args))

        def of_chosen(*primals: Any) -> Any:
            inner = list(args)
            for i, value in zip(chosen, primals):
                inner[i] = value
            return func(*inner, **kwargs)

        primals = tuple(args[i] for i in chosen)
        dims = tuple(in_dims[i] for i in chosen) if isinstance(in_dims, tuple) else (in_dims,) * len(chosen)
        leaves, spec = pytree.flatten(primals)
        axes: list[Any] = pytree.broadcast_prefix(dims, spec) or []
        drawn = [rademacher((samples, *leaf.shape), leaf, generator) for leaf in leaves]
        values: list[list[Tensor]] = []
        structure, aux = spec, None
        for k in range(samples):
            signs = [vectors[k] for vectors in drawn]
            output, found, *rest = product(
                of_chosen,
                primals,
                pytree.unflatten(signs, spec),
                in_dims=dims,
                has_aux=has_aux,
                check=check if k == 0 else False,
            )
            outputs, structure = pytree.flatten(output)
            aux = rest[0] if rest else None
            blocks, _ = pytree.flatten(found)
            each = []
            for n, out in enumerate(outputs):
                its = blocks[n * len(signs) : (n + 1) * len(signs)]
                parts = [_contracted(block, sign, axis, out.dim()) for block, sign, axis in zip(its, signs, axes)]
                each.append(torch.stack(parts).sum(0))
            values.append(each)
        pairs = [mean_and_error(torch.stack(list(column))) for column in zip(*values)]
        means, errors = (pytree.unflatten([pair[k] for pair in pairs], structure) for k in (0, 1))
        return means, ((errors, aux) if has_aux else errors)

    return wrapped


def _contracted(block: Tensor, sign: Tensor, axis: int, dimensions: int) -> Tensor:
    """The sum over a sample's input of a product ``(B, *output, *input)`` times its signs, ``(B, *output)``."""
    samples, shape = sign.shape[axis], block.shape[:dimensions]
    flat = movedim(sign, axis, 0).reshape(samples, *[1] * (dimensions - 1), -1)
    return (block.reshape(*shape, -1) * flat).sum(-1)
