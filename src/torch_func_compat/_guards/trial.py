"""Results of a library, tested on the spot: a batch against one of its samples, tangents against reverse mode.

No list of torch's mistakes is complete. So a function is tested when it is first called with some shapes, unless all of
its operations are proven to be right on this torch. Where the test fails, `MistakenRule` sends the call to the autograd
backend.
"""

from __future__ import annotations

from typing import AbstractSet, Any, Callable, ContextManager, Hashable, Sequence, TypeVar

import torch
from torch import Tensor

from .._torch import facts
from .._torch.closures import captured, names_in, scripts_in
from .._torch.grad_mode import no_grad
from .._torch.modules import modules
from .by_profile import unwatched
from .checks import get_checks
from .proven import unproven
from .recorder import bare, recorded
from .verdicts import RIGHT, Verdict, Verdicts
from .wrong_answers import MISTAKEN_BATCH, MISTAKEN_GRAPH, MISTAKEN_SIZES, MistakenRule

# Errors of the evaluation of a function for a test. The call itself has succeeded, so they say nothing about it.
ERRORS = (ArithmeticError, AssertionError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)

# By these the user says that no derivative is wanted. Finite differences ignore them.
_DETACHES = frozenset(("data", "detach", "detach_", "_set_grad_enabled"))

_verdicts = Verdicts()
Result = TypeVar("Result")


class Trial:
    """One call of a function by a library, and what is known of it.

    A result that plain autograd records may be differentiated once more. It has a verdict of its own, which needs a
    test of the result's derivatives, too.

    Parameters
    ----------
    func : callable
        The user's function.
    call : hashable
        The kind of the transform, and the shapes that it is called with.
    by_flags : bool
        Whether a verdict ends where a flag or a number around the function changes.
    """

    def __init__(self, func: Callable[..., Any], call: Hashable, by_flags: bool = True) -> None:
        self._func = func
        self._by_flags = by_flags
        self._call = call, torch.is_grad_enabled()
        self._names: AbstractSet[str] = frozenset()
        self._recorded: AbstractSet[tuple[str, str]] | None = None
        self.operations = ""
        self.detaches = False

    def verdict(self, recorded: bool = False) -> Verdict | None:
        """The verdict of a test, or RIGHT where none is wanted; None where a test has to be made."""
        when = get_checks()
        if when == "off":
            return RIGHT
        return None if when == "always" else _verdicts.get(self._func, (self._call, recorded), self._by_flags)

    def note(self, verdict: Verdict, recorded: bool = False) -> None:
        """Remember the verdict of a test."""
        for kind in {False, recorded}:
            _verdicts.set(self._func, (self._call, kind), verdict, self._recorded)

    def is_settled(self, recorded: bool = False) -> bool:
        """Whether no test is needed; raises where the library was wrong before, or is known to be."""
        self._require_graph()
        verdict = self.verdict(recorded)
        if verdict:
            raise MistakenRule(verdict)
        return verdict == RIGHT

    def unwatched(self) -> ContextManager[None]:
        """Around a call that needs no test."""
        return unwatched(self._func)

    def _require_graph(self) -> None:
        """Raise where torch's optimizer of TorchScript would lose the graph to parameters, in later calls, too."""
        if not torch.is_grad_enabled():
            return
        for script in scripts_in(self._func):
            if isinstance(script, torch.nn.Module) and any(x.requires_grad for x in script.parameters()):
                raise MistakenRule(MISTAKEN_GRAPH)

    def settle(self, verdict: Verdict, recorded: bool) -> None:
        """Remember the verdict of a test; raises where the library is wrong."""
        self.note(verdict, recorded)
        if verdict:
            raise MistakenRule(verdict)

    def require_none_of(self, mistaken: AbstractSet[str]) -> None:
        """Raise where the call used one of these operations, which torch is known to batch wrongly."""
        found = self._names & mistaken
        if found:
            raise MistakenRule(MISTAKEN_BATCH.format(", ".join(sorted(found))))

    def _constants(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        if not facts.has("torch_function_modes"):
            return []
        reached = captured([self._func, inputs], parameters=True, called=True)
        for module in modules(self._func):
            for inner in module.modules():
                reached += vars(inner).values()  # also a tensor that is no buffer
        return [value for value in reached if isinstance(value, Tensor)]

    def run(
        self, compute: Callable[[], Result], is_recorded: Callable[[Result], bool], inputs: Sequence[Tensor]
    ) -> tuple[Result, bool]:
        """The library's result, and whether it has to be tested.

        ``is_recorded(result)`` tells whether plain autograd records it. The sweep ran on CPUs: on another device
        nothing is proven.
        """
        with recorded(self._constants(inputs)) as pairs:
            result = compute()
        twice = is_recorded(result)
        if not facts.has("torch_function_modes"):  # nothing was recorded
            names = names_in(self._func)
            self._names, self.detaches = MISTAKEN_SIZES & names, not _DETACHES.isdisjoint(names)
            return result, True
        self._recorded = pairs
        self.detaches = not _DETACHES.isdisjoint(name for name, _ in pairs)
        names = set(unproven(pairs))
        scripts = scripts_in(self._func)
        if scripts:
            names.add("TorchScript")
        if twice:
            names |= unproven([(name, f"a{levels}") for name, levels in pairs if levels])
        self._names = {bare(name) for name in names}
        self.operations = ", ".join(sorted(names))
        is_doubtful = names or any(x.device.type != "cpu" for x in inputs)
        if get_checks() == "always":
            return result, True
        if is_doubtful and (scripts or not _verdicts.holds_for(self._func, (self._call, twice), pairs)):
            return result, True
        self.note(RIGHT, twice)
        return result, False


def noise(inputs: Sequence[Tensor]) -> float:
    """The rounding errors of numbers that cancel: results below them may be zero, and say nothing."""
    real = [x.detach() for x in inputs if x.numel() and (x.is_floating_point() or x.is_complex())]
    return max([64 * torch.finfo(x.dtype).eps * float(x.abs().max()) for x in real], default=0.0)


def same(batched: Sequence[Tensor], alone: Sequence[Tensor], noise: float = 0.0) -> bool:
    """Whether a sample gives the same results within a batch and alone, but for `noise`."""
    return len(batched) == len(alone) and all(_same(one, other, noise) for one, other in zip(batched, alone))


def _same(one: Tensor, other: Tensor, noise: float) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.layout != torch.strided or other.layout != torch.strided or one.is_quantized:
        return True  # the operations that read it are tested
    one, other = one.detach(), other.detach()
    if not (one.is_floating_point() or one.is_complex()):
        return bool((one == other).all())
    with no_grad():
        if one.is_complex():
            one, other = torch.view_as_real(one.resolve_conj()), torch.view_as_real(other.resolve_conj())
        return not bool(_differ(one, other, noise).any())


def _differ(found: Tensor, expected: Tensor, noise: float) -> Tensor:
    """Where numbers differ by more than rounding, relative to the largest; or one is not finite and the other is."""
    if found.numel() == 0:
        return torch.zeros((), dtype=torch.bool, device="cpu")
    finite = found.isfinite() & expected.isfinite()
    zeros = torch.zeros_like(expected)
    scale = torch.where(finite, found.abs() + expected.abs(), zeros).max()
    tolerance = torch.finfo(found.dtype).eps ** 0.5 * scale
    far = finite & ((found - expected).abs() > tolerance.clamp(min=noise))
    differ: Tensor = far | (found.isfinite() != expected.isfinite())
    return differ


def tells(tensors: Sequence[Tensor], noise: float = 0.0) -> bool:
    """Whether a comparison of these numbers means something: zeros can agree although torch is wrong."""
    return any(bool((tensor.detach().abs() > noise).any() or tensor.isnan().any()) for tensor in tensors)
