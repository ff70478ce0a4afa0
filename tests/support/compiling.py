"""torch.compile, where this system and Python have it."""

from __future__ import annotations

import pytest
import torch


def compiled(function, **options):
    """`function` compiled; a skip where torch says that it cannot here (torch 2.3 on Python 3.12, and the like)."""
    try:
        result = torch.compile(function, **options)
    except RuntimeError as error:
        pytest.skip(str(error))
    torch._dynamo.reset()
    return result
