"""Sparse Hessians, colorings and operators: what they cost beside dense ones, and how many colors they take.

``python benchmarks/bench_sparse.py`` runs all of it on the torch of that Python, in one thread; times are of the
thread, so that what else the machine does is not in them, and both sides of a ratio run in one process. Colors of other
packages are shown where networkx or asdex is installed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import resource
import sys
import time

import torch

import torch_func_compat as tfc
from torch_func_compat.operators import hessian_operator
from torch_func_compat.sparse import Pattern, coloring, neighbor_pattern, sparse_hessian

D = torch.float64


def best_of(call, times):
    """The result, and the least of so many times in seconds."""
    taken = []
    for _ in range(times):
        start = time.thread_time()
        result = call()
        taken.append(time.thread_time() - start)
    return result, min(taken)


def memory():
    """The most that this process had so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def chain(atoms, reach):
    """Positions, energy and pairs of a coil with bonds, angles and Lennard-Jones pairs within a cut-off."""
    angle = torch.arange(atoms, dtype=D) * 0.6
    x = torch.stack([2 * angle.cos(), 2 * angle.sin(), 0.35 * angle], 1)
    x = x + 0.02 * torch.randn(atoms, 3, dtype=D, generator=torch.Generator().manual_seed(0))
    i = torch.arange(atoms)
    # along the coil, those within the cut-off are the next ones
    first, second = (torch.cat(pairs) for pairs in zip(*[(i[:-k], i[k:]) for k in range(1, reach + 1)]))

    def energy(flat):
        x = flat.reshape(-1, 3)
        bonds = x[1:] - x[:-1]
        lengths = bonds.pow(2).sum(-1).sqrt()
        cosines = -(bonds[1:] * bonds[:-1]).sum(-1) / (lengths[1:] * lengths[:-1])
        inverse = 1 / (x[first] - x[second]).pow(2).sum(-1).pow(3)
        return 100 * ((lengths - 1.2) ** 2).sum() + 20 * ((cosines + 0.5) ** 2).sum() + (inverse**2 - inverse).sum()

    return x.reshape(-1), energy, first, second


def chains():
    print("chain of 1,000 atoms: sparse Hessian and dense one")
    for reach in (2, 5):
        compare(*chain(1000, reach), reach)


def compare(x, energy, first, second, reach):
    (pattern, colored), setup = best_of(lambda: _colored(first, second, 1000), 1)
    hessian = sparse_hessian(energy, colored, layout="values")
    hessian(x)  # checked
    values, ours = best_of(lambda: hessian(x), 5)
    dense, theirs = best_of(lambda: tfc.hessian(energy, chunk_size=500)(x), 1)
    ours = min(ours, best_of(lambda: hessian(x), 5)[1])
    dense[pattern.rows, pattern.columns] -= values
    largest = int(torch.bincount(pattern.rows).max())
    print(
        f"    neighbors to {reach}: {pattern.nnz / x.numel() ** 2:.2%} not zero, {colored.count} colors (largest row "
        f"{largest}); coloring {setup:.2f} s, sparse {ours * 1e3:.1f} ms, dense {theirs:.2f} s: "
        f"{theirs / ours:.0f} times; differ by {float(dense.abs().max()):.0e}"
    )


def _colored(first, second, atoms):
    pattern = neighbor_pattern(first, second, atoms)
    return pattern, coloring(pattern, "symmetric")


def large():
    x, energy, first, second = chain(10_000, 5)
    tfc.grad(energy)(x)  # what torch imports and keeps when it is first used
    before, start = memory(), time.thread_time()
    _, colored = _colored(first, second, 10_000)
    middle = time.thread_time()
    hessian = sparse_hessian(energy, colored, chunk_size=8)
    hessian(x)
    first_call = time.thread_time() - middle
    _, call = best_of(lambda: hessian(x), 3)
    print(
        f"chain of 10,000 atoms: {colored}\n    coloring {middle - start:.2f} s, first call with its check "
        f"{first_call:.2f} s, later {call:.2f} s; {memory() - before} MB more than the {before} MB before"
    )


def stencil(shape, offsets):
    index = torch.arange(int(torch.tensor(shape).prod())).reshape(shape)
    rows, columns = [], []
    for offset in offsets:
        rows.append(index[tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, shape))].reshape(-1))
        columns.append(index[tuple(slice(max(0, o), n - max(0, -o)) for o, n in zip(offset, shape))].reshape(-1))
    return Pattern(torch.cat(rows), torch.cat(columns), (index.numel(), index.numel()))


def cross(dimensions):
    every = itertools.product((-1, 0, 1), repeat=dimensions)
    return [offset for offset in every if sum(map(abs, offset)) <= 1]


def patterns():
    n, generator = 3000, torch.Generator().manual_seed(0)
    own, rest = torch.arange(n), torch.arange(1, n)
    i, j = own.repeat_interleave(3), torch.randint(0, n, (3 * n,), generator=generator)
    off = i != j
    return {
        "banded, 5 diagonals": stencil((n,), [(k,) for k in range(-2, 3)]),
        "2-D, 5 points": stencil((55, 55), cross(2)),
        "3-D, 7 points": stencil((14, 14, 14), cross(3)),
        "arrow": Pattern(torch.cat([own, 0 * rest, rest]), torch.cat([own, rest, 0 * rest]), (n, n)),
        "random": neighbor_pattern(i[off], j[off], n, block_size=1),
    }


def by_networkx(pattern):
    """Colors of the graph of rows that meet, by its three best strategies."""
    import networkx

    graph, columns = networkx.Graph(), {}
    graph.add_nodes_from(range(pattern.shape[0]))
    for row, column in zip(pattern.rows.tolist(), pattern.columns.tolist()):
        columns.setdefault(column, []).append(row)
    for rows in columns.values():
        graph.add_edges_from(itertools.combinations(rows, 2))
    strategies = ("largest_first", "smallest_last", "DSATUR")
    return min(max(networkx.greedy_color(graph, strategy).values()) + 1 for strategy in strategies)


def by_asdex(pattern):
    """Colors of rows, and of a star coloring."""
    import asdex

    other = asdex.SparsityPattern.from_coo(pattern.rows.numpy(), pattern.columns.numpy(), pattern.shape)
    return asdex.color_rows(other)[1], asdex.color_symmetric(other)[1]


def colors():
    print("colors                    rows: bound, ours, networkx, asdex    symmetric: bound, ours, asdex    seconds")
    for name, pattern in patterns().items():
        (reverse, symmetric), seconds = best_of(functools.partial(both_colorings, pattern), 1)
        theirs = "-"
        if importlib.util.find_spec("networkx") and reverse.lower_bound < 1000:  # else the graph is complete
            theirs = by_networkx(pattern)
        others = by_asdex(pattern) if importlib.util.find_spec("asdex") else ("-", "-")
        rows = [reverse.lower_bound, reverse.count, theirs, others[0]]
        stars = [symmetric.lower_bound, symmetric.count, others[1]]
        print(f"    {name:24}{rows!s:38}{stars!s:32}{seconds:.2f}")


def both_colorings(pattern):
    return coloring(pattern, "reverse"), coloring(pattern, "symmetric")


def cluster():
    """Six largest eigenvalues of the Hessian of 216 Lennard-Jones atoms, each interacting with all."""
    if not importlib.util.find_spec("scipy"):
        print("eigenvalues: no scipy")
        return
    from scipy.sparse.linalg import eigsh

    axis = 1.1 * torch.arange(6, dtype=D)
    noise = 0.02 * torch.randn(216, 3, dtype=D, generator=torch.Generator().manual_seed(0))
    x = (torch.stack(torch.meshgrid(axis, axis, axis), -1).reshape(-1, 3) + noise).reshape(-1)
    i, j = torch.triu_indices(216, 216, offset=1)

    def energy(flat):
        x = flat.reshape(-1, 3)
        inverse = 1 / (x[i] - x[j]).pow(2).sum(-1).pow(3)
        return 4 * (inverse**2 - inverse).sum()

    def by_products():
        operator = hessian_operator(energy, x).to_scipy()
        return torch.as_tensor(eigsh(operator, k=6, which="LA", return_eigenvectors=False))

    by_products()
    largest, ours = best_of(by_products, 3)
    _, chunked = best_of(lambda: tfc.hessian(energy, chunk_size=50)(x), 1)
    matrix, theirs = best_of(lambda: tfc.hessian(energy)(x), 1)
    exact = torch.linalg.eigvalsh(matrix.reshape(648, 648)) if hasattr(torch.linalg, "eigvalsh") else None
    error = float((largest.sort()[0] - exact[-6:]).abs().max() / exact[-1]) if exact is not None else float("nan")
    print(
        f"six largest eigenvalues of 216 atoms: by products {ours:.3f} s, the dense matrix alone {theirs:.2f} s: "
        f"{theirs / ours:.1f} times, or {chunked:.2f} s with chunk_size=50: {chunked / ours:.1f} times; relative error "
        f"{error:.0e}"
    )


PARTS = {"chains": chains, "large": large, "colors": colors, "cluster": cluster}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all of them by default")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {tfc.get_backend()}")
    for part in parser.parse_args().parts or ["large", "chains", "colors", "cluster"]:
        PARTS[part]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
