"""Laplacians in one pass: value, Jacobian and Laplacian are carried through a function together.

The forward Laplacian of R. Li et al., Nature Machine Intelligence 6, 209 (2024), doi:10.1038/s42256-024-00794-x. Unlike
rows of the Hessian, it needs no backward pass: nothing is kept of the evaluation, and all outputs of a function come at
the cost of one.
"""

from __future__ import annotations

from .carried import Refused
from .laplacian import batch_laplacian, laplacian

__all__ = ["Refused", "batch_laplacian", "laplacian"]
