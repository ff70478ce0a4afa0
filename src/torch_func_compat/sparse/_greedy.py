"""Greedy colorings, in time that is linear in the number of entries.

The colors that a vertex may not take are bits of one integer: what a row forbids is collected by a single ``or``,
where a textbook's loop visits all columns of the row.
"""

from __future__ import annotations

import heapq
import random
from typing import Callable, Iterable, List, Sequence

Lists = List[List[int]]

# Entries that all passes together may visit, beyond the first two: a second or two of Python.
EFFORT = 4_000_000
# Passes at most.
PASSES = 40


def distance_two(members: Lists, resources: int, order: Sequence[int]) -> list[int]:
    """A color for each line, such that no two lines of one color have an entry in the same place.

    `members` are the places of each line's entries; there are `resources` places. Lines are the columns of a Jacobian
    and places its rows, or the other way round: greedy partial distance-2 coloring of the bipartite graph
    (Gebremedhin, Manne, Pothen, SIAM Review 47, 629 (2005), algorithm 3.2).
    """
    taken = [0] * resources
    colors = [0] * len(members)
    for line in order:
        forbidden = 0
        for place in members[line]:
            forbidden |= taken[place]
        bit = ~forbidden & (forbidden + 1)
        for place in members[line]:
            taken[place] |= bit
        colors[line] = bit.bit_length() - 1
    return colors


def most_constrained_first(members: Lists, lines: Lists) -> list[int]:
    """Lines class by class, of the coloring that goes on with the line that has the fewest colors left.

    `lines` has a place's lines, the transpose of `members`. This is DSATUR (D. Brélaz, Commun. ACM 22, 251 (1979)), in
    time that is quadratic in the entries of a place.
    """
    forbidden, counts = [0] * len(members), [0] * len(members)
    degrees = [sum(len(lines[place]) for place in its) for its in members]
    colors = [-1] * len(members)
    heap = [(0, -degree, line) for line, degree in enumerate(degrees)]
    heapq.heapify(heap)
    while heap:
        _, _, line = heapq.heappop(heap)
        if colors[line] >= 0:
            continue
        bit = ~forbidden[line] & (forbidden[line] + 1)
        colors[line] = bit.bit_length() - 1
        for place in members[line]:
            for other in lines[place]:
                if colors[other] < 0 and not forbidden[other] & bit:
                    forbidden[other] |= bit
                    counts[other] += 1
                    heapq.heappush(heap, (-counts[other], -degrees[other], other))
    return sorted(range(len(members)), key=colors.__getitem__)


def star(neighbors: Lists, order: Sequence[int]) -> list[int]:
    """A color for each vertex, such that neighbors differ and no path of four vertices has two colors only.

    Each entry of a symmetric matrix then stands alone in its row among the columns of its column's color, or the same
    with row and column exchanged (the review above, section 4.3; the algorithm of Gebremedhin, Tarafdar, Manne,
    Pothen, SIAM J. Sci. Comput. 29, 1042 (2007)). `neighbors` has no vertex among its own neighbors.
    """
    size = len(neighbors)
    colors = [-1] * size
    around = [0] * size  # colors of the neighbors
    often = [0] * size  # colors that two or more neighbors have
    hubs = [0] * size  # colors of those neighbors that have another neighbor of this vertex's color
    first: list[dict[int, int]] = [{} for _ in range(size)]  # the first neighbor of each color
    for vertex in order:
        forbidden = around[vertex]
        twice = often[vertex]
        for neighbor in neighbors[vertex]:
            color = colors[neighbor]
            if color >= 0:
                # vertex - neighbor - hub - another one of the neighbor's color
                forbidden |= hubs[neighbor]
                if twice >> color & 1:
                    # another neighbor of that color - vertex - neighbor - any neighbor of that one
                    forbidden |= around[neighbor]
        bit = ~forbidden & (forbidden + 1)
        color = colors[vertex] = bit.bit_length() - 1
        for neighbor in neighbors[vertex]:
            its = colors[neighbor]
            if around[neighbor] & bit:
                if its >= 0:
                    hubs[vertex] |= 1 << its
                    if not often[neighbor] & bit:
                        hubs[first[neighbor][color]] |= 1 << its
                often[neighbor] |= bit
            else:
                around[neighbor] |= bit
                first[neighbor][color] = vertex
            if its >= 0 and twice >> its & 1:
                hubs[neighbor] |= bit
    return colors


def smallest_last(neighbors: Lists) -> list[int]:
    """An order in which each vertex has few neighbors among those before it."""
    degrees = [len(its) for its in neighbors]
    buckets: Lists = [[] for _ in range(max(degrees, default=0) + 1)]
    for vertex, degree in enumerate(degrees):
        buckets[degree].append(vertex)
    removed, lowest = [False] * len(neighbors), 0
    order: list[int] = []
    while len(order) < len(neighbors):
        while not buckets[lowest]:
            lowest += 1
        vertex = buckets[lowest].pop()
        if removed[vertex] or degrees[vertex] != lowest:
            continue
        removed[vertex] = True
        order.append(vertex)
        for neighbor in neighbors[vertex]:
            if not removed[neighbor]:
                degrees[neighbor] -= 1
                buckets[degrees[neighbor]].append(neighbor)
        lowest = max(lowest - 1, 0)
    return order[::-1]


def best(
    color: Callable[[Sequence[int]], list[int]], orders: Iterable[Sequence[int]], entries: int, bound: int
) -> list[int]:
    """The coloring with fewest colors, of those in the given orders and of others that follow from them.

    A greedy coloring that takes the classes of an earlier one, in any order, takes no more colors than that one
    (Culberson's iterated greedy; for stars it is no more than a good try). It ends with `bound` colors, or when all
    of `entries` were visited as often as `EFFORT` allows.
    """
    found: list[int] = []
    passes = max(min(PASSES, EFFORT // max(entries, 1)), 0)
    for order in orders:
        again = color(order)
        if not found or max(again) < max(found):
            found = again
        if max(found, default=-1) + 1 <= bound:
            return found
    draw = random.Random(0)
    current = found
    for number in range(passes):
        classes: Lists = [[] for _ in range(max(current) + 1)]
        for vertex, its in enumerate(current):
            classes[its].append(vertex)
        if number % 3 == 0:
            classes.reverse()
        elif number % 3 == 1:
            classes.sort(key=len)
        else:
            draw.shuffle(classes)
        current = color([vertex for its in classes for vertex in its])
        if max(current) < max(found):
            found = current
            if max(found) + 1 <= bound:
                break
    return found
