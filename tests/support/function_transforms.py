"""Every transform that a Function is tested under, with what it should give: derivatives by plain autograd."""

from __future__ import annotations

import torch

import torch_func_compat as tfc

X = torch.tensor([0.4, 1.2, -0.7, 0.9], dtype=torch.float64)
BATCH = torch.stack([X, 2 * X.flip(0), X - 0.05])
BLOCK = torch.stack([BATCH, BATCH + 0.1])
U = torch.tensor([0.3, -0.2, 1.1, 0.7], dtype=torch.float64)
U2, U3 = U.flip(0) + 0.1, U.roll(1)


def rows(func):
    """The Jacobian by plain autograd, and differentiable again."""

    def jacobian(x):
        x = x if x.requires_grad else x.clone().requires_grad_()
        y = func(x)
        found = [
            torch.autograd.grad(e, x, create_graph=True, allow_unused=True)[0] if e.requires_grad else None
            for e in y.reshape(-1)
        ]
        found = [torch.zeros_like(x) if g is None else g for g in found]
        return torch.stack(found).reshape(y.shape + x.shape)

    return jacobian


_known = {}


class Case:
    """A kind, as the transforms below ask for it."""

    def __init__(self, name, kind):
        self.name = name
        self.f, self.reference = kind
        size = self.d(0).numel()
        self.V = torch.cos(torch.arange(1.0, size + 1, dtype=torch.float64))

    def scalar(self, x):
        return (self.f(x) * self.V).sum()

    def d(self, order, batch=X):
        """D^n of the reference, at one point or at many."""
        return self._known("f", self.reference, order, batch)

    def ds(self, order, batch=X):
        """The same of the scalar."""
        return self._known("scalar", lambda x: (self.reference(x) * self.V).sum(), order, batch)

    def _known(self, name, func, order, batch):
        if batch.dim() > 1:
            return torch.stack([self._known(name, func, order, sample) for sample in batch])
        key = self.name, name, order, tuple(batch.tolist())
        if key not in _known:
            for _ in range(order):
                func = rows(func)
            _known[key] = func(batch).detach()
        return _known[key]


def by_backward(case):
    x = X.clone().requires_grad_()
    case.scalar(x).backward()
    return x.grad


def by_double_backward(case):
    x = X.clone().requires_grad_()
    (first,) = torch.autograd.grad(case.scalar(x), x, create_graph=True)
    return torch.autograd.grad((first * U).sum(), x)[0]


def by_outer_backward(transform):
    """What plain autograd around a transform gives."""

    def result(case):
        x = X.clone().requires_grad_()
        return torch.autograd.grad(transform(case)(x).sum(), x)[0]

    return result


def directional(func, u):
    return lambda x: tfc.jvp(func, (x,), (u,))[1]


# name: (what the transform gives, what it should give)
TRANSFORMS = {
    "value": (lambda c: c.f(X), lambda c: c.d(0)),
    "backward": (by_backward, lambda c: c.ds(1)),
    "double backward": (by_double_backward, lambda c: c.ds(2) @ U),
    "vjp": (lambda c: tfc.vjp(c.f, X)[1](c.V)[0], lambda c: c.ds(1)),
    "jvp": (lambda c: tfc.jvp(c.f, (X,), (U,)), lambda c: (c.d(0), c.d(1) @ U)),
    "grad": (lambda c: tfc.grad(c.scalar)(X), lambda c: c.ds(1)),
    "grad of grad": (lambda c: tfc.grad(lambda x: tfc.grad(c.scalar)(x) @ U)(X), lambda c: c.ds(2) @ U),
    "jacrev": (lambda c: tfc.jacrev(c.f)(X), lambda c: c.d(1)),
    "jacfwd": (lambda c: tfc.jacfwd(c.f)(X), lambda c: c.d(1)),
    "hessian": (lambda c: tfc.hessian(c.scalar)(X), lambda c: c.ds(2)),
    "jacrev(jacrev)": (lambda c: tfc.jacrev(tfc.jacrev(c.f))(X), lambda c: c.d(2)),
    "jacrev(jacfwd)": (lambda c: tfc.jacrev(tfc.jacfwd(c.f))(X), lambda c: c.d(2)),
    "jacfwd(jacrev)": (lambda c: tfc.jacfwd(tfc.jacrev(c.f))(X), lambda c: c.d(2)),
    "jacfwd(jacfwd)": (lambda c: tfc.jacfwd(tfc.jacfwd(c.f))(X), lambda c: c.d(2)),
    "jvp(jvp)": (lambda c: directional(directional(c.f, U), U2)(X), lambda c: c.d(2) @ U2 @ U),
    "jvp(jvp(jvp))": (
        lambda c: directional(directional(directional(c.scalar, U), U2), U3)(X),
        lambda c: c.ds(3) @ U3 @ U2 @ U,
    ),
    "jacfwd(jacfwd(jacfwd))": (lambda c: tfc.jacfwd(tfc.jacfwd(tfc.jacfwd(c.scalar)))(X), lambda c: c.ds(3)),
    "jacrev(jacfwd(grad))": (lambda c: tfc.jacrev(tfc.jacfwd(tfc.grad(c.scalar)))(X), lambda c: c.ds(3)),
    "jvp(grad(jvp))": (
        lambda c: directional(tfc.grad(directional(c.scalar, U)), U2)(X),
        lambda c: c.ds(3) @ U2 @ U,
    ),
    "grad(hessian)": (lambda c: tfc.jacrev(tfc.hessian(c.scalar))(X), lambda c: c.ds(3)),
    "vmap": (lambda c: tfc.vmap(c.f)(BATCH), lambda c: c.d(0, BATCH)),
    "vmap of columns": (lambda c: tfc.vmap(c.f, in_dims=1, out_dims=1)(BATCH.t()), lambda c: c.d(0, BATCH).t()),
    "nested vmap": (lambda c: tfc.vmap(tfc.vmap(c.f))(BLOCK), lambda c: c.d(0, BLOCK)),
    "vmap with shared": (
        lambda c: tfc.vmap(lambda x, s: c.f(x) * s, in_dims=(None, 0))(X, U),
        lambda c: c.d(0) * U.unsqueeze(1),
    ),
    "vmap(grad)": (lambda c: tfc.vmap(tfc.grad(c.scalar))(BATCH), lambda c: c.ds(1, BATCH)),
    "nested vmap(grad)": (lambda c: tfc.vmap(tfc.vmap(tfc.grad(c.scalar)))(BLOCK), lambda c: c.ds(1, BLOCK)),
    "vmap(vjp_fn)": (
        lambda c: tfc.vmap(tfc.vjp(c.f, X)[1])(torch.stack([c.V, 2 * c.V]))[0],
        lambda c: torch.stack([c.ds(1), 2 * c.ds(1)]),
    ),
    "vmap(jvp)": (lambda c: tfc.vmap(directional(c.f, U))(BATCH), lambda c: c.d(1, BATCH) @ U),
    "vmap(jacrev)": (lambda c: tfc.vmap(tfc.jacrev(c.f))(BATCH), lambda c: c.d(1, BATCH)),
    "vmap(jacfwd)": (lambda c: tfc.vmap(tfc.jacfwd(c.f))(BATCH), lambda c: c.d(1, BATCH)),
    "vmap(hessian)": (lambda c: tfc.vmap(tfc.hessian(c.scalar))(BATCH), lambda c: c.ds(2, BATCH)),
    "vmap(jacfwd(jacfwd))": (lambda c: tfc.vmap(tfc.jacfwd(tfc.jacfwd(c.scalar)))(BATCH), lambda c: c.ds(2, BATCH)),
    "grad(vmap)": (lambda c: tfc.grad(lambda b: (tfc.vmap(c.f)(b) @ c.V).sum())(BATCH), lambda c: c.ds(1, BATCH)),
    "jvp(vmap)": (
        lambda c: tfc.jvp(tfc.vmap(c.f), (BATCH,), (U.expand(3, 4),))[1],
        lambda c: c.d(1, BATCH) @ U,
    ),
    "hessian(vmap)": (
        lambda c: tfc.hessian(lambda b: tfc.vmap(c.scalar)(b).sum())(BATCH)[1, :, 1],
        lambda c: c.ds(2, BATCH[1]),
    ),
    "jacfwd(vmap(grad))": (
        lambda c: tfc.jacfwd(tfc.vmap(tfc.grad(c.scalar)))(BATCH)[2, :, 2],
        lambda c: c.ds(2, BATCH[2]),
    ),
    "jvp(vmap(jvp))": (
        lambda c: tfc.jvp(tfc.vmap(directional(c.f, U)), (BATCH,), (U2.expand(3, 4),))[1],
        lambda c: c.d(2, BATCH) @ U2 @ U,
    ),
    "backward of jvp": (by_outer_backward(lambda c: directional(c.scalar, U)), lambda c: c.ds(2) @ U),
    "backward of grad": (by_outer_backward(lambda c: tfc.grad(c.scalar)), lambda c: c.ds(2).sum(0)),
    "backward of vmap": (
        by_outer_backward(lambda c: lambda x: tfc.vmap(c.scalar)(torch.stack([x, 2 * x]))),
        lambda c: c.ds(1) + 2 * c.ds(1, 2 * X),
    ),
}
