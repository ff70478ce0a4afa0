"""A function that writes to tensors around it is as if it were evaluated once, however often the library does so."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.tolerances import assert_close
from torch.utils._pytree import tree_flatten

import torch_func_compat as tfc
from torch_func_compat._torch import facts
from torch_func_compat._torch.surroundings import Surroundings

X = torch.tensor([[0.3, -0.7, 1.1], [0.2, 0.5, -0.4], [1.3, -0.1, 0.8], [-0.6, 0.9, 0.1]], dtype=torch.float64)
ONE = torch.ones((), dtype=torch.float64)

OPERATORS = {
    "grad": lambda f: tfc.grad(f)(X),
    "jacrev": lambda f: tfc.jacrev(f)(X),
    "jacfwd": lambda f: tfc.jacfwd(f)(X),
    "jacfwd in chunks": lambda f: tfc.jacfwd(f, chunk_size=5)(X),
    "jacobian by the cheaper mode": lambda f: tfc.jacobian(lambda t: f(t * X) * torch.ones(30, dtype=X.dtype))(ONE),
    "hessian": lambda f: tfc.hessian(f)(X),
    "jacfwd of jacfwd": lambda f: tfc.jacfwd(tfc.jacfwd(f))(X),
    "jvp": lambda f: tfc.jvp(f, (X,), (X,)),
    "jvp of jvp": lambda f: tfc.jvp(lambda x: tfc.jvp(f, (x,), (X,))[1], (X,), (X,)),
    "vjp": lambda f: tfc.vjp(f, X)[1](ONE),
    "linearize": lambda f: tfc.linearize(f, X)[1](X),
    "hvp": lambda f: tfc.hvp(f, (X,), (X,)),
    "grad of grad": lambda f: tfc.grad(lambda x: (tfc.grad(f)(x) ** 2).sum())(X),
    "laplacian": lambda f: tfc.laplacian(f)(X),
    "value_grad_and_hessian": lambda f: tfc.value_grad_and_hessian(f)(X),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_batch_norm_counts_one_batch(backend, name):
    def made():
        norm = torch.nn.BatchNorm1d(3).double()
        norm.weight.data.copy_(torch.tensor([0.5, 1.5, 2.0]))
        return norm

    norm, once = made(), made()
    once(X)
    with tfc.use_fallback("silent"):
        OPERATORS[name](lambda x: norm(x).sin().sum())
    if name == "jacobian by the cheaper mode":
        return assert_close(norm.running_mean, once.running_mean)
    assert_close(norm.running_mean, once.running_mean)
    assert_close(norm.running_var, once.running_var)
    if not name.startswith("jacfwd in chunks"):
        assert_close(norm.num_batches_tracked, once.num_batches_tracked)


class Counts(torch.nn.BatchNorm1d):
    """Puts another tensor in the place of a buffer, as batch norm itself does before torch 1.11."""

    def __init__(self):
        super().__init__(3)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls = self.calls + 1
        return super().forward(x)


@pytest.mark.parametrize("name", [name for name in OPERATORS if "chunks" not in name and "cheaper" not in name])
def test_buffers_that_are_replaced_count_one_evaluation(backend, name):
    module = Counts().double()
    with tfc.use_fallback("silent"):
        OPERATORS[name](lambda x: module(x).sin().sum())
    assert int(module.calls) == 1


def test_buffers_that_are_replaced_in_a_loop():
    """Once for the batch, as torch.func does."""
    module = Counts().double().eval()
    with tfc.use_backend("autograd"):
        tfc.vmap(module)(torch.stack([X, 2 * X, 3 * X]))
    assert int(module.calls) == 1


needs_modes = pytest.mark.skipif(not facts.has("torch_function_modes"), reason="operations cannot be intercepted")
FUSED = {
    "layer_norm": lambda x: F.layer_norm(x, (3,)),
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None].cos(), x[None])[0],
}


@needs_modes
@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("name", OPERATORS)
def test_a_function_recorded_again_finds_what_it_found(backend, name, fused):
    state = torch.ones(3, dtype=torch.float64)
    scale = torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64, requires_grad=True)

    def writes(x):
        state.mul_(2.0)
        return (FUSED[fused](x * state) * scale).sin().sum()

    with tfc.use_fallback("silent"):
        found = OPERATORS[name](writes)
        expected = OPERATORS[name](lambda x: (FUSED[fused](2.0 * x) * scale).sin().sum())
    for one, other in zip(tree_flatten(found)[0], tree_flatten(expected)[0]):
        assert_close(one, other)
    assert torch.equal(state, torch.full_like(state, 2.0))


@needs_modes
def test_an_input_that_was_changed_in_place_is_changed_once(backend):
    scale = torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64, requires_grad=True)

    def doubles(x):
        x.mul_(2.0)
        return (FUSED["attention"](x) * scale).sin().sum()

    x = X.clone()
    found = tfc.jvp(doubles, (x,), (X.cos(),))[1]
    assert_close(found, tfc.jvp(lambda x: (FUSED["attention"](2.0 * x) * scale).sin().sum(), (X,), (X.cos(),))[1])
    assert_close(x, 2.0 * X)


@needs_modes
def test_what_is_too_large_to_be_kept_is_not_written_twice():
    state = torch.ones(1 << 17, dtype=torch.float64)
    scale = torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64, requires_grad=True)

    def writes(x):
        state.mul_(2.0)
        return (FUSED["layer_norm"](x * state[:3]) * scale).sin().sum()

    with pytest.raises(RuntimeError, match="writes in place to a large tensor"):
        tfc.hessian(writes)(X)


def test_a_constant_output_is_observed_without_a_trace(backend):
    count = torch.zeros((), dtype=torch.float64)

    def counts(x):
        count.add_(1)
        return x.sin().sum(), torch.as_tensor((x.detach().numpy() > 9).sum(), dtype=x.dtype)

    tfc.jacrev(counts)(X)
    assert count == 1


def test_independent_samples_are_tested_without_a_trace(backend):
    count = torch.zeros((), dtype=torch.float64)

    def counts(x):
        count.add_(1)
        return x.sin().sum(1)

    with tfc.use_fallback("silent"):
        tfc.batch_jacobian(counts)(X)
        tfc.batch_laplacian(counts, check=True)(X)
    assert count <= 3  # one each, and the evaluation in which the sizes of the outputs were found


def test_surroundings_are_put_back_uncounted():
    small, large, leaf = torch.ones(3), torch.ones(1 << 17), torch.ones(3, requires_grad=True)
    around = Surroundings([small, large, leaf])
    state = torch.get_rng_state()
    torch.rand(3)
    small.add_(1)
    assert around.can_restore()
    product = leaf * small  # which saves `small`
    with around.again():
        assert torch.equal(small, torch.ones(3)) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(small, torch.full((3,), 2.0)) and not torch.equal(torch.get_rng_state(), state)
    product.sum().backward()
    assert torch.equal(leaf.grad, torch.full((3,), 2.0))
    large.add_(1)
    assert not around.can_restore()


@needs_modes
def test_a_fused_operation_in_a_later_branch():
    """The first such call cannot put back what the function has written, and says so; the next one can."""
    state, fused = torch.ones(3, dtype=torch.float64), [False]
    scale = torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64, requires_grad=True)

    def writes(x):
        state.mul_(2.0)
        x = x * state
        return ((FUSED["layer_norm"](x) if fused[0] else x) * scale).sin().sum()

    third = lambda: tfc.jacrev(tfc.jacrev(writes))(X)
    third()
    state.fill_(1.0)
    fused[0] = True
    with pytest.raises(RuntimeError, match="Call it once more"):
        third()
    state.fill_(1.0)
    expected = tfc.jacrev(tfc.jacrev(lambda x: (FUSED["layer_norm"](2.0 * x) * scale).sin().sum()))(X)
    assert_close(third(), expected)
