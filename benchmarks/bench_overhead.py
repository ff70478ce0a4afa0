"""What a call through this library costs more than the same call through torch.func.

Each transform of a five-element function is timed as made once and called often, and as made anew for every
call. The two libraries take turns, several times over, so that a machine that slows down meanwhile slows
both; conftest.py prints the differences. ``nox -s bench`` runs this, and no time is ever asserted.
"""

import pytest
import torch

import torch_func_compat

torch_func = pytest.importorskip("torch.func", reason="there is nothing to compare with below torch 2.0")

LIBRARIES = {"torch.func": torch_func, "torch_func_compat": torch_func_compat}
FUNCTIONS = {
    "grad": lambda x: x.sin().sum(),
    "jacrev": lambda x: x.sin(),
    "vmap": lambda x: x.sin(),
}


def made_once(transform, func, x):
    transformed = transform(func)
    return lambda: transformed(x)


def made_per_call(transform, func, x):
    return lambda: transform(func)(x)


# pytest varies the lowest decorator fastest: the libraries alternate within each turn.
@pytest.mark.parametrize("turn", range(15))
@pytest.mark.parametrize("operator", FUNCTIONS)
@pytest.mark.parametrize("made", [made_once, made_per_call])
@pytest.mark.parametrize("library", LIBRARIES)
def test_overhead(benchmark, library, made, operator, turn):
    benchmark.group = f"{operator}, {made.__name__.replace('_', ' ')}"
    benchmark.extra_info["library"] = library
    call = made(getattr(LIBRARIES[library], operator), FUNCTIONS[operator], torch.arange(5.0) + 1)
    benchmark.pedantic(call, rounds=300, iterations=5, warmup_rounds=10)
