"""One thing to check, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from . import _operators, _trees
from ._point import Point, fresh, of_argnums
from ._references import FiniteDifferences, Loop

FINITE_DIFFERENCES, LOOP = "finite-differences", "loop"


@dataclass(frozen=True)
class Scenario:
    """A function, its inputs, an operator, and its expected result.

    Parameters
    ----------
    function : callable
        Takes `inputs`, returns a pytree of floating-point tensors. For an operator of `BATCH_OPERATORS` it takes a
        whole batch and returns one.
    inputs : tuple
        Positional arguments: pytrees of tensors, and anything else.
    operator : str
        A name of `OPERATORS` or `BATCH_OPERATORS`.
    reference : {'finite-differences', 'loop'} or callable
        'finite-differences' takes values of the function alone, in float64, and so finds wrong ``backward`` rules.
        'loop' takes ``torch.autograd.grad``, row by row and sample by sample. A callable takes the inputs and returns
        what the operator must return.
    argnums : int or tuple of int, optional
        Arguments to differentiate; by default all that are pytrees of floating-point tensors.
    vector : pytree, optional
        What ``jvp``, ``linearize``, ``hvp``, ``vhp`` and ``batch_hvp`` (a tuple of tangents, one for each argument) or
        ``vjp`` (cotangents, as the output) multiplies; by default numbers without symmetry between -1 and 1.
    batch : int or sequence of tuples
        Samples for `vmap`: their number, to be made of the inputs by factors from 1 on; or the inputs of each. Inputs
        that are not differentiated are shared. 0 leaves `vmap` out.
    name : str
        Its name in reports; by default the function's name.

    See Also
    --------
    check : makes scenarios of a function for several operators, and checks them.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.testing import Scenario, check_scenarios
    >>> x = torch.tensor([0.3, 0.7], dtype=torch.float64)
    >>> cubes = Scenario(lambda x: (x**3).sum(), (x,), "hessian", lambda x: torch.diag(6 * x), name="cubes")
    >>> check_scenarios([cubes], backends=["autograd"]).ok
    True
    """

    function: Callable[..., Any]
    inputs: tuple[Any, ...]
    operator: str = "grad"
    reference: str | Callable[..., Any] = FINITE_DIFFERENCES
    argnums: int | tuple[int, ...] | None = None
    vector: Any = None
    batch: int | Sequence[tuple[Any, ...]] = 3
    name: str = ""

    @property
    def title(self) -> str:
        """The name, or that of the function."""
        return self.name or getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def against(self) -> str:
        """The name of the reference in reports."""
        return self.reference.replace("-", " ") if isinstance(self.reference, str) else "a closed form"


class Case:
    """A scenario with the results that are computed once for all backends."""

    def __init__(self, scenario: Scenario, known: dict[Any, Any]) -> None:
        self.scenario = scenario
        try:
            self.operator = _operators.BY_NAME[scenario.operator]
        except KeyError:
            raise ValueError(
                f"there is no operator {scenario.operator!r}: expected one of {', '.join(_operators.BY_NAME)}"
            ) from None
        if isinstance(scenario.reference, str) and scenario.reference not in (FINITE_DIFFERENCES, LOOP):
            raise ValueError(f"reference {scenario.reference!r}: expected 'finite-differences', 'loop' or a callable")
        if any(leaf.is_complex() for leaf in _trees.tensors(list(scenario.inputs))):
            raise ValueError("an input is complex: split it into its real and imaginary parts, as two real inputs")
        self.argnums = of_argnums(scenario.argnums, scenario.inputs)
        self.positions = (self.argnums,) if isinstance(self.argnums, int) else self.argnums
        self._known = known
        self.inputs = scenario.inputs
        if self.operator.batch:
            self.function: Callable[..., Any] = scenario.function
            self.points = self._samples_of_batch()
        elif self.operator.name == "vmap":
            self.function, self.points = scenario.function, self._samples()
            self.inputs = self._stacked()
        else:
            self.function, self.points = scenario.function, [self._point(scenario.function, scenario.inputs)]
        self.point = self.points[0]
        if self.operator.scalar and not self.point.is_scalar:
            shapes = [tuple(leaf.shape) for leaf in self.point.outputs]
            raise ValueError(f"{self.operator.name} takes a function that returns one number, got shapes {shapes}")
        self.vector = self._vector()

    @property
    def is_mapped(self) -> bool:
        """Whether the result has the samples along dimension 0."""
        return self.operator.batch or self.operator.name == "vmap"

    def expected(self) -> Any:
        """The expected result of the operator."""
        if callable(self.scenario.reference):
            return self.scenario.reference(*fresh(self.inputs, self.positions))
        kind = FiniteDifferences if self.scenario.reference == FINITE_DIFFERENCES else Loop
        found = [self.of_sample(i, self._reference(kind, point)) for i, point in enumerate(self.points)]
        return _trees.stacked(found) if self.is_mapped else found[0]

    def of_sample(self, i: int, reference: Any) -> Any:
        """The expected result of the operator for one of `points`."""
        vector = self.vector
        if self.operator.batch and vector is not None:
            vector = _trees.mapped(lambda leaf: leaf[i], vector)
        return self.operator.expected(self.points[i], reference, vector)

    def batched(self) -> tuple[tuple[Any, ...], Any] | None:
        """Stacked inputs, and the expected result of the operator mapped over them; None if it is not to be mapped."""
        if self.is_mapped or self.scenario.batch == 0:
            return None
        points, found = self._samples(), []
        for point in points:
            if callable(self.scenario.reference):
                found.append(self.scenario.reference(*point.fresh()))
            else:
                found.append(self.operator.expected(point, self._reference(Loop, point), self.vector))
        return self._stacked(), _trees.stacked(found)

    def _samples(self) -> list[Point]:
        batch = self.scenario.batch
        if not isinstance(batch, int):
            return [self._point(self.scenario.function, inputs) for inputs in batch]
        found = []
        for k in range(max(batch, 1)):
            inputs = list(self.scenario.inputs)
            for i in self.positions:
                inputs[i] = _trees.mapped(lambda leaf, k=k: leaf * (1 + k / 16), inputs[i])  # type: ignore[misc]
            found.append(self._point(self.scenario.function, tuple(inputs)))
        return found

    def _stacked(self) -> tuple[Any, ...]:
        stacked = list(self.scenario.inputs)
        for i in self.positions:
            stacked[i] = _trees.stacked([point.inputs[i] for point in self._samples()])
        return tuple(stacked)

    def _samples_of_batch(self) -> list[Point]:
        """Each sample as a batch of one."""
        sizes = {leaf.shape[:1] for i in self.positions for leaf in _trees.tensors(self.scenario.inputs[i])}
        if len(sizes) != 1 or not all(sizes):
            raise ValueError(f"{self.operator.name}: expected inputs with one batch size in dimension 0, got {sizes}")

        def of_sample(*inputs: Any) -> Any:
            alone = list(inputs)
            for i in self.positions:
                alone[i] = _trees.mapped(lambda leaf: leaf[None], alone[i])
            return _trees.mapped(lambda leaf: leaf[0], self.scenario.function(*alone))

        found = []
        for b in range(next(iter(sizes))[0]):
            inputs = list(self.scenario.inputs)
            for i in self.positions:
                inputs[i] = _trees.mapped(lambda leaf, b=b: leaf[b], inputs[i])  # type: ignore[misc]
            found.append(Point(of_sample, inputs, self.argnums))
        return found

    def _point(self, function: Callable[..., Any], inputs: tuple[Any, ...]) -> Point:
        """The same point for all operators, so that its references are computed once."""
        key = ("point", id(function), self.argnums, *_keys(inputs))
        if key not in self._known:
            self._known[key] = Point(function, inputs, self.argnums)
        point: Point = self._known[key]
        return point

    def _reference(self, kind: Any, point: Point) -> Any:
        key = (kind, id(point))
        if key not in self._known:
            self._known[key] = (kind(point), point)  # the point lives as long as its id is used
        return self._known[key][0]

    def _vector(self) -> Any:
        if self.scenario.vector is not None or not self.operator.vector:
            return self.scenario.vector
        if self.operator.vector == "cotangents":
            return self.point.output_structure.fill([ramp(leaf) for leaf in self.point.outputs])
        return tuple(_trees.mapped(ramp, self.inputs[i]) for i in self.positions)


def ramp(like: Tensor) -> Tensor:
    """Numbers without symmetry, between -1 and 1."""
    steps = torch.arange(1, like.numel() + 1, dtype=torch.float64, device=like.device)
    return torch.cos(1.3 * steps).reshape(like.shape).to(like.dtype)


def _keys(inputs: Any) -> tuple[Any, ...]:
    """A key that tells inputs apart: values of tensors, identity of all else."""
    leaves = _trees.flatten(tuple(inputs))[0]
    return tuple(
        (leaf.shape, leaf.dtype, tuple(leaf.detach().reshape(-1).tolist())) if isinstance(leaf, Tensor) else id(leaf)
        for leaf in leaves
    )
