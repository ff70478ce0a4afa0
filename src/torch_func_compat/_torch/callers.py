"""Warnings at the line of the user's code that they belong to."""

from __future__ import annotations

import os
import sys
import warnings

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARIES = ("torch", "functorch")


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the innermost line that is neither of this package nor of torch."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None:
        frame, level = frame.f_back, level + 1
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if not frame.f_code.co_filename.startswith(_PACKAGE) and name not in _LIBRARIES:
            break
    warnings.warn(message, category, stacklevel=level)
