"""Colorings: which rows or columns of a sparse matrix share a product."""

from __future__ import annotations

from typing import Any, Iterator

import torch
from torch import Tensor

from ..autograd import get_backend
from ._aside import aside
from ._greedy import EFFORT, Lists, best, distance_two, most_constrained_first, smallest_last, star
from ._patterns import Pattern, as_pattern

__all__ = ["Coloring", "coloring"]

MODES = ("auto", "forward", "reverse", "symmetric")


class Coloring:
    """Groups of rows or columns of a sparse matrix. One product finds a whole group. `coloring` makes it.

    Attributes
    ----------
    pattern : Pattern
    mode : {'forward', 'reverse', 'symmetric'}
        Columns, rows, or rows of a symmetric matrix.
    colors : Tensor
        The color of each column or row, ``(columns,)`` or ``(rows,)``, from zero.
    count : int
        How many colors there are: the products that give the whole matrix.
    lower_bound : int
        No coloring has fewer: the entries of the largest row (of the largest column, for rows). For a symmetric
        matrix, the entries of its lower half by its rows, of the densest part that greedy removal finds.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.sparse import Pattern, coloring
    >>> diagonal = Pattern(torch.arange(3), torch.arange(3), (3, 3))
    >>> coloring(diagonal, "forward").count
    1
    """

    def __init__(self, pattern: Pattern, mode: str, colors: Tensor, lower_bound: int) -> None:
        self.pattern: Pattern = pattern
        self.mode: str = mode
        self.colors: Tensor = colors
        self.lower_bound: int = lower_bound
        self.count: int = int(self.colors.max()) + 1 if self.colors.numel() else 0

    def __repr__(self) -> str:
        lines = "columns" if self.mode == "forward" else "rows"
        return f"Coloring({self.mode}: {self.count} colors for {len(self.colors)} {lines}, {self.lower_bound} at least)"


def coloring(pattern: Any, mode: str = "auto") -> Coloring:
    """Color the columns or rows of a sparse matrix, so that one product finds all of one color.

    Parameters
    ----------
    pattern : Pattern, Tensor or pair of Tensors
        Where the matrix has entries: a `Pattern`, a matrix of booleans, a sparse matrix, or a pair of index tensors
        ``(rows, columns)``.
    mode : {'auto', 'forward', 'reverse', 'symmetric'}
        'forward' colors columns, for products by forward mode, 'reverse' colors rows; 'auto' is the one of these two
        that takes less time. 'symmetric' colors the rows of a symmetric matrix with a star coloring, which gives
        each pair of entries once.

    Returns
    -------
    Coloring
        To be passed to `sparse_jacobian` or, if 'symmetric', to `sparse_hessian` in the place of the pattern.

    Raises
    ------
    TypeError
        No pattern.
    ValueError
        There is no such mode; or the pattern is not symmetric.

    Notes
    -----
    Colors are chosen greedily, in several orders of the rows; the best result is kept. Cost: some passes in plain
    Python over the entries, of blocks where the pattern has blocks: less than ten seconds for 30,000 columns with 50
    entries each.
    Source: A. H. Gebremedhin, F. Manne, A. Pothen, SIAM Review 47, 629 (2005).

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.sparse import coloring
    >>> tridiagonal = torch.ones(9, 9).tril(1).triu(-1) > 0
    >>> coloring(tridiagonal)
    Coloring(reverse: 3 colors for 9 rows, 3 at least)
    >>> arrow = torch.eye(9) > 0
    >>> arrow[0] = arrow[:, 0] = True
    >>> coloring(arrow, "symmetric")
    Coloring(symmetric: 2 colors for 9 rows, 2 at least)
    """
    if mode not in MODES:
        raise ValueError(f"coloring: unknown mode {mode!r}, expected one of {', '.join(map(repr, MODES))}")
    # As in `jacobian`: a column costs about 1.5 times as much as a row, and 3 times without forward mode.
    return _colored(as_pattern(pattern), mode, 3.0 if get_backend() == "autograd" else 1.5)


@aside
def _colored(pattern: Pattern, mode: str, ratio: float) -> Coloring:
    if mode == "symmetric":
        return _symmetric(pattern)
    if mode != "auto":
        return _one_sided(pattern, mode)
    reverse = _one_sided(pattern, "reverse")
    if reverse.count <= ratio * _largest(pattern, "forward"):
        return reverse
    forward = _one_sided(pattern, "forward")
    return forward if ratio * forward.count < reverse.count else reverse


def lines_and_marks(pattern: Pattern, mode: str) -> tuple[Tensor, Tensor, int, int]:
    """The lines to color and the marks of their entries: columns and rows (forward), or rows and columns; and the
    numbers of both."""
    if mode == "forward":
        return pattern.columns, pattern.rows, pattern.shape[1], pattern.shape[0]
    return pattern.rows, pattern.columns, pattern.shape[0], pattern.shape[1]


def _largest(pattern: Pattern, mode: str) -> int:
    """The largest number of lines that meet in one place, a lower bound of the number of colors."""
    _, marks, _, places = lines_and_marks(pattern, mode)
    return int(torch.bincount(marks, minlength=max(places, 1)).max())


def _one_sided(pattern: Pattern, mode: str) -> Coloring:
    blocks, size = pattern.blocks(), pattern.block_size
    lines, marks, count, places = lines_and_marks(blocks, mode)
    members = lists(lines, marks, count)
    bound = _largest(blocks, mode)
    # the columns whose rows have the most entries
    crowd = torch.bincount(marks, minlength=max(places, 1))
    crowded = torch.zeros(count, dtype=torch.long, device="cpu").index_add(0, lines, crowd[marks])

    def orders() -> Iterator[list[int]]:
        yield list(range(count))
        yield torch.sort(crowded, descending=True)[1].tolist()
        if int((crowd**2).sum()) <= EFFORT:
            yield most_constrained_first(members, lists(marks, lines, places))

    def color(order: Any) -> list[int]:
        return distance_two(members, places, order)

    colors = best(color, orders(), blocks.nnz, bound) if count else []
    # a line without an entry needs no color of its own, and got the first one
    return Coloring(pattern, mode, _of_blocks(colors, size), bound * size)


def _symmetric(pattern: Pattern) -> Coloring:
    if pattern.shape[0] != pattern.shape[1] and not pattern.open_ended:
        raise ValueError(f"coloring: a symmetric matrix is square, the pattern has a shape of {pattern.shape}")
    lonely = pattern.missing_transposes()
    if lonely:
        named = ", ".join(f"(row {row}, column {column})" for row, column in lonely[:3])
        raise ValueError(
            f"coloring: the pattern is not symmetric: {named}{' and others' * (len(lonely) > 3)} without its transpose"
            "; pattern.symmetrized() adds what is missing"
        )
    blocks, size = pattern.blocks(), pattern.block_size
    off = blocks.rows != blocks.columns
    count = max(blocks.shape)
    neighbors = lists(blocks.rows[off], blocks.columns[off], count)
    order = smallest_last(neighbors)
    bound = _density(neighbors, order, set(blocks.rows[~off].tolist()), size)
    by_degree = sorted(range(count), key=lambda vertex: -len(neighbors[vertex]))
    # Rows that share no column share a color here, too: never more colors than by rows alone.
    one_sided = _one_sided(blocks, "reverse").colors.tolist()
    orders = [sorted(range(count), key=one_sided.__getitem__), list(range(count)), order, by_degree]
    colors = best(lambda order: star(neighbors, order), orders, 3 * blocks.nnz, -(-bound // size)) if count else []
    if max(one_sided, default=0) < max(colors, default=0):
        colors = one_sided
    return Coloring(pattern, "symmetric", _of_blocks(colors, size), bound)


def _density(neighbors: Lists, order: list[int], diagonal: set[int], size: int) -> int:
    """Unknowns by rows of the densest part: each product gives at most one unknown in each row."""
    position = {vertex: number for number, vertex in enumerate(order)}
    unknowns, bound = 0.0, 0
    for number, vertex in enumerate(order):
        before = sum(position[neighbor] < number for neighbor in neighbors[vertex])
        unknowns += before * size + (vertex in diagonal) * (size + 1) / 2
        bound = max(bound, -int(-unknowns // (number + 1)))
    return bound


def lists(lines: Tensor, marks: Tensor, count: int) -> Lists:
    """The marks of each line."""
    order = torch.argsort(lines)
    sizes = torch.bincount(lines, minlength=count).tolist()
    flat: list[int] = marks[order].tolist()
    lists, start = [], 0
    for size in sizes:
        lists.append(flat[start : start + size])
        start += size
    return lists


def _of_blocks(colors: list[int], size: int) -> Tensor:
    """The colors of rows: each row of a block has its own color."""
    own = torch.tensor(colors, dtype=torch.long, device="cpu")
    return (own[:, None] * size + torch.arange(size, device="cpu")).reshape(-1)
