"""Whether an error is a refusal of torch's, and which.

Three kinds of errors are told apart by the innermost frame of their traceback. A ``raise`` statement in the user's code
(or in another library's) is the user's own error, never a refusal; the error that it answers may be one. An error of
torch's that has a row in the table, by its words or by the module that raised it, is a refusal. Any other error that
torch raised is doubtful: only a loop can tell whether the function is to blame.
"""

from __future__ import annotations

import functools
import opcode
import re
from typing import Iterator

from .._torch import facts
from .capability import Capability
from .refusals import CAPABILITIES, HIGHER_ORDER, INTERNAL

_RAISE = opcode.opmap["RAISE_VARARGS"]
_OWN = f"{__name__.partition('._guards')[0]}."
# Their Python code raises refusals.
_LIBRARIES = ("torch.", "functorch.")
# Tracers and operators that take functions fail on tensors of the transforms with exceptions of any type.
_TRACERS = ("torch._higher_order_ops.", "torch._dynamo.", "torch._subclasses.", "torch.fx.", "torch._ops.")
# A checkpoint ends its recomputation by an exception, and compares what was recomputed.
_CHECKPOINT = "torch.utils.checkpoint"
# Torch's own transforms.
_TRANSFORMS = ("torch._functorch.", "functorch._src.")

# Errors that a loop would raise, too: the memory is full, random numbers were drawn where that is forbidden, or the
# shapes of a product do not fit. The user should learn of them without a second evaluation.
_CERTAIN = re.compile(
    r"out of memory|can't allocate memory|randomness error mode"
    r"|mat1 and mat2 shapes cannot be multiplied|size mismatch, got"
)


class LoopError(RuntimeError):
    """Raised by the autograd backend where not even its loop can compute the result."""


@functools.lru_cache(maxsize=None)
def _patterns() -> list[tuple[re.Pattern[str], Capability]]:
    """The rows of this torch. They are compiled when first needed: that would take an eighth of the import."""
    rows = [row for row in CAPABILITIES if row.until is None or facts.TORCH < row.until]
    return [(re.compile(row.pattern, re.DOTALL), row) for row in rows]


def _raised_in(error: BaseException) -> str:
    """The module whose ``raise`` statement raised `error`, with a dot at its end; "" where compiled code did."""
    traceback = error.__traceback__
    if traceback is None:
        return ""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    frame = traceback.tb_frame
    if frame.f_code.co_code[traceback.tb_lasti] != _RAISE:
        return ""
    return f"{frame.f_globals.get('__name__', '')}."


def _is_torchs(module: str) -> bool:
    return not module or module.startswith((*_LIBRARIES, _OWN))


def _answered(error: BaseException, around: BaseException | None) -> Iterator[BaseException]:
    """`error`, and the errors that led to it, without those that were being handled before."""
    stack, seen = [error], set()
    while stack:
        one = stack.pop()
        if one is around or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        stack += [other for other in (one.__context__, one.__cause__) if other is not None]


def refusal(error: BaseException, around: BaseException | None = None) -> Capability | None:
    """The row that `error` belongs to, or None where it is no known refusal.

    Parameters
    ----------
    error : BaseException
        It may answer a refusal: a function may catch torch's error and raise its own.
    around : BaseException, optional
        The error that was being handled when the function was called, and is not the function's.
    """
    for one in _answered(error, around):
        module = _raised_in(one)
        if not _is_torchs(module):
            continue
        text = str(one)
        for pattern, row in _patterns():
            if pattern.search(text):
                return row
        if one is error and module.startswith(_OWN):
            return None  # this library answers torch's refusals itself, and has said what to do
        if module.startswith(_TRACERS):
            return HIGHER_ORDER
        if module.startswith(_TRANSFORMS) and isinstance(one, AssertionError):
            return INTERNAL
    return None


def ends_recomputation(error: BaseException) -> bool:
    """Whether a checkpoint around a transform raised `error`, which has to reach the checkpoint."""
    return type(error).__module__ == _CHECKPOINT


def is_doubtful(error: BaseException) -> bool:
    """Whether an `error` that is no known refusal may be one, so that a loop has to decide."""
    module = _raised_in(error)
    if not isinstance(error, Exception) or isinstance(error, MemoryError) or module.startswith(_OWN):
        return False
    if ends_recomputation(error):
        return False
    return _is_torchs(module) and not _CERTAIN.search(str(error))
