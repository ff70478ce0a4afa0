"""Checks of derivatives; see `torch_func_compat.autograd.gradcheck`."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from ..autograd.gradcheck import (
    dgradcheck,
    dgradgradcheck,
    dgradgradgradcheck,
    finite_difference_jacobian,
    jacfwd_matches_jacrev,
    jacrev_matches_finite_diff,
    no_vmap_fallback,
    vmap_matches_loop,
)

__all__ = [
    "dgradcheck",
    "dgradgradcheck",
    "dgradgradgradcheck",
    "jacfwd_matches_jacrev",
    "jacrev_matches_finite_diff",
    "no_vmap_fallback",
    "numgrad",
    "positions_gradchecker",
    "vmap_matches_loop",
]


def numgrad(function: Callable[[Any], Tensor], structure: Any) -> Tensor:
    """Finite-difference Jacobian of a function of a structure with respect to its positions.

    Parameters
    ----------
    function : callable
        Takes a structure, returns a tensor of shape ``(..., nat)``.
    structure : object
        Has ``positions`` of shape ``(..., nat, 3)`` and ``replace(positions=...)``.

    Returns
    -------
    Tensor
        Of shape ``(..., nat, nat, 3)``; the structures of a batch are moved together.

    Raises
    ------
    AttributeError
        `structure` has no ``positions`` or no ``replace``.

    Notes
    -----
    Cost: two evaluations of `function` for each of the ``3 nat`` coordinates.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.tad_mctc import numgrad
    >>> class Molecule:
    ...     def __init__(self, positions):
    ...         self.positions = positions
    ...     def replace(self, positions):
    ...         return Molecule(positions)
    >>> heights = lambda molecule: molecule.positions[:, 2]
    >>> molecule = Molecule(torch.zeros(2, 3, dtype=torch.float64))
    >>> numgrad(heights, molecule).shape
    torch.Size([2, 2, 3])
    """
    positions = structure.positions.detach()
    shift = positions.new_zeros(positions.shape[-2:])
    # where the errors of the differences and of rounding are equal
    step = torch.finfo(positions.dtype).eps ** (1 / 3)
    jacobian: Tensor = finite_difference_jacobian(
        lambda shift: function(structure.replace(positions=positions + shift)), shift, step
    )
    return jacobian


def positions_gradchecker(
    function: Callable[[Any], Tensor], structure: Any
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """`function` of the positions of a structure alone, and those positions, for `dgradcheck`.

    Parameters
    ----------
    function : callable
        Takes a structure, returns a tensor.
    structure : object
        Has ``positions`` and ``replace(positions=...)``.

    Returns
    -------
    func : callable
        Takes positions.
    positions : Tensor
        A copy of those of the structure, which requires grad.

    Raises
    ------
    AttributeError
        `structure` has no ``positions``.

    Notes
    -----
    Cost: a copy of the positions.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.tad_mctc import dgradcheck, positions_gradchecker
    >>> class Molecule:
    ...     def __init__(self, positions):
    ...         self.positions = positions
    ...     def replace(self, positions):
    ...         return Molecule(positions)
    >>> heights = lambda molecule: molecule.positions[:, 2]
    >>> molecule = Molecule(torch.zeros(2, 3, dtype=torch.float64))
    >>> dgradcheck(*positions_gradchecker(heights, molecule))
    True
    """
    positions = structure.positions.detach().clone().requires_grad_()
    return lambda positions: function(structure.replace(positions=positions)), positions
