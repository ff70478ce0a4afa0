"""Importing this registers every rule."""

from __future__ import annotations

from . import attention, determinants, elementwise, indexing, metadata, normalisations, products, reductions, shapes

__all__ = [
    "attention",
    "determinants",
    "elementwise",
    "indexing",
    "metadata",
    "normalisations",
    "products",
    "reductions",
    "shapes",
]
