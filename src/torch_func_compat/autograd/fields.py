"""Partial derivatives of fields, by the names of their coordinates, for differential equations."""

from __future__ import annotations

import functools
from typing import Any, Callable, Mapping, Sequence, Union

import torch
from torch import Tensor

from .._fields.evaluate import Evaluation, Values
from .._fields.plan import Entry, Index, Plan, check_coordinates
from .internals import P

__all__ = ["curl", "divergence", "partials"]

Spec = Union[Sequence[Entry], Mapping[str, Sequence[Entry]]]


def partials(
    func: Callable[P, Any],
    spec: Spec,
    *,
    coordinates: Sequence[str],
    check: bool | None = None,
    chunk_size: int | None = None,
) -> Callable[P, dict[Any, Any]]:
    """Chosen partial derivatives of a field, from one evaluation.

    Parameters
    ----------
    func : callable
        The field: takes points of shape ``(*batch, C)`` with the C coordinates along the last dimension, as an
        ``nn.Module`` does, and returns a real or complex tensor of shape ``(*batch, *value)``. Its value at one point
        must not depend on the other points.
    spec : sequence of str, or dict of them
        The derivatives, each as the coordinates that it is taken by: ``'t'``, ``'xx'``, ``'xxy'``; ``''`` is the
        value itself. Coordinates with names of several letters are written as a tuple: ``('x1', 'x2')``. A dict names
        the components of a field of shape ``(*batch, M)``, in their order, and gives the derivatives of each.
    coordinates : sequence of str
        The names of the C coordinates, in their order along the last dimension: ``'txy'`` or ``('t', 'x1', 'x2')``.
    check : bool, optional
        Whether to raise where points depend on each other, for one more backward pass for each pass. By default the
        first call looks, unless it is made within a transform or traced by torch.compile.
    chunk_size : int, optional
        Points at a time, along their first dimension. By default all at once.

    Returns
    -------
    callable
        Takes the points and then the other arguments of `func`, which all points share. Returns a dict from each
        derivative, as `spec` writes it, to a tensor of the shape of the field; with a dict for `spec`, from each
        component to such a dict, whose tensors are of shape ``batch``. Differentiable by the points and by all that
        the field depends on.

    Raises
    ------
    ValueError
        `spec` and `coordinates` do not fit each other, the points, or what the field returns; `chunk_size` is not
        positive.
    RuntimeError
        Points depend on each other; the field modifies them in place; its derivatives would be wrong.

    See Also
    --------
    divergence, curl : sums of first derivatives of vector fields.
    batch_hessian : all second derivatives.

    Notes
    -----
    Cost: one evaluation, and one backward pass over all points for each component and each derivative that is
    differentiated again. A pass gives the derivatives by all coordinates, so ``('t', 'x', 'y')`` takes one pass,
    ``('t', 'xx')`` two and ``('t', 'x', 'xxx')`` three; sub-derivatives are shared. Real and imaginary parts count as
    components.

    A sum over the points has, for each point, that point's derivative (the sum trick), which is why points must be
    independent. The passes are those of ``torch.autograd.grad`` where no transform is running. They are those of
    `vjp`, nested once for each order, within transforms, in ``torch.compile``, and for fields with operations that
    torch might differentiate wrongly more than once, such as normalisations and custom Functions; the first call on
    such a field evaluates it twice.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.fields import partials
    >>> def u(z):
    ...     t, x = z.unbind(-1)
    ...     return t * x**3
    >>> d = partials(u, ("t", "x", "tx", "xx"), coordinates="tx")(torch.tensor([[1.0, 2.0], [3.0, 1.0]]))
    >>> d["t"], d["xx"]
    (tensor([8., 1.]), tensor([12., 18.]))
    """
    _check_chunk_size("partials", chunk_size)
    names = check_coordinates("partials", coordinates)
    return functools.wraps(func, updated=())(_in_chunks(_partials("partials", func, spec, names, check), chunk_size))


def divergence(
    func: Callable[P, Any],
    along: Sequence[str] | None = None,
    *,
    coordinates: Sequence[str] | None = None,
    check: bool | None = None,
    chunk_size: int | None = None,
) -> Callable[P, Tensor]:
    """Divergence of a vector field: the sum of the derivatives of each component by its own coordinate.

    Parameters
    ----------
    func : callable
        The field: points of shape ``(*batch, C)`` to vectors of shape ``(*batch, M)``; see `partials`.
    along : sequence of str, optional
        The coordinates that the M components belong to, in their order; by default all.
    coordinates : sequence of str, optional
        The names of the C coordinates, for `along`; by default there are as many as components.
    check, chunk_size
        See `partials`.

    Returns
    -------
    callable
        Takes what `func` takes; returns a tensor of shape ``batch``. Differentiable.

    Raises
    ------
    ValueError, RuntimeError
        As for `partials`.

    Notes
    -----
    Cost: one evaluation and M backward passes.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.fields import divergence
    >>> divergence(lambda x: x**2)(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([ 6., 14.])

    A flow in two dimensions that depends on time:

    >>> flow = lambda z: z[:, :1] * z[:, 1:] ** 2
    >>> divergence(flow, along="xy", coordinates="txy")(torch.tensor([[2.0, 1.0, 3.0]]))
    tensor([16.])
    """

    def wanted(chosen: Sequence[str]) -> dict[str, list[Entry]]:
        return {name: [(name,)] for name in chosen}

    def total(found: dict[str, Any], chosen: Sequence[str]) -> Tensor:
        terms: list[Tensor] = [found[name][(name,)] for name in chosen]
        return sum(terms[1:], terms[0])

    _check_chunk_size("divergence", chunk_size)
    at = _of_vectors("divergence", func, along, coordinates, check, wanted, total)
    return functools.wraps(func, updated=())(_in_chunks(at, chunk_size))


def curl(
    func: Callable[P, Any],
    along: Sequence[str] | None = None,
    *,
    coordinates: Sequence[str] | None = None,
    check: bool | None = None,
    chunk_size: int | None = None,
) -> Callable[P, Tensor]:
    """Curl of a vector field in three dimensions, or its one component in two.

    Parameters
    ----------
    func : callable
        The field: points of shape ``(*batch, C)`` to vectors of shape ``(*batch, 2)`` or ``(*batch, 3)``; see
        `partials`.
    along : sequence of str, optional
        The two or three coordinates that the components belong to, in their order; by default all.
    coordinates : sequence of str, optional
        The names of the C coordinates, for `along`; by default there are as many as components.
    check, chunk_size
        See `partials`.

    Returns
    -------
    callable
        Takes what `func` takes; returns a tensor of shape ``(*batch, 3)``, or of shape ``batch`` in two dimensions:
        the derivative of the second component by the first coordinate minus that of the first by the second.
        Differentiable.

    Raises
    ------
    ValueError, RuntimeError
        As for `partials`; and where there are not two or three coordinates.

    Notes
    -----
    Cost: one evaluation and two or three backward passes.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.fields import curl
    >>> curl(lambda x: torch.stack([-x[:, 1], x[:, 0]], 1))(torch.ones(2, 2))
    tensor([2., 2.])
    """

    def wanted(chosen: Sequence[str]) -> dict[str, list[Entry]]:
        if len(chosen) not in (2, 3):
            raise ValueError(f"curl: expected a field along two or three coordinates, got {len(chosen)}: {chosen}")
        return {name: [(other,) for other in chosen if other != name] for name in chosen}

    def turns(found: dict[str, Any], chosen: Sequence[str]) -> Tensor:
        def turn(first: str, second: str) -> Tensor:
            return found[second][(first,)] - found[first][(second,)]  # type: ignore[no-any-return]

        if len(chosen) == 2:
            return turn(*chosen)
        x, y, z = chosen
        return torch.stack([turn(y, z), turn(z, x), turn(x, y)], -1)

    _check_chunk_size("curl", chunk_size)
    at = _of_vectors("curl", func, along, coordinates, check, wanted, turns)
    return functools.wraps(func, updated=())(_in_chunks(at, chunk_size))


def _partials(
    api: str, func: Callable[..., Any], spec: Spec, names: tuple[str, ...], check: bool | None
) -> Callable[..., dict[Any, Any]]:
    """`partials` without chunks."""
    labels = list(spec) if isinstance(spec, Mapping) else None
    if isinstance(spec, Mapping):
        if not spec:
            raise ValueError(f"{api}: expected derivatives of at least one component, got {spec!r}")
        plans = [Plan(api, entries, names) for entries in spec.values()]
    else:
        plans = [Plan(api, spec, names)]
    evaluation = Evaluation(api, func, plans, len(names), labels is not None, check)

    def at(points: Tensor, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        values, value = evaluation(points, args, kwargs)
        if labels is None:
            return {entry: _joined(values, index, value) for entry, index in plans[0].names.items()}
        parts = 2 if value.is_complex() else 1
        like = value[..., 0]
        return {
            label: {e: _joined(values[k * parts : (k + 1) * parts], i, like) for e, i in plan.names.items()}
            for k, (label, plan) in enumerate(zip(labels, plans))
        }

    return at


def _joined(values: Values, index: Index, like: Tensor) -> Tensor:
    """One derivative of all components, in the shape of the field."""
    parts = [found[index] for found in values]
    if not parts:
        return torch.zeros_like(like)
    whole = parts[0] if len(parts) == 1 else torch.stack(parts, -1)
    if like.is_complex():
        whole = torch.view_as_complex(whole.reshape(*like.shape, 2))
    return whole.reshape(like.shape)


def _of_vectors(
    api: str,
    func: Callable[..., Any],
    along: Sequence[str] | None,
    coordinates: Sequence[str] | None,
    check: bool | None,
    wanted: Callable[[Sequence[str]], dict[str, list[Entry]]],
    combine: Callable[[dict[str, Any], Sequence[str]], Tensor],
) -> Callable[..., Tensor]:
    """``combine`` of the derivatives of each component that `wanted` names."""
    if coordinates is None and along is not None:
        raise ValueError(f"{api}: along={along!r} needs coordinates=, the names of all coordinates")
    made: dict[int, tuple[tuple[str, ...], Callable[..., dict[str, Any]]]] = {}

    def at(points: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(points, Tensor) or not points.dim():
            what = "a tensor of no dimensions" if isinstance(points, Tensor) else f"{type(points)}"
            raise ValueError(f"{api}: expected points of shape (*batch, coordinates), got {what}")
        size = points.shape[-1]
        if size not in made:
            numbered = [f"x{k}" for k in range(max(size, 1))]
            names = check_coordinates(api, numbered if coordinates is None else coordinates)
            chosen = names if along is None else check_coordinates(api, along)
            made[size] = chosen, _partials(api, func, wanted(chosen), names, check)
        chosen, derivatives = made[size]
        return combine(derivatives(points, *args, **kwargs), chosen)

    return at


def _check_chunk_size(api: str, chunk_size: int | None) -> None:
    whole = isinstance(chunk_size, int) and not isinstance(chunk_size, bool)
    if chunk_size is not None and not (whole and chunk_size > 0):
        raise ValueError(f"{api}: expected chunk_size to be a positive number of points, or None, got {chunk_size!r}")


def _in_chunks(at: Callable[..., Any], chunk_size: int | None) -> Callable[..., Any]:
    """`at`, with so many points at a time."""
    if chunk_size is None:
        return at

    def in_chunks(points: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(points, Tensor) or points.dim() < 2 or len(points) <= chunk_size:
            return at(points, *args, **kwargs)
        return _concatenated([at(chunk, *args, **kwargs) for chunk in points.split(chunk_size)])

    return in_chunks


def _concatenated(chunks: Sequence[Any]) -> Any:
    if isinstance(chunks[0], dict):
        return {key: _concatenated([chunk[key] for chunk in chunks]) for key in chunks[0]}
    return torch.cat(list(chunks))
