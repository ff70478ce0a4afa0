"""The functions that vjp and linearize return: derivatives at a point, in the user's structures."""

from __future__ import annotations

import abc
import contextlib
from typing import Any, Iterator, Sequence

from torch import Tensor

from .._arguments.call import Call
from .._arguments.mapped import BatchedCall
from .._arguments.protocol import Backend, LinearMap, Pullback
from .._arguments.required import way_to
from .._torch import pytree
from .._torch.tensors import movedim, version
from .options import Options


class RunningLibrary:
    """The library whose transforms may run around a linear map that was recorded outside of them.

    Its levels do not reach into a graph of plain autograd: forward mode would be zero there, and gradients would keep
    the graph of an inner level. Where the levels track the vectors, the function is therefore recorded again, on the
    levels and with the same random numbers. Make the instance before the first recording.
    """

    def __init__(self, backend: Backend, options: Options) -> None:
        self._backend = backend
        self._find = options.running_library
        self._state = None if self._find is None else backend.draws(None)

    def _running(self) -> list[Any]:
        """The backend of the library, if one of its transforms runs now and none did when the map was recorded."""
        found = None if self._find is None else self._find()
        return [] if found is None or found is self._backend else [found]

    def tracking(self, vectors: Sequence[Tensor]) -> list[Any]:
        """That backend, if its levels track the vectors."""
        return [library for library in self._running() if library.is_tracked(vectors)]

    def check_rows(self, outputs: Sequence[Tensor]) -> None:
        """Raise if a running transform of the library would batch the backward of `outputs` wrongly."""
        for library in self._running():
            library.check_rows(outputs)

    @contextlib.contextmanager
    def same_draws(self) -> Iterator[None]:
        """Draw the random numbers of the first recording again; the state outside does not move."""
        assert self._state is not None
        now = self._backend.draws(None)
        self._state.restore()
        try:
            yield
        finally:
            now.restore()


class _LinearFunction:
    """A derivative at a point, as the user calls it."""

    def __init__(self, backend: Backend, call: Call, linear: LinearMap, library: RunningLibrary) -> None:
        self.batches_itself = linear.batches_itself
        self._backend = backend
        self._call = call
        self._linear = linear
        self._library = library

    @property
    def identified_by(self) -> tuple[Any, ...]:
        """What tells this derivative from others; `torch_func_compat._guards.verdicts` reads it."""
        return (self._call.func, *self._call.primals)

    def mapped(self, call: BatchedCall) -> Any:
        """The value of a vmap over this function, from all vectors at once; None if only a loop can compute it."""
        if call.kwargs or len(call.where) < len(call.leaves) or not call.batch_size:
            return None
        if not self._require_mapped(call.spec):
            return None
        stacked = [movedim(tensor, dim, 0) for tensor, dim in zip(call.tensors, call.dims)]
        return call.whole(self._structured(self._linear.batched(*stacked)))

    @abc.abstractmethod
    def _require_mapped(self, spec: pytree.TreeSpec) -> bool:
        """Whether arguments of this structure can be mapped at once; raise where the function does not take them."""

    @abc.abstractmethod
    def _structured(self, results: list[Tensor]) -> Any:
        """The flat results in the user's structure."""


class VjpFunction(_LinearFunction):
    """The function that vjp returns: cotangents -> gradients of the primals.

    ``vjp_fn(cotangents, retain_graph=True, create_graph=None)``, where the cotangents have the structure of
    the function's output and the result is a tuple with one entry for each primal.
    """

    def __init__(self, backend: Backend, call: Call, pullback: Pullback, library: RunningLibrary) -> None:
        super().__init__(backend, call, pullback, library)
        self._pullback = pullback
        self._retains_graph = True  # unless the caller has freed it
        self._versions = [version(primal) for primal in call.primals] if backend.remembers else []

    def __call__(self, cotangents: Any, retain_graph: bool = True, create_graph: bool | None = None) -> Any:
        flat = self._flatten(cotangents)
        if isinstance(retain_graph, Tensor):
            raise TypeError("vjp_fn takes one argument: a tuple of cotangents for a function of several outputs")
        pullback = self._pullback
        self._retains_graph = self._retains_graph and retain_graph
        tracking = self._library.tracking(flat)
        if tracking:
            with self._library.same_draws():
                pullback = tracking[0].vjp(self._call, self._call.primals)[1]
        else:
            self._library.check_rows(pullback.outputs)
        try:
            return self._call.select(pullback.pull(flat, retain_graph, create_graph))
        except RuntimeError as error:
            if "backward through the graph a second time" not in str(error) or not self._can_record_again():
                raise
        # A backward pass through the output has freed the graph, which the pullback shares with it.
        with self._library.same_draws():
            self._pullback = self._linear = self._backend.vjp(self._call, self._call.primals)[1]
        return self(cotangents, retain_graph, create_graph)

    def _can_record_again(self) -> bool:
        unchanged = [version(primal) for primal in self._call.primals] == self._versions
        return unchanged and self._retains_graph and self.batches_itself

    def _flatten(self, cotangents: Any) -> list[Tensor]:
        flat, spec = pytree.flatten(cotangents)
        self._require(spec)
        for cotangent in flat:
            if cotangent is None:
                raise RuntimeError("vjp_fn: a cotangent is None: give zeros for an output that does not count")
            if not isinstance(cotangent, Tensor):
                raise TypeError(f"vjp_fn: cotangents must be Tensors, got {type(cotangent)}: {way_to(cotangent)}")
        return flat

    def _require(self, spec: pytree.TreeSpec) -> None:
        if spec != self._call.output_spec:
            raise RuntimeError(
                f"Expected pytree structure of cotangents to be the same as pytree structure of outputs to the "
                f"function. cotangents: {spec}, primal output: {self._call.output_spec}"
            )

    def _require_mapped(self, spec: pytree.TreeSpec) -> bool:
        if len(spec.children) != 1:
            return False
        self._require(spec.children[0])
        return True

    def _structured(self, results: list[Tensor]) -> Any:
        return self._call.select(results)


class JvpFunction(_LinearFunction):
    """The function that linearize returns: tangents of the primals -> tangents of the output."""

    def __call__(self, *tangents: Any) -> Any:
        flat, spec = pytree.flatten(tangents)
        self._require_mapped(spec)
        for index, (tangent, primal) in enumerate(zip(flat, self._call.primals)):
            for what in ("shape", "device", "dtype"):
                if getattr(tangent, what) != getattr(primal, what):
                    raise RuntimeError(
                        f"tangent:{index} with {what} {getattr(tangent, what)} in flattened pytree doesn't match the "
                        f"{what} {getattr(primal, what)} of the corresponding primal."
                    )
        tracking = self._library.tracking(flat)
        if not tracking:
            return self._call.output(self._linear(*flat))
        with self._library.same_draws():
            return self._call.output(tracking[0].linearize(self._call, self._call.primals)[1](*flat))

    def _require_mapped(self, spec: pytree.TreeSpec) -> bool:
        if spec != self._call.primals_spec:
            raise RuntimeError(
                f"Expected the tangents {spec} to have the same argspec as the primals {self._call.primals_spec}"
            )
        return True

    def _structured(self, results: list[Tensor]) -> Any:
        return self._call.output(results)
