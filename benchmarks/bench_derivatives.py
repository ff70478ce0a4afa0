"""Jacobians and Hessians by this library and by everybody else, in one run.

``nox -s bench`` runs this and writes what ``report.py`` shows; no time is ever asserted.
"""

import pytest
from turns import take_turns
from workloads import OURS, WORKLOADS

from torch_func_compat._arguments import memory as _memory


@pytest.fixture(scope="module")
def made(device):
    """The candidates of the workload that is timed at the moment."""
    current = {}

    def of(name):
        if name not in current:
            current.clear()
            current[name] = WORKLOADS[name](device)
        return current[name]

    return of


@pytest.mark.parametrize("name", WORKLOADS)
def test_derivatives(benchmark, made, name, seconds):
    candidates = made(name)
    benchmark.group = name
    memory = {}
    for candidate, call in candidates.items():
        call()
        if "loop" not in candidate:
            call()
        # JAX's memory is not torch's, compiled code is not seen, and loops would take minutes to watch
        if not any(word in candidate for word in ("JAX", "compile", "loop")):
            memory[candidate] = _memory.measured(lambda call=call: [call()])[1].peak
    benchmark.extra_info.update(times=take_turns(candidates, OURS, seconds), memory=memory)
    benchmark.pedantic(candidates[OURS], rounds=5)
