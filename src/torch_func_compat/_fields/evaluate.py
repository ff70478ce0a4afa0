"""One evaluation of a field, and the backward passes of its plans.

Where no transform is running, the passes are those of plain autograd, as one would write them by hand. Within
transforms of torch.func or functorch, while torch.compile traces, and for fields with operations that torch may
differentiate wrongly, they are those of `vjp`, nested once for each order.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, Callable, Dict, List, Sequence

import torch
from torch import Tensor

from .._backends.autograd.level import Level
from ..autograd.internals import get_backend, use_backend, vjp
from .nodes import look
from .plan import Index, Passes, Plan
from .samples import factors, require_independent

# For each component of the field, its derivatives.
Values = List[Dict[Index, Tensor]]

_is_compiling: Callable[[], bool] = getattr(getattr(torch, "compiler", None), "is_compiling", None) or bool
_in_inference_mode: Callable[[], bool] = getattr(torch, "is_inference_mode_enabled", bool)


def _within_a_transform() -> bool:
    """Whether a transform of torch.func or functorch is running: its backend answers in spite of the settings."""
    with use_backend("autograd"):
        return get_backend() != "autograd"


class Unknown(Exception):
    """The field has an operation that torch is not known to differentiate rightly."""


class Evaluation:
    """The derivatives of a field that are asked for, at points of shape ``(*batch, C)``.

    Parameters
    ----------
    api : str
        The name of the public function, for messages.
    func : callable
        The field: ``(*batch, C) -> (*batch, *value)``.
    plans : list of Plan
        One for each component, or a single one for all.
    size : int
        How many coordinates there are.
    named : bool
        Whether each component has a plan of its own.
    check : bool or None
        Whether to look if points depend on each other; None is at the first call.
    """

    def __init__(
        self, api: str, func: Callable[..., Any], plans: Sequence[Plan], size: int, named: bool, check: bool | None
    ) -> None:
        self.api = api
        self.func = func
        self.plans = plans
        self.size = size
        self.named = named
        self.check = check
        self._direct = True  # until the field has an operation that is not known to be right

    def __call__(self, points: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Values, Tensor]:
        """The derivatives of each component, and the field's value."""
        self._require_points(points)
        if _is_compiling():
            if self.check:
                raise ValueError(
                    f"{self.api}: check=True looks at values, which torch.compile does not have: check one eager call"
                )
            return self._nested(points, args, kwargs, False)
        running = _within_a_transform()
        check = not running if self.check is None else self.check
        if self._direct and not running and not _in_inference_mode():
            try:
                found = self._by_autograd(points, args, kwargs, check)
            except Unknown:
                self._direct = False
                found = self._nested(points, args, kwargs, check)
        else:
            found = self._nested(points, args, kwargs, check)
        if check and self.check is None:
            self.check = False
        return found

    def _require_points(self, points: Any) -> None:
        if not isinstance(points, Tensor) or not points.dim() or points.shape[-1] != self.size:
            what = f"a tensor of shape {tuple(points.shape)}" if isinstance(points, Tensor) else f"{type(points)}"
            raise ValueError(
                f"{self.api}: expected points of shape (*batch, {self.size}), with one number for each of "
                f"{self.size} coordinates along the last dimension, got {what}"
            )
        if not points.is_floating_point():
            raise ValueError(f"{self.api}: expected points of real floating-point numbers, got {points.dtype}")

    def components(self, points: Tensor, value: Any) -> list[Tensor]:
        """The components of the field, each of shape ``batch``; of complex ones, real and imaginary parts in turn."""
        batch = points.shape[:-1]
        if not isinstance(value, Tensor) or value.shape[: len(batch)] != batch:
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{type(value)}"
            raise ValueError(
                f"{self.api}: expected the field to return a tensor of shape ({', '.join(map(str, batch))}, ...), with "
                f"a value for each point, got {what}"
            )
        if not (value.is_floating_point() or value.is_complex()):
            raise ValueError(f"{self.api}: expected a field of floating-point numbers, got {value.dtype}")
        count = math.prod(value.shape[len(batch) :])
        if self.named and (value.dim() != len(batch) + 1 or count != len(self.plans)):
            raise ValueError(
                f"{self.api}: expected the field to return {len(self.plans)} components along its last dimension, got "
                f"a tensor of shape {tuple(value.shape)} at points of shape {tuple(points.shape)}"
            )
        if value.is_complex():
            value, count = torch.view_as_real(value), 2 * count
        return [value.reshape(batch)] if count == 1 else list(value.reshape(*batch, count).unbind(-1))

    def _each(self, count: int) -> list[Plan]:
        """The plan of each component."""
        if not self.named:
            return [self.plans[0]] * count
        return [plan for plan in self.plans for _ in range(count // len(self.plans))]

    def _by_autograd(
        self, points: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], check: bool
    ) -> tuple[Values, Tensor]:
        recording = torch.is_grad_enabled()
        with contextlib.nullcontext() if recording else torch.enable_grad():
            own, value = self._recorded(points, args, kwargs)
            parts = self.components(points, value)
            right, outside = look(value, own)
            if not right:
                raise Unknown
            attached = recording and outside
            numbers = factors(parts[0]) if check and parts and parts[0].numel() > 1 else None
            values: Values = [{(): part} for part in parts]
            plans = self._each(len(parts))
            ones = torch.ones_like(parts[0]) if parts else None
            for order in range(max(len(plan.orders) for plan in self.plans)):
                for found, plan in zip(values, plans):
                    if order >= len(plan.orders):
                        continue
                    again = plan.orders[order + 1] if order + 1 < len(plan.orders) else {}
                    for parent, children in plan.orders[order].items():
                        create = attached or any(child in again for child in children)
                        gradient = _gradient(found[parent], own, ones, create)
                        if numbers is not None:
                            scaled = _gradient(found[parent], own, numbers, False)
                            require_independent(self.api, order, gradient, scaled, numbers)
                        for child, coordinate in children.items():
                            found[child] = gradient.select(-1, coordinate)
        if not attached:
            values = [{index: part.detach() for index, part in found.items()} for found in values]
            value = value.detach()
        return values, value

    def _recorded(self, points: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The tensor to differentiate by, and the field's value."""
        # An alias: results that others make of the same points do not belong to the derivative.
        level = Level()
        own, used = level.variable(points)
        given = used.view_as(used)
        version = given._version
        level.running = True
        try:
            value = self.func(given, *args, **kwargs)
        finally:
            level.running = False
        if given._version != version:
            raise RuntimeError(
                f"{self.api}: the field modified its points in place, at which it is differentiated. Work on a clone()."
            )
        return own, value

    def _nested(
        self, points: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], check: bool
    ) -> tuple[Values, Tensor]:
        known: dict[str, int] = {}

        def field(inner: Tensor) -> Any:
            value = self.func(inner, *args, **kwargs)
            parts = self.components(inner, value)
            known["count"] = len(parts)
            return parts, ([{(): part} for part in parts], value)

        def differentiated(stage: Callable[[Tensor], Any], order: int) -> Callable[[Tensor], Any]:
            """The derivatives of order ``order + 1``, where `stage` gives those of `order` and all below."""

            def next_stage(inner: Tensor) -> Any:
                outputs, pullback, (values, value) = vjp(stage, inner, has_aux=True)
                values = [dict(found) for found in values]
                numbers = factors(outputs[0].detach()) if check and outputs[0].numel() > 1 else None
                position, onwards = 0, []
                for found, plan in zip(values, self._each(len(values))):
                    passes: Passes = plan.orders[order] if order < len(plan.orders) else {}
                    again = plan.orders[order + 1] if order + 1 < len(plan.orders) else {}
                    for children in passes.values():
                        (gradient,) = pullback(_one_of(outputs, position, None))
                        if numbers is not None:
                            (scaled,) = pullback(_one_of(outputs, position, numbers))
                            require_independent(self.api, order, gradient, scaled, numbers)
                        position += 1
                        for child, coordinate in children.items():
                            found[child] = gradient.select(-1, coordinate)
                    onwards += [found[index] for index in again]
                return onwards, (values, value)

            return next_stage

        highest = max(len(plan.orders) for plan in self.plans)

        def first(inner: Tensor) -> Any:
            parts, (values, value) = field(inner)
            return _chosen(self._each(len(parts)), parts), (values, value)

        if highest == 0:
            _, (values, value) = field(points)
            return values, value
        stage: Callable[[Tensor], Any] = first
        for order in range(highest):
            stage = differentiated(stage, order)
        _, (values, value) = stage(points)
        return values, value


def _chosen(plans: Sequence[Plan], parts: Sequence[Tensor]) -> list[Tensor]:
    """The components that are differentiated."""
    return [part for plan, part in zip(plans, parts) if plan.orders]


def _one_of(outputs: Sequence[Tensor], position: int, numbers: Tensor | None) -> list[Tensor]:
    """Cotangents that are zero but for one output."""
    chosen = torch.ones_like(outputs[position]) if numbers is None else numbers
    return [chosen if k == position else torch.zeros_like(output) for k, output in enumerate(outputs)]


def _gradient(value: Tensor, own: Tensor, cotangent: Tensor | None, create_graph: bool) -> Tensor:
    """The derivative of each point's value by its coordinates; zeros where it does not depend on them."""
    if not value.requires_grad:
        return torch.zeros_like(own)
    (found,) = torch.autograd.grad(
        value, own, cotangent, retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    return torch.zeros_like(own) if found is None else found
