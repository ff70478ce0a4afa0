"""Times of calls that compute the same.

They take turns in an order that is drawn anew for each round, so that a machine that slows down meanwhile slows all of
them, and none always finds the caches as the same other one left them.
"""

import random
from time import perf_counter

import torch

# Calls of fewer seconds are made twice in a row, and the second one is timed.
WARM = 0.02


def take_turns(candidates, ours, seconds):
    """Seconds that each of the `candidates` took, time after time, until that of `ours` took `seconds` in all."""
    times = {candidate: [] for candidate in candidates}
    spent = dict.fromkeys(candidates, 0.0)
    order, draw = list(candidates), random.Random(0)
    while spent[ours] < seconds or len(times[ours]) < 5:
        for candidate in order:
            if candidate != ours and len(times[candidate]) >= 3 and spent[candidate] > 4 * seconds:
                continue  # the slow ones are not worth more
            if not times[candidate] or times[candidate][-1] < WARM:
                candidates[candidate]()
            times[candidate].append(timed(candidates[candidate]))
            spent[candidate] += times[candidate][-1]
        draw.shuffle(order)
    return times


def timed(call):
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    if cuda:
        torch.cuda.synchronize()
    start = perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize()
    return perf_counter() - start
