"""Curvature matrices of a network by curvlinops."""

from __future__ import annotations

import pytest
import torch
import transforms
from curvlinops import (
    FisherMCLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
    TransposedJacobianLinearOperator,
)
from energies import close
from torch import nn


@pytest.fixture(params=["regression", "classification"])
def problem(request):
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs = torch.rand(7, 4, dtype=torch.float64)
    if request.param == "regression":
        return network, nn.MSELoss(), inputs, torch.rand(7, 3, dtype=torch.float64)
    return network, nn.CrossEntropyLoss(), inputs, torch.randint(3, (7,))


def flat_network(network):
    """The network as a function of one vector of parameters."""
    named = dict(network.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def call(vector, inputs):
        parts = [part.reshape(p.shape) for part, p in zip(vector.split(sizes), named.values())]
        return torch.func.functional_call(network, dict(zip(named, parts)), (inputs,))

    return call, torch.cat([p.detach().reshape(-1) for p in named.values()])


def dense(operator):
    return operator @ torch.eye(operator.shape[1], dtype=torch.float64)


def make(kind, problem, **options):
    network, loss, inputs, targets = problem
    parameters = list(network.parameters())
    return kind(network, loss, parameters, [(inputs, targets)], **options)


def test_hessian(problem, record):
    network, loss, inputs, targets = problem
    call, vector = flat_network(network)
    expected = transforms.hessian(lambda v: loss(call(v, inputs), targets))(vector)
    found = dense(make(HessianLinearOperator, problem))
    assert close(found, expected, 1e-8, 1e-11)
    record("hessian", found)


def test_hessian_times_vector(problem, record):
    operator = make(HessianLinearOperator, problem)
    vector = torch.sin(torch.arange(operator.shape[1], dtype=torch.float64))
    found = operator @ vector
    assert close(found, dense(operator) @ vector, 1e-8, 1e-11)
    record("product", found)


def test_generalised_gauss_newton(problem, record):
    network, loss, inputs, targets = problem
    call, vector = flat_network(network)
    jacobian = transforms.jacrev(lambda v: call(v, inputs))(vector)
    outputs = network(inputs).detach()
    inner = transforms.hessian(lambda y: loss(y, targets))(outputs)
    expected = torch.einsum("nap,namb,mbq->pq", jacobian, inner, jacobian)
    found = dense(make(GGNLinearOperator, problem))
    assert close(found, expected, 1e-8, 1e-11)
    record("ggn", found)


def test_fisher_is_reproducible(problem, record):
    options = dict(seed=5, check_deterministic=True, mc_samples=3)
    found = dense(make(FisherMCLinearOperator, problem, **options))
    assert close(found, found.t(), 1e-8, 1e-11)
    assert bool((torch.linalg.eigvalsh(found) > -1e-10).all())
    record("fisher", found)


@pytest.mark.parametrize("transposed", [False, True])
def test_jacobian(problem, transposed, record):
    network, _, inputs, targets = problem
    call, vector = flat_network(network)
    jacobian = transforms.jacrev(lambda v: call(v, inputs))(vector).reshape(-1, len(vector))
    kind = TransposedJacobianLinearOperator if transposed else JacobianLinearOperator
    found = dense(kind(network, list(network.parameters()), [(inputs, targets)]))
    assert close(found, jacobian.t() if transposed else jacobian)
    record("jacobian", found)
