"""Patterns of functions, by products with random vectors."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from ..autograd.checks import is_batched, unwrap
from ..autograd.internals import P
from ._aside import aside
from ._coloring import lists
from ._greedy import distance_two
from ._patterns import Pattern, split
from ._products import Options, by_columns, by_rows

__all__ = ["detect_pattern"]

# The number of parts that a group of rows is divided into: more parts take fewer evaluations and more products.
PARTS = 4


def detect_pattern(
    func: Callable[P, Any],
    x: Tensor,
    *,
    probes: int = 2,
    spread: float = 1e-3,
    symmetric: bool = False,
    generator: torch.Generator | None = None,
    chunk_size: int | str | None = None,
    memory: int | str | None = None,
) -> Pattern:
    """Pattern of a function's Jacobian, found by random products near `x`.

    This is a probe, not a proof: an entry that is zero at all probed points is not found. That holds for branches that
    no point takes, for elements that are clamped, masked or beyond a cut-off there, and for derivatives that
    underflow. The check of `sparse_jacobian` notices, in its first call, if an entry is missing at the point of that
    call.

    Parameters
    ----------
    func : callable
        Takes one tensor and returns one. The pattern of a Hessian is that of ``grad(func)``, with `symmetric`.
    x : Tensor
        Where to look, of any shape.
    probes : int
        The number of points: `x` itself, and others near it. The pattern has the entries of all of them.
    spread : float
        The distance of the other points from `x`, in units of its largest element (of one, if all are zero). An exact
        zero at `x`, such as that of the derivative of ``x**2`` at zero, is no zero nearby.
    symmetric : bool
        Add the transpose of each entry.
    generator : torch.Generator, optional
        Draws the vectors and the points, on the CPU; by default one with a fixed seed, so that the result is always
        the same, and torch's own generators are left as they are.
    chunk_size, memory
        Products at a time; see `jacrev`.

    Returns
    -------
    Pattern
        Row-major, of shape ``(output.numel(), x.numel())``.

    Raises
    ------
    ValueError
        There is a NaN or an infinity in a product, `probes` is not positive, `x` is mapped over, or a matrix that is
        not square is to be symmetric.
    TypeError
        `x` or the output is no tensor.

    Notes
    -----
    Groups of rows (of columns, for many more outputs than inputs) are multiplied by random numbers; those that have
    an entry in a column are divided by four, and so on down to single rows. Groups without a common column share a
    product. Cost for each probe: one evaluation of `func` for each of the log4(rows) divisions, with about four times
    as many products as there are colors in the end. The dense Jacobian is never made.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.sparse import detect_pattern
    >>> detect_pattern(lambda x: x[1:] * x[:-1], torch.zeros(4)).to_dense()
    tensor([[ True,  True, False, False],
            [False,  True,  True, False],
            [False, False,  True,  True]])
    """
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise ValueError(f"detect_pattern: expected probes= to be a positive int, got {probes!r}")
    if not isinstance(x, Tensor):
        raise TypeError(f"detect_pattern: expected x to be a tensor, got {type(x).__name__}")
    if is_batched(x):
        raise ValueError("detect_pattern: x is mapped over by a vmap; detect the pattern of one sample outside of it")
    options = Options(0, False, dict(chunk_size=chunk_size, memory=memory))
    return _detected(func, unwrap(x.detach()), probes, spread, symmetric, generator, options)


@aside
def _detected(
    func: Callable[..., Any],
    x: Tensor,
    probes: int,
    spread: float,
    symmetric: bool,
    generator: torch.Generator | None,
    options: Options,
) -> Pattern:
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        outputs = options.output("detect_pattern", func(x))[0].numel()
    shape = (outputs, x.numel())
    if symmetric and shape[0] != shape[1]:
        raise ValueError(
            f"detect_pattern: a Jacobian of shape {shape} is not symmetric; give the gradient, as grad(func)"
        )
    largest = float(x.abs().max()) if x.numel() else 0.0
    found = [torch.zeros(0, dtype=torch.long, device="cpu")]
    for probe in range(probes):
        step = 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64, device="cpu") - 1
        point = x + (spread * (largest or 1.0) * step).to(x.dtype).to(x.device) if probe else x
        rows, columns = _probe(func, point, shape, generator, options)
        found.append(rows * max(shape[1], 1) + columns)
    pattern = Pattern(*split(torch.unique(torch.cat(found)), shape[1]), shape)
    return pattern.symmetrized() if symmetric else pattern


def _probe(
    func: Callable[..., Any], x: Tensor, shape: tuple[int, int], generator: torch.Generator, options: Options
) -> tuple[Tensor, Tensor]:
    """Rows and columns of the nonzero entries at one point."""
    forward = shape[0] > 1.5 * shape[1]
    size, width = shape[::-1] if forward else shape
    # the first lines of the groups, and which of them have an entry at which mark
    starts, length = torch.zeros(min(size, 1), dtype=torch.long, device="cpu"), 1
    while length < size:
        length *= PARTS
    marks = torch.arange(width if size else 0, device="cpu")
    groups = torch.zeros_like(marks)
    while length > 1:
        part = length // PARTS
        offsets = torch.arange(0, length, part, device="cpu")
        its = (groups[:, None] * len(offsets) + torch.arange(len(offsets), device="cpu")).reshape(-1)
        marks = marks.repeat_interleave(len(offsets))
        starts = (starts[:, None] + offsets).reshape(-1)
        inside = starts < size
        keep = inside[its]
        groups, marks, length = its[keep], marks[keep], part
        members = lists(groups, marks, len(starts))
        colors = torch.tensor(distance_two(members, width, range(len(members))), dtype=torch.long, device="cpu")
        seeds = _seeds(starts, part, size, colors, inside, generator)
        products = _products(func, x, seeds, forward, options)
        hit = products[colors[groups], marks] != 0
        groups, marks = groups[hit], marks[hit]
    if size == 1:  # there was nothing to divide
        seeds = torch.ones(1, 1, dtype=torch.float64, device="cpu")
        marks = marks[_products(func, x, seeds, forward, options)[0] != 0]
        groups = torch.zeros_like(marks)
    lines = starts[groups]
    return (marks, lines) if forward else (lines, marks)


def _seeds(starts: Tensor, part: int, size: int, colors: Tensor, inside: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers for the lines of each group, in the row of its color."""
    seeds = torch.zeros(int(colors.max()) + 1, size, dtype=torch.float64, device="cpu")
    lines = starts[inside, None] + torch.arange(part, device="cpu")
    rows = colors[inside, None].expand(lines.shape)
    fits = lines < size
    numbers = 0.5 + torch.rand(lines.shape, generator=generator, dtype=torch.float64, device="cpu")
    signs = 2 * torch.randint(0, 2, lines.shape, generator=generator, device="cpu") - 1
    seeds[rows[fits], lines[fits]] = (numbers * signs)[fits]
    return seeds


def _products(func: Callable[..., Any], x: Tensor, seeds: Tensor, forward: bool, options: Options) -> Tensor:
    def given(rows: int, columns: int, like: Tensor) -> Tensor:
        return seeds.to(like.dtype).to(like.device)

    products, _ = (by_columns if forward else by_rows)("detect_pattern", func, options, (x,), {}, given)
    products = products.detach().cpu()
    if not bool(torch.isfinite(products).all()):
        raise ValueError(
            "detect_pattern: a product is not finite, so that it does not show which entries there are; give another "
            "x, or spread=0 if points about it are outside of the function's domain"
        )
    return products
