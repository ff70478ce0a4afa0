"""Samples of images between the points of their grids."""

from __future__ import annotations

import itertools
from typing import List, Tuple

import torch
from torch import Tensor

from .composition import Composition

_MODES = ("bilinear", "nearest", "bicubic")
_PADDINGS = ("zeros", "border", "reflection")

# For one dimension: the pixels that a sample is interpolated from, and their weights.
Taps = List[Tuple[Tensor, Tensor]]


def _grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str | int = "bilinear",
    padding_mode: str | int = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    mode = _MODES[mode] if isinstance(mode, int) else mode
    padding = _PADDINGS[padding_mode] if isinstance(padding_mode, int) else padding_mode
    sizes = input.shape[2:]
    # The last coordinate of the grid is that of the first dimension.
    coordinates = grid.reshape(grid.size(0), -1, len(sizes)).flip(2).unbind(2)
    taps = [_taps(x, size, mode, padding, bool(align_corners)) for x, size in zip(coordinates, sizes)]
    values = input.reshape(*input.shape[:2], -1)
    output = torch.zeros_like(coordinates[0]).unsqueeze(1)
    for corner in itertools.product(*taps):
        place, share = torch.zeros_like(corner[0][0], dtype=torch.long), torch.ones_like(corner[0][1])
        for (x, weight), size in zip(corner, sizes):
            is_inside = (x >= 0) & (x < size)
            share = share * weight * is_inside.to(weight.dtype)
            place = place * size + x.clamp(0, size - 1).long()
        place = place.unsqueeze(1).expand(-1, values.size(1), -1)
        output = output + values.gather(2, place) * share.unsqueeze(1)
    return output.reshape(*input.shape[:2], *grid.shape[1:-1])


def _taps(x: Tensor, size: int, mode: str, padding: str, align: bool) -> Taps:
    x = (x + 1) / 2 * (size - 1) if align else ((x + 1) * size - 1) / 2
    if mode == "bicubic":
        before = x.detach().floor()
        weights = _cubic(x - before)
        return [(_inside(before + k - 1, size, padding, align), weight) for k, weight in enumerate(weights)]
    x = _inside(x, size, padding, align)
    if mode == "nearest":
        return [(x.detach().round(), torch.ones_like(x.detach()))]
    before = x.detach().floor()
    return [(before, 1 - (x - before)), (before + 1, x - before)]


def _inside(x: Tensor, size: int, padding: str, align: bool) -> Tensor:
    """Coordinates as the padding changes them, with the derivatives that torch's kernels have at the borders."""
    if padding == "zeros":
        return x
    if padding == "reflection":
        low, span = (0.0, size - 1) if align else (-0.5, size)
        if not span:
            return torch.zeros_like(x)
        x = torch.where(x < low, low - x, x - low)
        flips = (x.detach() / span).floor()
        x = x - flips * span
        x = torch.where(flips % 2 == 0, x + low, span - x + low)
    return torch.where((x > 0) & (x < size - 1), x, x.detach().clamp(0, size - 1))


def _cubic(t: Tensor, a: float = -0.75) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weights of four neighbours (https://en.wikipedia.org/wiki/Bicubic_interpolation, bicubic convolution)."""

    def near(x: Tensor) -> Tensor:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Tensor) -> Tensor:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return far(t + 1), near(t), near(1 - t), far(2 - t)


ROWS: tuple[Composition, ...] = (
    Composition(
        (
            *("nn.functional.grid_sample", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d"),
            *("ops.aten.grid_sampler", "ops.aten.grid_sampler_2d", "ops.aten.grid_sampler_3d"),
        ),
        ("GridSampler", "CudnnGridSampler"),
        2,
        _grid_sample,
        "its backward has no derivative (measured on torch 1.8 to 2.6)",
        (2, 13),
    ),
)
