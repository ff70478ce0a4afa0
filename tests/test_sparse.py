"""Sparse Jacobians and Hessians against dense ones and closed forms; that nothing outside a pattern goes unnoticed."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat.sparse import (
    Pattern,
    coloring,
    detect_pattern,
    neighbor_pattern,
    sparse_hessian,
    sparse_jacobian,
)

D = torch.float64
SIZE = 20
U = torch.linspace(-1, 1, SIZE, dtype=D)
BANDS = torch.ones(SIZE, SIZE).triu(-1).tril(1) > 0
HAS_CSR = hasattr(torch, "sparse_csr_tensor")
LAYOUTS = ("coo", "dense", "values", *(["csr"] if HAS_CSR else []))
ATOMS = 8
FIRST, SECOND = torch.arange(ATOMS - 1), torch.arange(ATOMS - 2)
CHAIN = neighbor_pattern(torch.cat([FIRST, SECOND]), torch.cat([FIRST + 1, SECOND + 2]), ATOMS)


def reaction(u):
    """u_xx + u^3 on a line, with zeros at its ends."""
    padded = torch.cat([u.new_zeros(1), u, u.new_zeros(1)])
    return padded[2:] - 2 * u + padded[:-2] + u**3


def reaction_jacobian(u):
    return (
        torch.diag(3 * u**2 - 2)
        + torch.ones(len(u), len(u), dtype=u.dtype).triu(-1).tril(1)
        - torch.eye(len(u), dtype=u.dtype)
    )


def chain(x):
    """Bonds, angles and repulsion of next nearest neighbors."""
    x = x.reshape(-1, 3)
    bonds, across = x[1:] - x[:-1], x[2:] - x[:-2]
    return (
        (bonds.pow(2).sum(-1) - 1).pow(2).sum()
        + (bonds[1:] * bonds[:-1]).sum(-1).pow(2).sum()
        + (1 / (across.pow(2).sum(-1) + 1)).sum()
    )


def positions(seed=0):
    return torch.randn(3 * ATOMS, generator=torch.Generator().manual_seed(seed), dtype=D)


def as_dense(matrix, pattern, layout):
    if layout == "values":
        return matrix.new_zeros(pattern.shape).index_put((pattern.rows, pattern.columns), matrix)
    return matrix if layout == "dense" else matrix.to_dense()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ("auto", "forward", "reverse"))
def test_jacobian(backend, mode, layout):
    jacobian = sparse_jacobian(reaction, BANDS, mode=mode, layout=layout)
    pattern = coloring(BANDS).pattern
    for u in (U, 2 * U):  # checked, then not
        assert_close(as_dense(jacobian(u), pattern, layout), reaction_jacobian(u))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hessian(backend, layout):
    hessian = sparse_hessian(chain, CHAIN, layout=layout)
    for x in (positions(), positions(1)):
        dense = as_dense(hessian(x), CHAIN, layout)
        assert_close(dense, tfc.hessian(chain)(x), rtol=1e-11, atol=1e-11)
        assert torch.equal(dense, dense.t())


def test_layouts_are_what_they_say(backend):
    coo = sparse_jacobian(reaction, BANDS)(U)
    assert coo.layout == torch.sparse_coo
    assert coo.is_coalesced()
    assert coo.shape == (SIZE, SIZE)
    assert coo.dtype == D
    if HAS_CSR:
        assert sparse_jacobian(reaction, BANDS, layout="csr")(U).layout == torch.sparse_csr


def test_values_are_in_the_order_of_the_pattern(backend):
    order = torch.randperm(int(BANDS.sum()), generator=torch.Generator().manual_seed(0))
    rows, columns = BANDS.nonzero()[order].t()
    for pattern in ((rows, columns), Pattern(rows, columns, (SIZE, SIZE))):
        values = sparse_jacobian(reaction, pattern, layout="values")(U)
        assert_close(values, reaction_jacobian(U)[rows, columns])
        for layout in LAYOUTS:
            if layout != "values":
                dense = as_dense(sparse_jacobian(reaction, pattern, layout=layout)(U), None, layout)
                assert_close(dense, reaction_jacobian(U))


def test_scipy():
    scipy_sparse = pytest.importorskip("scipy.sparse")
    pattern = coloring(BANDS).pattern
    values = sparse_jacobian(reaction, pattern, layout="values")(U)
    found = pattern.to_scipy(values)
    assert isinstance(found, scipy_sparse.coo_matrix)
    assert abs(found.toarray() - reaction_jacobian(U).numpy()).max() < 1e-12
    with pytest.raises(ValueError, match="expected 58 values"):
        pattern.to_scipy(values[1:])


@pytest.mark.parametrize("mode", ("forward", "reverse"))
def test_one_evaluation_and_one_product_for_each_color(backend, mode):
    calls = []

    def counted(u):
        calls.append(1)
        return reaction(u)

    colored = coloring(BANDS, mode)
    assert colored.count == 3
    jacobian = sparse_jacobian(counted, colored)
    with tfc.use_checks("off"):  # the first call of forward mode is evaluated once more, where it is not proven
        jacobian(U)
        assert len(calls) == 1  # with its check
        jacobian(U)
        assert len(calls) == 2
        calls.clear()
        sparse_hessian(lambda x: (calls.append(1), chain(x))[1], CHAIN)(positions())
        assert len(calls) == 1


@pytest.mark.parametrize("chunk_size", (1, 2, "auto"))
def test_chunks(backend, chunk_size):
    for mode in ("forward", "reverse"):
        jacobian = sparse_jacobian(reaction, BANDS, mode=mode, layout="dense", chunk_size=chunk_size)
        assert_close(jacobian(U), reaction_jacobian(U))
    dense = sparse_hessian(chain, CHAIN, layout="dense", chunk_size=chunk_size)(positions())
    assert_close(dense, tfc.hessian(chain)(positions()))


def test_shapes_argnums_and_aux(backend):
    factors = torch.arange(1.0, 7.0, dtype=D).reshape(2, 3)
    x = torch.randn(2, 3, dtype=D)

    def scaled(factor, x, power=2):
        return (factor * x**power).t(), {"sum": x.sum()}

    diagonal = torch.zeros(6, 6, dtype=D)
    for i in range(2):
        for j in range(3):
            diagonal[2 * j + i, 3 * i + j] = factors[i, j] * 3 * x[i, j] ** 2
    for mode in ("forward", "reverse"):
        for argnums in (1, -1):
            found = sparse_jacobian(scaled, diagonal != 0, argnums, has_aux=True, mode=mode, layout="dense")
            matrix, aux = found(factors, x, power=3)
            assert_close(matrix, diagonal)
            assert_close(aux["sum"], x.sum())
    cubes = sparse_hessian(lambda f, x: ((f * x**3).sum(), f.sum()), torch.eye(6) > 0, 1, has_aux=True, layout="values")
    values, aux = cubes(factors, x)
    assert_close(values, (6 * factors * x).reshape(-1))
    assert_close(aux, factors.sum())


def test_derivatives_of_it(backend):
    weights = torch.randn(SIZE, SIZE, dtype=D)
    # of sum(w * J), where J depends on u by the diagonal, 3 u^2
    expected = 6 * U * weights.diagonal()

    def weighted(layout, mode, u):
        matrix = sparse_jacobian(reaction, BANDS, layout=layout, mode=mode)(u)
        return (as_dense(matrix, coloring(BANDS).pattern, layout) * weights).sum()

    for mode in ("forward", "reverse"):
        for layout in ("values", "dense", "coo"):
            assert_close(tfc.grad(lambda u, layout=layout, mode=mode: weighted(layout, mode, u))(U), expected)
            u = U.clone().requires_grad_()
            assert_close(torch.autograd.grad(weighted(layout, mode, u), u)[0], expected)
    jacobian = tfc.jacfwd(sparse_jacobian(reaction, torch.eye(SIZE) > 0, layout="values", check=False))
    assert_close(jacobian(U), torch.diag(6 * U))


def test_derivatives_by_what_is_closed_over(backend):
    strength = torch.tensor(1.5, dtype=D, requires_grad=True)
    values = sparse_hessian(lambda x: strength**2 * chain(x), CHAIN, layout="values")(positions())
    (found,) = torch.autograd.grad(values.sum(), strength)
    assert_close(found, 2 * 1.5 * tfc.hessian(chain)(positions()).sum())


@pytest.mark.parametrize("layout", ("values", "dense"))
def test_vmap(backend, layout):
    many = torch.stack([positions(seed) for seed in range(3)])
    with tfc.use_fallback("error"):
        found = tfc.vmap(sparse_hessian(chain, CHAIN, layout=layout))(many)
    for x, its in zip(many, found):
        assert_close(as_dense(its, CHAIN, layout), tfc.hessian(chain)(x))
    us = torch.stack([U, 2 * U])
    for mode in ("forward", "reverse"):
        found = tfc.vmap(sparse_jacobian(reaction, BANDS, mode=mode, layout="dense"))(us)
        assert_close(found, torch.stack([reaction_jacobian(u) for u in us]))


def test_nested(backend):
    """Within transforms within transforms, right and checked."""

    def cubic(x):
        bonds = (x[1:] - x[:-1]) ** 3
        return bonds.sum() + (x**4).sum()

    line = neighbor_pattern(torch.arange(5), torch.arange(1, 6), 6, block_size=1)
    lacking = neighbor_pattern(torch.arange(4), torch.arange(1, 5), 6, block_size=1)
    xs = torch.randn(3, 6, dtype=D)
    nestings = (
        lambda f: tfc.vmap(tfc.grad(lambda x: (f(x) ** 2).sum()))(xs),
        lambda f: tfc.grad(lambda xs: (tfc.vmap(f)(xs) ** 2).sum())(xs),
        lambda f: tfc.vmap(tfc.vmap(f))(xs[None]),
        lambda f: tfc.vmap(tfc.jacfwd(f))(xs),
        lambda f: tfc.grad(lambda x: tfc.grad(lambda x: (f(x) ** 2).sum())(x).sum())(xs[0]),
    )
    with tfc.use_fallback("silent"):
        for nesting in nestings:
            expected = nesting(lambda x: tfc.hessian(cubic)(x)[line.rows, line.columns])
            assert_close(nesting(sparse_hessian(cubic, line, layout="values")), expected)
            with pytest.raises(RuntimeError, match="outside the pattern"):
                nesting(sparse_hessian(cubic, lacking, layout="values"))


def test_what_was_made_within_a_transform_serves_without(backend):
    hessian = sparse_hessian(chain, CHAIN, layout="values")
    expected = tfc.hessian(chain)(positions())[CHAIN.rows, CHAIN.columns]
    many = torch.stack([positions(), positions(1)])
    with tfc.use_fallback("silent"):
        tfc.grad(lambda x: hessian(x).sum())(positions())
        assert_close(hessian(positions()), expected)
        assert_close(tfc.vmap(hessian)(many)[0], expected)
    made = []

    def within(u):
        made.append(sparse_jacobian(reaction, BANDS, layout="values"))
        return made[0](u).sum()

    tfc.grad(within)(U)
    assert_close(made[0](U), reaction_jacobian(U)[BANDS])


@pytest.mark.parametrize("mode", ("forward", "reverse"))
def test_an_entry_outside_the_pattern_is_named(backend, mode):
    lacking = BANDS.clone()
    lacking[7, 8] = False
    with pytest.raises(RuntimeError, match=r"sparse_jacobian: .* outside the pattern: \(row 7, column 8\) \(found in"):
        sparse_jacobian(reaction, lacking, mode=mode)(U)
    with pytest.raises(RuntimeError, match="row 7" if mode == "forward" else "column 8"):
        tfc.vmap(sparse_jacobian(reaction, lacking, mode=mode, layout="values"))(torch.stack([U, U]))
    with tfc.use_fallback("silent"), pytest.raises(RuntimeError, match=r"\(row 7, column 8\)"):
        tfc.grad(lambda u: sparse_jacobian(reaction, lacking, mode=mode, layout="values")(u).sum())(U)
    # not checked, it is wrong, as it says
    wrong = sparse_jacobian(reaction, lacking, mode=mode, layout="dense", check=False)(U)
    assert (wrong - reaction_jacobian(U)).abs().max() > 0.5


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_small_entries_outside_the_pattern_are_seen(backend, dtype):
    u = torch.linspace(1, 2, SIZE, dtype=dtype)
    tiny = 1e-3 if dtype == torch.float32 else 1e-9

    def coupled(u):
        return u**2 + tiny * u.flip(0)

    with pytest.raises(RuntimeError, match="outside the pattern"):
        sparse_jacobian(coupled, torch.eye(SIZE) > 0)(u)
    both = (torch.eye(SIZE) + torch.eye(SIZE).flip(0)) > 0
    assert_close(sparse_jacobian(coupled, both, layout="dense")(u), tfc.jacrev(coupled)(u))


@pytest.mark.parametrize("mode", ("forward", "reverse"))
@pytest.mark.parametrize("inner, outer", ((D, torch.float32), (torch.float32, D)))
def test_other_dtypes_of_the_output(backend, mode, inner, outer):
    def func(u):
        return reaction(u).sin().to(outer)

    u = U.to(inner)
    found = sparse_jacobian(func, BANDS, mode=mode, layout="dense")(u)
    expected = reaction(U).cos()[:, None] * reaction_jacobian(U)
    assert_close(found, expected, rtol=1e-4, atol=1e-5, dtype=False)


def test_hessians_are_checked(backend):
    bonds_only = neighbor_pattern(FIRST, FIRST + 1, ATOMS)
    with pytest.raises(RuntimeError, match=r"sparse_hessian: .* outside the pattern: \(row 6, column 0\)"):
        sparse_hessian(chain, bonds_only)(positions())
    with pytest.raises(RuntimeError, match="outside the pattern"):
        sparse_hessian(chain, coloring(bonds_only, "symmetric"))(positions())


def test_each_shape_is_checked_once(backend):
    """A function whose couplings change after the first call, for arguments of the same shape and of another one."""
    step = [0]

    def moving(u):
        return u**2 + step[0] * u.roll(1)

    rows = torch.arange(SIZE)
    jacobian = sparse_jacobian(moving, (rows, rows), layout="values", mode="reverse")
    assert_close(jacobian(U), 2 * U)
    step[0] = 1
    jacobian(U)
    with pytest.raises(RuntimeError, match="outside the pattern"):
        jacobian(U.float())
    step[0] = 0
    jacobian = sparse_jacobian(moving, (rows, rows), layout="values", mode="reverse", check="always")
    assert_close(jacobian(U), 2 * U)
    step[0] = 1
    with pytest.raises(RuntimeError, match="outside the pattern"):
        jacobian(U)


def test_functions_that_differ_from_themselves_are_noticed(backend):
    calls = []

    def unsteady(u):
        calls.append(1)
        return u**2 * len(calls)

    # one evaluation gives all products: no difference
    assert_close(sparse_jacobian(unsteady, torch.eye(SIZE) > 0, layout="values")(U), 2 * U)

    class Skew(tfc.Function):
        """A gradient that is no gradient: its Jacobian is not symmetric."""

        @staticmethod
        def forward(u):
            return (u**2).sum()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, grad):
            (u,) = ctx.saved_tensors
            return grad * (2 * u + torch.cat([u[1:], 0 * u[:1]]) ** 2)

    with pytest.raises(RuntimeError, match="not symmetric"):
        sparse_hessian(Skew.apply, BANDS)(U)


def test_nan_is_an_answer(backend):
    u = U.clone()
    u[4] = float("nan")
    found = sparse_jacobian(lambda u: u**2, torch.eye(SIZE) > 0, layout="values")(u)
    assert torch.isnan(found).nonzero().tolist() == [[4]]
    # but not outside the pattern, where nothing shows it
    only_one = torch.zeros(1, SIZE) > 0
    only_one[0, 0] = True
    with pytest.raises(RuntimeError, match=r"\(row 0, column 5\)"):
        sparse_jacobian(lambda u: u[:1] + (0 * u[5:6]).sqrt(), only_one)(U)


def test_pairs_without_a_shape(backend):
    rows = torch.arange(3)
    for mode in ("forward", "reverse"):
        found = sparse_jacobian(lambda u: torch.cat([u[:3] ** 2, 0 * u[:2]]), (rows, rows), mode=mode)(U)
        assert found.shape == (5, SIZE)
        assert_close(found.to_dense()[:3, :3], torch.diag(2 * U[:3]))
        assert found.to_dense().abs().sum() == (2 * U[:3]).abs().sum()
        with pytest.raises(RuntimeError, match=r"\(row 4, column 1\)"):
            sparse_jacobian(lambda u: torch.cat([u[:3] ** 2, 0 * u[:1], u[1:2]]), (rows, rows), mode=mode)(U)
    found = sparse_hessian(lambda u: (u[:3] ** 3).sum(), (rows, rows))(U)
    assert_close(found.to_dense().diagonal(), torch.cat([6 * U[:3], 0 * U[3:]]))


def test_colorings_are_taken(backend):
    for mode in ("forward", "reverse"):
        assert_close(sparse_jacobian(reaction, coloring(BANDS, mode))(U).to_dense(), reaction_jacobian(U))
        with pytest.raises(ValueError, match="made with mode 'symmetric', expected forward or reverse"):
            sparse_jacobian(reaction, coloring(BANDS, "symmetric"))
        with pytest.raises(ValueError, match=f"made with mode '{mode}', expected symmetric"):
            sparse_hessian(chain, coloring(BANDS, mode))
    with pytest.raises(ValueError, match="made with mode 'forward', expected reverse"):
        sparse_jacobian(reaction, coloring(BANDS, "forward"), mode="reverse")


@pytest.mark.parametrize("layout", ["coo", "dense", "values"])
def test_an_argument_without_elements(backend, layout):
    nothing, u = torch.zeros(0, 0) > 0, U[:0]
    for mode in ("auto", "forward", "reverse"):
        assert sparse_jacobian(torch.sin, nothing, mode=mode, layout=layout)(u).numel() == 0
    found = sparse_hessian(lambda u: u.sin().sum(), nothing, layout=layout)(u)
    assert found.shape == ((0,) if layout == "values" else (0, 0))
    assert detect_pattern(torch.sin, u).nnz == 0


def test_nothing(backend):
    empty = torch.zeros(SIZE, SIZE) > 0
    assert_close(sparse_jacobian(lambda u: 0 * u, empty, layout="dense")(U), torch.zeros(SIZE, SIZE, dtype=D))
    assert_close(sparse_hessian(lambda u: u.sum(), empty, layout="dense")(U), torch.zeros(SIZE, SIZE, dtype=D))
    with pytest.raises(RuntimeError, match="outside the pattern"):
        sparse_hessian(lambda u: u.prod(), empty)(U)


def test_the_random_numbers_of_the_user_stay(backend):
    state = torch.get_rng_state()
    sparse_jacobian(reaction, detect_pattern(reaction, U))(U)
    assert torch.equal(torch.get_rng_state(), state)


def test_errors(backend):
    with pytest.raises(ValueError, match="unknown layout 'bsr', expected one of 'coo'"):
        sparse_jacobian(reaction, BANDS, layout="bsr")
    with pytest.raises(ValueError, match="check= to be True, False or 'always', got 'never'"):
        sparse_jacobian(reaction, BANDS, check="never")
    with pytest.raises(ValueError, match="unknown mode 'symmetric'"):
        sparse_jacobian(reaction, BANDS, mode="symmetric")
    with pytest.raises(ValueError, match=r"not symmetric: \(row 0, column 1\), .* and others without its transpose"):
        sparse_hessian(chain, BANDS.triu())
    with pytest.raises(ValueError, match=r"it has a shape of \(20, 20\), the derivative one of \(19, 20\)"):
        sparse_jacobian(lambda u: u[1:], BANDS, mode="reverse")(U)
    with pytest.raises(ValueError, match=r"it has a shape of \(20, 20\), the derivative one of \(19, 20\)"):
        sparse_jacobian(lambda u: u[1:], BANDS, mode="forward")(U)
    with pytest.raises(ValueError, match=r"the derivative one of \(24, 24\)|the derivative one of \(20, 24\)"):
        sparse_hessian(chain, BANDS)(positions())
    with pytest.raises(TypeError, match="return one tensor, got tuple"):
        sparse_jacobian(lambda u: (u, u), BANDS)(U)
    with pytest.raises(TypeError, match="argument 0 to be a tensor, got list"):
        sparse_jacobian(lambda u: u[0], BANDS)([U])
    with pytest.raises(TypeError, match="argnums= to be one int"):
        sparse_jacobian(reaction, BANDS, (0,))(U)
    with pytest.raises(ValueError, match="argnums=1, but there are 1 positional"):
        sparse_jacobian(reaction, BANDS, 1)(U)
    with pytest.raises(ValueError, match="chunk_size"):
        sparse_jacobian(reaction, BANDS, chunk_size=0)
    with pytest.raises(RuntimeError, match="should be a tuple"):
        sparse_jacobian(reaction, BANDS, has_aux=True)(U)


@pytest.mark.skipif(HAS_CSR, reason="this torch has CSR tensors")
def test_csr_where_there_is_none():
    with pytest.raises(RuntimeError, match="has no CSR tensors; take layout='coo'"):
        sparse_jacobian(reaction, BANDS, layout="csr")


@pytest.mark.skipif(not HAS_CSR, reason="this torch has no CSR tensors")
def test_csr_drops_no_derivative(backend):
    """It is right or raises: torch 1.9 to 2.0 make CSR tensors whose values have no history, and 2.1 such values()."""
    u = U.clone().requires_grad_()
    jacobian = sparse_jacobian(reaction, BANDS, layout="csr")
    try:
        matrix = jacobian(u)
    except RuntimeError as error:
        assert "take layout='values', 'coo' or 'dense'" in str(error)
    else:
        assert_close(torch.autograd.grad(matrix.to_dense().sum(), u)[0], 6 * U)
    with torch.no_grad():
        assert_close(jacobian(u).to_dense(), reaction_jacobian(U))


def test_detected_patterns(backend):
    assert torch.equal(detect_pattern(reaction, torch.zeros_like(U)).to_dense(), BANDS)
    hessian = tfc.hessian(chain)(positions())
    found = detect_pattern(tfc.grad(chain), positions(), symmetric=True)
    assert torch.equal(found.to_dense(), hessian != 0)
    assert_close(sparse_hessian(chain, found)(positions()).to_dense(), hessian)
    # more outputs than inputs, by columns
    tall = detect_pattern(lambda u: reaction(u).repeat(3), U)
    assert torch.equal(tall.to_dense(), BANDS.repeat(3, 1))
    for func, shape in ((lambda u: u.prod().reshape(1), (1, 5)), (lambda u: u[:1].repeat(7), (7, 5))):
        assert detect_pattern(func, torch.ones(5)).shape == shape
    assert detect_pattern(lambda u: u[:0], U).nnz == 0


@pytest.mark.parametrize("seed", range(8))
def test_detected_patterns_of_random_matrices(seed):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (int(torch.randint(1, 70, (), generator=generator)) for _ in range(2))
    matrix = torch.randn(rows, columns, generator=generator, dtype=D)
    matrix = matrix * (torch.rand(rows, columns, generator=generator) < 0.1)
    found = detect_pattern(lambda x: matrix @ x, torch.zeros(columns, dtype=D), probes=1)
    assert torch.equal(found.to_dense(), matrix != 0)


def test_what_a_probe_cannot_see():
    def clamped(u):
        return u.clamp(min=0) ** 2

    below = -torch.ones(4, dtype=D)
    assert detect_pattern(clamped, below).nnz == 0
    with pytest.raises(RuntimeError, match="outside the pattern"):
        sparse_jacobian(clamped, detect_pattern(clamped, below))(-below)
    # zero at the point itself, and only there
    assert detect_pattern(torch.square, torch.zeros(4), probes=1).nnz == 0
    assert detect_pattern(torch.square, torch.zeros(4), spread=0).nnz == 0
    assert detect_pattern(torch.square, torch.zeros(4)).nnz == 4


def test_detection_takes_few_products(backend):
    calls, size = [], 256

    def counted(u):
        calls.append(1)
        return reaction(u)

    detect_pattern(counted, torch.ones(size, dtype=D), probes=1)
    assert len(calls) == 1 + 4  # the size of the output, and log4(256)


def test_detection_errors():
    with pytest.raises(ValueError, match="probes= to be a positive int, got 0"):
        detect_pattern(reaction, U, probes=0)
    with pytest.raises(TypeError, match="x to be a tensor"):
        detect_pattern(reaction, [1.0])
    with pytest.raises(ValueError, match=r"shape \(19, 20\) is not symmetric; give the gradient"):
        detect_pattern(lambda u: u[1:], U, symmetric=True)
    with pytest.raises(ValueError, match="not finite"):
        detect_pattern(lambda u: u.sqrt(), torch.zeros(3))
    with pytest.raises(TypeError, match="return one tensor"):
        detect_pattern(lambda u: (u, u), U)


def test_freed(backend):
    def use():
        factor, u = torch.ones(SIZE, dtype=D), U.clone()
        for mode in ("forward", "reverse"):
            sparse_jacobian(lambda u: factor * reaction(u), BANDS, mode=mode)(u)
        sparse_hessian(lambda u: (factor * u**3).sum(), torch.eye(SIZE) > 0)(u)
        return weakref.ref(factor), weakref.ref(u)

    use()
    gc.collect()
    gc.disable()
    try:
        assert [reference() is None for reference in use()] == [True, True]
    finally:
        gc.enable()


def test_functions_that_torch_refuses(backend):
    """A branch on a value, and a Function that has no batching rule."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u):
            ctx.save_for_backward(u)
            return u**3

        @staticmethod
        def backward(ctx, grad):
            (u,) = ctx.saved_tensors
            return grad * 3 * u**2

    def func(u):
        return Cube.apply(u) if float(u.sum()) < 100 else u

    with tfc.use_fallback("silent"):
        for mode in ("forward", "reverse"):
            found = sparse_jacobian(func, torch.eye(SIZE) > 0, mode=mode, layout="values")
            assert_close(found(U), 3 * U**2)
            assert_close(tfc.vmap(found)(torch.stack([U, 2 * U])), torch.stack([3 * U**2, 12 * U**2]))
        hessian = sparse_hessian(lambda u: func(u).sum(), torch.eye(SIZE) > 0, layout="values")
        assert_close(hessian(U), 6 * U)


def test_a_cluster_by_its_neighbor_list(backend):
    """Atoms on a disturbed lattice that interact within a cut-off, in float64 and float32."""
    axis = torch.arange(4, dtype=D)
    lattice = torch.stack([axis.repeat_interleave(16), axis.repeat_interleave(4).repeat(4), axis.repeat(16)], 1)
    x = lattice + 0.05 * draw_positions(64)
    distances = (x[:, None] - x[None]).pow(2).sum(-1).sqrt()
    i, j = ((distances < 1.6) & (torch.ones(64, 64).triu(1) > 0)).nonzero().t()

    def cluster(flat):
        y = flat.reshape(-1, 3)
        inverse = 1 / (y[i] - y[j]).pow(2).sum(-1).pow(3)
        return (inverse**2 - inverse).sum()

    pattern = neighbor_pattern(i, j, 64)
    expected = tfc.hessian(cluster, chunk_size=48)(x.reshape(-1))
    assert (expected[pattern.to_dense() == 0] == 0).all()
    found = sparse_hessian(cluster, pattern, chunk_size=16)(x.reshape(-1)).to_dense()
    assert float((found - expected).abs().max()) < 1e-10 * float(expected.abs().max())
    single = sparse_hessian(cluster, pattern, chunk_size=16)(x.reshape(-1).float()).to_dense()
    assert_close(single.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def draw_positions(atoms):
    return torch.randn(atoms, 3, generator=torch.Generator().manual_seed(0), dtype=D)


@pytest.mark.parametrize("seed", range(10))
def test_random_functions(backend, seed):
    """Of random sparse matrices and random pairs, of any shape: what a coloring gives is what dense derivatives are."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (int(torch.randint(1, 40, (), generator=generator)) for _ in range(2))
    inner, outer = (torch.randn(rows, columns, generator=generator, dtype=D) for _ in range(2))
    inner, outer = (m * (torch.rand(m.shape, generator=generator) < 0.08) for m in (inner, outer))
    x = torch.randn(columns, generator=generator, dtype=D)

    def func(x):
        return torch.tanh(inner @ x) + (outer @ x) ** 2

    dense = tfc.jacrev(func)(x)
    for mode in ("auto", "forward", "reverse"):
        assert_close(sparse_jacobian(func, (inner != 0) | (outer != 0), mode=mode, layout="dense")(x), dense)

    i, j = torch.randint(0, columns, (2, columns), generator=generator)
    strength = torch.rand(columns, generator=generator, dtype=D)

    def pairs(x):
        return (strength * torch.sin(x[i] * x[j] + x[i])).sum()

    pattern = neighbor_pattern(i, j, columns, block_size=1)
    assert_close(sparse_hessian(pairs, pattern, layout="dense")(x), tfc.hessian(pairs)(x))
