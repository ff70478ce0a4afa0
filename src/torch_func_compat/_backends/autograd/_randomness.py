"""vmap's randomness modes for a loop: the random state is seen, kept and put back by hand."""

from __future__ import annotations

from typing import Any, Callable, Iterable

import torch


class RandomState:
    """The state of every generator that the function may draw from, as it was when this was made."""

    def __init__(self, generators: Iterable[torch.Generator] = ()) -> None:
        self._saved: list[tuple[Callable[[], Any], Callable[[Any], Any], Any]] = []
        self._keep(torch.get_rng_state, torch.set_rng_state)
        if torch.cuda.is_initialized():
            self._keep(torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all)
        for generator in generators:
            self._keep(generator.get_state, generator.set_state)

    def _keep(self, get: Callable[[], Any], put: Callable[[Any], Any]) -> None:
        self._saved.append((get, put, get()))

    def moved(self) -> bool:
        """Whether anything was drawn since."""
        return any(not _equal(get(), state) for get, _, state in self._saved)

    def restore(self) -> None:
        """Put every generator back."""
        for _, put, state in self._saved:
            put(state)

    def forbid_draws(self) -> None:
        """Raise torch.func's error, with the state put back, if anything was drawn."""
        if self.moved():
            self.restore()
            raise RuntimeError(
                "vmap: called random operation while in randomness error mode. Please either use the 'same' or "
                "'different' randomness flags on vmap or perform the randomness operation out of vmap"
            )


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_equal, left, right))
    return torch.equal(left, right)
