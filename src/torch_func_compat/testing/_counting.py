"""Evaluations of a function and backward passes, counted while an operator computes."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, Callable


class Counts:
    """Counts within a ``with`` block: calls of what `counted` returns, and passes of the autograd engine.

    Every backward pass ends in the engine's ``run_backward``, from any caller. A profile function sees the call and
    changes nothing; hooks on tensors would, since they are run row by row where rows are otherwise computed at once.
    """

    def __init__(self) -> None:
        self.evaluations = 0
        self.passes = 0
        self._before: Any = None

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def evaluated(*args: Any) -> Any:
            self.evaluations += 1
            return function(*args)

        return evaluated

    def __enter__(self) -> Counts:
        self._before = sys.getprofile()
        sys.setprofile(self._see)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(self._before)

    def _see(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call" and getattr(argument, "__name__", "") == "run_backward":
            self.passes += 1
        if self._before is not None:
            self._before(frame, event, argument)
