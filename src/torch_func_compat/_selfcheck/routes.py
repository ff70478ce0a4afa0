"""The route that a call takes through this package, observed and put into words."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from .. import _transforms
from .._backends.autograd import loop as _loop
from .._backends.autograd.batched_vjp import Rows

_DERIVED = {derive.__module__ for derive in (*_transforms.TRANSFORMS.values(), *_transforms.PRODUCTS.values())}

# The meaning of a route for a user
MEANINGS = {
    "native": "batched by the backend's own vmap",
    "derived": "a fixed number of passes, no loop",
    "vectorised rows": "all rows in one batched backward pass",
    "looped": "one sample or row after another: slow",
}


class Watch:
    """A profile function (``sys.setprofile``) that notes the routes while it is entered."""

    def __init__(self) -> None:
        self.derived = False
        self.looped = False
        self.rows: set[bool | None] = set()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_globals.get("__name__") in _DERIVED:
            self.derived = True
        elif event == "call" and frame.f_code is _loop.loop.__code__:
            self.looped = True
        elif event == "return" and frame.f_code is Rows.__call__.__code__:
            self.rows.add(frame.f_locals["self"].vectorised)

    def __enter__(self) -> Watch:
        self.before = sys.getprofile()
        sys.setprofile(self)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(self.before)

    @property
    def route(self) -> str:
        """``"native"``, ``"derived"``, ``"vectorised rows"`` or ``"looped"``: a key of `MEANINGS`."""
        if not self.derived:
            return "native"
        if self.looped or False in self.rows:
            return "looped"
        return "vectorised rows" if True in self.rows else "derived"


def meaning(route: str) -> str:
    """A route in words; the route of an operator that raised is in words already."""
    return MEANINGS.get(route, f"fails: {route}")
