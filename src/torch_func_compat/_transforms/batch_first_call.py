"""Samples of a batch are tested for independence in the first call with each function and shapes.

Reverse mode tests a derivative on the way, by one more backward pass through the same graph. Each function that is not
tested on the way is evaluated once more for its test.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Callable, Hashable, Sequence

from torch import Tensor

from .._arguments.batch import BatchCall
from .._arguments.call import Call, Function
from .._arguments.protocol import Backend, Pullback
from .._guards.checks import get_checks, is_testing, testing
from .._guards.trial import ERRORS, Trial
from .._torch.modules import switches
from .batch_independence import DependentSamples, require_independent, verify, verify_stage
from .options import Options

Stages = Callable[[], Sequence[Function]]


class Pending:
    """The tests of a function that a first call has to make: of its output (order 0) and its derivative (order 1).

    Parameters
    ----------
    func : callable
        The user's function.
    trials : dict
        By order, where to note the results.
    """

    def __init__(self, func: Function, trials: dict[int, Trial]) -> None:
        self.func = func
        self.trials = trials

    def passed(self, order: int) -> None:
        """Note that this test needs no repetition."""
        self.trials.pop(order).note("")


_pending: ContextVar[Pending | None] = ContextVar("pending", default=None)


def pending(
    backend: Backend, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any], orders: int
) -> Pending | None:
    """The tests that this call has to make; None where all are known, or no values can be seen.

    Within a running transform of a library, the values of samples cannot be seen.
    """
    if get_checks() == "off" or is_testing() or backend.innermost() is not None:
        return None
    call = (repr(options.in_dims), options.argnums, _described(args), _described(kwargs), switches(options.func))
    trials = {
        order: Trial(options.func, ("independent samples", order, call), by_flags=False) for order in range(orders)
    }
    trials = {order: trial for order, trial in trials.items() if trial.verdict() is None}
    return Pending(options.func, trials) if trials else None


def _described(value: Any) -> Hashable:
    """The properties of an argument that may decide whether samples depend on each other."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple([_described(item) for item in value])
    if isinstance(value, dict):
        return tuple(map(str, value)), tuple([_described(item) for item in value.values()])
    return type(value), switches(value)


def test_rows(
    backend: Backend,
    call: Call,
    outputs: Sequence[Tensor],
    pullback: Pullback,
    rows: Sequence[Tensor] | None,
    options: Options,
    order: int,
) -> None:
    """Test a derivative of that order by its pullback, if the test is pending."""
    found = _pending.get()
    if found is None or found.func is not options.func or order not in found.trials:
        return
    if isinstance(call, BatchCall) and backend.innermost() is None:
        require_independent(call, outputs, pullback, order, options.func, rows)
        found.passed(order)


def verified(backend: Backend, found: Function, stages: Stages, options: Options) -> Function:
    """`found`, with the tests that ``options.check`` asks for.

    ``stages()`` are the functions that it differentiates, one after another.
    """
    if options.in_dims is None or options.check is False:
        return found
    made = stages()
    if options.check:

        def after_check(*args: Any, **kwargs: Any) -> Any:
            verify(backend, made, options, args, kwargs)
            return found(*args, **kwargs)

        return after_check
    if not backend.remembers:
        return found

    def tested(*args: Any, **kwargs: Any) -> Any:
        return with_tests(backend, lambda: found(*args, **kwargs), made, options, args, kwargs)

    return tested


def with_tests(
    backend: Backend,
    compute: Callable[[], Any],
    stages: Sequence[Function],
    options: Options,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """``compute()``; in a first call, each of the functions that it differentiates is tested."""
    found = pending(backend, options, args, kwargs, len(stages))
    if found is None and _pending.get() is None:
        return compute()
    token = _pending.set(found)
    try:
        result = compute()
        if found is not None and found.trials:
            with testing():
                _test_others(backend, found, stages, options, args, kwargs)
    finally:
        _pending.reset(token)
    return result


def _test_others(
    backend: Backend,
    found: Pending,
    stages: Sequence[Function],
    options: Options,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Make the tests that reverse mode did not make on the way."""
    for order in sorted(found.trials, reverse=True):  # the test of a derivative may test its function on the way
        if order not in found.trials:
            continue
        try:
            verify_stage(backend, stages[order], order, options, args, kwargs)
        except DependentSamples:
            raise
        except ERRORS:  # the call itself has succeeded: the function has no reverse mode, or must not run again
            pass
        found.passed(order)
