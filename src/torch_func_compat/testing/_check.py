"""Operators on backends, compared with references."""

from __future__ import annotations

from typing import Any, Callable, Iterable, Mapping, Sequence

from torch import Tensor

from ..autograd import available_backends, use_backend
from ..autograd.internals import P
from . import _operators
from ._observation import Observation, graph_of
from ._operators import OPERATORS
from ._point import of_argnums
from ._report import DerivativeError, Report
from ._scenario import FINITE_DIFFERENCES, Case, Scenario


def check(
    function: Callable[P, Any],
    inputs: Sequence[Any],
    operators: str | Sequence[str] | Mapping[str, Callable[..., Any]] | None = None,
    backends: str | Sequence[str] | None = None,
    against: str | Callable[..., Any] | Mapping[str, Callable[..., Any]] = FINITE_DIFFERENCES,
    *,
    argnums: int | tuple[int, ...] | None = None,
    vector: Any = None,
    batch: int | Sequence[tuple[Any, ...]] = 3,
    differentiate: bool = True,
    tolerance: float | None = None,
    allow_fallback: bool = True,
    raises: bool = True,
    name: str = "",
) -> Report:
    """Check the derivatives of a function: every operator, on every backend, against a reference.

    Each operator is compared in values, structure, shapes and dtypes; its result must not require grad, and where the
    inputs do, its derivative must be that of plain autograd; mapped by `vmap` over several samples, it must return
    what a loop returns. Evaluations of the function and backward passes are counted.

    Parameters
    ----------
    function : callable
        Takes `inputs`, returns a pytree of floating-point tensors.
    inputs : sequence
        Positional arguments: pytrees of tensors, and anything else.
    operators : str, sequence of str or dict, optional
        Names of `OPERATORS` or `BATCH_OPERATORS`; by default all of `OPERATORS` that take a function with this output.
        A dictionary gives each name the function to check in the place of the library's, with the same parameters.
    backends : str or sequence of str, optional
        By default all that this environment has.
    against : {'finite-differences', 'loop'}, callable or dict of callables
        The reference; see `Scenario`. A callable goes with one operator, a dictionary has one for each.
    argnums, vector, batch, name
        See `Scenario`.
    differentiate : bool
        Whether the results for inputs that require grad are differentiated and compared, too.
    tolerance : float, optional
        Largest difference, relative to ``max(1, largest value expected)``. By default 1e-6 against finite differences
        and 1e-8 against all else in float64, 1e-3 and 1e-4 in float32.
    allow_fallback : bool
        With False, it counts as a difference if a backend refuses the function and a loop computes the result (see
        `use_fallback`).
    raises : bool
        False returns the report also where it has differences.

    Returns
    -------
    Report
        ``print(report)`` shows a table, ``report.rows`` has the numbers.

    Raises
    ------
    DerivativeError
        Something differs. It is an AssertionError whose message names the operator, the backend and the difference.
    TypeError
        `inputs` is a tensor and no sequence of arguments.
    ValueError
        There is nothing to differentiate, there is no such operator, an input is complex, or the function does not
        compute in float64 where finite differences need it to.

    Notes
    -----
    Cost, for N elements and M outputs: finite differences evaluate the function 4 N times for first derivatives and
    2 N (N + 1) times more for second ones, in float64, with steps of 7e-4 and 2.5e-3 times ``max(1, |x|)`` and central
    formulas of fourth order. A loop takes M backward passes, and M N more for second derivatives. On top of that, each
    operator is called three times on each backend: plain, differentiated, and by `vmap`.

    Finite differences are wrong where the function jumps or has a kink within four steps of the inputs.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.testing import check
    >>> x = torch.tensor([0.3, 0.7], dtype=torch.float64)
    >>> report = check(lambda x: (x**3).sum(), (x,), operators=["grad", "hessian"], backends="autograd")
    >>> [(row.operator, row.evaluations, row.passes) for row in report]
    [('grad', 1, 1), ('hessian', 1, 2)]
    """
    if isinstance(inputs, Tensor):
        raise TypeError(
            "check: expected inputs to be a sequence of arguments, got a tensor: write (x,) for one argument"
        )
    inputs = tuple(inputs)
    names = _names(operators, function, inputs, argnums)
    if isinstance(against, Mapping):
        missing = [operator for operator in names if operator not in against]
        if missing:
            raise ValueError(f"against has no closed form of {', '.join(missing)}")
    elif callable(against) and len(names) != 1:
        raise ValueError(f"one closed form goes with one operator, got {len(names)}: pass a dictionary, or name one")
    scenarios = [
        Scenario(
            function,
            inputs,
            operator,
            against[operator] if isinstance(against, Mapping) else against,
            argnums=argnums,
            vector=vector,
            batch=batch,
            name=name,
        )
        for operator in names
    ]
    return check_scenarios(
        scenarios,
        backends,
        transforms=operators if isinstance(operators, Mapping) else None,
        differentiate=differentiate,
        tolerance=tolerance,
        allow_fallback=allow_fallback,
        raises=raises,
    )


def check_scenarios(
    scenarios: Iterable[Scenario],
    backends: str | Sequence[str] | None = None,
    *,
    transforms: Mapping[str, Callable[..., Any]] | None = None,
    differentiate: bool = True,
    tolerance: float | None = None,
    allow_fallback: bool = True,
    raises: bool = True,
) -> Report:
    """Check each scenario on each backend.

    Parameters
    ----------
    scenarios : iterable of Scenario
        What to check. Those of one function at one point share their references.
    backends, differentiate, tolerance, allow_fallback, raises
        See `check`.
    transforms : dict, optional
        Functions to check in the place of the library's, by the name of the operator.

    Returns
    -------
    Report
        One row for each scenario and backend.

    Raises
    ------
    DerivativeError, ValueError
        As for `check`.

    Notes
    -----
    Cost: see `check`.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.testing import Scenario, check_scenarios
    >>> x = torch.ones(3, dtype=torch.float64)
    >>> scenarios = [Scenario(torch.sin, (x,), operator, name="sin") for operator in ("jacrev", "jacfwd")]
    >>> len(check_scenarios(scenarios, backends="autograd"))
    2
    """
    if backends is None:
        backends = available_backends()
    elif isinstance(backends, str):
        backends = (backends,)
    known: dict[Any, Any] = {}
    rows = []
    for scenario in scenarios:
        case = Case(scenario, known)
        transform = (transforms or {}).get(scenario.operator) or _operators.transform_of(scenario.operator)
        expected, batched = case.expected(), _or_none(case.batched)
        graph = _or_none(lambda: graph_of(case)) if differentiate else None  # noqa: B023 - called here
        for backend in backends:
            with use_backend(backend):
                rows.append(
                    Observation(case, transform, tolerance, allow_fallback).row(backend, expected, batched, graph)
                )
    report = Report(rows)
    if raises and not report.ok:
        raise DerivativeError(report)
    return report


def _or_none(found: Callable[[], Any]) -> Any:
    """The reference, or None where plain autograd has none: a function may be differentiable fewer times."""
    try:
        return found()
    # The function is the user's and may raise anything. The check itself shows its errors; a reference is optional.
    except Exception:  # noqa: BLE001
        return None


def _names(operators: Any, function: Callable[..., Any], inputs: tuple[Any, ...], argnums: Any) -> tuple[str, ...]:
    if isinstance(operators, str):
        return (operators,)
    if operators is not None:
        return tuple(operators)
    probe = Scenario(function, inputs, "jacrev", argnums=of_argnums(argnums, inputs))
    is_scalar = Case(probe, {}).point.is_scalar
    return tuple(name for name in OPERATORS if is_scalar or not _operators.BY_NAME[name].scalar)
