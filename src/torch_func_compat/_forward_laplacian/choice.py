"""A Laplacian by the forward pass where it has all the rules, else by rows of the Hessian."""

from __future__ import annotations

import functools
from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from .. import _backends
from .._arguments.batch import batch_dims
from .._arguments.call import positions
from .._arguments.chunks import Chunks
from .._dispatch.choice import active_native
from .._dispatch.record import Record
from .._torch import pytree
from .._torch.closures import captured_tensors
from .._torch.compiling import is_compiling
from .._torch.random_state import RandomState
from .._torch.surroundings import Surroundings
from .._torch.tensors import tensors_in
from .._transforms.batch_first_call import with_tests
from .._transforms.batch_independence import verify
from .._transforms.jacobian import jacrev
from .._transforms.options import Options
from .carried import Refused, RefusedNow, Run
from .laplacian import batch_laplacian, laplacian
from .parts import plain

MODES = ("auto", "rows", "forward")
Function = Callable[..., Any]

_in_inference_mode: Callable[[], bool] = getattr(torch, "is_inference_mode_enabled", bool)


class Laplacian:
    """The options of a Laplacian, and its evaluation.

    Parameters
    ----------
    api : str
        The name of the public function, for messages.
    func, argnums, has_aux
        As of every transform.
    in_dims : optional
        As of `batch_jacobian`; None is a function of one sample.
    mode : {'auto', 'rows', 'forward'}
    weight : Tensor or None
    check : bool or None
        Whether the samples are to be looked at in each call; None is in the first call.
    chunks : Chunks
    rows, hessian : callable
        The transforms of this library that compute the same by rows, and with weights.
    """

    def __init__(
        self,
        api: str,
        func: Function,
        argnums: Any,
        has_aux: bool,
        chunks: Chunks,
        mode: str,
        weight: Tensor | None,
        *,
        rows: Callable[[Function, Any], Function],
        hessian: Callable[[Function, Any, bool], Function],
        in_dims: Any = None,
        check: bool | None = False,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"{api}: unknown mode {mode!r}, expected one of {', '.join(map(repr, MODES))}")
        if weight is not None and not isinstance(weight, Tensor):
            raise TypeError(f"{api}: expected weight to be a tensor, got {type(weight)}: convert it, torch.as_tensor()")
        self.api, self.func, self.argnums, self.has_aux = api, func, argnums, has_aux
        self.chunks, self.mode, self.weight = chunks, mode, weight
        self.in_dims, self.check = in_dims, check
        self.hessian = hessian
        self._complex = Kinds()
        self._real = real_parts(func, has_aux, self._complex)
        self._rows = rows(self._real, argnums) if weight is None else None
        self._refused: dict[Any, str] = {}  # for arguments of these shapes
        self.record: Record = getattr(getattr(self._rows, "__transform__", None), "record", None) or Record()

    def made(self) -> Function:
        """The transformed function."""
        if is_compiling():  # torch.compile does not trace the assignment of attributes
            return self.__call__
        wrapper = functools.wraps(self.func, updated=())(lambda *args, **kwargs: self(*args, **kwargs))
        wrapper.__transform__ = self  # type: ignore[attr-defined]
        return wrapper

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return self._by_rows(args, kwargs)
        why = self._why_not()
        given_up: Sequence[Run] = ()
        if why is None:
            shapes = tuple([x.shape if isinstance(x, Tensor) else None for x in pytree.flatten(args)[0]])
            why = self._refused.get(shapes)
            if why is None:
                state = Surroundings(tensors_in((args, kwargs, captured_tensors(self.func))), (), self.func)
                try:
                    result = self._tested(lambda: self._forward(args, kwargs, state), args, kwargs)
                    self.record.mode = "the forward Laplacian, one pass for all second derivatives"
                    self.record.backend = "autograd"
                    self.record.chunk_size = None
                    return result
                except Refused as error:
                    why, given_up = str(error), error.runs
                    if not isinstance(error, RefusedNow):
                        self._refused[shapes] = why
                state.restore()
        try:
            result = self._by_rows(args, kwargs)
        finally:
            for run in given_up:
                run.replaced = False
        self.record.mode = f"rows of the Hessian, since {why}"
        return result

    def _why_not(self) -> str | None:
        if self.mode == "rows":
            return "mode='rows' was asked for"
        if active_native() is not None:
            return "a transform of torch is running"
        if _in_inference_mode():
            return "inference mode is on"
        if self.chunks.progress or not (self.chunks.size is None or isinstance(self.chunks.size, int)):
            return "chunks are measured or shown by rows"
        if self.weight is not None and self.weight.dim() > 2:
            return "each sample has weights of its own"
        return None

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], state: RandomState) -> Any:
        where = positions(self.argnums, len(args))
        primals, spec = pytree.flatten(tuple([args[i] for i in where]))
        if not all(isinstance(x, Tensor) and x.is_floating_point() for x in primals):
            raise Refused("an argument to differentiate by is no real tensor")
        specs: list[Any] = []
        size = 0

        def flat(*leaves: Tensor) -> Any:
            if specs:  # another chunk of columns: the same random numbers
                state.restore()
            inner = list(args)
            for i, value in zip(where, pytree.unflatten(leaves, spec)):
                inner[i] = value
            output = self.func(*inner, **kwargs)
            rest: tuple[Any, ...] = ()
            if self.has_aux:
                if not (isinstance(output, tuple) and len(output) == 2):
                    raise Refused("there is no aux")
                leaves_of_aux, aux_spec = pytree.flatten(output[1])
                output = output[0]
                rest = ([plain(leaf) for leaf in leaves_of_aux], aux_spec)
            outputs, output_spec = pytree.flatten(output)
            for leaf in outputs:
                if not isinstance(leaf, Tensor) or (self.in_dims is not None and leaf.shape[:1] != (size,)):
                    raise Refused("an output is no tensor, or has other samples")
            specs[:] = [output_spec, rest]
            return outputs

        if self.in_dims is None:
            self._require_weight(sum(x.numel() for x in primals), None)
            _, laps = laplacian(flat, primals, weight=self.weight, chunk_size=self._columns())
        else:
            dims, size = batch_dims(self.api, self.in_dims, args, where)
            self._require_weight(sum(x.numel() for x in primals) // max(size, 1), size)
            _, laps = batch_laplacian(flat, primals, dims, weight=self.weight, chunk_size=self._columns())
        result = pytree.unflatten(laps, specs[0])
        return (result, pytree.unflatten(*specs[1])) if self.has_aux else result

    def _columns(self) -> int | None:
        return self.chunks.size if isinstance(self.chunks.size, int) else None

    def _require_weight(self, count: int, size: int | None) -> None:
        """Raise ValueError unless the weight fits so many coordinates."""
        if self.weight is None:
            return
        shapes = [(count,), (count, count)] + ([] if size is None else [(size, count, count)])
        if tuple(self.weight.shape) not in shapes:
            raise ValueError(
                f"{self.api}: expected weight to be of shape {' or '.join(map(str, shapes))} for {count} elements to "
                f"differentiate by, got {tuple(self.weight.shape)}"
            )

    def _tested(self, compute: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``compute()``, with the tests of the samples that are asked for."""
        if self.in_dims is None or self.check is False:
            return compute()
        backend = _backends.load("autograd")
        how = dict(argnums=self.argnums, has_aux=self.has_aux, in_dims=self.in_dims)
        options = Options(self.api, self.func, **how)
        stages = [self._real, jacrev(backend, self._real, options.inner())]
        if self.check:
            verify(backend, stages, options, args, kwargs)
            return compute()
        return with_tests(backend, compute, stages, options, args, kwargs)

    def _by_rows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = self._weighted(*args, **kwargs) if self._rows is None else self._rows(*args, **kwargs)
        return self._restored(result)

    def _restored(self, result: Any) -> Any:
        """The result with complex numbers again."""
        if not any(self._complex.are_complex):
            return result
        output = result[0] if self.has_aux else result
        leaves, spec = pytree.flatten(output)
        output = pytree.unflatten(
            [torch.view_as_complex(x.contiguous()) if c else x for x, c in zip(leaves, self._complex.are_complex)], spec
        )
        return (output, *result[1:]) if self.has_aux else output

    def _weighted(self, *args: Any, **kwargs: Any) -> Any:
        """With weights, from the whole Hessian."""
        where = positions(self.argnums, len(args))
        primals, spec = pytree.flatten(tuple([args[i] for i in where]))
        size: int | None = None
        dims: Sequence[int | None] = [None] * len(primals)
        if self.in_dims is not None:
            dims, size = batch_dims(self.api, self.in_dims, args, where)
        front = () if size is None else (size,)
        moved = [x if dim is None else x.transpose(0, dim) for x, dim in zip(primals, dims)]
        rows = [x.reshape(*front, -1) for x in moved]
        counts = [row.shape[-1] for row in rows]
        self._require_weight(sum(counts), size)
        assert self.weight is not None

        def of_rows(row: Tensor) -> Any:
            leaves = [part.reshape(like.shape) for part, like in zip(row.split(counts, -1), moved)]
            leaves = [x if dim is None else x.transpose(0, dim) for x, dim in zip(leaves, dims)]
            inner = list(args)
            for i, value in zip(where, pytree.unflatten(leaves, spec)):
                inner[i] = value
            return self._real(*inner, **kwargs)

        by_rows = self.hessian(of_rows, 0, self.has_aux)
        found = by_rows(torch.cat(rows, -1))
        self.record.backend = getattr(getattr(getattr(by_rows, "__transform__", None), "record", None), "backend", None)
        weight = torch.diag_embed(self.weight) if self.weight.dim() == 1 else self.weight

        def contracted(block: Tensor) -> Tensor:
            matrix = weight.to(block)
            if matrix.dim() == 3:
                matrix = matrix.reshape(len(matrix), *[1] * (block.dim() - 3), *matrix.shape[1:])
            return (block * matrix).sum((-2, -1))

        blocks, output_spec = pytree.flatten(found[0] if self.has_aux else found)
        result = pytree.unflatten([contracted(block) for block in blocks], output_spec)
        return (result, found[1]) if self.has_aux else result


class Kinds:
    """Which leaves of the last output were complex. An object, since functions that close over it are alike."""

    def __init__(self) -> None:
        self.are_complex: list[bool] = []


def real_parts(func: Function, has_aux: bool, kinds: Kinds) -> Function:
    """`func` with complex outputs split into real and imaginary parts; notes which they were."""

    def parts(*args: Any, **kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        output = result[0] if has_aux and isinstance(result, tuple) and result else result
        leaves, spec = pytree.flatten(output)
        is_complex = [isinstance(leaf, Tensor) and leaf.is_complex() for leaf in leaves]
        kinds.are_complex[:] = is_complex
        if not any(is_complex):
            return result
        output = pytree.unflatten([torch.view_as_real(x) if c else x for x, c in zip(leaves, is_complex)], spec)
        return (output, *result[1:]) if has_aux else output

    # torch.compile (2.6) does not trace the assignment of attributes
    return parts if is_compiling() else functools.update_wrapper(parts, func, updated=())
