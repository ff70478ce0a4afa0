"""The same for matrices, regular, singular, degenerate and complex, and for distances."""

from __future__ import annotations

from typing import Any

import torch
from arguments import (
    D,
    Kind,
    add,
    complex_,
    complex_matrix,
    degenerate,
    each,
    factor,
    gram,
    hermitian,
    matrix,
    normal,
    singular,
    symmetric,
    zeros,
)


def squares(values: Any) -> Any:
    return (values * values).sum()


def exponential(values_and_vectors: Any) -> Any:
    w, q = values_and_vectors
    return (q * w.exp().to(q.dtype)) @ q.conj().transpose(-2, -1)


def product(factors: Any) -> Any:
    u, s, v = factors
    return (u * s.to(u.dtype)) @ v


def _matrices() -> None:
    L: Any = torch.linalg
    a, b, v, z = matrix(3), normal(3, 2), normal(3), complex_matrix(3)
    real = b, v, normal(2, 3)
    shared = torch.tensor([[2.0, 1], [0, 3]], dtype=D)
    for name, at_ in (("", a), (" singular", singular(3)), (" complex", z), (" of zeros", zeros(3, 3))):
        add(f"det{name}", lambda a: torch.det(a), at_)
        add(f"linalg_det{name}", lambda a: L.det(a), at_)
    for name, at_, (b, v, w) in (("", a, real), (" complex", z, (complex_(3, 2), complex_(3), complex_(2, 3)))):
        add(f"slogdet{name}", lambda a: torch.slogdet(a)[1], at_)
        add(f"linalg_slogdet{name}", lambda a: L.slogdet(a), at_)
        each(
            f"inverse{name}",
            (at_,),
            lambda a: torch.inverse(a),
            lambda a: torch.linalg.inv(a),
            lambda a: torch.linalg.pinv(a),
            lambda a: torch.pinverse(a),
        )
        add(f"linalg_solve{name}", lambda a, b: L.solve(a, b), at_, b)
        add(f"linalg_solve of a vector{name}", lambda a, b: L.solve(a, b), at_, v)
        add(f"linalg_solve_ex{name}", lambda a, b: L.solve_ex(a, b)[0], at_, b)
        add(f"linalg_solve from the right{name}", lambda a, b: L.solve(a, b, left=False), at_, w)
        add(f"linalg_lu{name}", lambda a: L.lu(a)[1:], at_)
        add(f"linalg_lu_factor{name}", lambda a: L.lu_factor(a)[0], at_)
        add(f"linalg_lu_solve{name}", lambda a, b: L.lu_solve(*L.lu_factor(a), b), at_, b)
        add(f"lu_solve{name}", lambda a, b: torch.lu_solve(b, *torch.linalg.lu_factor(a)), at_, b)
        add(f"linalg_cholesky{name}", lambda a: L.cholesky(hermitian(a) @ hermitian(a)), at_)
        solve = lambda a, b: torch.cholesky_solve(b, a.tril())
        add(f"cholesky_solve{name}", solve, factor(3) if not name else at_, b)
        add(
            f"cholesky_solve upper{name}",
            lambda a, b: torch.cholesky_solve(b, a.triu(), upper=True),
            at_,
            b,
        )
        add(f"cholesky_inverse{name}", lambda a: torch.cholesky_inverse(a.tril()), at_)
        add(f"triangular_solve{name}", lambda a, b: torch.triangular_solve(b, a)[0], at_, b)
        triangular = lambda a, b: torch.triangular_solve(b, a, upper=False, transpose=True)[0]
        add(f"triangular_solve lower{name}", triangular, at_, b)
        unit = lambda a, b: torch.triangular_solve(b, a, unitriangular=True)[0]
        add(f"triangular_solve unit{name}", unit, at_, b)
        add(f"linalg_solve_triangular{name}", lambda a, b: L.solve_triangular(a, b, upper=True), at_, b)
        add(f"linalg_qr{name}", lambda a: L.qr(a)[1], at_, finish=abs)
        add(f"qr{name}", lambda a: torch.qr(a)[1], at_, finish=abs)
        add(f"linalg_eigvalsh{name}", lambda a: L.eigvalsh(hermitian(a)), at_)
        add(f"linalg_eigh of a function{name}", lambda a: L.eigh(hermitian(a)), at_, finish=exponential)
        add(f"linalg_svdvals{name}", lambda a: L.svdvals(a), at_)
        add(
            f"linalg_svd{name}", lambda a: L.svd(a), at_, finish=lambda usv: (usv[0] * usv[1].to(usv[0].dtype)) @ usv[2]
        )
        add(f"linalg_eig of a trace{name}", lambda a: L.eig(a)[0], at_, finish=squares)
        add(f"linalg_eigvals{name}", lambda a: L.eigvals(a), at_, finish=squares)
        add(f"linalg_matrix_exp{name}", lambda a: torch.matrix_exp(a / 4), at_)
        each(
            f"power{name}",
            (at_,),
            lambda a: torch.linalg.matrix_power(a, 3),
            lambda a: torch.linalg.matrix_power(a, -1),
        )
        add(f"linalg_householder_product{name}", lambda a, v: L.householder_product(a, v), at_, v)
        add(f"ormqr{name}", lambda a, v, b: torch.ormqr(a, v, b), at_, v, b)
        add(
            f"linalg_matrix_norm{name}", lambda a: (L.matrix_norm(a), L.matrix_norm(a, "nuc"), L.matrix_norm(a, 2)), at_
        )
        add(f"linalg_cond{name}", lambda a: L.cond(a), at_)
        add(f"linalg_multi_dot{name}", lambda a, b: L.multi_dot([a, a, b]), at_, b)
        add(f"kron{name}", lambda a, b: torch.kron(a, b), at_, b)
        add(f"linalg_lstsq{name}", lambda a, b: L.lstsq(a, b)[0], at_, b)
    b, v, _ = real
    many: Kind = lambda g: (torch.randn(2, 3, 3, generator=g, dtype=D) + 3 * torch.eye(3, dtype=D), True)
    solvers: dict[str, Any] = {
        "linalg_solve": lambda a, b: L.solve(a, b),
        "linalg_solve_triangular": lambda a, b: L.solve_triangular(a, b, upper=False),
        "linalg_lu_solve": lambda a, b: L.lu_solve(*L.lu_factor(a), b),
        "lu_solve": lambda a, b: torch.lu_solve(b, *L.lu_factor(a)),
        "cholesky_solve": lambda a, b: torch.cholesky_solve(b, a.tril()),
        "triangular_solve": lambda a, b: torch.triangular_solve(b, a)[0],
        "matmul": lambda a, b: torch.matmul(a, b),
    }
    for name, solver in solvers.items():
        add(f"{name} by a batch", solver, many, b)
        add(f"{name} of a batch", solver, a, lambda g: (torch.randn(2, 3, 2, generator=g, dtype=D), True))
        add(f"{name} by a batch of a batch", solver, many, lambda g: (torch.randn(2, 3, 2, generator=g, dtype=D), True))
    # Where all sizes coincide, a right-hand side can be taken for vectors.
    square: Kind = lambda g: (torch.randn(2, 2, 2, generator=g, dtype=D) + 3 * torch.eye(2, dtype=D), True)
    for name, solver in solvers.items():
        add(f"{name} where sizes coincide", solver, square, normal(2, 2))
        add(f"{name} where batches coincide", solver, square, normal(2, 2, 2))
    each(
        "many",
        (many,),
        lambda a: torch.cholesky_inverse(a.tril()),
        lambda a: torch.inverse(a),
        lambda a: torch.logdet(gram(a)),
        lambda a: torch.slogdet(a)[1],
        lambda a: L.cholesky(gram(a)),
        lambda a: L.eigvalsh(symmetric(a)),
        lambda a: L.matrix_exp(a / 4),
        lambda a: L.matrix_norm(a),
    )
    add("cholesky", lambda a: torch.cholesky(gram(a)), a)
    add("logdet", lambda a: torch.logdet(gram(a)), a)
    add("linalg_solve of a shared matrix", lambda b: L.solve(shared, b), normal(2))
    add("linalg_tensorsolve", lambda a, b: L.tensorsolve(a.reshape(2, 2, 4), b), matrix(4), normal(2, 2))
    add("linalg_tensorinv", lambda a: L.tensorinv(a.reshape(2, 2, 2, 2)), matrix(4))
    add("linalg_eigvalsh degenerate", lambda a: L.eigvalsh(symmetric(a)), degenerate, finish=squares)
    add("linalg_svdvals degenerate", lambda a: L.svdvals(a), degenerate, finish=squares)
    add("linalg_matrix_norm at zero", lambda a: L.matrix_norm(a), zeros(3, 3))
    add("linalg_cross", lambda v, w: (L.cross(v, w), torch.cross(v, w, dim=-1)), v, v)
    add("det of a batch", lambda a: torch.det(a), lambda g: (torch.randn(2, 3, 3, generator=g, dtype=D), True))
    add("cdist", lambda x, y: torch.cdist(x, y), normal(3, 2), normal(4, 2))
    for p in (0.5, 1.0, 3.0, float("inf")):
        add(f"cdist p={p}", lambda x, y, p=p: torch.cdist(x, y, p), normal(3, 2), normal(4, 2))
    add("cdist of itself", lambda x: torch.cdist(x, x), normal(3, 2))
    add("cdist of many", lambda x, y: torch.cdist(x, y), normal(26, 2), normal(26, 2))
    for p in (1.0, 2.0, 3.0):
        add(f"pdist p={p}", lambda x, p=p: torch.pdist(x, p), normal(4, 2))
    add("pdist coincident", lambda x: torch.pdist(torch.cat([x, x])), normal(2, 2))
    add(
        "einsum",
        lambda x, y: (torch.einsum("ij,jk->ik", x, y), torch.einsum("ij,jk->", x, y)),
        normal(2, 3),
        normal(3, 2),
    )
    add("einsum of a diagonal", lambda x: torch.einsum("ii->i", x), normal(3, 3))
    add("tensordot", lambda x, y: torch.tensordot(x, y, dims=([0], [1])), normal(2, 3), normal(3, 2))
    add("bmm", lambda x, y: (torch.bmm(x, y), x @ y), normal(2, 3, 2), normal(2, 2, 3))
    each(
        "product of vectors",
        (
            v,
            v,
        ),
        lambda x, y: x @ y,
        lambda x, y: torch.outer(x, y),
        lambda x, y: torch.dot(x, y),
        lambda x, y: torch.inner(x, y),
        lambda x, y: torch.vdot(x, y),
    )
    each(
        "product of a matrix and a vector",
        (
            a,
            v,
        ),
        lambda a, v: torch.mv(a, v),
        lambda a, v: a @ v,
        lambda a, v: v @ a,
        lambda a, v: torch.mm(a, a),
        lambda a, v: torch.addmm(a, a, a),
    )
    add("baddbmm", lambda c, x, y: torch.baddbmm(c, x, y, beta=0.5), normal(2, 3, 3), normal(2, 3, 2), normal(2, 2, 3))


_matrices()
