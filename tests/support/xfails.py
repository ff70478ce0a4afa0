"""Every failure that is expected, with its reason and where it is known upstream. Strict: a pass fails."""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from packaging.version import Version

TORCH = Version(str(torch.__version__)).release


class XFail(NamedTuple):
    test: str  # below tests/, as a pattern: "conformance/test_vmap.py::test_name[torch.func*"; [ stands for itself
    reason: str
    link: str
    raises: tuple[type[BaseException], ...] = (Exception,)
    applies: Callable[[], bool] = lambda: True


XFAILS: tuple[XFail, ...] = (
    XFail(
        "conformance/test_in_place.py::test_a_slice_of_an_argument_may_be_written_to[functorch-jacfwd]",
        "functorch 0.1 and 0.2 lose what is written into a slice of such a tensor, so it is refused",
        "https://github.com/pytorch/functorch",
        (RuntimeError,),
        lambda: (1, 11) <= TORCH < (1, 13),
    ),
    XFail(
        "test_compiled_derivatives.py::test_the_graph_breaks_where_torch_does_not_write_what_is_mapped[placed_apart]",
        "torch.vmap writes to other places there, and torch.compile shows x[...] = y to no mode",
        "https://github.com/pytorch/functorch/issues/381",
        (AssertionError,),
        lambda: TORCH >= (2, 14),
    ),
)
