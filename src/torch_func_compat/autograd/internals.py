"""The transforms of torch.func, each computed by the backend in use.

Each public function checks its options and passes them to ``_dispatch/transform.py``. When the result is called,
``_dispatch/choice.py`` chooses the backend, ``_transforms`` has the derivation, and ``_dispatch/fallback.py`` computes
refused functions on the autograd backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Tuple, Union

from .._arguments.call import Argnums
from .._arguments.chunks import Chunks, ChunkSize, Memory
from .._arguments.mapped import check_randomness
from .._dispatch import choice as _policy
from .._dispatch.choice import available_backends, get_backend, set_backend, unavailable_backends, use_backend
from .._dispatch.fallback_mode import get_fallback, set_fallback, use_fallback
from .._dispatch.record import explain
from .._dispatch.transform import call, transform
from .._guards.checks import get_checks, set_checks, use_checks
from .._transforms.mode import HESSIAN_MODES, check_mode

__all__ = [
    "available_backends",
    "explain",
    "fjacrev",  # noqa: F822 - by __getattr__
    "fvmap",  # noqa: F822
    "get_backend",
    "get_checks",
    "get_fallback",
    "grad",
    "grad_and_value",
    "hessian",
    "jacfwd",
    "jacrev",
    "jvp",
    "linearize",
    "set_backend",
    "set_checks",
    "set_fallback",
    "unavailable_backends",
    "use_backend",
    "use_checks",
    "use_fallback",
    "vjp",
    "vmap",
]

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    P = ParamSpec("P")
else:
    P = ...  # Callable[..., Any], for who evaluates the annotations

InDims = Union[int, Tuple[Any, ...]]
OutDims = Any


def vmap(
    func: Callable[P, Any],
    in_dims: InDims = 0,
    out_dims: OutDims = 0,
    randomness: str = "error",
    *,
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    progress: bool = False,
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
    chunk_size : int, 'auto' or None
        Samples at a time; None is all at once. Less memory for more passes. With 'auto', as many as fit into
        `memory`, judged by what the first two needed.
    memory : int or str, optional
        Bytes that a chunk of ``chunk_size='auto'`` may need beside the result, as a number or as in ``'2GB'``; by
        default a quarter of what is free on the tensors' device.
    progress : bool
        Show how many samples are done: a tqdm bar where tqdm is installed, else a line on stderr.

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
    chunks = Chunks.checked("vmap", chunk_size, memory, progress)
    return transform("vmap", func, in_dims=in_dims, out_dims=out_dims, randomness=randomness, chunks=chunks)


def vjp(func: Callable[P, Any], *primals: Any, has_aux: bool = False) -> Any:
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
    return call("vjp", func, *primals, has_aux=has_aux)


def jvp(func: Callable[P, Any], primals: Any, tangents: Any, *, strict: bool = False, has_aux: bool = False) -> Any:
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
    return call("jvp", func, primals, tangents, strict=strict, has_aux=has_aux)


def grad(
    func: Callable[P, Any], argnums: Argnums = 0, has_aux: bool = False, *, create_graph: bool | None = None
) -> Callable[P, Any]:
    """Gradient of a function that returns one number.

    Parameters
    ----------
    func : callable
        Returns a tensor of no dimensions, or ``(that, aux)`` with `has_aux`.
    argnums : int or tuple of int
        Positional arguments to differentiate; negative counts from the end.
    has_aux : bool
        Whether `func` returns tensors beside its output that are not differentiated.
    create_graph : bool, optional
        False says that nothing outside is to differentiate the result: no graph of it is kept, not even to parameters
        that require grad, which saves memory. By default the result is as differentiable as the function.

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
    return transform("grad", func, argnums=argnums, has_aux=has_aux, create_graph=create_graph)


def grad_and_value(
    func: Callable[P, Any], argnums: Argnums = 0, has_aux: bool = False, *, create_graph: bool | None = None
) -> Callable[P, Any]:
    """`grad` that also returns the function's value, from the same forward pass.

    Parameters
    ----------
    func : callable
        Returns a tensor of no dimensions, or ``(that, aux)`` with `has_aux`.
    argnums : int or tuple of int
        Positional arguments to differentiate; negative counts from the end.
    has_aux : bool
        Whether `func` returns tensors beside its output that are not differentiated.
    create_graph : bool, optional
        See `grad`.

    Returns
    -------
    callable
        Returns ``(gradient, value)``, or ``(gradient, (value, aux))`` with `has_aux`.

    Raises
    ------
    RuntimeError
        As for `grad`.

    See Also
    --------
    grad : without the value.

    Notes
    -----
    Cost: one forward and one backward pass.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import grad_and_value
    >>> grad_and_value(torch.square)(torch.tensor(3.0))
    (tensor(6.), tensor(9.))
    """
    return transform("grad_and_value", func, argnums=argnums, has_aux=has_aux, create_graph=create_graph)


def jacrev(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    chunk_size: ChunkSize = None,
    _preallocate_and_copy: bool = False,
    memory: Memory = None,
    progress: bool = False,
    create_graph: bool | None = None,
) -> Callable[P, Any]:
    """Jacobian by reverse mode, row by row of the outputs.

    Parameters
    ----------
    func : callable
        Returns a pytree of real tensors, or ``(output, aux)`` with `has_aux`.
    argnums : int or tuple of int
        Positional arguments to differentiate.
    has_aux : bool
        Whether `func` returns tensors beside its output that are not differentiated.
    chunk_size : int, 'auto' or None
        Rows at a time; None is all at once, 1 is a plain loop that needs no batching rules. With 'auto', as many
        as fit into `memory`. Chunks are written to where they belong: the result is never held twice.
    _preallocate_and_copy : bool
        Accepted, as torch.func does, for calls that name it; the result does not depend on it.
    memory, progress
        See `vmap`.
    create_graph : bool, optional
        False says that nothing outside is to differentiate the result: no graph of it is kept, not even to parameters
        that require grad, which saves memory. By default the result is as differentiable as the function.

    Returns
    -------
    callable
        Returns tensors of shape ``output.shape + argument.shape``, in the structure of the output and, within it, of
        the arguments; and aux.

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
    chunks = Chunks.checked("jacrev", chunk_size, memory, progress)
    return transform("jacrev", func, argnums=argnums, has_aux=has_aux, chunks=chunks, create_graph=create_graph)


def jacfwd(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    *,
    randomness: str = "error",
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    progress: bool = False,
    create_graph: bool | None = None,
) -> Callable[P, Any]:
    """Jacobian by forward mode, column by column of the inputs.

    Parameters
    ----------
    func : callable
        Returns a pytree of real tensors, or ``(output, aux)`` with `has_aux`.
    argnums, has_aux
        See `jacrev`.
    randomness : {'error', 'different', 'same'}
        What random operations in `func` do; see `vmap`.
    chunk_size : int, 'auto' or None
        Columns at a time; None is all at once.
    memory, progress
        See `vmap`.
    create_graph : bool, optional
        See `jacrev`.

    Returns
    -------
    callable
        Returns tensors of shape ``output.shape + argument.shape``, in the structure of the output and, within it, of
        the arguments; and aux.

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
    chunks = Chunks.checked("jacfwd", chunk_size, memory, progress)
    return transform(
        "jacfwd",
        func,
        argnums=argnums,
        has_aux=has_aux,
        randomness=randomness,
        chunks=chunks,
        create_graph=create_graph,
    )


def hessian(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    mode: str = "auto",
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    progress: bool = False,
    create_graph: bool | None = None,
) -> Callable[P, Any]:
    """Second derivatives: the Jacobian of the Jacobian.

    Parameters
    ----------
    func, argnums, has_aux, chunk_size, memory, progress
        See `jacrev`.
    mode : {'auto', 'reverse-reverse', 'forward-reverse', 'reverse-forward', 'forward-forward'}
        Modes of the outer and the inner Jacobian. 'auto' is 'reverse-reverse' for a function with one output,
        which is up to three times as fast there, and 'forward-reverse', as in torch.func, for one with more; on
        the autograd backend always 'reverse-reverse'. `explain` tells which it was.
    create_graph : bool, optional
        False says that nothing outside is to differentiate the result: no graph of it is kept, not even to parameters
        that require grad, which saves memory. By default the result is as differentiable as the function.

    Returns
    -------
    callable
        Returns tensors of shape ``output.shape + argument.shape + argument.shape``, in the structure of the output
        and, within it, twice that of the arguments; and aux.

    Raises
    ------
    ValueError
        `chunk_size` is not positive, or there is no such mode.
    RuntimeError
        As for `jacrev`.

    Notes
    -----
    Cost: as many passes through the gradient as the arguments have elements, for each element of the output. The
    number of outputs is found by evaluating `func` in the course of the first call for arguments of new shapes; if
    there are several, that evaluation is thrown away.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import hessian
    >>> hessian(lambda x: x.pow(3).sum())(torch.tensor([1.0, 2.0]))
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    """
    check_mode("hessian", mode, HESSIAN_MODES)
    chunks = Chunks.checked("hessian", chunk_size, memory, progress)
    return transform(
        "hessian", func, argnums=argnums, has_aux=has_aux, mode=mode, chunks=chunks, create_graph=create_graph
    )


def linearize(func: Callable[P, Any], *primals: Any) -> Any:
    """Value of a function and its Jacobian-vector product as a function of the tangents.

    Parameters
    ----------
    func : callable
        Returns a pytree of tensors.
    *primals : pytrees of tensors
        Where to linearize.

    Returns
    -------
    output : pytree
    jvp_fn : callable
        ``jvp_fn(*tangents)``, in the structure, shapes, dtypes and devices of the primals, returns the tangents of
        the output. It can be called many times, differentiated and mapped over.

    Raises
    ------
    ValueError
        A primal is no tensor or not floating-point or complex.
    RuntimeError
        Tangents that do not match the primals.

    Notes
    -----
    Cost: one forward and one backward pass, and one pass back through both per call of `jvp_fn` (the double-backward
    trick, https://j-towns.github.io/2017/06/12/A-new-trick.html). The function is evaluated once, unless it
    contains a custom autograd.Function: natively, `jvp_fn` evaluates it in forward mode then.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import linearize
    >>> output, jvp_fn = linearize(torch.square, torch.tensor([1.0, 2.0]))
    >>> jvp_fn(torch.tensor([1.0, 1.0]))
    tensor([2., 4.])
    """
    return call("linearize", func, *primals)


def __getattr__(name: str) -> Any:
    # Looked up on access, since that may import functorch.
    if name == "fjacrev":
        return _policy.native_transform("jacrev")
    if name == "fvmap":
        return _policy.native_transform("vmap")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
