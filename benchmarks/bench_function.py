"""What Function.apply costs more than torch's, for the same rules.

The two take turns, as in bench_overhead.py, and conftest.py prints the differences. ``nox -s bench`` runs this, and no
time is ever asserted.
"""

import pytest
import torch

import torch_func_compat

if not hasattr(torch.autograd.Function, "setup_context"):
    pytest.skip("torch knows setup_context from 2.0 on", allow_module_level=True)


class Rules:
    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x.cos()


class Theirs(Rules, torch.autograd.Function):
    pass


class Ours(Rules, torch_func_compat.Function):
    pass


LIBRARIES = {"torch": Theirs, "torch_func_compat": Ours}


def apply(function):
    x = torch.ones(4)
    return lambda: function.apply(x)


def apply_recorded(function):
    x = torch.ones(4, requires_grad=True)
    return lambda: function.apply(x)


def forward_and_backward(function):
    x = torch.ones(4, requires_grad=True)
    one = torch.ones(4)
    return lambda: torch.autograd.grad(function.apply(x), x, one)


# pytest varies the lowest decorator fastest: the libraries alternate within each turn.
@pytest.mark.parametrize("turn", range(15))
@pytest.mark.parametrize("call", [apply, apply_recorded, forward_and_backward])
@pytest.mark.parametrize("library", LIBRARIES)
def test_function(benchmark, library, call, turn):
    benchmark.group = f"Function: {call.__name__.replace('_', ' ')}"
    benchmark.extra_info["library"] = library
    benchmark.pedantic(call(LIBRARIES[library]), rounds=300, iterations=5, warmup_rounds=10)
