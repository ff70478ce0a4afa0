"""Colorings against brute force, against closed forms, and by what they promise: each entry is found alone."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from torch_func_compat.sparse import Pattern, coloring, neighbor_pattern
from torch_func_compat.sparse._greedy import distance_two, star


def stencil(shape, offsets):
    """The pattern of a stencil on a grid, row-major."""
    index = torch.arange(int(torch.tensor(shape).prod())).reshape(shape)
    rows, columns = [], []
    for offset in offsets:
        rows.append(index[tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, shape))].reshape(-1))
        columns.append(index[tuple(slice(max(0, o), n - max(0, -o)) for o, n in zip(offset, shape))].reshape(-1))
    return Pattern(torch.cat(rows), torch.cat(columns), (index.numel(), index.numel()))


def cross(dimensions):
    return [tuple(step * (axis == k) for k in range(dimensions)) for axis in range(dimensions) for step in (-1, 0, 1)][
        : 3 * dimensions
    ]


def unique(offsets):
    return sorted(set(offsets))


def arrow(size):
    dense = torch.eye(size) > 0
    dense[0] = dense[:, 0] = True
    return dense


def scattered(rows, columns, share, seed):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < share


def symmetric(size, share, seed, diagonal=True):
    dense = scattered(size, size, share, seed)
    dense = dense | dense.t()
    dense[range(size), range(size)] = diagonal
    return dense


PATTERNS = {
    "banded": stencil((50,), [(k,) for k in range(-3, 4)]).to_dense(),
    "2-D": stencil((8, 9), unique(cross(2))).to_dense(),
    "2-D, nine points": stencil((8, 9), list(itertools.product((-1, 0, 1), repeat=2))).to_dense(),
    "3-D": stencil((5, 4, 6), unique(cross(3))).to_dense(),
    "arrow": arrow(40),
    "random": symmetric(60, 0.05, 0),
    "random, no diagonal": symmetric(60, 0.05, 1, diagonal=False),
    "diagonal": torch.eye(7) > 0,
    "dense": torch.ones(9, 9) > 0,
    "empty": torch.zeros(5, 5) > 0,
}


def meet(dense, one, other):
    """Whether two rows have a column in common."""
    return bool((dense[one] & dense[other]).any())


@pytest.mark.parametrize("mode", ("forward", "reverse"))
@pytest.mark.parametrize("name", PATTERNS)
def test_lines_of_one_color_do_not_meet(name, mode):
    dense = PATTERNS[name]
    found = coloring(dense, mode)
    by_line = dense.t() if mode == "forward" else dense
    colors = found.colors.tolist()
    assert len(colors) == len(by_line)
    assert found.count == max(colors) + 1
    assert not [
        (a, b)
        for a, b in itertools.combinations(range(len(colors)), 2)
        if colors[a] == colors[b] and meet(by_line, a, b)
    ]
    assert found.lower_bound == int(by_line.sum(0).max())
    assert found.lower_bound <= found.count


def is_star(dense, colors):
    """No two neighbors of one color, and no path of four vertices in two colors: by going along all of them."""
    neighbors = [[j for j in range(len(dense)) if j != i and dense[i][j]] for i in range(len(dense))]
    for a in range(len(dense)):
        for b in neighbors[a]:
            if colors[a] == colors[b]:
                return False
            for c in neighbors[b]:
                if c != a and colors[c] == colors[a] and any(d != b and colors[d] == colors[b] for d in neighbors[c]):
                    return False
    return True


@pytest.mark.parametrize("name", PATTERNS)
def test_symmetric_colorings_give_each_entry_alone(name):
    dense = PATTERNS[name]
    found = coloring(dense, "symmetric")
    colors = found.colors.tolist()
    assert found.lower_bound <= max(found.count, 1)
    for i, j in dense.nonzero().tolist():
        there = sum(colors[k] == colors[j] and bool(dense[i, k]) for k in range(len(dense)))
        back = sum(colors[k] == colors[i] and bool(dense[j, k]) for k in range(len(dense)))
        assert there == 1 or back == 1, (i, j)


@pytest.mark.parametrize("seed", range(60))
def test_stars_by_all_paths(seed):
    draw = random.Random(seed)
    size = draw.randint(2, 25)
    dense = symmetric(size, draw.choice((0.03, 0.1, 0.2, 0.4)), seed).tolist()
    neighbors = [[j for j in range(size) if j != i and dense[i][j]] for i in range(size)]
    order = list(range(size))
    draw.shuffle(order)
    assert is_star(dense, star(neighbors, order))


def test_the_check_of_stars_sees_what_is_none():
    path = [[abs(i - j) <= 1 for j in range(4)] for i in range(4)]
    assert not is_star(path, [0, 1, 0, 1])
    assert is_star(path, [0, 1, 0, 2])


def fewest(admissible, size):
    """The number of colors of the best of all colorings."""
    for count in range(1, size + 1):
        for colors in itertools.product(range(count), repeat=size):
            if admissible(colors):
                return count
    return 0


@pytest.mark.parametrize("seed", range(12))
def test_counts_against_the_best_of_all_colorings(seed):
    dense = symmetric(6, 0.2, seed)
    nested = dense.tolist()
    best_star = fewest(lambda colors: is_star(nested, colors), 6)
    pairs = [(a, b) for a, b in itertools.combinations(range(6), 2) if meet(dense, a, b)]
    best_rows = fewest(lambda colors: all(colors[a] != colors[b] for a, b in pairs), 6)
    # greedy, in several orders: on matrices as small as these it is the best, or nearly so
    assert best_rows <= coloring(dense, "reverse").count <= best_rows + 1
    assert best_star <= coloring(dense, "symmetric").count <= best_star + 1
    assert coloring(dense, "reverse").lower_bound <= best_rows
    assert coloring(dense, "symmetric").lower_bound <= best_star


def test_counts_that_are_known():
    assert coloring(PATTERNS["banded"], "forward").count == 7
    assert coloring(PATTERNS["2-D, nine points"], "forward").count == 9
    assert coloring(arrow(40), "symmetric").count == 2
    assert coloring(arrow(40), "forward").count == 40
    assert coloring(arrow(40).flip(0, 1), "symmetric").count == 2
    tridiagonal = torch.ones(30, 30).triu(-1).tril(1) > 0
    assert coloring(tridiagonal, "symmetric").count == 3
    assert coloring(torch.eye(7) > 0, "symmetric").count == 1
    assert coloring(PATTERNS["dense"], "symmetric").count == 9


def test_greedy_takes_the_lowest_color_that_is_free():
    # columns 0 and 2 share no row; 1 shares one with both
    assert distance_two([[0], [0, 1], [1]], 2, [0, 1, 2]) == [0, 1, 0]
    assert distance_two([[0], [0, 1], [1]], 2, [1, 0, 2]) == [1, 0, 1]


def test_auto_takes_the_cheaper_side(backend):
    wide = torch.zeros(3, 40) > 0
    wide[0] = True
    assert coloring(wide).mode == "reverse"
    assert coloring(wide).count == 1
    assert coloring(wide.t()).mode == "forward"
    assert coloring(wide.t()).count == 1


def test_blocks_are_colored_as_one():
    ones = neighbor_pattern(torch.arange(9), torch.arange(1, 10), 10, block_size=1)
    threes = neighbor_pattern(torch.arange(9), torch.arange(1, 10), 10)
    for mode in ("forward", "reverse", "symmetric"):
        single, triple = coloring(ones, mode), coloring(threes, mode)
        assert triple.count == 3 * single.count
        assert torch.equal(triple.colors, (3 * single.colors[:, None] + torch.arange(3)).reshape(-1))
    assert torch.equal(threes.to_dense(), ones.to_dense().repeat_interleave(3, 0).repeat_interleave(3, 1))


def test_kinds_of_patterns():
    dense = scattered(6, 9, 0.3, 0)
    rows, columns = dense.nonzero().t()
    kinds = [dense, dense.double(), dense.double().to_sparse(), Pattern(rows, columns, (6, 9)), (rows, columns)]
    if hasattr(torch, "sparse_csr_tensor"):
        starts = torch.cat([torch.zeros(1, dtype=torch.long), dense.sum(1).cumsum(0)])
        kinds.append(torch.sparse_csr_tensor(starts, columns, torch.ones(len(columns)), (6, 9)))
    for kind in kinds:
        pattern = coloring(kind, "forward").pattern
        assert torch.equal(pattern.rows, rows)
        assert torch.equal(pattern.columns, columns)


def test_symmetrized():
    dense = scattered(8, 8, 0.2, 3)
    rows, columns = dense.nonzero().t()
    assert torch.equal(Pattern(rows, columns, (8, 8)).symmetrized().to_dense(), dense | dense.t())


def test_wrong_patterns_are_named():
    one, two = torch.tensor([1]), torch.tensor([0, 1])
    with pytest.raises(TypeError, match=r"expected a Pattern, a Coloring, a matrix .* got a tensor of shape"):
        coloring(torch.ones(3))
    with pytest.raises(TypeError, match="got str"):
        coloring("banded")
    with pytest.raises(TypeError, match=r"integers, got torch\.float32"):
        Pattern(torch.ones(1), one, (2, 2))
    with pytest.raises(TypeError, match=r"integers, got torch\.bool"):
        Pattern(one > 0, one, (2, 2))
    with pytest.raises(ValueError, match=r"shapes \(1,\) and \(2,\)"):
        Pattern(one, two, (2, 2))
    with pytest.raises(ValueError, match="column 1 is not one of the 1 columns"):
        Pattern(one, one, (2, 1))
    with pytest.raises(ValueError, match="row -1 is not one"):
        Pattern(-one, one, (2, 2))
    with pytest.raises(ValueError, match=r"entry \(row 1, column 0\) is given more than once"):
        Pattern(torch.tensor([1, 1]), torch.tensor([0, 0]), (2, 2))
    with pytest.raises(ValueError, match="does not consist of blocks of 2 rows"):
        Pattern(one, one, (3, 3), block_size=2)
    with pytest.raises(ValueError, match="blocks of 2 x 2 entries are not full"):
        Pattern(one, one, (4, 4), block_size=2)
    with pytest.raises(ValueError, match="name atom 5, which is not one of 3 atoms"):
        neighbor_pattern(one, torch.tensor([5]), 3)
    with pytest.raises(ValueError, match=r"not symmetric: \(row 0, column 1\) without its transpose"):
        coloring(torch.ones(2, 2).triu() > 0, "symmetric")
    with pytest.raises(ValueError, match="a symmetric matrix is square"):
        coloring(torch.ones(2, 3) > 0, "symmetric")
    with pytest.raises(ValueError, match="unknown mode 'sideways', expected one of 'auto'"):
        coloring(torch.ones(2, 3) > 0, "sideways")
