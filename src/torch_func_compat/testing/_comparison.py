"""Two pytrees compared: structure, shapes, dtypes and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _trees


def difference(actual: Any, expected: Any, dtypes: bool) -> tuple[float, list[str]]:
    """The largest difference relative to max(1, largest value expected), and what differs beside values."""
    leaves, structure = _trees.flatten(actual)
    wanted, wanted_structure = _trees.flatten(expected)
    if structure != wanted_structure:
        return float("nan"), [f"structure: {structure}, expected {wanted_structure}"]
    problems, largest = [], 0.0
    for i, (leaf, want) in enumerate(zip(leaves, wanted)):
        which = "" if len(leaves) == 1 else f" of leaf {i}"
        if not isinstance(leaf, Tensor):
            problems.append(f"type{which}: {type(leaf).__name__}, expected a tensor")
        elif leaf.shape != want.shape:
            problems.append(f"shape{which}: {tuple(leaf.shape)}, expected {tuple(want.shape)}")
        elif dtypes and leaf.dtype is not want.dtype:
            problems.append(f"dtype{which}: {leaf.dtype}, expected {want.dtype}")
        else:
            largest = worse(largest, _difference(leaf.detach().cpu(), want.detach().cpu()))
    return largest, problems


def _difference(a: Tensor, b: Tensor) -> float:
    if not a.numel():
        return 0.0
    a, b = a.double(), b.double()
    equal = (a == b) | (torch.isnan(a) & torch.isnan(b))
    scale = max(1.0, float(b[torch.isfinite(b)].abs().max()) if bool(torch.isfinite(b).any()) else 1.0)
    distance = torch.where(equal, torch.zeros_like(a), (a - b).abs() / scale)
    return float(torch.where(torch.isnan(distance), torch.full_like(distance, float("inf")), distance).max())


def worse(a: float, b: float) -> float:
    """The larger one; NaN counts as the largest."""
    return a if a != a or a >= b else b
