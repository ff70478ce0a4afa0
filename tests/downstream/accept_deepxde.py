"""Derivatives of a network as DeepXDE takes them for the residuals of differential equations."""

from __future__ import annotations

import os

os.environ["DDE_BACKEND"] = "pytorch"

import deepxde as dde
import pytest
import torch
import transforms
from energies import close


@pytest.fixture(autouse=True)
def _float64():
    before = torch.get_default_dtype()
    dde.config.set_default_float("float64")
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(params=["reverse", "forward"])
def mode(request):
    dde.config.set_default_autodiff(request.param)
    yield request.param
    dde.config.set_default_autodiff("reverse")
    dde.gradients.clear()


@pytest.fixture
def network():
    torch.manual_seed(1)
    return dde.nn.FNN([2, 8, 8, 2], "tanh", "Glorot normal").double()


POINTS = torch.rand(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def derivatives(network, mode, derivative, **indices):
    x = POINTS.clone().requires_grad_()
    y = (network(x), network) if mode == "forward" else network(x)
    found = derivative(y, x, **indices)
    return found[0] if isinstance(found, tuple) else found


def jacobians(network):
    """By the transforms: point, component, coordinate."""
    return transforms.vmap(transforms.jacrev(network))(POINTS).detach()


def hessians(network):
    return transforms.vmap(transforms.hessian(network))(POINTS).detach()


@pytest.mark.parametrize("i", [0, 1])
@pytest.mark.parametrize("j", [0, 1])
def test_jacobian(network, mode, i, j, record):
    found = derivatives(network, mode, dde.grad.jacobian, i=i, j=j)
    assert close(found[:, 0], jacobians(network)[:, i, j])
    record("derivative", found)


@pytest.mark.parametrize("component", [0, 1])
@pytest.mark.parametrize("i, j", [(0, 0), (0, 1), (1, 1)])
def test_hessian(network, mode, component, i, j, record):
    found = derivatives(network, mode, dde.grad.hessian, component=component, i=i, j=j)
    assert close(found[:, 0], hessians(network)[:, component, i, j])
    record("derivative", found)


def test_residual_by_the_parameters(network, mode, record):
    """The gradient of the loss of a heat equation, as a step of training takes it."""
    x = POINTS.clone().requires_grad_()
    y = (network(x), network) if mode == "forward" else network(x)
    first = dde.grad.jacobian(y, x, i=0, j=1)
    second = dde.grad.hessian(y, x, component=0, i=0, j=0)
    first, second = (d[0] if isinstance(d, tuple) else d for d in (first, second))
    (first - 0.3 * second).square().mean().backward()
    found = torch.cat([p.grad.reshape(-1) for p in network.parameters() if p.grad is not None])

    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def residual(parameters, x):
        call = lambda x: torch.func.functional_call(network, parameters, (x,))[0]
        return transforms.grad(call)(x)[1] - 0.3 * transforms.hessian(call)(x)[0, 0]

    loss = lambda p: transforms.vmap(residual, in_dims=(None, 0))(p, POINTS).square().mean()
    gradients = transforms.grad(loss)(parameters)
    names = [name for name, p in network.named_parameters() if p.grad is not None]
    assert close(found, torch.cat([gradients[name].reshape(-1) for name in names]))
    record("gradient", found)
