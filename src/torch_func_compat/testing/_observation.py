"""The observation of one operator on one backend: values, derivatives, counts and problems."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..autograd import get_fallback, use_fallback, vmap
from . import _operators, _trees
from ._comparison import difference
from ._counting import Counts
from ._point import fresh
from ._references import Loop, gradients
from ._report import Row
from ._scenario import FINITE_DIFFERENCES, Case, ramp

# By the least precise dtype of arguments and outputs: against finite differences, and against all else.
LIMITS = {
    torch.float64: (1e-6, 1e-8),
    torch.float32: (1e-3, 1e-4),
    torch.float16: (5e-2, 5e-2),
    torch.bfloat16: (1e-1, 1e-1),
}


class Observation:
    """One operator on the backend that is in use."""

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
        """The result of the backend. If it refuses, and the setting allows it, a loop answers, which is noted."""
        if get_fallback() == "error":
            return compute()
        try:
            with use_fallback("error"):
                return compute()
        # A refusal may have any type. An error of the function's own is raised again by the second attempt.
        except Exception:  # noqa: BLE001
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
        # Any error of the operator is a finding, which the report shows.
        except Exception as error:  # noqa: BLE001
            text = (str(error).strip().splitlines() or [""])[0]
            self._problems.append(f"raises: {what} raised {type(error).__name__}: {text}")


def graph_of(case: Case) -> tuple[list[Tensor], list[bool]] | None:
    """Derivatives of the expected result, by plain autograd, and which of its leaves have any.

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
    """A weighted sum of the elements of the leaves, for a whole batch or for one sample of several."""
    total = torch.zeros((), dtype=torch.float64, device=leaves[0].device if leaves else None)
    for leaf in leaves:
        weights = ramp(leaf) if sample is None else ramp(leaf.expand(sample[1], *leaf.shape))[sample[0]]
        if leaf.requires_grad:
            total = total + (weights * leaf).sum()
    return total
