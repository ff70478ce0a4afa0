"""The random state, seen, kept and put back by hand: for randomness modes, chunks and fallbacks."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor

from .closures import names_in

_ERROR = (
    "vmap: called random operation while in randomness error mode. Please either use the 'same' or 'different' "
    "randomness flags on vmap or perform the randomness operation out of vmap"
)


def _bytes(state: Tensor) -> bytes:
    """A generator's state; torch.equal would go through the modes that are active, as FakeTensorMode."""
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
    """The random generators that a function makes."""

    def __init__(self) -> None:
        self._generators: list[torch.Generator] = []
        self._thread = threading.get_ident()

    def note(self, generator: torch.Generator) -> torch.Generator:
        if threading.get_ident() == self._thread:
            self._generators.append(generator)
        return generator

    def have_drawn(self) -> bool:
        """Whether anything was drawn from one of them."""
        return any(map(_has_drawn, self._generators))

    def forbid_draws(self) -> None:
        """Raise torch.func's error, if anything was drawn."""
        if self.have_drawn():
            raise RuntimeError(_ERROR)


def _has_drawn(generator: torch.Generator) -> bool:
    fresh = torch.Generator(generator.device)
    fresh.manual_seed(generator.initial_seed())
    return _bytes(fresh.get_state()) != _bytes(generator.get_state())


@contextlib.contextmanager
def generators_made(func: Callable[..., Any]) -> Iterator[Made]:
    """Around an evaluation of `func`: the generators that it makes, where it names their class.

    Nothing of torch tells of them, so another class is in the place of ``torch.Generator`` meanwhile.
    """
    made = Made()
    if "Generator" not in names_in(func):
        yield made
        return
    library: Any = torch
    real = library.Generator

    class Noting(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            return made.note(real(*args, **kwargs))

        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, real)

    library.Generator = Noting("Generator", (), {})
    try:
        yield made
    finally:
        library.Generator = real
