"""Checks of derivatives, for test suites: against finite differences, against a loop, one mode against the other.

Checks of one order of derivatives (`dgradcheck`, `dgradgradcheck`, `dgradgradgradcheck`) raise torch's
``GradcheckError`` if a derivative is wrong. Checks of whole Jacobians return whether they agree.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from typing import Any, Callable, Iterator, Sequence, Union

import torch
from torch import Tensor
from torch.autograd.gradcheck import gradcheck, gradgradcheck

from .._torch import pytree
from . import checks
from .internals import P, available_backends, jacfwd, jacrev, use_checks, use_fallback, vmap

__all__ = [
    "dgradcheck",
    "dgradgradcheck",
    "dgradgradgradcheck",
    "finite_difference_jacobian",
    "jacfwd_matches_jacrev",
    "jacrev_matches_finite_diff",
    "no_vmap_fallback",
    "vmap_matches_loop",
]

# torch 1.8 has no class for it
_GradcheckError: type[Exception] = vars(sys.modules[gradcheck.__module__]).get("GradcheckError", RuntimeError)

Tensors = Union[Tensor, Sequence[Any]]


def dgradcheck(func: Callable[P, Any], diffvars: Tensors, **kwargs: Any) -> bool:
    """`torch.autograd.gradcheck`, after which the checked variables require no grad any more.

    Parameters
    ----------
    func : callable
        Takes `diffvars`, returns a tensor or tensors.
    diffvars : Tensor or sequence of them
        In float64; those that require grad are checked.
    **kwargs
        Options of ``gradcheck``. ``fast_mode`` is True unless given, where torch has it (from 1.9 on).

    Returns
    -------
    bool
        True; False only with ``raise_exception=False``.

    Raises
    ------
    torch.autograd.gradcheck.GradcheckError
        A derivative is wrong (a RuntimeError before torch 1.9).

    Notes
    -----
    Cost: in fast mode some two forward passes and a backward pass per output, else two forward passes per element
    of the inputs and a backward pass per element of the outputs.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.gradcheck import dgradcheck
    >>> x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    >>> dgradcheck(torch.sin, x), x.requires_grad
    (True, False)
    """
    return _check(gradcheck, func, diffvars, kwargs)


def dgradgradcheck(func: Callable[P, Any], diffvars: Tensors, **kwargs: Any) -> bool:
    """`torch.autograd.gradgradcheck` of second derivatives; the checked variables require no grad afterwards.

    Parameters
    ----------
    func : callable
        Takes `diffvars`, returns a tensor or tensors.
    diffvars : Tensor or sequence of them
        In float64; those that require grad are checked.
    **kwargs
        Options of ``torch.autograd.gradgradcheck``; see `dgradcheck`.

    Returns
    -------
    bool
        True; False only with ``raise_exception=False``.

    Raises
    ------
    torch.autograd.gradcheck.GradcheckError
        A derivative is wrong (a RuntimeError before torch 1.9).

    Notes
    -----
    Cost: that of `dgradcheck` of the gradient.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.gradcheck import dgradgradcheck
    >>> dgradgradcheck(torch.sin, torch.ones(3, dtype=torch.float64, requires_grad=True))
    True
    """
    return _check(gradgradcheck, func, diffvars, kwargs)


def dgradgradgradcheck(func: Callable[P, Any], diffvars: Tensors, **kwargs: Any) -> bool:
    """`dgradgradcheck` of the gradient of the sum of `func`'s output, and so a check of third derivatives.

    Parameters
    ----------
    func : callable
        Takes `diffvars`, returns a tensor or tensors.
    diffvars : Tensor or sequence of them
        In float64; those that require grad are checked.
    **kwargs
        Options of ``torch.autograd.gradgradcheck``; see `dgradcheck`.

    Returns
    -------
    bool
        True; False only with ``raise_exception=False``.

    Raises
    ------
    torch.autograd.gradcheck.GradcheckError
        A derivative is wrong (a RuntimeError before torch 1.9).

    Notes
    -----
    Cost: that of `dgradgradcheck`, of a function that takes a forward and a backward pass.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.gradcheck import dgradgradgradcheck
    >>> dgradgradgradcheck(torch.sin, torch.ones(3, dtype=torch.float64, requires_grad=True))
    True
    """
    inputs = (diffvars,) if isinstance(diffvars, Tensor) else tuple(diffvars)

    def gradient(*args: Any) -> tuple[Tensor, ...]:
        tracked = [arg for arg in args if isinstance(arg, Tensor) and arg.requires_grad]
        return torch.autograd.grad(func(*args).sum(), tracked, create_graph=True)  # type: ignore[call-arg]

    return dgradgradcheck(gradient, inputs, **kwargs)


def _check(check: Callable[..., bool], func: Callable[..., Any], diffvars: Tensors, options: dict[str, Any]) -> bool:
    options = dict(options)
    if "fast_mode" in inspect.signature(check).parameters:
        options = {"fast_mode": True, **options}
    raises = options.pop("raise_exception", True)
    try:
        return bool(check(func, diffvars, **options))
    # with raise_exception=False, torch 1.8 returns True for some wrong gradients, so it always raises here
    except _GradcheckError:
        if raises:
            raise
        return False
    finally:
        for variable in (diffvars,) if isinstance(diffvars, Tensor) else diffvars:
            if isinstance(variable, Tensor):
                variable.detach_()


def jacfwd_matches_jacrev(f: Callable[[Any], Any], x: Any, atol: float = 1e-10, rtol: float = 1e-8) -> bool:
    """Whether forward and reverse mode give the same Jacobian.

    Parameters
    ----------
    f : callable
        Of one argument.
    x : Tensor, or pytree of them
        Where to compare.
    atol, rtol : float
        As in ``torch.allclose``.

    Returns
    -------
    bool
        Whether all entries are as close as `atol` and `rtol` ask.

    Raises
    ------
    RuntimeError
        `f` returns something else than tensors, or is not differentiable.

    Notes
    -----
    A wrong ``jvp`` rule of a custom function is found where forward mode runs it: on the native backends, not on
    the autograd backend, which makes forward mode out of reverse mode.
    Cost: that of one `jacfwd` and one `jacrev`.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.gradcheck import jacfwd_matches_jacrev
    >>> jacfwd_matches_jacrev(torch.sin, torch.ones(3))
    True
    """
    with use_checks("off"):  # which would take reverse mode where the modes disagree
        forward = jacfwd(f)(x)
    return _all_close(forward, jacrev(f)(x), atol, rtol)


def jacrev_matches_finite_diff(
    f: Callable[[Tensor], Any], x: Tensor, *, eps: float = 1e-4, atol: float = 1e-5, rtol: float = 1e-5
) -> bool:
    """Whether `jacrev` agrees with `finite_difference_jacobian`.

    Parameters
    ----------
    f : callable
        Of one tensor.
    x : Tensor
        Of any shape, in float64 for differences to mean much.
    eps : float
        Step of the differences.
    atol, rtol : float
        As in ``torch.allclose``.

    Returns
    -------
    bool
        Whether all entries are as close as `atol` and `rtol` ask.

    Raises
    ------
    RuntimeError
        `f` returns something else than tensors, or is not differentiable.

    Notes
    -----
    Cost: that of `jacrev`, and two forward passes per element of `x`.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.gradcheck import jacrev_matches_finite_diff
    >>> jacrev_matches_finite_diff(torch.sin, torch.ones(3, dtype=torch.float64))
    True
    """
    return _all_close(jacrev(f)(x), finite_difference_jacobian(f, x, eps), atol, rtol)


def finite_difference_jacobian(func: Callable[[Tensor], Any], x: Tensor, eps: float = 1e-4) -> Any:
    """Jacobian from central differences, independent of autograd.

    Parameters
    ----------
    func : callable
        Returns a tensor or a pytree of them.
    x : Tensor
        Of any shape, also of no dimensions.
    eps : float
        Step. The error is of the order of ``eps**2`` from the differences, and of the precision of the dtype
        over `eps` from rounding.

    Returns
    -------
    pytree of Tensor
        Of shape ``output.shape + x.shape``, without a graph.

    Raises
    ------
    TypeError
        `func` returns something else than tensors.

    Notes
    -----
    Cost: two forward passes per element of `x`.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.gradcheck import finite_difference_jacobian
    >>> finite_difference_jacobian(torch.square, torch.tensor(3.0, dtype=torch.float64)).round()
    tensor(6., dtype=torch.float64)
    """
    columns: list[list[Tensor]] = []
    with torch.no_grad():
        # a copy for each call: func may keep or change what it is given
        leaves, spec = pytree.flatten(func(x.detach().clone()))
        for index in range(x.numel()):
            ends = []
            for step in (eps, -eps):
                moved = x.detach().clone().reshape(-1)
                moved[index] += step
                ends.append(pytree.flatten(func(moved.reshape(x.shape)))[0])
            columns.append([(after - before) / (2 * eps) for after, before in zip(*ends)])
        found = []
        for k, leaf in enumerate(leaves):
            column = torch.stack([c[k] for c in columns], -1) if columns else leaf.new_zeros((*leaf.shape, 0))
            found.append(column.reshape(leaf.shape + x.shape))
    return pytree.unflatten(found, spec)


def vmap_matches_loop(f: Callable[[Any], Any], batch: Any, *, atol: float = 1e-12, rtol: float = 0.0) -> bool:
    """Whether `vmap` gives the same as calling `f` with each sample.

    Parameters
    ----------
    f : callable
        Of one argument.
    batch : Tensor, or pytree of them
        Samples along dimension 0.
    atol, rtol : float
        As in ``torch.allclose``.

    Returns
    -------
    bool
        Whether all entries are as close as `atol` and `rtol` ask.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        `f` returns something else than tensors; or as for `torch_func_compat.vmap`.

    Notes
    -----
    Cost: one `vmap` of `f`, and one evaluation per sample.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.autograd.gradcheck import vmap_matches_loop
    >>> vmap_matches_loop(lambda x: x.cumsum(0), torch.ones(4, 3))
    True
    """
    leaves, spec = pytree.flatten(batch)
    samples = [f(pytree.unflatten([leaf[i] for leaf in leaves], spec)) for i in range(len(leaves[0]))]
    flat = [pytree.flatten(sample)[0] for sample in samples]
    looped = pytree.unflatten([torch.stack(column) for column in zip(*flat)], pytree.flatten(samples[0])[1])
    return _all_close(vmap(f)(batch), looped, atol, rtol)


@contextlib.contextmanager
def no_vmap_fallback() -> Iterator[None]:
    """Within this block vmap raises where it would loop over the samples, since a batching rule is missing.

    This holds for the loops of torch.func and functorch over single operations, in all threads, and for the loops of
    this library where those refuse (`use_fallback` with ``'error'``), in this thread. The autograd backend has nothing
    but loops; if it was chosen, it continues to loop.

    Returns
    -------
    context manager
        For a ``with`` block.

    Raises
    ------
    RuntimeError
        Within the block, by torch's vmap: an operation has no batching rule.

    Notes
    -----
    Cost: none of its own.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import vmap
    >>> from torch_func_compat.autograd.gradcheck import no_vmap_fallback
    >>> with no_vmap_fallback():
    ...     vmap(torch.sin)(torch.zeros(2, 3))
    tensor([[0., 0., 0.],
            [0., 0., 0.]])
    """
    available_backends()  # imports functorch if it is installed; its switch is set below
    library = checks.native()
    with use_fallback("error"):
        before = library._is_vmap_fallback_enabled()
        library._set_vmap_fallback_enabled(False)
        try:
            yield
        finally:
            library._set_vmap_fallback_enabled(before)


def _all_close(actual: Any, expected: Any, atol: float, rtol: float) -> bool:
    """torch.allclose over pytrees; False if the structures or shapes differ."""
    flat, spec = pytree.flatten(actual)
    wanted, wanted_spec = pytree.flatten(expected)
    return spec == wanted_spec and all(
        a.shape == b.shape and torch.allclose(a, b, atol=atol, rtol=rtol) for a, b in zip(flat, wanted)
    )
