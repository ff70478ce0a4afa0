"""The random state, seen, kept and put back by hand: for randomness modes, chunks and fallbacks."""

from __future__ import annotations

import ctypes
from typing import Sequence

import torch
from torch import Tensor


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
            raise RuntimeError(
                "vmap: called random operation while in randomness error mode. Please either use the 'same' or "
                "'different' randomness flags on vmap or perform the randomness operation out of vmap"
            )
