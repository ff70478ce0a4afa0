"""Test with one random product whether a derivative has entries outside its pattern."""

from __future__ import annotations

from typing import Any, Callable, List, Tuple

import torch
from torch import Tensor

from ..autograd.checks import is_batched, unwrap
from ._aside import aside
from ._plan import Plan

# Entries that a message names
NAMED = 5
# Finds the entries of columns or rows that are wrong, as pairs (line, mark).
Search = Callable[[List[int]], List[Tuple[int, int]]]


def verify(api: str, plan: Plan, values: Tensor, product: Tensor, precision: float, search: Search) -> None:
    """Raise RuntimeError unless `product` equals the product of the values with the plan's random seed.

    `precision` is that of the least precise numbers on the way; `search` finds the entries outside the pattern in some
    places.
    """
    with torch.no_grad():
        values, product = values.detach(), product.detach()
        difference = (product - plan.times_last_seed(values)).abs()
        scale = _sums(plan, values.abs())
        finite = torch.where(scale < float("inf"), scale, torch.zeros_like(scale))
        # Rounding: each product is a sum, and terms that cancel within it may be larger than the sum.
        bound = precision**0.75 * scale + 1e3 * precision * finite.max() if len(scale) else scale
        # NaN and inf within the pattern need no check
        wrong = ~(difference <= bound) & (scale < float("inf"))
        if is_batched(wrong):
            # of each sample the first place, since the samples may be along any dimension
            places = torch.arange(plan.width, device=wrong.device)
            first = torch.where(wrong, places, places.new_full((), plan.width)).min() if plan.width else places
            found = sorted(set(_flat(unwrap(first))) - {plan.width})
        else:
            found = _true(unwrap(wrong))
    if found:
        raise _error(api, plan, found, [] if is_batched(wrong) else search(found[:NAMED]))


@aside
def _flat(index: Tensor) -> list[int]:
    found: list[int] = index.reshape(-1).tolist()
    return found


@aside
def _true(mask: Tensor) -> list[int]:
    found: list[int] = mask.nonzero().reshape(-1).tolist()
    return found


def _sums(plan: Plan, sizes: Tensor) -> Tensor:
    """Sums of the absolute values of the entries, in each place."""
    return sizes.new_zeros(plan.width).index_add(0, plan.index("marks", sizes.device), sizes)


def outside(plan: Plan, multiply: Callable[..., tuple[Tensor, Any]], places: list[int]) -> list[tuple[int, int]]:
    """Entries outside the pattern in some places, as (line, mark), by one product for each place."""

    def units(rows: int, columns: int, like: Tensor) -> Tensor:
        seeds = torch.zeros(len(places), plan.width, dtype=like.dtype, device=like.device)
        seeds[range(len(places)), places] = 1
        return seeds

    return _new(plan, unwrap(multiply(units)[0].detach()), places)


@aside
def _new(plan: Plan, products: Tensor, places: list[int]) -> list[tuple[int, int]]:
    noise = 1e3 * torch.finfo(products.dtype).eps * products.abs().max() if products.numel() else 0
    found = []
    for place, product in zip(places, products.cpu()):
        known = set(plan.lines[plan.marks == place].tolist())
        found += [(line, place) for line in _true(~(product.abs() <= noise)) if line not in known]
    return found


def _error(api: str, plan: Plan, places: list[int], entries: list[tuple[int, int]]) -> RuntimeError:
    line, mark = ("column", "row") if plan.coloring.mode == "forward" else ("row", "column")
    where = f"{mark}{'s' * (len(places) > 1)} {', '.join(map(str, places[:NAMED]))}{', ...' * (len(places) > NAMED)}"
    if not entries:
        return RuntimeError(
            f"{api}: a random product does not agree with the sparse matrix in {where}. Either there are entries "
            "outside the pattern, or two evaluations of the function differ (random numbers?), or its derivative is "
            "not symmetric. detect_pattern() looks for the entries; check=False skips the check, and the result may "
            "be wrong"
        )
    pairs = [(a, b) if line == "row" else (b, a) for a, b in entries[:NAMED]]
    named = ", ".join(f"(row {row}, column {column})" for row, column in pairs)
    return RuntimeError(
        f"{api}: the derivative has entries outside the pattern: {named}{', ...' * (len(entries) > NAMED)} (found in "
        f"{where}). They would be added to other entries: extend the pattern by them; detect_pattern() looks for all "
        "of a function"
    )
