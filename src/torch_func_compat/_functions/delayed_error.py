"""Results that must not be differentiated again: doing so raises."""

from __future__ import annotations

from typing import Any, Callable, Sequence

from torch import Tensor

from .context import is_differentiable

ONCE = "its backward is marked with once_differentiable"
LEFT = (
    "its backward takes numbers out of torch (numpy, item()) that depend on what it is differentiated by: call another "
    "Function there, which has a backward of its own"
)
NOT_REPEATED = (
    "it uses a tensor, saved beside inputs and outputs, whose origin autograd cannot see (numpy, or an input that was "
    "modified since): make it of torch operations in setup_context(), or return it from forward() as a further output"
)


class Sealed:
    """The identity of a value, as a Function of everything that the value depends on; its derivative raises."""

    generate_vmap_rule = True

    @staticmethod
    def forward(reason: str, value: Tensor, *anchors: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.reason = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"this derivative cannot be differentiated again: {ctx.reason}")

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(f"this derivative cannot be differentiated again: {ctx.reason}")


def seal(results: Any, anchors: Sequence[Tensor], reason: str, call: Callable[..., Any]) -> Any:
    """Make differentiating `results` by anything that the anchors depend on raise."""
    several = isinstance(results, (tuple, list))
    sealed = [
        call(Sealed, (reason, value.detach(), *anchors)) if is_differentiable(value) else value
        for value in (results if several else [results])
    ]
    return tuple(sealed) if several else sealed[0]
