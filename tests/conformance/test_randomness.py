"""The randomness modes of vmap on every backend, and the generators' states that they leave."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from torch_func_compat import use_backend, vmap

RANDOM_ERROR = "randomness error mode"

SAMPLERS = {
    "randn": lambda a: torch.randn(20, device=a.device),
    "rand_like": torch.rand_like,
    "normal": lambda a: torch.normal(0.0, 1.0, (20,), device=a.device),
    "randint": lambda a: torch.randint(1000, (20,), device=a.device),
    "randperm": lambda a: torch.randperm(20, device=a.device),
    "dropout": lambda a: F.dropout(a, 0.5),
    "bernoulli_": lambda a: torch.zeros_like(a).bernoulli_(0.5),
}
samplers = pytest.mark.parametrize("sampler", list(SAMPLERS.values()), ids=list(SAMPLERS))


def rng_state(device):
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@samplers
def test_randomness_is_an_error_by_default(backend, device, sampler):
    x, before = torch.ones(3, 20, dtype=torch.float64, device=device), rng_state(device)
    for options in ({}, {"randomness": "error"}, {"chunk_size": 2}):
        with pytest.raises(RuntimeError, match=RANDOM_ERROR):
            vmap(sampler, **options)(x)
        assert torch.equal(rng_state(device), before)


def test_the_error_leaves_a_shared_view_alone(backend, device):
    whole = torch.rand(3, 20, device=device)
    before, version = whole.clone(), whole._version
    with pytest.raises(RuntimeError, match=RANDOM_ERROR):
        vmap(lambda a, shared: a * F.dropout(shared), in_dims=(0, None))(torch.ones(4, device=device), whole[1])
    assert torch.equal(whole, before) and whole._version == version


@pytest.mark.parametrize("chunk_size", [None, 2])
@samplers
def test_same_draws_once_for_all(backend, device, sampler, chunk_size):
    x = torch.ones(3, 20, dtype=torch.float64, device=device)
    result = vmap(sampler, randomness="same", chunk_size=chunk_size)(x)
    assert torch.equal(result, result[:1].expand_as(result))
    if backend == "functorch" and sampler is SAMPLERS["dropout"]:
        return  # functorch's dropout calls another kernel, which draws other numbers where torch uses MKL
    after = rng_state(device)
    torch.manual_seed(0)
    once = sampler(x[0])
    assert torch.equal(rng_state(device), after), "the generator is left as by one draw"
    assert torch.equal(result[0], once)


@pytest.mark.parametrize("chunk_size", [None, 2])
@samplers
def test_different_draws_for_each_sample(backend, device, sampler, chunk_size):
    x = torch.ones(4, 20, dtype=torch.float64, device=device)
    result = vmap(sampler, randomness="different", chunk_size=chunk_size)(x)
    assert len({tuple(row.tolist()) for row in result}) == 4


@pytest.mark.parametrize("outer", ["error", "same", "different"])
@pytest.mark.parametrize("inner", ["error", "same", "different"])
def test_nested_randomness(backend, device, outer, inner):
    x = torch.ones(3, 4, device=device)
    nested = vmap(vmap(lambda a: a * 0 + torch.randn((), device=device), randomness=inner), randomness=outer)
    if "error" in (outer, inner):
        with pytest.raises(RuntimeError, match=RANDOM_ERROR):
            nested(x)
        return
    distinct = {"same": lambda n: 1, "different": lambda n: n}
    assert len(set(nested(x).reshape(-1).tolist())) == distinct[outer](3) * distinct[inner](4)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("randomness", ["error", "same", "different"])
def test_randomness_of_a_generator_in_the_closure(backend, device, randomness, chunk_size):
    generator = torch.Generator(device=device).manual_seed(3)
    before = generator.get_state()
    func = lambda a: a * 0 + torch.randn(20, generator=generator, device=device, dtype=a.dtype)
    mapped = vmap(func, randomness=randomness, chunk_size=chunk_size)
    x = torch.ones(3, 20, dtype=torch.float64, device=device)
    if randomness == "error":
        with pytest.raises(RuntimeError, match=RANDOM_ERROR):
            mapped(x)
        assert torch.equal(generator.get_state(), before)
        return
    result = mapped(x)
    assert len({tuple(row.tolist()) for row in result}) == (1 if randomness == "same" else 3)
    assert not torch.equal(generator.get_state(), before)


def test_same_is_refused_where_samples_draw_different_amounts():
    """The draw that comes after would not be the same for all, without an error."""

    def two_draws(rate):
        torch.poisson(rate)
        return torch.rand(())

    x = torch.tensor([2.0, 500.0, 2.0])
    with use_backend("autograd"):
        with pytest.raises(RuntimeError, match="sample 1 took another amount of random numbers"):
            vmap(two_draws, randomness="same")(x)
        assert len(set(vmap(two_draws, randomness="same")(x[::2]).tolist())) == 1
        assert len(set(vmap(two_draws, randomness="different")(x).tolist())) == 3


def test_unknown_randomness(backend):
    with pytest.raises(RuntimeError, match="Only allowed values for randomness"):
        vmap(torch.sin, randomness="some")(torch.ones(3))
