"""Jacobians and Hessians whose rows, columns or samples are shared among processes by torch.distributed.

Every process of a group calls the same function with the same arguments; each computes its share and the shares
are gathered by the group's collectives. Without ``torch.distributed.init_process_group`` there is one process,
and the functions do what those of the same name in `torch_func_compat` do.

>>> import torch
>>> from torch_func_compat import distributed
>>> distributed.hessian(lambda x: x.pow(3).sum())(torch.tensor([1.0, 2.0]))
tensor([[ 6.,  0.],
        [ 0., 12.]])
"""

from __future__ import annotations

import functools
import sys
from typing import Any, Callable, NamedTuple, Sequence

import torch
from torch import Tensor

from .._arguments.batch import batch_dims
from .._arguments.batch_slices import BatchSlices
from .._arguments.call import Argnums, name_of, positions
from .._arguments.chunks import Chunks, ChunkSize, Memory
from .._arguments.mapped import check_randomness
from .._arguments.partition import PartialResult, Partition, bounds
from .._backends.autograd.sealed import seal
from .._dispatch.choice import active_native, chosen
from .._dispatch.transform import transform
from .._torch import facts, pytree
from .._torch.closures import captured
from .._torch.compiling import is_compiling
from .._transforms.mode import HESSIAN_MODES, JACOBIAN_MODES, check_mode
from ..autograd import batched
from ..autograd.internals import P
from ._collectives import Parcel, RemoteError, Team, checksum

__all__ = ["RemoteError", "Shard", "batch_hessian", "batch_jacobian", "hessian", "jacfwd", "jacobian", "jacrev"]


class Shard(NamedTuple):
    """The share of one process, with ``gather=False``.

    Parameters
    ----------
    value : pytree of tensors
        Dimension 0 is the share. Rows are in the structure of the arguments, with shapes ``(stop - start,
        *argument.shape)``; columns in that of the output, with shapes ``(stop - start, *output.shape)``; samples in
        that of the whole result.
    start, stop, total : int
        The place of the share in the whole. Rows are the elements of all outputs, one output after the other (those of
        the gradient, for a Hessian); columns are the elements of all arguments.
    axis : {'rows', 'columns', 'samples'}
        The things that the processes share.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import distributed
    >>> shard = distributed.jacrev(torch.square, gather=False)(torch.tensor([1.0, 2.0]))
    >>> shard.start, shard.stop, shard.total, shard.axis
    (0, 2, 2, 'rows')
    """

    value: Any
    start: int
    stop: int
    total: int
    axis: str


class _GatherOptions(NamedTuple):
    """The parameters of all functions here."""

    group: Any
    dst: int | None
    gather: bool
    check_inputs: bool

    @classmethod
    def checked(cls, api: str, group: Any, dst: int | None, gather: bool, check_inputs: bool) -> _GatherOptions:
        if dst is not None and (isinstance(dst, bool) or not isinstance(dst, int) or dst < 0):
            raise ValueError(f"{api}: expected dst= to be the rank that gets the result, or None for all, got {dst!r}")
        if dst is not None and not gather:
            raise ValueError(f"{api}: gather=False leaves each share where it is, so that dst= has no meaning")
        return cls(group, dst, gather, check_inputs)


def _shared(
    name: str,
    func: Callable[..., Any],
    argnums: Argnums,
    options: dict[str, Any],
    chunks: Chunks,
    how: _GatherOptions,
) -> Callable[..., Any]:
    """The transform of that name; each process computes a share of its result."""

    def place() -> tuple[int, int]:
        team = Team(how.group)
        return team.rank, team.size

    partition = Partition(place, lambda: chosen().has_forward_mode)
    transformed: Any = transform(name, func, argnums=argnums, **options, chunks=chunks, partition=partition)
    has_aux: bool = options["has_aux"]

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        def compute(team: Team) -> tuple[PartialResult, Any]:
            found = transformed(*args, **kwargs)
            return found if has_aux else (found, None)

        result, aux = _run(f"{name}({name_of(func)})", func, argnums, args, kwargs, how, compute)
        return (result, aux) if has_aux else result

    wrapper.__transform__ = transformed.__transform__  # type: ignore[attr-defined]
    return wrapper


def _sampled(
    name: str,
    func: Callable[..., Any],
    single: Any,
    argnums: Argnums,
    in_dims: Any,
    has_aux: bool,
    how: _GatherOptions,
) -> Callable[..., Any]:
    """`single`, a transform of a function of a whole batch; each process takes a share of the samples."""

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        def compute(team: Team) -> tuple[PartialResult, Any]:
            if team.size == 1:
                total = batch_dims(name, in_dims, args, positions(argnums, len(args)))[1]
                start, stop, own = 0, total, args
            else:
                samples = BatchSlices(name, in_dims, argnums, args, kwargs)
                total = samples.total
                start, stop = bounds(team.rank, team.size, total)
                # A process without samples computes one and drops it, since not every function takes an empty batch.
                own = samples.between(0, 1) if start == stop and total else samples.between(start, stop)
            found, aux = single(*own, **kwargs) if has_aux else (single(*own, **kwargs), None)
            leaves, spec = pytree.flatten(found)
            build = functools.partial(pytree.unflatten, spec=spec)
            return PartialResult(
                "samples", start, stop, total, [leaf[: stop - start] for leaf in leaves], build, build
            ), aux

        result, aux = _run(f"{name}({name_of(func)})", func, argnums, args, kwargs, how, compute)
        return (result, aux) if has_aux else result

    wrapper.__transform__ = single.__transform__  # type: ignore[attr-defined]
    return wrapper


def _run(*arguments: Any) -> tuple[Any, Any]:
    """`_run_collectively`, kept from being traced frame by frame by torch.compile."""
    # This breaks the graph; it raises with fullgraph=True only. Torch 2.1 traces each frame alone and would raise.
    if is_compiling() and facts.has("compiled_transforms"):
        raise RuntimeError(
            "torch_func_compat.distributed cannot be traced by torch.compile, since its processes tell each other what "
            "happened: compile the function that is differentiated instead"
        )
    dynamo = sys.modules.get("torch._dynamo")
    together: Any = _run_collectively if dynamo is None else dynamo.disable(_run_collectively)
    return together(*arguments)  # type: ignore[no-any-return]


def _run_collectively(
    name: str,
    func: Callable[..., Any],
    argnums: Argnums,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    how: _GatherOptions,
    compute: Callable[[Team], tuple[PartialResult, Any]],
) -> tuple[Any, Any]:
    """The gathered results of `compute` on all processes, and the aux of this process."""
    team = Team(how.group)
    if how.check_inputs and team.size > 1:
        _require_same_inputs(team, name, func, args, kwargs)

    def guarded() -> tuple[tuple[PartialResult, Any, list[Parcel]], Any]:
        if team.size > 1:
            _require_plain(name, team, [args[i] for i in positions(argnums, len(args))])
        share, aux = compute(team)
        parcels = []
        if how.gather and team.size > 1:
            parcels = [Parcel(team, part, share.total, how.dst) for part in share.parts]
        differentiable = any(part.requires_grad for part in share.parts)
        like = [[str(part.dtype), list(part.shape[1:])] for part in share.parts]
        return (share, aux, parcels), [[share.axis, share.total, how.dst, how.gather, like], differentiable]

    (share, aux, parcels), notes = team.agree(name, guarded)
    if any(note[0] != notes[0][0] for note in notes):
        raise RuntimeError(
            f"{name}: the processes do not compute parts of one result: "
            + "; ".join(f"rank {rank} has {_described(*note[0])}" for rank, note in zip(team.ranks, notes))
            + ". Was it called with the same function and arguments everywhere? check_inputs=True tells what differs"
        )
    if how.dst is not None and how.dst not in team.ranks:
        raise ValueError(f"{name}: dst={how.dst} is not among the ranks {team.ranks} of the group")
    if not how.gather:
        return Shard(share.shard(share.parts), share.start, share.stop, share.total, share.axis), aux
    if team.size == 1:
        return share.whole(share.parts), aux
    found = [parcel.send() for parcel in parcels]
    if how.dst not in (None, team.global_rank):
        return None, aux
    if torch.is_grad_enabled() and any(note[1] for note in notes):
        # The rows of this process may depend on less than those of the others.
        inputs = [*pytree.flatten((args, kwargs))[0], *_around(func)]
        found = seal(found, [*share.parts, *(x for x in inputs if isinstance(x, Tensor))], _CONSTANTS)
    return share.whole(found), aux


_CONSTANTS = (
    "what other processes computed is a constant here; take gather=False, whose share can be differentiated in the "
    "process that has it, and sum the gradients over the processes (torch.distributed.all_reduce)"
)


def _around(func: Callable[..., Any]) -> list[Tensor]:
    """Tensors that a function captures, and parameters of modules."""
    return [value for value in captured(func, limit=10_000, parameters=True) if isinstance(value, Tensor)]


def _described(axis: str, total: int, dst: int | None, gather: bool, like: Sequence[Any]) -> str:
    shapes = ", ".join(f"{tuple(shape)} {dtype}" for dtype, shape in like)
    return f"{total} {axis} of {shapes} (gather={gather}, dst={dst})"


def _require_plain(name: str, team: Team, primals: Any) -> None:
    """Raise if the collectives cannot move the tensors."""
    if active_native() is not None:
        raise RuntimeError(
            f"{name}: called within another transform (vmap, grad, ...), whose tensors cannot be sent to other "
            f"processes: let the outermost transform be the distributed one"
        )
    if team.backend == "nccl":
        for leaf in pytree.flatten(primals)[0]:
            if isinstance(leaf, Tensor) and not leaf.is_cuda:
                raise ValueError(
                    f"{name}: the group's backend is nccl, which moves tensors on GPUs only, but an argument is on "
                    f"{leaf.device}: move the arguments to a GPU, or give a group of backend gloo "
                    f"(torch.distributed.new_group(backend='gloo'))"
                )


def _require_same_inputs(
    team: Team, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raise in all processes if the inputs of one differ from those of the first."""

    def compute() -> tuple[list[str], Any]:
        names, seen = [], []
        around = _around(func)
        for kind, values in [
            *((f"argument {i}", value) for i, value in enumerate(args)),
            *((f"argument {key!r}", value) for key, value in sorted(kwargs.items())),
            ("a tensor that the function captures", around),
        ]:
            leaves, spec = pytree.flatten(values)
            names.append(f"the structure of {kind}")
            seen.append(repr(spec) if values is not around else len(around))
            for leaf in leaves:
                names.append(kind)
                seen.append(_fingerprint(leaf))
        return names, seen

    names, notes = team.agree(f"{name} with check_inputs=True", compute)
    for rank, note in zip(team.ranks, notes):
        if note != notes[0]:
            found = [what for what, mine, first in zip(names, note, notes[0]) if mine != first] or ["their number"]
            raise ValueError(
                f"{name}: the processes were given different inputs: on rank {rank}, {', '.join(dict.fromkeys(found))} "
                f"differ from rank {team.ranks[0]}. Each process must call it with the same ones: broadcast them "
                f"(torch.distributed.broadcast), or set the same seed"
            )


def _fingerprint(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return [str(leaf.dtype), list(leaf.shape), checksum(leaf)]
    return repr(leaf) if leaf is None or isinstance(leaf, (bool, int, float, complex, str)) else type(leaf).__name__


def jacobian(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    mode: str = "auto",
    has_aux: bool = False,
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    progress: bool = False,
    group: Any = None,
    dst: int | None = None,
    gather: bool = True,
    check_inputs: bool = False,
) -> Callable[P, Any]:
    """`torch_func_compat.jacobian`, whose rows (or columns, in forward mode) the processes of a group share.

    Every process of the group has to call it, with the same function, arguments and options.

    Parameters
    ----------
    func, argnums, mode, has_aux, progress
        See `torch_func_compat.jacobian`. Aux is each process's own.
    chunk_size, memory
        The same, for the rows or columns of one process. If processes share a machine, give ``memory`` with
        ``chunk_size='auto'``: by default each takes a quarter of the free memory.
    group : torch.distributed.ProcessGroup, optional
        By default all processes.
    dst : int, optional
        The rank (among all processes) that gets the result; by default all of them.
    gather : bool
        False leaves each share where it was computed, as a `Shard`.
    check_inputs : bool
        Compare checksums of the arguments, and of the parameters and tensors that `func` captures, before
        anything is computed.

    Returns
    -------
    callable
        Returns what that of `torch_func_compat.jacobian` returns; with `dst`, None in the other processes. With
        ``gather=False``, a `Shard`.

    Raises
    ------
    RemoteError
        `func` raised in another process; the message is the one there. That process raises its own error.
    ValueError
        Inputs differ (with `check_inputs`); tensors on the CPU and a group of backend nccl; `dst` is not in the group.
    RuntimeError
        The processes computed parts of different things; this one is not in the group; within another transform; a
        process did not come within the group's timeout (``init_process_group(timeout=...)``, by torch).

    Notes
    -----
    Cost: each process evaluates `func` once and computes its share of the rows or columns. The shares
    differ by one row at most. Two messages of some bytes, and the whole result, go over the network. See the page on
    scaling.

    Differentiating: a gathered result has the shares of other processes as constants, so its derivative would lack
    their part; taking it raises. The value of a `Shard` can be differentiated in the process that has it; the sum of
    the gradients over all processes is the whole gradient.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import distributed
    >>> distributed.jacobian(torch.square)(torch.tensor([1.0, 2.0]))
    tensor([[2., 0.],
            [0., 4.]])
    >>> distributed.jacobian(torch.square, gather=False)(torch.tensor([1.0, 2.0])).stop
    2
    """
    check_mode("jacobian", mode, JACOBIAN_MODES)
    chunks = Chunks.checked("jacobian", chunk_size, memory, progress)
    how = _GatherOptions.checked("jacobian", group, dst, gather, check_inputs)
    return _shared("jacobian", func, argnums, dict(has_aux=has_aux, mode=mode), chunks, how)


def hessian(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    mode: str = "auto",
    has_aux: bool = False,
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    progress: bool = False,
    group: Any = None,
    dst: int | None = None,
    gather: bool = True,
    check_inputs: bool = False,
) -> Callable[P, Any]:
    """`torch_func_compat.hessian`, whose rows the processes of a group share.

    Parameters
    ----------
    func, argnums, mode, has_aux
        See `torch_func_compat.hessian`.
    chunk_size, memory, progress, group, dst, gather, check_inputs
        See `jacobian`.

    Returns
    -------
    callable
        Returns what that of `torch_func_compat.hessian` returns; with `dst`, None in the other processes. With
        ``gather=False``, a `Shard` of the rows (or columns) of the outer Jacobian.

    Raises
    ------
    RemoteError, ValueError, RuntimeError
        As for `jacobian`.

    Notes
    -----
    Cost: each process computes the gradient once, and its share of the passes through it.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import distributed
    >>> distributed.hessian(lambda x: x.pow(3).sum(), chunk_size=1)(torch.tensor([1.0, 2.0]))
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    """
    check_mode("hessian", mode, HESSIAN_MODES)
    chunks = Chunks.checked("hessian", chunk_size, memory, progress)
    how = _GatherOptions.checked("hessian", group, dst, gather, check_inputs)
    return _shared("hessian", func, argnums, dict(has_aux=has_aux, mode=mode), chunks, how)


def jacrev(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    progress: bool = False,
    group: Any = None,
    dst: int | None = None,
    gather: bool = True,
    check_inputs: bool = False,
) -> Callable[P, Any]:
    """`jacobian` by reverse mode: the processes share the rows.

    Parameters
    ----------
    func, argnums, has_aux, chunk_size, memory, progress, group, dst, gather, check_inputs
        See `jacobian`.

    Returns
    -------
    callable
        As that of `jacobian`.

    Raises
    ------
    RemoteError, ValueError, RuntimeError
        As for `jacobian`.

    Notes
    -----
    Cost: each process evaluates `func` once and takes its share of the backward passes.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import distributed
    >>> distributed.jacrev(torch.square)(torch.tensor([1.0, 2.0]))
    tensor([[2., 0.],
            [0., 4.]])
    """
    chunks = Chunks.checked("jacrev", chunk_size, memory, progress)
    how = _GatherOptions.checked("jacrev", group, dst, gather, check_inputs)
    return _shared("jacrev", func, argnums, dict(has_aux=has_aux), chunks, how)


def jacfwd(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    *,
    randomness: str = "error",
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    progress: bool = False,
    group: Any = None,
    dst: int | None = None,
    gather: bool = True,
    check_inputs: bool = False,
) -> Callable[P, Any]:
    """`jacobian` by forward mode: the processes share the columns.

    Parameters
    ----------
    func, argnums, has_aux, chunk_size, memory, progress, group, dst, gather, check_inputs
        See `jacobian`.
    randomness : {'error', 'different', 'same'}
        See `torch_func_compat.jacfwd`. Each process draws its own random numbers.

    Returns
    -------
    callable
        As that of `jacobian`.

    Raises
    ------
    RemoteError, ValueError, RuntimeError
        As for `jacobian`.

    Notes
    -----
    Cost: each process takes its share of the forward-mode passes.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import distributed
    >>> distributed.jacfwd(torch.square)(torch.tensor([1.0, 2.0]))
    tensor([[2., 0.],
            [0., 4.]])
    """
    check_randomness(randomness)
    chunks = Chunks.checked("jacfwd", chunk_size, memory, progress)
    how = _GatherOptions.checked("jacfwd", group, dst, gather, check_inputs)
    return _shared("jacfwd", func, argnums, dict(has_aux=has_aux, randomness=randomness), chunks, how)


def batch_jacobian(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    in_dims: Any = 0,
    mode: str = "auto",
    has_aux: bool = False,
    check: bool | None = None,
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    progress: bool = False,
    group: Any = None,
    dst: int | None = None,
    gather: bool = True,
    check_inputs: bool = False,
) -> Callable[P, Any]:
    """`torch_func_compat.batch_jacobian`, whose samples the processes of a group share.

    Parameters
    ----------
    func, argnums, mode, has_aux, check, chunk_size, memory, progress
        See `torch_func_compat.batch_jacobian`. Aux is what `func` returns for the samples of the process.
    in_dims : int or nested tuple
        The same; a tuple if tensors that are not differentiated have samples, too.
    group, dst, gather, check_inputs
        See `jacobian`.

    Returns
    -------
    callable
        Returns what that of `torch_func_compat.batch_jacobian` returns; with `dst`, None in the other processes. With
        ``gather=False``, a `Shard`.

    Raises
    ------
    RemoteError, ValueError, RuntimeError
        As for `jacobian`; a ValueError also where `in_dims` do not say whether a tensor belongs to the samples.

    Notes
    -----
    Cost: each process evaluates `func` and computes the Jacobians for its share of the samples only.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import distributed
    >>> distributed.batch_jacobian(lambda x: x.square().sum(1, keepdim=True))(torch.ones(3, 2)).shape
    torch.Size([3, 1, 2])
    """
    how = _GatherOptions.checked("batch_jacobian", group, dst, gather, check_inputs)
    single = batched.batch_jacobian(
        func,
        argnums,
        in_dims=in_dims,
        mode=mode,
        has_aux=has_aux,
        check=check,
        chunk_size=chunk_size,
        memory=memory,
        progress=progress,
    )
    return _sampled("batch_jacobian", func, single, argnums, in_dims, has_aux, how)


def batch_hessian(
    func: Callable[P, Any],
    argnums: Argnums = 0,
    *,
    in_dims: Any = 0,
    mode: str = "auto",
    has_aux: bool = False,
    check: bool | None = None,
    chunk_size: ChunkSize = None,
    memory: Memory = None,
    progress: bool = False,
    group: Any = None,
    dst: int | None = None,
    gather: bool = True,
    check_inputs: bool = False,
) -> Callable[P, Any]:
    """`torch_func_compat.batch_hessian`, whose samples the processes of a group share.

    Parameters
    ----------
    func, argnums, mode, has_aux, check, chunk_size, memory, progress
        See `torch_func_compat.batch_hessian`.
    in_dims, group, dst, gather, check_inputs
        See `batch_jacobian`.

    Returns
    -------
    callable
        Returns the result of `torch_func_compat.batch_hessian`; with `dst`, None in the other processes. With
        ``gather=False``, a `Shard`.

    Raises
    ------
    RemoteError, ValueError, RuntimeError
        As for `batch_jacobian`.

    Notes
    -----
    Cost: each process evaluates `func` and computes the Hessians for its share of the samples only.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat import distributed
    >>> distributed.batch_hessian(lambda x: x.pow(3).sum(1))(torch.ones(3, 2)).shape
    torch.Size([3, 2, 2])
    """
    how = _GatherOptions.checked("batch_hessian", group, dst, gather, check_inputs)
    single = batched.batch_hessian(
        func,
        argnums,
        in_dims=in_dims,
        mode=mode,
        has_aux=has_aux,
        check=check,
        chunk_size=chunk_size,
        memory=memory,
        progress=progress,
    )
    return _sampled("batch_hessian", func, single, argnums, in_dims, has_aux, how)
