"""Kernels and marginal likelihoods of Gaussian processes by GPyTorch."""

from __future__ import annotations

import gpytorch
import pytest
import torch
import transforms
from energies import close, near
from molecules import finite_differences

X = torch.linspace(0.0, 1.0, 6, dtype=torch.float64).unsqueeze(-1)
Y = torch.sin(6 * X[:, 0])
POINT = torch.tensor([0.4, -0.3], dtype=torch.float64)
OTHER = torch.tensor([0.1, 0.7], dtype=torch.float64)
BATCH = torch.stack([POINT, OTHER, POINT - OTHER])

KERNELS = {
    "rbf": gpytorch.kernels.RBFKernel,
    "rational": gpytorch.kernels.RQKernel,
    "periodic": gpytorch.kernels.PeriodicKernel,
    "matern": gpytorch.kernels.MaternKernel,
}


@pytest.fixture(params=KERNELS)
def covariance(request):
    kernel = KERNELS[request.param]().double()

    def of(x, y):
        return kernel(x.unsqueeze(0), y.unsqueeze(0)).to_dense()[0, 0]

    return of


@pytest.fixture
def twice(covariance):
    """Skip what this torch cannot differentiate twice by any means (cdist before 2.1)."""
    x, y = POINT.clone().requires_grad_(), OTHER.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(covariance(x, y), x, create_graph=True)
    try:
        torch.autograd.grad(gradient.sum(), (x, y))
    except NotImplementedError as error:
        pytest.skip(str(error).splitlines()[0])


def test_gradient(covariance, record):
    found = transforms.grad(covariance)(POINT, OTHER)
    assert near(found, finite_differences(lambda x: covariance(x, OTHER), POINT))
    record("gradient", found)


def test_second_derivatives(covariance, twice, record):
    mixed = transforms.jacrev(transforms.jacrev(covariance, argnums=0), argnums=1)(POINT, OTHER)
    assert near(mixed, finite_differences(lambda y: transforms.grad(covariance)(POINT, y), OTHER))
    record("mixed", mixed)
    hessian = transforms.jacrev(transforms.jacrev(covariance))(POINT, OTHER)
    assert near(hessian, finite_differences(lambda x: transforms.grad(covariance)(x, OTHER), POINT))
    record("hessian", hessian)


def test_hessian_in_forward_mode(covariance, twice, record):
    found = transforms.hessian(covariance)(POINT, OTHER)
    assert close(found, transforms.jacrev(transforms.jacrev(covariance))(POINT, OTHER))
    record("hessian", found)


def test_batched_hessian(covariance, twice, record):
    second = transforms.jacrev(transforms.jacrev(covariance))
    found = transforms.vmap(second, in_dims=(0, None))(BATCH, 2 * OTHER)
    assert close(found, torch.stack([second(x, 2 * OTHER) for x in BATCH]))
    record("hessians", found)


def test_matrix_by_vmap(covariance, record):
    matrix = transforms.vmap(transforms.vmap(covariance, in_dims=(None, 0)), in_dims=(0, None))(BATCH, BATCH)
    assert close(matrix, torch.stack([torch.stack([covariance(x, y) for y in BATCH]) for x in BATCH]))
    record("matrix", matrix)


class Model(gpytorch.models.ExactGP):
    def __init__(self, likelihood):
        super().__init__(X, Y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


@pytest.fixture
def likelihood():
    """The negative marginal log likelihood as a function of a dict of parameters."""
    noise = gpytorch.likelihoods.GaussianLikelihood()
    model = Model(noise).double()
    model.train()
    names = [name for name, _ in model.named_parameters()]

    def of(vector):
        # each parameter has one element
        values = dict(zip(names, vector))
        parameters = {name: values[name].reshape(p.shape) for name, p in model.named_parameters()}
        with gpytorch.settings.fast_computations(False, False, False):
            prior = torch.func.functional_call(model, parameters, (X,))
            sigma = torch.nn.functional.softplus(values[names[0]]) + 1e-4
            covariance = prior.covariance_matrix + sigma * torch.eye(len(X), dtype=X.dtype)
            exact = torch.distributions.MultivariateNormal(prior.mean, covariance, validate_args=False)
            return -exact.log_prob(Y) / len(X)

    return of, torch.linspace(0.1, 0.4, len(names), dtype=torch.float64)


def test_gradient_of_the_likelihood(likelihood, record):
    of, vector = likelihood
    found = transforms.grad(of)(vector)
    assert near(found, finite_differences(of, vector))
    record("gradient", found)


def test_hessian_of_the_likelihood(likelihood, record):
    of, vector = likelihood
    found = transforms.jacrev(transforms.jacrev(of))(vector)
    assert near(found, finite_differences(transforms.grad(of), vector))
    record("hessian", found)


def test_batched_hessian_of_the_likelihood(likelihood, record):
    of, vector = likelihood
    batch = torch.stack([vector, 2 * vector])
    found = transforms.vmap(transforms.jacrev(transforms.jacrev(of)))(batch)
    assert close(found, torch.stack([transforms.jacrev(transforms.jacrev(of))(v) for v in batch]), 1e-8)
    record("hessians", found)
