"""The drop-in for tad_mctc.autograd: its names, signatures and defaults, without its faults."""

from __future__ import annotations

import importlib
import inspect

import numpy as np
import pytest
import torch
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat import tad_mctc
from torch_func_compat._torch import facts
from torch_func_compat.autograd import checks

F64 = torch.float64

# name: what a call of it looked like in 0.8 and in 0.11
SIGNATURES = {
    "attach_gradient": ["function", "x", "gradient"],
    "nested_jvp": ["rule"],
    "bjacrev": ["func", "argnums=0"],
    "dgradcheck": ["func", "diffvars"],
    "dgradgradcheck": ["func", "diffvars"],
    "dgradgradgradcheck": ["func", "diffvars"],
    "hess_fn_rev": ["f", "argnums=0"],
    "hessian": ["f", "inputs", "argnums", "is_batched=False"],
    "is_batched": ["x"],
    "is_functorch_tensor": ["x"],
    "is_gradtracking": ["x"],
    "is_vmapped": ["x"],
    "jac": ["a", "b", "create_graph=None", "retain_graph=True"],
    "jacfwd_matches_jacrev": ["f", "x", "atol=1e-10", "rtol=1e-08"],
    "jacrev": ["func", "argnums=0"],
    "jacrev_compat": ["f", "argnums=0"],
    "jacrev_matches_finite_diff": ["f", "x"],
    "no_vmap_fallback": [],
    "numgrad": ["function", "structure"],
    "positions_gradchecker": ["function", "structure"],
    "unwrap_gradtracking": ["x"],
    "vmap": ["func", "in_dims=0", "out_dims=0", "randomness='error'"],
    "vmap_compat": ["func", "in_dims=0", "out_dims=0"],
    "vmap_matches_loop": ["f", "batch"],
}
SUBMODULES = {
    "attach": ["attach_gradient"],
    "nested": ["nested_jvp"],
    "internals": ["jacrev", "fjacrev", "vmap", "fvmap"],
    "compat": ["jacrev_compat", "vmap_compat"],
    "checks": ["is_gradtracking", "is_batched", "is_vmapped", "is_functorch_tensor", "is_compiling"],
    "batched": ["bjacrev"],
    # all that the gradcheck of 0.11 exports
    "gradcheck": [
        *("dgradcheck", "dgradgradcheck", "dgradgradgradcheck", "jacfwd_matches_jacrev", "jacrev_matches_finite_diff"),
        *("no_vmap_fallback", "numgrad", "positions_gradchecker", "vmap_matches_loop"),
    ],
    "hessian": ["hessian", "hess_fn_rev"],
    "nonfunctorch": ["jac"],
    "unwrap": ["unwrap_gradtracking", "is_compiling"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    expected = SIGNATURES[name]
    parameters = inspect.signature(getattr(tad_mctc, name)).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][: len(expected)]
    assert [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in positional] == expected


def test_names():
    assert set(SIGNATURES) | {"fjacrev", "fvmap"} <= set(tad_mctc.__all__)
    assert all(callable(getattr(tad_mctc, name)) for name in SIGNATURES)


@pytest.mark.parametrize("submodule", SUBMODULES)
def test_submodules(submodule):
    module = importlib.import_module(f"{tad_mctc.__name__}.{submodule}")
    for name in SUBMODULES[submodule]:
        assert getattr(module, name) is getattr(tad_mctc, name, getattr(module, name))


def test_native_ones():
    assert (tad_mctc.fvmap is None) == (tfc.available_backends() == ("autograd",))
    assert (tad_mctc.fjacrev is None) == (tad_mctc.fvmap is None)
    if facts.has("torch_func"):
        assert tad_mctc.fvmap is torch.func.vmap
    assert callable(tad_mctc.hessian)  # and no module of that name


A = torch.tensor([[[3.0, 2.0], [2.0, 3.0]], [[1.0, 2.0], [2.0, 4.0]], [[0.5, 1.0], [-1.0, 2.0]]], dtype=F64)
X = torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.25, 3.0]], dtype=F64)


def linear(a, x):
    return a @ x


def quadratic(a, x):
    return x @ a @ x


class Legacy(torch.autograd.Function):
    """Cubes, in a way that no transform of torch's takes."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        assert float(x.detach().abs().max()) < 100
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


def cubes(x):
    return Legacy.apply(x).sum()


def test_jacobians(backend):
    assert_close(tad_mctc.jacrev(linear, argnums=1)(A[0], X[0]), A[0])
    assert_close(tad_mctc.bjacrev(linear, argnums=1)(A, X), A)
    assert_close(tad_mctc.bjacrev(linear, argnums=(0, 1), chunk_size=1)(A, X)[1], A)
    assert_close(tad_mctc.hess_fn_rev(quadratic, argnums=1)(A[0], X[0]), A[0] + A[0].t())
    with pytest.raises(TypeError):  # an option that there is not is no longer dropped
        tad_mctc.bjacrev(linear, argnums=1, no_such_option=True)


def test_hessian(backend):
    second = A + A.transpose(1, 2)
    found = tad_mctc.hessian(quadratic, (A[0], X[0]), argnums=1)
    assert_close(found, second[0])
    assert not found.requires_grad
    assert_close(tad_mctc.hessian(quadratic, (A[0], X[0]), 1, vectorize=True), second[0])
    assert_close(tad_mctc.hessian(quadratic, (A[0], X[0]), 1, strategy="forward-mode"), second[0])
    assert_close(tad_mctc.hessian(lambda x: x**3, (X[0],), 0), torch.diag(6 * X[0]))  # of the sum
    assert_close(tad_mctc.hessian(lambda _: torch.tensor(5.0), (X[0],), 0), torch.zeros(2, 2, dtype=F64))
    (aa, ax), (xa, xx) = tad_mctc.hessian(quadratic, (A[0], X[0]), (0, 1))
    assert_close((aa, xx), (torch.zeros(2, 2, 2, 2, dtype=F64), second[0]))
    assert_close(ax, xa.permute(1, 2, 0))


def test_hessian_of_what_no_transform_takes(recwarn):
    x = X[1].clone().requires_grad_()
    found = tad_mctc.hessian(cubes, (x,), 0)
    assert_close(found, torch.diag(6 * X[1]))
    assert_close(torch.autograd.grad(found.sum(), x)[0], torch.full((2,), 6.0, dtype=F64))
    assert not tad_mctc.hessian(cubes, (x,), 0, create_graph=False).requires_grad
    assert len(recwarn) == 0


@pytest.mark.filterwarnings("ignore::torch_func_compat.FallbackWarning")
def test_batched_hessian(backend):
    second = A + A.transpose(1, 2)
    assert_close(tad_mctc.hessian(quadratic, (A, X), 1, is_batched=True), second)
    # shared, as it has another size
    assert_close(tad_mctc.hessian(quadratic, (A[0], X), 1, is_batched=True), second[:1].expand(3, 2, 2))
    assert_close(tad_mctc.hessian(cubes, (X,), 0, is_batched=True), torch.diag_embed(6 * X))
    dims = dict(in_dims=(None, 1), is_batched=True)
    assert_close(tad_mctc.hessian(quadratic, (A[0], X.t()), 1, **dims), second[:1].expand(3, 2, 2))
    blocks = tad_mctc.hessian(quadratic, (A, X), (0, 1), is_batched=True, vectorize=True)
    assert_close(blocks[1][1], second)
    assert blocks[0][1].shape == (3, 2, 2, 2)
    positions = torch.linspace(0.1, 1.2, 12, dtype=F64).view(2, 2, 3)
    found = tad_mctc.hessian(lambda n, x, p: (n[:, None] * x**3).sum() * p["k"], *of_molecules(positions))
    assert_close(found[1, 0, 2, 0, 2], 7.0 * 6 * positions[1, 0, 2])
    assert found.shape == (2, 2, 3, 2, 3)


def of_molecules(positions):
    """Two molecules with two atoms: it takes a look at the function to tell what is mapped."""
    numbers = torch.tensor([[1.0, 2.0], [3.5, 4.0]], dtype=F64)
    return (numbers, positions, {"k": torch.tensor(2.0, dtype=F64)}), 1, True


def test_batched_hessian_in_doubt():
    """As many samples as a sample has components: mapped or shared?"""
    two = X[:2]
    assert_close(tad_mctc.hessian(quadratic, (A[:2], two), 1, is_batched=True), A[:2] + A[:2].transpose(1, 2))
    assert_close(tad_mctc.hessian(quadratic, (A[0], two), 1, is_batched=True), (A[0] + A[0].t()).expand(2, 2, 2))
    weighted = lambda w, x: (w * x * x).sum()
    weights = torch.tensor([1.0, 2.0], dtype=F64)
    with pytest.raises(ValueError, match=r"pass in_dims, \(0, 0\) for the one and \(None, 0\)"):
        tad_mctc.hessian(weighted, (weights, two), 1, is_batched=True)
    found = tad_mctc.hessian(weighted, (weights, two), 1, is_batched=True, in_dims=(None, 0))
    assert_close(found, torch.diag(2 * weights).expand(2, 2, 2))
    found = tad_mctc.hessian(weighted, (weights, two), 1, is_batched=True, in_dims=0)
    assert_close(found, torch.diag_embed(2 * weights[:, None].expand(2, 2)))


def test_hessian_errors():
    with pytest.raises(ValueError, match="expected a tensor"):
        tad_mctc.hessian(lambda x: x * x, (5,), argnums=0)
    with pytest.raises(ValueError, match="one batch size"):
        tad_mctc.hessian(torch.exp, (torch.tensor(1.0),), 0, is_batched=True)
    with pytest.raises(ValueError, match="one batch size"):
        tad_mctc.hessian(quadratic, (A, X[:2]), (0, 1), is_batched=True)
    with pytest.raises(ValueError, match="exclude"):
        tad_mctc.hessian(quadratic, (A, X), 1, is_batched=True, strict=True)
    with pytest.raises(RuntimeError, match="only 1 positional"):
        tad_mctc.hessian(torch.exp, (X,), 1)


def test_jacrev_compat():
    for _ in range(2):
        jacobian = tad_mctc.jacrev_compat(linear, argnums=1, create_graph=False)
        x = X[0].clone().requires_grad_()
        for _ in range(2):  # the option was lost on the second call
            found = jacobian(A[0], x)
            assert_close(found, A[0])
            assert not found.requires_grad
    cubed = tad_mctc.jacrev_compat(Legacy.apply)(x)
    assert_close(cubed, torch.diag(3 * X[0] ** 2))
    assert_close(torch.autograd.grad(cubed.sum(), x)[0], 6 * X[0])
    both = tad_mctc.jacrev_compat(linear, (0, 1))(A[0], X[0])
    assert_close(both[1], A[0])
    assert_close(tad_mctc.jacrev_compat(linear, 1, strict=True, create_graph=False)(A[0], X[0]), A[0])
    assert_close(tad_mctc.jacrev_compat(linear, (0, 1), strict=True, create_graph=False)(A[0], X[0]), both)
    with pytest.raises(RuntimeError):
        tad_mctc.jacrev_compat(lambda x: torch.ones(2), strict=True)(X[0])
    with pytest.raises(RuntimeError):
        tad_mctc.jacrev_compat(lambda x: x, strict=True, strategy="forward-mode")(X[0])
    with pytest.raises(RuntimeError, match="expected a tensor"):
        tad_mctc.jacrev_compat(lambda x: x**2)("not a tensor")
    with pytest.raises(ValueError, match="strategy"):
        tad_mctc.jacrev_compat(lambda x: x**2, strategy="sideways")


def test_vmap_compat(recwarn):
    wrapped = []

    def noted(a, x):
        wrapped.append(checks.is_functorch_tensor(x))
        return linear(a, x)

    assert_close(tad_mctc.vmap_compat(noted)(A, X), torch.stack([a @ x for a, x in zip(A, X)]))
    # its dimensions were ignored
    found = tad_mctc.vmap_compat(noted, in_dims=(None, 1), out_dims=1)(A[0], X.t())
    assert_close(found, A[0] @ X.t())
    assert_close(tad_mctc.vmap_compat(tad_mctc.jacrev(linear, argnums=1))(A, X), A)
    draws = tad_mctc.vmap_compat(torch.rand_like)(X)
    assert len(set(draws.flatten().tolist())) == X.numel()
    assert set(wrapped) == {False}
    assert len(recwarn) == 0


def test_jac():
    x = X[0].clone().requires_grad_()
    for create_graph in (True, False, None):
        found = tad_mctc.jac(x**3, x, create_graph=create_graph)
        assert_close(found, torch.diag(3 * X[0] ** 2))
        assert found.requires_grad == (create_graph is not False)
    with torch.no_grad():
        found = tad_mctc.jac((x**3).sum(), x)
    assert found.shape == (2,) and not found.requires_grad  # no graph: nothing to differentiate
    assert_close(tad_mctc.jac(A[0] @ X[0], X[0]), torch.zeros(2, 2, dtype=F64))
    y = x**3
    assert_close(tad_mctc.jac(y, x, create_graph=False, retain_graph=False), torch.diag(3 * X[0] ** 2))
    with pytest.raises(RuntimeError, match=r"second time"):
        tad_mctc.jac(y, x)
    with pytest.raises(RuntimeError):
        tad_mctc.jac(x**2, X[0])  # requires no grad: zeros would be wrong
    with pytest.raises(RuntimeError):
        tad_mctc.jac(x**2, X[1].clone().requires_grad_())
    matrix = A.clone().requires_grad_()
    assert tad_mctc.jac(matrix.exp(), matrix).shape == (3, 2, 2, 12)
    assert_close(tad_mctc.jac(matrix, matrix).reshape(12, 12), torch.eye(12, dtype=F64))
    empty = torch.zeros(0, 2, requires_grad=True)
    assert tad_mctc.jac(empty * 2, empty).shape == (0, 2, 0)


def test_checks_by_their_submodules(monkeypatch):
    x = torch.ones(3)
    assert tad_mctc.is_functorch_tensor(x) is tad_mctc.is_vmapped(x) is tad_mctc.is_gradtracking(x) is False
    assert tad_mctc.unwrap_gradtracking(x) is x
    for name in ("checks", "unwrap"):
        module = importlib.import_module(f"{tad_mctc.__name__}.{name}")
        monkeypatch.setattr(module, "is_compiling", lambda: True)
    assert tad_mctc.is_functorch_tensor(x) is tad_mctc.is_vmapped(x) is tad_mctc.is_gradtracking(x) is True
    assert tad_mctc.unwrap_gradtracking(x) is x


@pytest.mark.parametrize("tracked, batched", [(True, False), (False, True), (True, True), (False, False)])
def test_checks_of_a_mocked_library(monkeypatch, tracked, batched):
    class Library:
        is_gradtrackingtensor = staticmethod(lambda x: tracked)
        is_batchedtensor = staticmethod(lambda x: batched)

    monkeypatch.setattr(torch._C, "_functorch", Library, raising=False)
    x = object()
    assert tad_mctc.is_gradtracking(x) is tracked
    assert tad_mctc.is_batched(x) is batched
    assert tad_mctc.is_functorch_tensor(x) is (tracked or batched)


class Structure:
    """As much of theirs as the helpers ask for."""

    def __init__(self, numbers, positions):
        self.numbers = numbers
        self.positions = positions

    def replace(self, positions):
        return Structure(self.numbers, positions)


def coordination(structure):
    """Of shape ``(..., nat)``."""
    x = structure.positions
    distances = (x.unsqueeze(-2) - x.unsqueeze(-3)).pow(2).sum(-1)
    return (structure.numbers.unsqueeze(-2) * torch.exp(-distances)).sum(-1)


@pytest.mark.parametrize("batched", [False, True])
def test_structures(batched):
    positions = torch.linspace(-1.0, 1.0, 18, dtype=F64).view(2, 3, 3).sin()
    numbers = torch.tensor([[1.0, 2.0, 3.0], [2.0, 1.0, 1.0]], dtype=F64)
    structure = Structure(numbers, positions) if batched else Structure(numbers[0], positions[0])
    found = tad_mctc.numgrad(coordination, structure)
    rows = [coordination_jacobian(n, x) for n, x in zip(numbers, positions)]
    assert_close(found, torch.stack(rows) if batched else rows[0], atol=1e-8)
    function, variable = tad_mctc.positions_gradchecker(coordination, structure)
    assert variable.requires_grad and variable is not structure.positions and not structure.positions.requires_grad
    assert torch.equal(function(variable), coordination(structure))
    assert tad_mctc.dgradcheck(function, variable)


def coordination_jacobian(numbers, x):
    """By hand: of exp(-|x_i - x_j|^2) with respect to x_k."""
    difference = x[:, None] - x[None]
    pairs = -2 * (numbers[None] * torch.exp(-difference.pow(2).sum(-1)))[..., None] * difference  # by x_i
    jacobian = -pairs  # by x_j, of i
    diagonal = torch.arange(len(x))
    jacobian[diagonal, diagonal] = pairs.sum(1)
    return jacobian


def log_sum_exp(x, by_numpy=True):
    """Of the last dimension, where no transform of torch's can follow."""

    def function(x):
        if by_numpy:
            return torch.from_numpy(np.asarray(np.logaddexp.reduce(x.detach().numpy(), axis=-1)))
        return torch.logsumexp(x, -1)

    return tad_mctc.attach_gradient(function, x, torch.softmax(x, -1))


def soft(x):
    """Its gradient."""
    return torch.softmax(x, -1)


def soft_jacobian(x):
    return torch.diag(soft(x)) - torch.ger(soft(x), soft(x))


def third(x):
    """By hand: the derivative of `soft_jacobian`."""
    p = soft(x)
    eye = torch.eye(len(p), dtype=p.dtype)
    first = soft_jacobian(x)
    return first[:, None, :] * eye[:, :, None] - first[:, None, :] * p[None, :, None] - p[:, None, None] * first[None]


@pytest.mark.filterwarnings("ignore::torch_func_compat.FallbackWarning")
@pytest.mark.parametrize("by_numpy", [False, True])
def test_attach_gradient(backend, by_numpy):
    def value(x):
        return log_sum_exp(x, by_numpy)

    x = torch.tensor([0.3, -0.5, 1.2], dtype=F64)
    batch = torch.stack([x, 2 * x])
    assert_close(value(x), torch.logsumexp(x, 0))
    assert_close(tfc.grad(value)(x), soft(x))
    assert_close(tfc.jvp(value, (x,), (batch[1],))[1], (soft(x) * batch[1]).sum())
    for second in (tfc.jacrev(tfc.jacrev(value)), tfc.jacfwd(tfc.jacrev(value)), tfc.jacfwd(tfc.jacfwd(value))):
        assert_close(second(x), soft_jacobian(x))
    assert_close(tfc.jacrev(tfc.jacrev(tfc.jacrev(value)))(x), third(x))
    assert_close(tfc.vmap(value)(batch), torch.logsumexp(batch, 1))
    assert_close(tfc.vmap(tfc.grad(value))(batch), soft(batch))
    assert_close(tfc.vmap(tfc.jacrev(tfc.jacrev(value)))(batch), torch.stack([soft_jacobian(x) for x in batch]))
    assert_close(tfc.grad(lambda x: value(x).sum())(batch), soft(batch))


def test_attach_gradient_of_what_has_no_event():
    x = torch.tensor([0.3, -0.5], dtype=F64, requires_grad=True)
    value = lambda x: tad_mctc.attach_gradient(torch.sin, x, torch.cos(x))
    assert torch.autograd.gradcheck(value, x)
    assert torch.autograd.gradgradcheck(value, x)
    with pytest.raises(ValueError, match="shape"):
        tad_mctc.attach_gradient(torch.sin, x, x.sum())


class Cube(torch.autograd.Function):
    """One of torch's own, with a rule that it hides from other forward modes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.three = torch.full_like(inputs[0], 3.0)
        ctx.save_for_forward(inputs[0])
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient

    @staticmethod
    @tad_mctc.nested_jvp
    def jvp(ctx, tangent):
        return ctx.three * ctx.saved_tensors[0] ** 2 * tangent


@pytest.mark.skipif(not facts.has("torch_func"), reason="forward mode does not nest")
def test_nested_jvp():
    jacfwd, jacrev, vmap = torch.func.jacfwd, torch.func.jacrev, torch.func.vmap
    x = torch.tensor(2.0, dtype=F64)
    value = Cube.apply
    assert_close(jacfwd(value)(x), 3 * x**2)
    assert_close(jacfwd(jacfwd(value))(x), 6 * x)
    try:  # right or refused
        assert_close(jacfwd(jacfwd(jacfwd(value)))(x), torch.tensor(6.0, dtype=F64))
    except NotImplementedError as error:
        assert "vmap rule" in str(error)
    assert_close(jacrev(jacfwd(value))(x), 6 * x)
    assert_close(jacfwd(jacrev(value))(x), 6 * x)
    assert_close(vmap(jacfwd(value))(X[0]), 3 * X[0] ** 2)
    assert_close(tfc.jacfwd(tfc.jacfwd(value))(x), 6 * x)


def test_nested_jvp_of_one_level():
    @tad_mctc.nested_jvp
    def rule(ctx, tangent):
        """What it says."""
        return 2 * tangent

    assert rule(None, 3) == 6 and rule.__doc__ == "What it says."
