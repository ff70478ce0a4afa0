"""Jacobians and Hessians by this library and by everybody else, in one run.

The candidates of a workload take turns in an order that is drawn anew for each round, so that a machine that slows down
meanwhile slows all of them, and none always finds the caches as the same other one left them.
``nox -s bench`` runs this and writes what ``report.py`` shows; no time is ever asserted.
"""

import random
from time import perf_counter

import pytest
import torch
from workloads import OURS, WORKLOADS

from torch_func_compat import _memory

# Calls of fewer seconds are made twice in a row, and the second one is timed.
WARM = 0.02


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
    times = {candidate: [] for candidate in candidates}
    memory = {}
    for candidate, call in candidates.items():
        call()
        if "loop" not in candidate:
            call()
        # JAX's memory is not torch's, compiled code is not seen, and loops would take minutes to watch
        if not any(word in candidate for word in ("JAX", "compile", "loop")):
            memory[candidate] = _memory.measured(lambda call=call: [call()])[1]
    spent = dict.fromkeys(candidates, 0.0)
    order, draw = list(candidates), random.Random(0)
    while spent[OURS] < seconds or len(times[OURS]) < 5:
        for candidate in order:
            if candidate != OURS and len(times[candidate]) >= 3 and spent[candidate] > 4 * seconds:
                continue  # the slow ones are not worth more
            if not times[candidate] or times[candidate][-1] < WARM:
                candidates[candidate]()
            times[candidate].append(timed(candidates[candidate]))
            spent[candidate] += times[candidate][-1]
        draw.shuffle(order)
    benchmark.extra_info.update(times=times, memory=memory)
    benchmark.pedantic(candidates[OURS], rounds=5)


def timed(call):
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    if cuda:
        torch.cuda.synchronize()
    start = perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize()
    return perf_counter() - start
