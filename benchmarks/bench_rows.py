"""Rows of Jacobians on the autograd backend, by which torch < 1.11 computes everything, and what others take for them.

``nox -s "bench_rows(torch-1.8.1)"`` runs this on one torch; no time is ever asserted.
"""

import functools

import pytest
import torch
from turns import take_turns
from workloads import OURS, functorch, network, torch_func

import torch_func_compat as tfc


def _elementwise(x):
    return (x.sin() * x.exp()).tanh()


def _layer(x):
    return torch.tanh(_layer.weight @ x)


CASES = {
    "network 64->64, 64 wide": lambda device: (network(64, 64, device), 64),
    "network 16->64, 64 wide": lambda device: (network(16, 64, device), 16),
    "network 64->64, 256 wide": lambda device: (network(64, 64, device, hidden=256), 64),
    "layer 64->64": lambda device: (_layer, 64),
    "elementwise": lambda device: (_elementwise, 64),
}


def by_hand(func, x):
    leaf = x.detach().requires_grad_()
    output = func(leaf)
    units = torch.eye(len(output), device=x.device)
    return torch.stack([torch.autograd.grad(output, leaf, unit, retain_graph=True)[0] for unit in units])


@pytest.mark.parametrize("name", CASES)
def test_rows(benchmark, device, seconds, name):
    torch.manual_seed(0)
    _layer.weight = torch.randn(64, 64, device=device)
    func, inputs = CASES[name](device)
    x = torch.randn(inputs, device=device)
    jacobian = torch.autograd.functional.jacobian
    candidates = {
        OURS: functools.partial(tfc.jacrev(func), x),
        "rows in a loop": functools.partial(by_hand, func, x),
        "functional.jacobian": functools.partial(jacobian, func, x),
        "functional.jacobian, vectorize": functools.partial(jacobian, func, x, vectorize=True),
    }
    for library in (torch_func, functorch):
        if library is not None and "native" not in candidates:
            candidates["native"] = functools.partial(library.jacrev(func), x)
    benchmark.group = name
    with tfc.use_backend("autograd"):
        benchmark.extra_info["times"] = take_turns(candidates, OURS, seconds)
        benchmark.pedantic(candidates[OURS], rounds=5)
