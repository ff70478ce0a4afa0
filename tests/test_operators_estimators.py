"""Estimates of traces and diagonals against the moments that their formulas have, over all or over many draws."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.tolerances import assert_close

from torch_func_compat.autograd import estimators

D = torch.float64
SIZE = 5
MATRIX = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=D)
SYMMETRIC = MATRIX + MATRIX.t()


def multiply(vectors):
    return vectors @ MATRIX.t()


def test_signs():
    signs = estimators.rademacher((20, 30), torch.ones(1, dtype=D), torch.Generator().manual_seed(0))
    assert signs.dtype == D
    assert set(signs.reshape(-1).tolist()) == {1.0, -1.0}
    assert abs(float(signs.mean())) < 4 / 600**0.5
    again = estimators.rademacher((20, 30), torch.ones(1, dtype=D), torch.Generator().manual_seed(0))
    assert torch.equal(signs, again)


def test_mean_and_error():
    values = torch.tensor([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]], dtype=D)
    mean, error = estimators.mean_and_error(values)
    assert_close(mean, torch.tensor([3.0, 5.0], dtype=D))
    assert_close(error, torch.tensor([(7.0 / 3) ** 0.5, 0.0], dtype=D))
    leaf = torch.full((4,), 2.0, dtype=D, requires_grad=True)
    (found,) = torch.autograd.grad(estimators.mean_and_error(leaf)[0], leaf)
    assert_close(found, torch.full((4,), 0.25, dtype=D))


def every_sign(monkeypatch):
    """All vectors of signs, each once, in the place of drawn ones: estimates over them have no error but rounding."""
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=SIZE)), dtype=D)
    monkeypatch.setattr(estimators, "rademacher", lambda shape, like, generator=None: every[: shape[0]])
    return len(every)


def test_hutchinson_is_exact_over_all_signs(monkeypatch):
    samples = every_sign(monkeypatch)
    trace, error = estimators.hutchinson_trace(multiply, SIZE, MATRIX, samples)
    assert_close(trace, MATRIX.trace(), atol=1e-12)
    off = SYMMETRIC / 2 - torch.diag(MATRIX.diagonal())
    assert_close(error, (2 * off.pow(2).sum() / (samples - 1)).sqrt(), atol=1e-12)
    diagonal, errors = estimators.hutchinson_diagonal(multiply, SIZE, MATRIX, samples)
    assert_close(diagonal, MATRIX.diagonal(), atol=1e-12)
    off = MATRIX - torch.diag(MATRIX.diagonal())
    assert_close(errors, (off.pow(2).sum(1) / (samples - 1)).sqrt(), atol=1e-12)


@pytest.mark.parametrize("rank", (1, 2))
def test_hutch_plus_plus_is_exact_for_low_ranks(rank):
    factor = torch.randn(40, rank, generator=torch.Generator().manual_seed(1), dtype=D)
    low = factor @ factor.t()
    trace, error = estimators.hutch_plus_plus(
        lambda vectors: vectors @ low, 40, low, 6, torch.Generator().manual_seed(0)
    )
    assert_close(trace, low.trace(), atol=1e-10)
    assert float(error) < 1e-10


def test_hutch_plus_plus_has_the_right_mean():
    generator = torch.Generator().manual_seed(0)
    found = torch.stack([estimators.hutch_plus_plus(multiply, SIZE, MATRIX, 6, generator)[0] for _ in range(3000)])
    spread = float(found.std()) / 3000**0.5
    assert abs(float(found.mean() - MATRIX.trace())) < 4 * spread
    # and its own standard errors are those of the spread, on average
    errors = torch.stack([estimators.hutch_plus_plus(multiply, SIZE, MATRIX, 6, generator)[1] for _ in range(3000)])
    assert 0.9 < float(errors.pow(2).mean().sqrt() / found.std()) < 1.1


def test_products_that_are_made():
    counts = []

    def counted(vectors):
        counts.append(len(vectors))
        return multiply(vectors)

    estimators.hutchinson_trace(counted, SIZE, MATRIX, 7)
    estimators.hutchinson_diagonal(counted, SIZE, MATRIX, 8)
    assert counts == [7, 8]
    counts.clear()
    estimators.hutch_plus_plus(counted, SIZE, MATRIX, 11)
    assert sum(counts) == 11


@pytest.mark.parametrize("estimate", (estimators.hutchinson_trace, estimators.hutchinson_diagonal))
@pytest.mark.parametrize("samples", (0, 1, 2.0, True))
def test_too_few_samples(estimate, samples):
    with pytest.raises(ValueError, match=r"samples= to be an int of at least 2"):
        estimate(multiply, SIZE, MATRIX, samples)
