"""What vmap on the autograd backend costs more than the loop that one would write by hand.

256 samples of functions that torch.func cannot batch. The two take turns, as in bench_overhead.py, and conftest.py
prints the ratios; they are meant to stay below 1.15. ``nox -s bench`` runs this, and no time is ever asserted.
"""

import pytest
import torch

import torch_func_compat


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x.cos()


WEIGHT = torch.eye(16) + 0.1
FUNCTIONS = {
    "branch": lambda x: x.sin() if x.sum() > 0 else x.cos(),
    "mask": lambda x: (WEIGHT @ x)[x > 0].sum(),
    "old-style Function": lambda x: Sine.apply(WEIGHT @ torch.tanh(WEIGHT @ x)),
    "network": lambda x: torch.tanh(WEIGHT @ torch.tanh(WEIGHT @ x)).sum(),
}


def by_hand(func):
    return lambda xs: torch.stack([func(x) for x in xs])


LOOPS = {"by hand": by_hand, "torch_func_compat": torch_func_compat.vmap}


# pytest varies the lowest decorator fastest: the two alternate within each turn.
@pytest.mark.parametrize("turn", range(15))
@pytest.mark.parametrize("func", FUNCTIONS)
@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "requires grad"])
@pytest.mark.parametrize("library", LOOPS)
def test_loop(benchmark, library, func, requires_grad, turn):
    benchmark.group = f"{func}, {'requires grad' if requires_grad else 'plain'}"
    benchmark.extra_info["library"] = library
    xs = torch.sin(torch.arange(256 * 16.0)).reshape(256, 16).requires_grad_(requires_grad)
    loop = LOOPS[library](FUNCTIONS[func])
    with torch_func_compat.use_backend("autograd"):
        benchmark.pedantic(loop, (xs,), rounds=12, iterations=1, warmup_rounds=1)
