"""Whether an error is a refusal of torch's, and which."""

from __future__ import annotations

import functools
import re

from .._torch import facts
from .refusals import CAPABILITIES, Capability


class LoopError(RuntimeError):
    """Raised by the autograd backend for what not even its loop can answer."""


@functools.lru_cache(maxsize=None)
def _patterns() -> list[tuple[re.Pattern[str], Capability]]:
    """The rows of this torch. Not made at import, of which it would be an eighth."""
    rows = [row for row in CAPABILITIES if row.until is None or facts.TORCH < row.until]
    return [(re.compile(row.pattern, re.DOTALL), row) for row in rows]


# Not by a text but by where it was raised: some of torch's assertions have none.
INTERNAL = Capability(
    "internal_assertion",
    "",
    "torch's own transforms fail an assertion of theirs on it",
    "report it to PyTorch",
)


def _is_internal(error: AssertionError) -> bool:
    """Whether an assertion failed in the library's code, and not in the user's."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    name = "" if traceback is None else traceback.tb_frame.f_globals.get("__name__", "")
    return name.startswith(("torch._functorch.", "functorch._src."))


def refusal(error: BaseException) -> Capability | None:
    """The row that `error` belongs to, or None where it is no refusal but an error."""
    if isinstance(error, AssertionError):
        return INTERNAL if _is_internal(error) else None
    if not isinstance(error, (RuntimeError, IndexError)):
        return None
    text = str(error)
    for pattern, row in _patterns():
        if pattern.search(text):
            return row
    return None
