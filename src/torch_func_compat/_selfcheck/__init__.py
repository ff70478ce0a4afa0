"""Closed forms for every operator, which ``python -m`` on this package checks.

Everything here goes through the public transforms, as a user's call does, and leaves nothing behind.
"""

from __future__ import annotations

from typing import Any, Callable, Iterator, NamedTuple, Tuple

import torch
from torch import Tensor

from .._torch import facts
from ..autograd import batched, derivatives, internals, use_backend, use_fallback
from .comparison import difference as _difference
from .routes import Watch as _Watch

# The result of an operator and the expected one: pytrees of the same structure
Case = Tuple[Any, Any]


class Point(NamedTuple):
    """Where the operators are evaluated: two vectors and a batch of the first."""

    x: Tensor
    a: Tensor
    batch: Tensor

    @classmethod
    def on(cls, device: str) -> Point:
        dtype = dtype_on(device)
        x = torch.tensor([0.3, -0.7, 1.1], dtype=dtype, device=device)
        a = torch.tensor([0.5, 0.2, -0.4], dtype=dtype, device=device)
        return cls(x, a, torch.stack([x, a, x - a, 2 * x]))


def dtype_on(device: str) -> torch.dtype:
    """float64, which some accelerators lack."""
    return torch.float32 if device.startswith("mps") else torch.float64


def limit_on(device: str) -> float:
    """The largest error that rounding can cause in values of about one."""
    return 1e-4 if dtype_on(device) is torch.float32 else 1e-10


def energy(x: Tensor, a: Tensor) -> Tensor:
    """A scalar with known derivatives of every order: exp(a x)."""
    return torch.exp((a * x).sum())


def field(x: Tensor, a: Tensor) -> Tensor:
    """Three numbers, the last of which does not depend on `a`."""
    return torch.stack([energy(x, a), (a * torch.sin(x)).sum(), (x * x).sum()])


def field_jacobian(x: Tensor, a: Tensor) -> Tensor:
    return torch.stack([a * energy(x, a), a * torch.cos(x), 2 * x])


def field_jacobian_of_a(x: Tensor, a: Tensor) -> Tensor:
    return torch.stack([x * energy(x, a), torch.sin(x), torch.zeros_like(x)])


def _vmap(p: Point) -> Iterator[Case]:
    energies = torch.exp((p.batch * p.a).sum(1))
    yield internals.vmap(energy, in_dims=(0, None))(p.batch, p.a), energies
    fields = torch.stack([energies, (p.a * torch.sin(p.batch)).sum(1), (p.batch * p.batch).sum(1)])
    for chunk_size in (None, 3):
        mapped = internals.vmap(field, in_dims=(1, None), out_dims=1, chunk_size=chunk_size)
        yield mapped(p.batch.t(), p.a), fields
    yield internals.vmap(internals.grad(energy), in_dims=(0, None))(p.batch, p.a), energies[:, None] * p.a


def _vjp(p: Point) -> Iterator[Case]:
    output, pull = internals.vjp(field, p.x, p.a)
    gradients = (p.a @ field_jacobian(p.x, p.a), p.a @ field_jacobian_of_a(p.x, p.a))
    yield (output, pull(p.a)), (field(p.x, p.a), gradients)
    output, _, aux = internals.vjp(lambda x: (x.sum(), {"twice": 2 * x}), p.x, has_aux=True)
    yield (output, aux), (p.x.sum(), {"twice": 2 * p.x})


def _jvp(p: Point) -> Iterator[Case]:
    tangent = field_jacobian(p.x, p.a) @ p.a + field_jacobian_of_a(p.x, p.a) @ p.x
    yield internals.jvp(field, (p.x, p.a), (p.a, p.x)), (field(p.x, p.a), tangent)
    yield internals.jvp(lambda x: (x * x, x), (p.x,), (p.a,), has_aux=True), (p.x * p.x, 2 * p.x * p.a, p.x)


def _grad(p: Point) -> Iterator[Case]:
    e = energy(p.x, p.a)
    yield internals.grad(energy)(p.x, p.a), p.a * e
    yield internals.grad(energy, argnums=(-1, 0))(p.x, p.a), (p.x * e, p.a * e)
    yield internals.grad(lambda d: energy(d["x"], d["a"]))({"x": p.x, "a": p.a}), {"x": p.a * e, "a": p.x * e}
    cube = lambda s: s * s * s
    yield internals.grad(internals.grad(cube))(p.x.sum()), 6 * p.x.sum()


def _grad_and_value(p: Point) -> Iterator[Case]:
    e = energy(p.x, p.a)
    yield internals.grad_and_value(energy)(p.x, p.a), (p.a * e, e)
    with_aux = internals.grad_and_value(lambda x: (energy(x, p.a), x), has_aux=True)
    yield with_aux(p.x), (p.a * e, (e, p.x))


def _jacrev(p: Point) -> Iterator[Case]:
    both = (field_jacobian(p.x, p.a), field_jacobian_of_a(p.x, p.a))
    yield internals.jacrev(field)(p.x, p.a), both[0]
    for chunk_size in (1, 2):
        yield internals.jacrev(field, argnums=(0, 1), chunk_size=chunk_size)(p.x, p.a), both
    yield internals.jacrev(lambda x: (x * p.a, x), has_aux=True)(p.x), (torch.diag(p.a), p.x)


def _jacfwd(p: Point) -> Iterator[Case]:
    both = (field_jacobian(p.x, p.a), field_jacobian_of_a(p.x, p.a))
    yield internals.jacfwd(field)(p.x, p.a), both[0]
    for chunk_size in (None, 2):
        yield internals.jacfwd(field, argnums=(0, -1), chunk_size=chunk_size)(p.x, p.a), both
    mixed = torch.eye(3, dtype=p.x.dtype, device=p.x.device) + torch.ger(p.x, p.a)
    yield internals.jacfwd(internals.grad(energy, argnums=1))(p.x, p.a), mixed * energy(p.x, p.a)


def _hessian(p: Point) -> Iterator[Case]:
    e = energy(p.x, p.a)
    second = torch.ger(p.a, p.a) * e
    unit = torch.eye(3, dtype=p.x.dtype, device=p.x.device)
    yield internals.hessian(energy)(p.x, p.a), second
    yield internals.hessian(field)(p.x, p.a), torch.stack([second, torch.diag(-p.a * torch.sin(p.x)), 2 * unit])
    mixed = (unit + torch.ger(p.a, p.x)) * e
    blocks = ((second, mixed), (mixed.t(), torch.ger(p.x, p.x) * e))
    yield internals.hessian(energy, argnums=(0, 1), chunk_size=2)(p.x, p.a), blocks


def _second(p: Point) -> Tensor:
    """The Hessian of the energy by x."""
    return torch.ger(p.a, p.a) * energy(p.x, p.a)


def _jacobian(p: Point) -> Iterator[Case]:
    expected = internals.jacrev(field)(p.x, p.a)
    for mode in ("auto", "forward", "reverse"):
        yield derivatives.jacobian(field, mode=mode)(p.x, p.a), expected


def _value_and_jacobian(p: Point) -> Iterator[Case]:
    e = energy(p.x, p.a)
    yield derivatives.value_and_jacobian(energy)(p.x, p.a), (e, p.a * e)


def _value_grad_and_hessian(p: Point) -> Iterator[Case]:
    e = energy(p.x, p.a)
    yield derivatives.value_grad_and_hessian(energy)(p.x, p.a), (e, p.a * e, _second(p))


def _hvp(p: Point) -> Iterator[Case]:
    product = derivatives.hvp(lambda x: energy(x, p.a), (p.x,), (p.a,))
    yield product, (energy(p.x, p.a), (_second(p) @ p.a,))


def _vhp(p: Point) -> Iterator[Case]:
    product = derivatives.vhp(lambda x: energy(x, p.a), (p.x,), (p.a,))
    yield product, (energy(p.x, p.a), (_second(p) @ p.a,))


def _hessian_diagonal(p: Point) -> Iterator[Case]:
    yield derivatives.hessian_diagonal(energy)(p.x, p.a), _second(p).diagonal()


def _laplacian(p: Point) -> Iterator[Case]:
    yield derivatives.laplacian(energy, mode="rows")(p.x, p.a), _second(p).diagonal().sum()
    yield derivatives.laplacian(energy, mode="forward")(p.x, p.a), _second(p).diagonal().sum()


def _linearize(p: Point) -> Iterator[Case]:
    output, jvp_fn = internals.linearize(lambda x: energy(x, p.a), p.x)
    yield (output, jvp_fn(p.a)), (energy(p.x, p.a), (p.a * energy(p.x, p.a)) @ p.a)


def _energies(p: Point) -> Callable[[Tensor], Tensor]:
    """`energy` of a batch."""
    return lambda batch: torch.exp((batch * p.a).sum(1))


def _batch_jacobian(p: Point) -> Iterator[Case]:
    e = torch.exp((p.batch * p.a).sum(1))
    for mode in ("auto", "forward", "reverse"):
        found = batched.batch_jacobian(_energies(p), mode=mode, check=mode == "auto")(p.batch)
        yield found, e[:, None] * p.a


def _batch_hessian(p: Point) -> Iterator[Case]:
    e = torch.exp((p.batch * p.a).sum(1))
    yield batched.batch_hessian(_energies(p))(p.batch), e[:, None, None] * torch.ger(p.a, p.a)


def _batch_hvp(p: Point) -> Iterator[Case]:
    e = torch.exp((p.batch * p.a).sum(1))
    found = batched.batch_hvp(_energies(p), (p.batch,), (p.batch,))
    yield found, (e, (e[:, None] * (p.batch @ p.a)[:, None] * p.a,))


def _batch_hessian_diagonal(p: Point) -> Iterator[Case]:
    e = torch.exp((p.batch * p.a).sum(1))
    yield batched.batch_hessian_diagonal(_energies(p))(p.batch), e[:, None] * p.a**2


def _batch_laplacian(p: Point) -> Iterator[Case]:
    e = torch.exp((p.batch * p.a).sum(1))
    yield batched.batch_laplacian(_energies(p), mode="rows")(p.batch), e * (p.a**2).sum()
    yield batched.batch_laplacian(_energies(p), mode="forward")(p.batch), e * (p.a**2).sum()


def _bjacrev(p: Point) -> Iterator[Case]:
    yield batched.bjacrev(torch.sin)(p.batch), torch.diag_embed(torch.cos(p.batch))


# The first case of each is the plain call, which `answered_by` looks at.
CHECKS: dict[str, Callable[[Point], Iterator[Case]]] = {
    "vmap": _vmap,
    "vjp": _vjp,
    "jvp": _jvp,
    "grad": _grad,
    "grad_and_value": _grad_and_value,
    "jacrev": _jacrev,
    "jacfwd": _jacfwd,
    "hessian": _hessian,
    "linearize": _linearize,
    "jacobian": _jacobian,
    "value_and_jacobian": _value_and_jacobian,
    "value_grad_and_hessian": _value_grad_and_hessian,
    "hvp": _hvp,
    "vhp": _vhp,
    "hessian_diagonal": _hessian_diagonal,
    "laplacian": _laplacian,
    "batch_jacobian": _batch_jacobian,
    "batch_hessian": _batch_hessian,
    "batch_hvp": _batch_hvp,
    "batch_hessian_diagonal": _batch_hessian_diagonal,
    "batch_laplacian": _batch_laplacian,
    "bjacrev": _bjacrev,
}


def largest_error(operator: str, backend: str, device: str) -> float:
    """Largest deviation of `operator` from its closed forms, NaN included; raises what the operator raises."""
    # Without the fallback, so that no other backend answers for this one.
    with use_backend(backend), use_fallback("error"):
        errors = [_difference(*case) for case in CHECKS[operator](Point.on(device))]
    return max(errors, key=lambda error: float("inf") if error != error else error)


def answered_by(operator: str, backend: str, device: str = "cpu") -> str:
    """The route that a plain call of `operator` takes, observed while it runs.

    Returns
    -------
    str
        ``"native"``: torch's own transform. ``"vectorised rows"``: rows of the derivative in one batched backward
        pass. ``"looped"``: samples or rows one by one. ``"derived"``: another composition of the backend's
        primitives. ``"raised"`` with the type of the error where it fails.
    """
    # A watched frame keeps its variables alive, and a probe may mistake that for torch's doing: probe first.
    for fact in facts.FACTS:
        facts.has(fact)
    point, watch = Point.on(device), _Watch()
    with use_backend(backend), use_fallback("error"):
        try:
            next(CHECKS[operator](point))  # a first call imports much of torch, which would take long to watch
            with watch:
                next(CHECKS[operator](point))
        # An operator may raise anything, and the report names it.
        except Exception as error:  # noqa: BLE001
            return f"raised {type(error).__name__}"
    return watch.route
