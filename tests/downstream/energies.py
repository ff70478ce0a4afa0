"""What one asks of an energy function, the same for every package that has one."""

from __future__ import annotations

import importlib

import pytest
import torch
import transforms
from molecules import finite_differences, geometries, molecule, padded


def close(actual, expected, rtol=1e-9, atol=1e-12):
    return torch.allclose(actual, expected, rtol=rtol, atol=atol)


def near(actual, differences):
    """What differences can tell: to so many digits of the largest element."""
    return actual.shape == differences.shape and bool(
        (actual - differences).abs().max() <= 1e-6 * differences.abs().max() + 1e-10
    )


def drop_in(*names):
    """What tad_mctc.autograd had until 0.8, and this library in its place still has."""
    module = importlib.import_module("tad_mctc.autograd")
    if not all(hasattr(module, name) for name in names):
        pytest.skip(f"this tad_mctc.autograd has no {' and '.join(names)}")
    return [getattr(module, name) for name in names]


class Energies:
    """A test class gives `energy`, and `parameters` if there are any."""

    def parameters(self):
        """Their names and values."""
        return {}

    def energy(self, numbers, positions, parameters):
        """Of one molecule."""
        raise NotImplementedError

    def of(self, numbers):
        return lambda positions: self.energy(numbers, positions, self.values())

    def values(self):
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in self.parameters().items()}

    @pytest.fixture(params=["water", "methane", "ammonia"])
    def case(self, request):
        return molecule(request.param)

    @pytest.fixture
    def cases(self):
        return geometries("water")

    def test_energy(self, case, record):
        numbers, positions = case
        energy = self.energy(numbers, positions, self.values())
        assert energy.shape == () and bool(torch.isfinite(energy)) and float(energy.abs()) > 1e-8
        record("energy", energy)

    def test_gradient(self, case, record):
        numbers, positions = case
        gradient = transforms.jacrev(self.energy, argnums=1)(numbers, positions, self.values())
        assert near(gradient, finite_differences(self.of(numbers), positions))
        assert close(gradient, transforms.grad(self.of(numbers))(positions))
        record("gradient", gradient)

    def test_gradient_by_autograd(self, case, record):
        numbers, positions = case
        x = positions.clone().requires_grad_()
        (expected,) = torch.autograd.grad(self.energy(numbers, x, self.values()), x)
        assert close(transforms.jacrev(self.of(numbers))(positions), expected)
        record("gradient", expected)

    def test_hessian(self, case, record):
        numbers, positions = case
        hessian = transforms.jacrev(transforms.jacrev(self.of(numbers)))(positions)
        differences = finite_differences(lambda x: self.by_autograd(numbers, x), positions)
        assert near(hessian, differences)
        record("hessian", hessian)

    def by_autograd(self, numbers, positions):
        x = positions.clone().requires_grad_()
        return torch.autograd.grad(self.energy(numbers, x, self.values()), x)[0]

    def test_hessian_in_forward_mode(self, case, record):
        numbers, positions = case
        hessian = transforms.hessian(self.of(numbers))(positions)
        assert close(hessian, transforms.jacrev(transforms.jacrev(self.of(numbers)))(positions))
        record("hessian", hessian)

    def test_hessian_of_the_drop_in(self, case, record):
        hess_fn_rev, hessian = drop_in("hess_fn_rev", "hessian")
        numbers, positions = case
        found = hessian(self.energy, (numbers, positions, self.values()), argnums=1)
        assert near(found, finite_differences(lambda x: self.by_autograd(numbers, x), positions))
        assert close(found, hess_fn_rev(self.energy, argnums=1)(numbers, positions, self.values()))
        record("hessian", found)

    def test_batched_hessian(self, cases, record):
        numbers, positions = cases
        batched = transforms.vmap(transforms.jacrev(transforms.jacrev(self.of(numbers))))(positions)
        looped = torch.stack([transforms.jacrev(transforms.jacrev(self.of(numbers)))(x) for x in positions])
        assert close(batched, looped)
        record("hessians", batched)

    def test_batched_hessian_of_the_drop_in(self, record):
        (hessian,) = drop_in("hessian")
        numbers, positions = padded("water", "water")
        positions[1] *= 1.1
        arguments = (numbers, positions, self.values())
        batched = hessian(self.energy, arguments, argnums=1, is_batched=True)
        looped = [hessian(self.energy, (z, x, self.values()), argnums=1) for z, x in zip(numbers, positions)]
        assert close(batched, torch.stack(looped))
        record("hessians", batched)

    def test_batched_jacobian_of_the_drop_in(self, record):
        (bjacrev,) = drop_in("bjacrev")
        numbers, positions = padded("water", "water")
        positions[1] *= 1.1
        found = bjacrev(lambda z, x: self.energy(z, x, self.values()), argnums=1)(numbers, positions)
        assert close(found, torch.stack([self.by_autograd(z, x) for z, x in zip(numbers, positions)]))
        record("gradients", found)

    def test_vmap_over_molecules(self, record):
        numbers, positions = padded("water", "methane", "ammonia")
        found = transforms.vmap(lambda z, x: self.energy(z, x, self.values()))(numbers, positions)
        expected = torch.stack(
            [self.energy(*molecule(name), self.values()) for name in ("water", "methane", "ammonia")]
        )
        assert close(found, expected, 1e-7)  # the atoms that are not there are almost not there
        record("energies", found)

    def test_vmap_over_gradients(self, cases, record):
        numbers, positions = cases
        found = transforms.vmap(transforms.grad(self.of(numbers)))(positions)
        assert close(found, torch.stack([self.by_autograd(numbers, x) for x in positions]))
        record("gradients", found)

    def test_second_derivative_by_parameter(self, case, record):
        numbers, positions = case
        if not self.parameters():
            pytest.skip("has none")
        name = sorted(self.parameters())[0]

        def energy(value, x):
            return self.energy(numbers, x, {**self.values(), name: value})

        value = self.values()[name]
        twice = transforms.jacrev(transforms.jacrev(energy))(value, positions)
        slope = lambda v: transforms.jacrev(energy)(v, positions)
        assert near(twice, finite_differences(slope, value))
        mixed = transforms.jacrev(transforms.jacrev(energy, argnums=1), argnums=0)(value, positions)
        swapped = transforms.jacrev(transforms.jacrev(energy, argnums=0), argnums=1)(value, positions)
        assert close(mixed, swapped)
        record("second", twice)
        record("mixed", mixed)
