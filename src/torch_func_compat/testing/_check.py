"""Operators on backends, compared with references."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..autograd import available_backends, get_fallback, use_backend, use_fallback, vmap
from . import _operators, _trees
from ._comparison import difference
from ._counting import Counts
from ._operators import OPERATORS
from ._point import fresh, of_argnums
from ._references import Loop, gradients
from ._report import DerivativeError, Report, Row
from ._scenario import FINITE_DIFFERENCES, Case, Scenario, ramp

# By the least precise dtype of arguments and outputs: against finite differences, and against all else.
LIMITS = {
    torch.float64: (1e-6, 1e-8),
    torch.float32: (1e-3, 1e-4),
    torch.float16: (5e-2, 5e-2),
    torch.bfloat16: (1e-1, 1e-1),
}


def check(
    function: Callable[..., Any],
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
        False makes a loop in the place of what the backend refused (see `use_fallback`) count as a difference.
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
        graph = _or_none(lambda: _graph(case)) if differentiate else None  # noqa: B023 - called here
        for backend in backends:
            with use_backend(backend):
                rows.append(_Look(case, transform, tolerance, allow_fallback).row(backend, expected, batched, graph))
    report = Report(rows)
    if raises and not report.ok:
        raise DerivativeError(report)
    return report


class _Look:
    """One operator on one backend."""

    def __init__(self, case: Case, transform: Any, tolerance: float | None, allow_fallback: bool) -> None:
        self._case, self._transform, self._allow_fallback = case, transform, allow_fallback
        least = max(case.point.dtypes, key=lambda dtype: torch.finfo(dtype).eps)
        differences, loop = LIMITS.get(least, LIMITS[torch.float64])
        is_difference = case.scenario.reference == FINITE_DIFFERENCES
        self._limit = tolerance if tolerance is not None else (differences if is_difference else loop)
        self._loop_limit = tolerance if tolerance is not None else loop
        self._problems: list[str] = []
        self._fell_back = False

    def row(self, backend: str, expected: Any, batched: Any, graph: Any) -> Row:
        case, counts = self._case, Counts()
        names = (case.scenario.title, case.operator.name, backend, case.scenario.against)
        error = mapped = differentiated = None
        with self._problem_of("the call"):
            result, counts = self._answered(self._counted)
            error = self._compare("", result, expected, self._limit)
            if not case.point.needs_grad and any(leaf.requires_grad for leaf in _trees.tensors(result)):
                self._problems.append("requires_grad: the result requires grad, and no input does")
        if error is not None and graph is not None:
            with self._problem_of("the call with inputs that require grad"):
                differentiated = self._answered(lambda: self._differentiated(*graph))
        if error is not None and batched is not None:
            with self._problem_of("vmap over stacked inputs"):
                inputs, wanted = batched
                over_samples = vmap(lambda *args: self._call(case.function, args), _operators.in_dims(case.point))
                found = self._answered(lambda: over_samples(*inputs))
                mapped = self._compare("vmap over stacked inputs: ", found, wanted, self._loop_limit)
        if self._fell_back and not self._allow_fallback:
            self._problems.append("falls back: the backend refused the function, and a loop computed the result")
        return Row(
            *names,
            error=float("nan") if error is None else error,
            batched=mapped,
            differentiated=differentiated,
            evaluations=counts.evaluations,
            passes=counts.passes,
            fell_back=self._fell_back,
            problems=tuple(self._problems),
        )

    def _counted(self) -> tuple[Any, Counts]:
        with Counts() as counts:
            return self._call(counts.counted(self._case.function), self._inputs()), counts

    def _inputs(self, requires_grad: bool = False) -> tuple[Any, ...]:
        return fresh(self._case.inputs, self._case.positions, requires_grad)

    def _answered(self, compute: Callable[[], Any]) -> Any:
        """By the backend; by a loop, which is noted, where it refuses and the user's setting lets loops answer."""
        if get_fallback() == "error":
            return compute()
        try:
            with use_fallback("error"):
                return compute()
        except Exception:  # noqa: BLE001 - what it was shows in the other attempt
            with use_fallback("silent"):
                result = compute()
            self._fell_back = True
            return result

    def _call(self, function: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
        return self._case.operator.call(self._transform, function, self._case.point, inputs, self._case.vector)

    def _compare(self, where: str, actual: Any, expected: Any, limit: float) -> float:
        dtypes = self._case.operator.exact or len(self._case.point.dtypes) == 1
        error, problems = difference(actual, expected, dtypes)
        self._problems += [where + problem for problem in problems]
        if not problems and not error <= limit:
            self._problems.append(f"{where}values: differ by {error:.1e}, where {limit:.1e} is allowed")
        return error

    def _differentiated(self, wanted: list[Tensor], requires_grad: list[bool]) -> float:
        case = self._case
        inputs = self._inputs(requires_grad=True)
        leaves = _trees.tensors(self._call(case.function, inputs))
        got = gradients(_weighted(leaves), _trees.tensors([inputs[i] for i in case.positions]))
        error, _ = difference(got, wanted, dtypes=False)
        if not error <= self._loop_limit:
            lost = [i for i, (leaf, needs) in enumerate(zip(leaves, requires_grad)) if needs and not leaf.requires_grad]
            self._problems.append(
                f"requires_grad: leaf {lost[0]} of the result does not require grad, and the inputs do"
                if lost
                else f"derivative of the result: differs by {error:.1e} from that of plain autograd"
            )
        return error

    @contextlib.contextmanager
    def _problem_of(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - that an operator raises is a finding
            text = (str(error).strip().splitlines() or [""])[0]
            self._problems.append(f"raises: {what} raised {type(error).__name__}: {text}")


def _graph(case: Case) -> tuple[list[Tensor], list[bool]] | None:
    """Derivatives of what the operator must return, by plain autograd, and which of its leaves have any.

    None where there are none: the result is a constant, or the function is differentiable once.
    """
    found = []
    requires_grad: list[bool] = []
    for i, point in enumerate(case.points):
        loop = Loop(point, graph=True)
        leaves = _trees.tensors(case.of_sample(i, loop))
        requires_grad = [leaf.requires_grad for leaf in leaves]
        number = _weighted(leaves, (i, len(case.points)) if case.is_mapped else None)
        found.append([part.detach() for part in gradients(number, loop.variables)])
    if not any(requires_grad):
        return None
    return ([torch.stack(parts) for parts in zip(*found)] if case.is_mapped else found[0]), requires_grad


def _weighted(leaves: Sequence[Tensor], sample: tuple[int, int] | None = None) -> Tensor:
    """A number that each element of the leaves takes part in: of a whole batch, or of one sample of several."""
    total = torch.zeros((), dtype=torch.float64, device=leaves[0].device if leaves else None)
    for leaf in leaves:
        weights = ramp(leaf) if sample is None else ramp(leaf.expand(sample[1], *leaf.shape))[sample[0]]
        if leaf.requires_grad:
            total = total + (weights * leaf).sum()
    return total


def _or_none(found: Callable[[], Any]) -> Any:
    """What plain autograd cannot tell is not compared: a function may be differentiable fewer times, for example."""
    try:
        return found()
    except Exception:  # noqa: BLE001 - the function's own errors, too
        return None


def _names(operators: Any, function: Callable[..., Any], inputs: tuple[Any, ...], argnums: Any) -> tuple[str, ...]:
    if isinstance(operators, str):
        return (operators,)
    if operators is not None:
        return tuple(operators)
    probe = Scenario(function, inputs, "jacrev", argnums=of_argnums(argnums, inputs))
    is_scalar = Case(probe, {}).point.is_scalar
    return tuple(name for name in OPERATORS if is_scalar or not _operators.BY_NAME[name].scalar)
