"""The random state, seen, kept and put back by hand: for randomness modes, chunks and fallbacks."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor

from . import facts
from .closures import names_in

_ERROR = (
    "vmap: called random operation while in randomness error mode. Please either use the 'same' or 'different' "
    "randomness flags on vmap or perform the randomness operation out of vmap"
)


def _bytes(state: Tensor) -> bytes:
    """A generator's state as bytes. torch.equal() would run under the active modes, such as FakeTensorMode."""
    return ctypes.string_at(state.data_ptr(), state.numel())


class RandomState:
    """The state of every generator that the function may draw from, as it was when this was made."""

    def __init__(self, generators: Sequence[torch.Generator] = ()) -> None:
        # The default generator's method takes half the time of torch.get_rng_state().
        self._default = torch.default_generator.get_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        self._others = [(generator, generator.get_state()) for generator in generators] if generators else ()

    def moved(self) -> bool:
        """Whether anything was drawn since."""
        if _bytes(torch.default_generator.get_state()) != _bytes(self._default):
            return True
        if self._cuda is not None and [*map(_bytes, torch.cuda.get_rng_state_all())] != [*map(_bytes, self._cuda)]:
            return True
        return any(_bytes(generator.get_state()) != _bytes(state) for generator, state in self._others)

    def restore(self) -> None:
        """Put every generator back."""
        torch.default_generator.set_state(self._default)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        for generator, state in self._others:
            generator.set_state(state)

    def forbid_draws(self) -> None:
        """Raise torch.func's error, with the state put back, if anything was drawn."""
        if self.moved():
            self.restore()
            raise RuntimeError(_ERROR)


class Made:
    """Whether a function has drawn from a generator that it makes."""

    def __init__(self) -> None:
        self.have_drawn = False

    def forbid_draws(self) -> None:
        """Raise torch.func's error, if anything was drawn."""
        if self.have_drawn:
            raise RuntimeError(_ERROR)


@contextlib.contextmanager
def generators_made(func: Callable[..., Any], known: Sequence[torch.Generator]) -> Iterator[Made]:
    """Around an evaluation of `func`: whether it draws from generators that are not `known`.

    Only where the function names their class, and a mode sees its operations.
    """
    made = Made()
    if not facts.has("torch_function_modes") or "Generator" not in names_in(func):
        yield made
        return
    from torch.overrides import TorchFunctionMode

    class Noting(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            generator = (kwargs or {}).get("generator")
            made.have_drawn |= generator is not None and not any(generator is other for other in known)
            return func(*args, **(kwargs or {}))

    with Noting():
        yield made
