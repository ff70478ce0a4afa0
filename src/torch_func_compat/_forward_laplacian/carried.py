"""A tensor that carries its Jacobian and its Laplacian by the coordinates through torch's operations.

`Carried` is a subclass of Tensor whose own memory holds nothing: every operation comes to ``__torch_function__``, which
has a rule for it or raises `Refused`. Code that bypasses it (compiled extensions, TorchScript) gets a placeholder of an
odd shape on the meta device and fails, so that no number is ever lost without an error.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

_is_compiling: Callable[[], bool] = getattr(getattr(torch, "compiler", None), "is_compiling", None) or bool


class Refused(Exception):
    """An operation has no rule: the Laplacian has to be computed in another way.

    Attributes
    ----------
    runs : sequence of Run
        The evaluations that are given up.
    """

    runs: Sequence[Run] = ()


class RefusedNow(Refused):
    """The same, for a reason outside of the function."""


class Run:
    """One evaluation of a function on carried tensors.

    Parameters
    ----------
    size : int
        How many coordinates (columns of the Jacobian) there are.
    weight : Tensor, optional
        Of shape (size,) or (size, size): the Laplacian is the sum of the second derivatives by k and l times it.
    recording : bool
        Whether torch.autograd records, for derivatives of the Laplacian.
    """

    def __init__(self, size: int, weight: Tensor | None, recording: bool) -> None:
        self.size = size
        # only its symmetric part counts
        self.weight = weight if weight is None or weight.dim() == 1 else (weight + weight.t()) / 2
        self.recording = recording
        self.within_a_rule = False
        self.refused: Refused | None = None  # also where the function caught it
        self.ended = False  # tensors that the function has kept act as their values
        self.replaced = False  # another evaluation is to give the result of this one

    def weighted(self, columns: Tensor) -> Tensor:
        """The weight times the columns."""
        weight = self.weight
        if weight is None:
            return columns
        weight = weight.to(columns)
        if weight.dim() == 1:
            return columns * weight.reshape(-1, *[1] * (columns.dim() - 1))
        return torch.einsum("kl,l...->k...", weight, columns)

    def pairs(self, one: Tensor, two: Tensor, left: Tensor | None = None, right: Tensor | None = None) -> Tensor:
        """The sum over the columns of ``(left * one) * (right * two)``, element by element, for two Jacobians.

        The factors come before the products: where the square of a Jacobian leaves the range of its dtype, the term
        may still be within.
        """
        if left is not None and left.numel() > max(math.prod(one.shape[1:]), math.prod(two.shape[1:])):
            # Jacobians that are the same along dimensions are scaled instead, and stay small
            scales = [_scale(one), _scale(two)]
            factor = (left * scales[0]) * (scales[1] if right is None else right * scales[1])
            return factor * self.pairs(one / scales[0], two / scales[1])
        if self.weight is not None or one.requires_grad or two.requires_grad:
            return _products(self.weighted(one), two, left, right)
        # in blocks, which need less memory and fit into the processor's cache
        step = max(_BLOCK // max(math.prod(one.shape[1:]), math.prod(two.shape[1:]), 1), 1)
        if step >= len(one):
            return _products(one, two, left, right)
        total = _products(one[:step], two[:step], left, right)
        for start in range(step, len(one), step):
            total += _products(one[start : start + step], two[start : start + step], left, right)
        return total


def _products(one: Tensor, two: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    one = one if left is None else one * left
    two = two if right is None else two * right
    return (one * two).sum(0)


def _scale(jac: Tensor) -> Tensor:
    """The largest absolute value among the columns; a constant."""
    largest = jac.detach().abs().max(0)[0]
    return largest.masked_fill((largest == 0) | (largest - largest != 0), 1.0)  # infinities


# Elements of a block
_BLOCK = 1 << 17


class Carried(Tensor):
    """A value with its derivatives.

    Attributes
    ----------
    run : Run
    value : Tensor
    jac : Tensor or None
        Of shape ``(size, *value.shape)``, with 1 for dimensions along which it is the same. None stands for zero: the
        value has no derivative but may depend on the coordinates, like that of a comparison.
    lap : Tensor or None
        Of the value's shape; None is zero.
    """

    is_stand_in = True
    run: Run
    value: Tensor
    jac: Tensor | None
    lap: Tensor | None

    @classmethod
    def __torch_function__(cls, func: Any, types: Iterable[Any], args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        runs = {found.run for found in carried_in((args, kwargs))}
        if any(run.ended for run in runs):
            return func(*values_of_ended(args), **values_of_ended(kwargs or {}))
        strange = [kind for kind in types if not issubclass(kind, (cls, Parameter)) and kind is not Tensor]
        if strange:
            raise Refused(f"the function has tensors of type {strange[0].__name__}")
        kwargs = dict(kwargs or {})
        run = next(iter(runs)) if len(runs) == 1 else run_of((args, kwargs))
        try:
            return _by_rule(run, func, args, kwargs)
        except Refused as error:
            run.refused = run.refused or error
            raise


def _by_rule(run: Run, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if _is_compiling():
        raise RefusedNow("torch.compile traces a part of the function")
    rule = rules().get(func)
    if rule is None:
        raise Refused(f"there is no rule for {described(func)}")
    if kwargs.pop("out", None) is not None:
        raise Refused(f"{described(func)} writes into out=")
    if run.within_a_rule:
        return rule(run, func, *args, **kwargs)
    if not torch.is_grad_enabled():
        raise Refused(f"{described(func)} is called without grad mode, as within a custom Function")
    run.within_a_rule = True
    try:
        with torch.set_grad_enabled(run.recording):
            return rule(run, func, *args, **kwargs)
    except (TypeError, AttributeError) as error:
        raise Refused(f"there is no rule for {described(func)} with these arguments ({error})") from error
    finally:
        run.within_a_rule = False


def make(run: Run, value: Tensor, jac: Tensor | None, lap: Tensor | None) -> Any:
    """A carried tensor."""
    if isinstance(value, Carried):
        raise Refused("forward Laplacians are nested")
    assert jac is None or jac.dim() == value.dim() + 1, (jac.shape, value.shape)
    try:
        made: Any = placeholder().as_subclass(Carried)
    except RuntimeError as error:  # within a TorchDispatchMode, on torch < 2
        raise RefusedNow(f"torch makes no subclass here ({error})") from error
    made.run, made.value = run, value
    made.jac, made.lap = jac, None if jac is None else lap
    return made


@functools.lru_cache(maxsize=None)
def placeholder() -> Tensor:
    """The memory of carried tensors, which is none."""
    shape = (2, 3, 5, 7, 11, 13)  # which fits no other shape
    with torch.no_grad():
        try:
            return torch.empty(shape, device="meta")
        except RuntimeError:  # torch 1.8 has no meta device by that name
            return torch.full((1,), math.nan, device="cpu").expand(shape)


def described(func: Any) -> str:
    """The name of an operation, and what is wrong with it, for messages."""
    name = getattr(func, "__name__", None) or repr(func)
    if name in ("__get__", "__set__"):
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    if name in ("__setitem__", "__set__") or (name.endswith("_") and not name.endswith("__")) or name[:3] == "__i":
        return f"{name}, which writes in place"
    if name in _LEAVING:
        return f"{name}, which takes numbers out of torch"
    return str(name)


_LEAVING = frozenset(
    "item tolist numpy __bool__ __float__ __int__ __index__ __complex__ __array__ __len__ __contains__ __format__ "
    "data_ptr storage untyped_storage __reduce_ex__ __deepcopy__ __dlpack__ is_nonzero equal allclose".split()
)


def carried_in(tree: Any) -> list[Carried]:
    """The carried tensors among arguments."""
    if isinstance(tree, Carried):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (list, tuple)):
        return []
    return [found for part in tree for found in carried_in(part)]


def values_of_ended(tree: Any) -> Any:
    """Values in place of the carried tensors of runs that have ended, which the function has kept.

    Raises
    ------
    RuntimeError
        A value with derivatives is of an evaluation that this one replaces: it would be a constant here.
    """
    if isinstance(tree, Carried) and tree.run.ended:
        if tree.run.replaced and tree.jac is not None:
            raise RuntimeError(_KEPT)
        return tree.value
    if isinstance(tree, dict):
        return {key: values_of_ended(part) for key, part in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[values_of_ended(part) for part in tree])
    if isinstance(tree, (list, tuple)):
        return (list if isinstance(tree, list) else tuple)([values_of_ended(part) for part in tree])
    return tree


_KEPT = (
    "laplacian: the function keeps a tensor that depends on its argument, and takes it again in another evaluation, "
    "where it would have no derivative. Compute the tensor in each evaluation, keep its detach(), or take a new "
    "function and mode='rows'"
)


def run_of(tree: Any) -> Run:
    """The run that the carried tensors among arguments belong to."""
    runs = {id(found.run): found.run for found in carried_in(tree)}
    if len(runs) != 1:
        raise Refused("forward Laplacians are nested")
    return next(iter(runs.values()))


@functools.lru_cache(maxsize=None)
def rules() -> dict[Any, Callable[..., Any]]:
    """For each of torch's functions, its rule."""
    from . import rule_modules  # they need this module
    from .registry import resolved

    return resolved(rule_modules)
