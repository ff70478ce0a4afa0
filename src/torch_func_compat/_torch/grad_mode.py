"""Grad mode switched off by this library, unseen by the modes that watch for the user's ``no_grad()``."""

from __future__ import annotations

from typing import Any

import torch

# Also what DisableTorchFunction switches off: the modes that see every function of torch.
_unwatched: Any = torch._C.DisableTorchFunction  # type: ignore[attr-defined,unused-ignore]


class no_grad:
    """`torch.no_grad` that no TorchFunctionMode sees."""

    def __enter__(self) -> None:
        self._before = torch.is_grad_enabled()
        self._set(False)

    def __exit__(self, *error: object) -> None:
        self._set(self._before)

    @staticmethod
    def _set(enabled: bool) -> None:
        with _unwatched():
            torch._C._set_grad_enabled(enabled)
