"""If the results of the samples are views of an input, the result of the batch is one, too, as in torch.func."""

from __future__ import annotations

from typing import Sequence

from torch import Tensor

from ..._torch.tensors import layout_of
from .level import is_dual


def as_view(parts: Sequence[Tensor], roots: Sequence[Tensor]) -> Tensor | None:
    """One view of all parts along dimension 0; None unless they are views of one root in equal steps."""
    step = _step(parts, roots)
    if step is None:
        return None
    first = parts[0]
    return first.as_strided((len(parts), *first.shape), (step, *first.stride()), first.storage_offset())


def is_view(part: Tensor, roots: Sequence[Tensor]) -> bool:
    """Whether the results may be a view, as far as one part tells.

    Results that are differentiated are stacked, since the derivatives of as_strided() are less well tested in torch.
    """
    base = part._base
    return base is not None and not part.requires_grad and any(base is root for root in roots) and not is_dual()


def _step(parts: Sequence[Tensor], roots: Sequence[Tensor]) -> int | None:
    """How far apart in memory the parts are, if they are such views."""
    first = parts[0]
    base = first._base
    if not is_view(first, roots):
        return None
    start, layout = int(first.storage_offset()), layout_of(first)
    step = int(parts[1].storage_offset()) - start if len(parts) > 1 else first.numel()
    try:  # not the offsets alone: set_() and .data can have moved a view elsewhere
        pointer, width = first.data_ptr(), step * first.element_size() if first.numel() else 0
        for i, part in enumerate(parts):
            moved = part.data_ptr() != pointer + i * width or part.storage_offset() != start + i * step
            if moved or part._base is not base or layout_of(part) != layout:
                return None
    except RuntimeError:  # the tensors of a tracer have no memory
        return None
    # as_strided() takes no negative steps
    return step if step >= 0 else None
