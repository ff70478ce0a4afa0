"""The switchboard: every transform by its name, answered by the backend of the moment.

Each public function says what it does and hands its name and arguments to `_transform`, which asks
``_policy`` for the backend when the result is called (by way of ``_fallback``, which computes on the
autograd backend what that one refuses). The backend's own transform answers where it has one with the
parameters that were asked for; else the derivation in ``_operators`` does.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Tuple, Union

import torch

from .. import _facts, _operators, _policy
from .._arguments import Argnums, check_chunk_size, check_randomness
from .._backends.protocol import Backend
from .._fallback import Answer, answer, explain, get_fallback, set_fallback, use_fallback
from .._policy import available_backends, get_backend, set_backend, unavailable_backends, use_backend

__all__ = [
    "available_backends",
    "explain",
    "fjacrev",  # noqa: F822 - by __getattr__
    "fvmap",  # noqa: F822
    "get_backend",
    "get_fallback",
    "grad",
    "grad_and_value",
    "hessian",
    "jacfwd",
    "jacrev",
    "jvp",
    "set_backend",
    "set_fallback",
    "unavailable_backends",
    "use_backend",
    "use_fallback",
    "vjp",
    "vmap",
]

InDims = Union[int, Tuple[Any, ...]]
OutDims = Any

# torch.func's Jacobians take positional arguments only
_WITHOUT_KEYWORDS = ("jacrev", "jacfwd", "hessian")
_NOTHING: dict[str, Any] = {}

# found before anything is traced
_TRACED: Backend | None = _policy.compiled() if _facts.has("torch_func") else None
_is_compiling: Callable[[], bool] = getattr(getattr(torch, "compiler", None), "is_compiling", lambda: False)


def _resolve(
    backend: Backend, name: str, func: Callable[..., Any], options: dict[str, Any], extra: dict[str, Any]
) -> Callable[..., Any]:
    """`func` transformed by the backend's own transform, or by the derived one where that lacks something.

    `extra` holds the parameters that the libraries do not have; None and False mean not asked for.
    """
    native = backend.natives.get(name)
    if native is None or any(extra.values()) or _is_mistaken(name, options):
        derived = getattr(_operators, name)
        return derived(backend, func, **options, **extra)  # type: ignore[no-any-return]
    return native(func, **options)  # type: ignore[no-any-return]


def _is_mistaken(name: str, options: dict[str, Any]) -> bool:
    """Whether torch.func gets a call with these options wrong, on some release or on all so far."""
    if name == "vmap":
        # Dicts in another order of keys, outputs that are not mapped in another place than the first one,
        # and chunks of shared outputs or generators are refused or mixed up: what is not plain, we derive.
        dims = options["in_dims"]
        flat = isinstance(dims, tuple) and all(dim is None or isinstance(dim, int) for dim in dims)
        return not (isinstance(dims, int) or flat) or options["out_dims"] != 0
    if name in ("jacfwd", "hessian"):
        argnums = options["argnums"]
        negative = any(isinstance(n, int) and n < 0 for n in (argnums if isinstance(argnums, tuple) else (argnums,)))
        return negative and _facts.has("jacfwd_loses_negative_argnums")
    return False


def _transform(
    name: str, func: Callable[..., Any], options: dict[str, Any], extra: dict[str, Any] = _NOTHING
) -> Callable[..., Any]:
    """A function that, when called, calls the transform of `func` by the backend of that moment."""
    made: dict[str, Callable[..., Any]] = {}
    record = Answer()

    def on(backend: Backend) -> Callable[..., Any]:
        transformed = made.get(backend.name)
        if transformed is None:
            transformed = made[backend.name] = _resolve(backend, name, func, options, extra)
        return transformed

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if kwargs and name in _WITHOUT_KEYWORDS:
            return _transform(name, functools.partial(func, **kwargs), options, extra)(*args)
        if _is_compiling():
            assert _TRACED is not None
            return _resolve(_TRACED, name, func, options, extra)(*args, **kwargs)
        return answer(record, name, func, on, args, kwargs)

    if _is_compiling():  # torch.compile (2.6) does not trace the assignment of attributes
        return wrapper
    # functools.wraps() costs a third of what a transform of ours may; this is what it does for a function
    wrapper.__wrapped__ = func  # type: ignore[attr-defined]
    wrapper.__name__ = getattr(func, "__name__", name)
    wrapper.__qualname__ = getattr(func, "__qualname__", name)
    wrapper.__doc__ = getattr(func, "__doc__", None)
    wrapper.__module__ = getattr(func, "__module__", __name__)
    wrapper.answered_by = record  # type: ignore[attr-defined]
    return wrapper


def _call(name: str, func: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The same for vjp and jvp, which evaluate at once."""

    def on(backend: Backend) -> Callable[..., Any]:
        native = backend.natives.get(name)
        return functools.partial(getattr(_operators, name), backend) if native is None else native

    if _is_compiling():
        assert _TRACED is not None
        return on(_TRACED)(func, *args, **options)
    return answer(Answer(), name, func, on, (func, *args), options)


def vmap(
    func: Callable[..., Any],
    in_dims: InDims = 0,
    out_dims: OutDims = 0,
    randomness: str = "error",
    *,
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """Map a function of single samples over a batch.

    Parameters
    ----------
    func : callable
        Takes and returns pytrees with tensors.
    in_dims : int, None or nested tuple of them
        Batch dimension of each positional argument, as a prefix of the arguments' structure; None for what
        all samples share. Keyword arguments are shared.
    out_dims : int, None or nested structure of them
        Where the batch dimension goes in each output; None for an output that is the same for all samples.
    randomness : {'error', 'different', 'same'}
        What random operations in `func` do: raise, draw for each sample, or draw once for all.
    chunk_size : int, optional
        Samples at a time; None is all at once. Less memory for more passes.

    Returns
    -------
    callable
        Takes what `func` takes, with a batch dimension more where `in_dims` says so.

    Raises
    ------
    ValueError
        `in_dims` or `out_dims` do not fit, batch sizes differ, or an output is no tensor.
    RuntimeError
        Randomness where it is an error; a sample's output has another shape than the first's.

    Notes
    -----
    Cost: one evaluation of batched operations on the native backends, one evaluation per sample on the
    autograd backend.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import vmap
    >>> vmap(torch.dot)(torch.ones(2, 3), torch.ones(2, 3))
    tensor([3., 3.])
    """
    check_randomness(randomness)
    check_chunk_size("vmap", chunk_size)
    return _transform(
        "vmap", func, dict(in_dims=in_dims, out_dims=out_dims, randomness=randomness), dict(chunk_size=chunk_size)
    )


def vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """Value of a function and its vector-Jacobian product.

    Parameters
    ----------
    func : callable
        Returns a pytree of tensors, or ``(output, aux)`` with `has_aux`.
    *primals : pytrees of tensors
        Where to evaluate.
    has_aux : bool
        Whether `func` returns tensors beside its output that are not differentiated.

    Returns
    -------
    output : pytree
    vjp_fn : callable
        ``vjp_fn(cotangents, retain_graph=True, create_graph=None)`` takes the structure of `output` and returns
        a tuple with the gradient of each primal; zeros where the output does not depend on it.
    aux : pytree
        Only with `has_aux`.

    Raises
    ------
    ValueError
        A primal is no tensor.
    RuntimeError
        An output is no tensor or not floating-point or complex; cotangents of another structure.

    Notes
    -----
    Cost: one forward pass, and one backward pass per call of `vjp_fn`.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import vjp
    >>> output, vjp_fn = vjp(torch.square, torch.tensor([1.0, 2.0]))
    >>> vjp_fn(torch.ones(2))
    (tensor([2., 4.]),)
    """
    return _call("vjp", func, *primals, has_aux=has_aux)


def jvp(func: Callable[..., Any], primals: Any, tangents: Any, *, strict: bool = False, has_aux: bool = False) -> Any:
    """Value of a function and its Jacobian-vector product.

    Parameters
    ----------
    func : callable
        Returns a pytree of tensors, or ``(output, aux)`` with `has_aux`.
    primals : tuple of pytrees of tensors
        Where to evaluate.
    tangents : tuple of pytrees of tensors
        Direction, in the structure and shapes of `primals`.
    strict : bool
        Raise where an output does not depend on the primals, instead of giving zeros.
    has_aux : bool
        Whether `func` returns tensors beside its output that are not differentiated.

    Returns
    -------
    output, tangents_out : pytree
        And aux, with `has_aux`.

    Raises
    ------
    RuntimeError
        Primals are no tuple, or tangents have another structure or shape, or `strict` is not met.

    Notes
    -----
    Cost: about one forward pass natively. On the autograd backend one forward pass and two backward passes, as
    the transpose of reverse mode; or a backward pass per output element where a custom backward is not
    differentiable.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import jvp
    >>> jvp(torch.square, (torch.tensor(3.0),), (torch.tensor(1.0),))
    (tensor(9.), tensor(6.))
    """
    return _call("jvp", func, primals, tangents, strict=strict, has_aux=has_aux)


def grad(func: Callable[..., Any], argnums: Argnums = 0, has_aux: bool = False) -> Callable[..., Any]:
    """Gradient of a function that returns one number.

    Parameters
    ----------
    func : callable
        Returns a tensor of no dimensions, or ``(that, aux)`` with `has_aux`.
    argnums : int or tuple of int
        Positional arguments to differentiate; negative counts from the end.
    has_aux : bool
        Whether `func` returns tensors beside its output that are not differentiated.

    Returns
    -------
    callable
        Returns the gradient in the structure of the argument (a tuple of them for a tuple `argnums`), and aux.

    Raises
    ------
    RuntimeError
        The output is no scalar tensor, `argnums` do not fit, or what is differentiated is not floating-point.

    Notes
    -----
    Cost: one forward and one backward pass.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import grad
    >>> grad(grad(torch.sin))(torch.tensor(0.0))
    tensor(-0.)
    """
    return _transform("grad", func, dict(argnums=argnums, has_aux=has_aux))


def grad_and_value(func: Callable[..., Any], argnums: Argnums = 0, has_aux: bool = False) -> Callable[..., Any]:
    """`grad` that also returns the function's value, from the same forward pass.

    Returns
    -------
    callable
        Returns ``(gradient, value)``, or ``(gradient, (value, aux))`` with `has_aux`.

    See Also
    --------
    grad : parameters, errors and cost.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import grad_and_value
    >>> grad_and_value(torch.square)(torch.tensor(3.0))
    (tensor(6.), tensor(9.))
    """
    return _transform("grad_and_value", func, dict(argnums=argnums, has_aux=has_aux))


def jacrev(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
    _preallocate_and_copy: bool = False,
) -> Callable[..., Any]:
    """Jacobian by reverse mode, row by row of the outputs.

    Parameters
    ----------
    func : callable
        Returns a pytree of real tensors, or ``(output, aux)`` with `has_aux`.
    argnums : int or tuple of int
        Positional arguments to differentiate.
    has_aux : bool
        Whether `func` returns tensors beside its output that are not differentiated.
    chunk_size : int, optional
        Rows at a time; None is all at once, 1 is a plain loop that needs no batching rules.
    _preallocate_and_copy : bool
        Accepted, as torch.func does, for calls that name it; the result does not depend on it.

    Returns
    -------
    callable
        Returns the structure of the output, in it that of the arguments, in it tensors of shape
        ``output.shape + argument.shape``; and aux.

    Raises
    ------
    ValueError
        `chunk_size` is not positive.
    RuntimeError
        Complex or non-tensor outputs, `argnums` that do not fit.

    Notes
    -----
    Cost: one forward pass and as many backward passes as the output has elements, batched `chunk_size` at a
    time. The right choice for more inputs than outputs.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import jacrev
    >>> jacrev(torch.square)(torch.tensor([1.0, 2.0]))
    tensor([[2., 0.],
            [0., 4.]])
    """
    check_chunk_size("jacrev", chunk_size)
    return _transform("jacrev", func, dict(argnums=argnums, has_aux=has_aux, chunk_size=chunk_size))


def jacfwd(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    *,
    randomness: str = "error",
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """Jacobian by forward mode, column by column of the inputs.

    Parameters and results are those of `jacrev`, and:

    Parameters
    ----------
    randomness : {'error', 'different', 'same'}
        What random operations in `func` do; see `vmap`.
    chunk_size : int, optional
        Columns at a time.

    Raises
    ------
    ValueError
        `chunk_size` is not positive.
    RuntimeError
        Complex or non-tensor outputs, `argnums` that do not fit, randomness where it is an error.

    Notes
    -----
    Cost: as many forward-mode passes as the inputs have elements, batched `chunk_size` at a time. The right
    choice for more outputs than inputs. On the autograd backend one forward and one backward pass, and one pass
    back through both per column.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import jacfwd
    >>> jacfwd(torch.square)(torch.tensor([1.0, 2.0]))
    tensor([[2., 0.],
            [0., 4.]])
    """
    check_randomness(randomness)
    check_chunk_size("jacfwd", chunk_size)
    return _transform(
        "jacfwd", func, dict(argnums=argnums, has_aux=has_aux, randomness=randomness), dict(chunk_size=chunk_size)
    )


def hessian(
    func: Callable[..., Any], argnums: Argnums = 0, *, has_aux: bool = False, chunk_size: int | None = None
) -> Callable[..., Any]:
    """Second derivatives: the Jacobian of the Jacobian.

    Parameters are those of `jacrev`.

    Returns
    -------
    callable
        Returns the structure of the output, in it twice that of the arguments, in it tensors of shape
        ``output.shape + argument.shape + argument.shape``; and aux.

    Raises
    ------
    ValueError
        `chunk_size` is not positive.
    RuntimeError
        As for `jacrev`.

    Notes
    -----
    Forward over reverse mode, as in torch.func; reverse over reverse on the autograd backend.
    Cost: as many passes through the gradient as the arguments have elements, for each element of the output.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import hessian
    >>> hessian(lambda x: x.pow(3).sum())(torch.tensor([1.0, 2.0]))
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    """
    check_chunk_size("hessian", chunk_size)
    return _transform("hessian", func, dict(argnums=argnums), dict(has_aux=has_aux, chunk_size=chunk_size))


def __getattr__(name: str) -> Any:
    # Looked up when asked for, since finding them may import functorch.
    if name == "fjacrev":
        return _policy.native_transform("jacrev")
    if name == "fvmap":
        return _policy.native_transform("vmap")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
