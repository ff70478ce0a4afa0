"""Fused operations that are evaluated in elementary ones, where torch lacks a derivative of them or has it wrong.

One table, for every torch: a TorchFunctionMode intercepts operations on torch >= 2.0, and a Tensor subclass in place of
the variables on older ones. An operation is composed only where the derivative in question may be taken: the fused one
is faster, and its other derivatives are right.
"""

from __future__ import annotations

from .interception import composing, given, plain
from .normalisations import BATCH_NODES
from .table import COMPOSITIONS, WRONG_IN_FIRST_ORDER, composed, first_order, is_derivative, order_of

__all__ = [
    "BATCH_NODES",
    "COMPOSITIONS",
    "WRONG_IN_FIRST_ORDER",
    "composed",
    "composing",
    "first_order",
    "given",
    "is_derivative",
    "order_of",
    "plain",
]
