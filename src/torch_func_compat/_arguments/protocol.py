"""The protocol of a backend: vmap, vjp and jvp of functions on flat lists of tensors.

Everything else (grad, jacrev, jacfwd, hessian, ...) is derived from these in ``_transforms``, once for all backends.
A backend may also offer a transform of its library as it is.
"""

from __future__ import annotations

from typing import Any, Callable, Protocol, Sequence

import torch
from torch import Tensor

from .mapped import BatchedCall


class Differentiable(Protocol):
    """A function to differentiate: `torch_func_compat._arguments.call.Call`."""

    # The user's function.
    func: Callable[..., Any]
    # Whether many cotangents are pulled back at once.
    takes_rows: bool

    def __call__(self, *primals: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs and aux."""

    def generators(self) -> list[torch.Generator]:
        """Random generators that the function can reach."""

    def outside(self) -> tuple[list[Tensor], list[torch.Generator]]:
        """What an evaluation can change: tensors that are not differentiated, and random generators."""

    def others(self) -> list[Tensor]:
        """Tensors among the arguments that are not differentiated."""

    def put_others(self, others: Sequence[Tensor]) -> None:
        """Call the function with these in place of `others`."""

    def captured(self) -> list[Tensor]:
        """Tensors that it can reach although they are no leaves of its arguments."""


class LinearMap(Protocol):
    """A derivative at a point: the pullback of cotangents, or the pushforward of tangents."""

    # Whether `batched` needs no vmap of a library around it.
    batches_itself: bool

    def __call__(self, *vectors: Tensor) -> list[Tensor]:
        """Apply to one vector (a tensor for each input of the map)."""

    def batched(self, *vectors: Tensor) -> list[Tensor]:
        """Apply to many vectors, stacked along the first dimension; so are the results."""


class Pullback(LinearMap, Protocol):
    """A LinearMap whose graph can be kept or freed, as torch.func's ``vjp_fn`` allows."""

    # On the level where they have their graph.
    outputs: Sequence[Tensor]

    def pull(self, cotangents: Sequence[Tensor], retain_graph: bool, create_graph: bool | None) -> list[Tensor]:
        """Apply to one vector of cotangents."""


class Draws(Protocol):
    """A random state that can be put back."""

    def restore(self) -> None:
        """Put the random state back."""


class Backend(Protocol):
    """Three primitives, what is derivable from them, and what they need."""

    name: str

    # Whether jvp costs about one evaluation of the function. Where it is itself made of reverse mode,
    # reverse-over-reverse is the cheaper Hessian.
    has_forward_mode: bool

    # Whether vmap is a loop over samples.
    loops: bool

    # Whether anything may be remembered from call to call; not while torch.compile traces.
    remembers: bool

    def innermost(self) -> Any:
        """The innermost running transform of the library in this thread, or None."""

    def native(self, name: str, func: Callable[..., Any], options: Any) -> Any:
        """The library's own transform of `func`, to be used as it is, or None."""

    def draws(self, call: BatchedCall | Differentiable | None) -> Draws:
        """The random state of all that the call may draw from."""

    def vmap(self, call: BatchedCall, tensors: Sequence[Tensor], randomness: str) -> tuple[list[Tensor], list[Any]]:
        """Map `call` over dimension ``call.dims[i]`` of ``tensors[i]`` (a chunk of ``call.tensors``).

        Outputs are stacked along dimension 0; those with ``out_dims=None`` are given once.
        """

    def vjp(self, func: Differentiable, primals: Sequence[Tensor]) -> tuple[list[Tensor], Pullback, list[Tensor]]:
        """Outputs, the pullback of cotangents to gradients, and aux."""

    def jvp(
        self, func: Differentiable, primals: Sequence[Tensor], tangents: Sequence[Tensor], strict: bool
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Outputs, their tangents, and aux."""

    def pushforward(
        self, func: Differentiable, primals: Sequence[Tensor], randomness: str
    ) -> tuple[LinearMap, Callable[[], list[Tensor]]]:
        """The pushforward of tangents, and a function that gives aux once it was applied."""

    def linearize(
        self, func: Differentiable, primals: Sequence[Tensor]
    ) -> tuple[list[Tensor], LinearMap, list[Tensor]]:
        """Outputs, the pushforward of tangents from this one evaluation, and aux."""
