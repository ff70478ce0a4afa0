"""Evaluate rows, columns or samples in chunks: chunk size, output buffers, progress."""

from __future__ import annotations

import contextlib
import re
import sys
from typing import Any, Callable, Iterator, Union

import torch
from torch import Tensor

from .._torch.callers import warn_user
from .._torch.compiling import is_compiling
from .memory import budget, measured

ChunkSize = Union[int, str, None]
Memory = Union[int, str, None]

# Rows of the first chunk of 'auto', from which the others are extrapolated.
PROBE = 2

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class Chunks:
    """Whether and how to evaluate in chunks.

    Attributes
    ----------
    size : int, 'auto' or None
        None is all at once.
    memory : int or None
        Bytes that a chunk of 'auto' may need; None is a quarter of what is free.
    progress : bool
        Whether to show how many rows, columns or samples are done.
    trivial : bool
        Whether all is evaluated at once, and nothing is shown.
    """

    def __init__(self, size: ChunkSize = None, memory: int | None = None, progress: bool = False) -> None:
        self.size = size
        self.memory = memory
        self.progress = progress
        self.trivial = size is None and not progress

    @classmethod
    def checked(cls, api: str, chunk_size: ChunkSize, memory: Memory = None, progress: bool = False) -> Chunks:
        """The three public parameters, or the error that says what is wrong with them."""
        number = isinstance(chunk_size, int) and not isinstance(chunk_size, bool) and chunk_size > 0
        if not (number or chunk_size is None or chunk_size == "auto"):
            # torch.func's words, which are not the same for vmap
            rule = "chunk_size should be None or" if api == "vmap" else "`chunk_size` should be"
            raise ValueError(
                f"{api}: {rule} greater than 0. (got {chunk_size!r}; None is no chunks, 'auto' what fits into memory)"
            )
        if memory is not None and chunk_size != "auto":
            raise ValueError(f"{api}: memory= is the budget of chunk_size='auto' (got chunk_size={chunk_size!r})")
        return cls(chunk_size, _bytes(api, memory), progress)


NO_CHUNKS = Chunks()


def _bytes(api: str, memory: Memory) -> int | None:
    if memory is None:
        return None
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]?i?)b?\s*", memory.lower())
        if match and match.group(2) in _UNITS:
            memory = int(float(match.group(1)) * _UNITS[match.group(2)])
    if not isinstance(memory, int) or isinstance(memory, bool) or memory <= 0:
        raise ValueError(f"{api}: expected memory= to be bytes, as in 2_000_000_000 or '2GB', got {memory!r}")
    return memory


class Gathered:
    """Results of consecutive chunks. They are written into the whole result at once, unless they are differentiable."""

    def __init__(self, total: int, in_place: bool) -> None:
        self._total = total
        self._in_place = in_place
        self._done = 0
        self._whole: list[Tensor] = []
        self._parts: list[list[Tensor]] = []

    def add(self, results: list[Tensor]) -> None:
        """Take the results of the next chunk, stacked along dimension 0."""
        if not results:
            return
        rows = len(results[0])
        if self._in_place and not self._done and rows < self._total and not _tracked(results):
            self._whole = [part.new_empty((self._total, *part.shape[1:])) for part in results]
        if self._whole and not _tracked(results) and _fit(self._whole, results):
            for whole, part in zip(self._whole, results):
                whole[self._done : self._done + rows] = part
        else:
            if self._whole:
                self._parts = [[whole[: self._done] for whole in self._whole]]
                self._whole = []
            self._parts.append(results)
        self._done += rows

    def results(self) -> list[Tensor]:
        """All of them, along dimension 0."""
        if self._whole or not self._parts:
            return self._whole
        return self._parts[0] if len(self._parts) == 1 else [torch.cat(column) for column in zip(*self._parts)]


def _tracked(tensors: list[Tensor]) -> bool:
    return any(tensor.requires_grad for tensor in tensors)


def _fit(whole: list[Tensor], parts: list[Tensor]) -> bool:
    return len(whole) == len(parts) and all(
        a.dtype == b.dtype and a.device == b.device and a.shape[1:] == b.shape[1:] for a, b in zip(whole, parts)
    )


class Sizes:
    """How many rows to take next; with 'auto', as many as fit, judged by the chunks so far."""

    def __init__(self, chunks: Chunks, total: int, device: torch.device, label: Callable[[], str]) -> None:
        self._total = total
        self._label = label
        self.automatic = chunks.size == "auto"
        self.step: int = chunks.size if isinstance(chunks.size, int) else max(total, 1)
        if self.automatic:
            self.step = PROBE
            self.budget = chunks.memory or budget(device)
        self._measurements = 2 if self.automatic and total > 1 else 0  # a single row is not divided

    def run(self, run: Callable[[], list[Tensor]], rows: int) -> list[Tensor]:
        """Evaluate ``run()``, and choose the next size by the memory that it took."""
        if not self._measurements:
            return run()
        self._measurements -= 1
        results, usage = measured(run)
        # If results can be differentiated, the graphs of all chunks stay until the end.
        graphs = usage.kept * self._total // rows if _tracked(results) else 0
        if graphs > self.budget:
            _warn_of_graphs(self._label(), graphs, self.budget)
        free = self.budget - graphs if graphs < self.budget else self.budget
        # Memory that does not grow with the rows makes a small chunk look expensive: the estimate is on the safe side.
        self.step = max(int(free * rows / usage.peak), 1) if usage.peak else max(self.step, 64)
        return results


# Labels that were warned about.
_warned: set[str] = set()


def _warn_of_graphs(label: str, graphs: int, budget: int) -> None:
    if label in _warned:
        return
    _warned.add(label)
    warn_user(
        f"{label}: the result can be differentiated by parameters that require grad, or by other tensors outside of "
        f"the function. So all chunks keep their graphs, which take about {graphs / 1e6:.0f} MB: more than the budget "
        f"of {budget / 1e6:.0f} MB, whatever the chunk size. If the result is not to be differentiated, call it "
        f"within torch.no_grad()",
        UserWarning,
    )


def in_chunks(
    total: int,
    chunks: Chunks,
    run: Callable[[int, int], list[Tensor]],
    *,
    label: Callable[[], str],
    device: torch.device,
    in_place: bool,
) -> tuple[list[Tensor], int]:
    """Concatenated results of ``run(start, rows)`` over `total` rows, and the size of the chunks.

    With `in_place`, results may be written into preallocated memory, so that they are never held twice.
    """
    if chunks.trivial or total == 0:
        return run(0, total), total
    if is_compiling():  # a compiled graph can neither measure memory nor show progress
        step = chunks.size if isinstance(chunks.size, int) else total
        parts = [run(start, min(step, total - start)) for start in range(0, total, step)]
        return [torch.cat(column) for column in zip(*parts)], step
    sizes, gathered, start = Sizes(chunks, total, device, label), Gathered(total, in_place), 0
    with _progress(label, total, chunks.progress) as tell:
        while start < total:
            rows = min(sizes.step, total - start)
            gathered.add(sizes.run(lambda start=start, rows=rows: run(start, rows), rows))  # type: ignore[misc]
            start += rows
            tell(rows)
    return gathered.results(), min(sizes.step, total)


@contextlib.contextmanager
def _progress(name: Callable[[], str], total: int, wanted: bool) -> Iterator[Callable[[int], Any]]:
    """Return a function that reports how many rows are done: to tqdm if it is installed, else on a line of stderr."""
    if not wanted:
        yield lambda rows: None
        return
    label = name()
    try:
        from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        done = 0

        def tell(rows: int) -> None:
            nonlocal done
            done += rows
            print(f"\r{label}: {done} of {total}", end="", file=sys.stderr, flush=True)

        try:
            yield tell
        finally:
            print(file=sys.stderr)
        return
    with tqdm(total=total, desc=label) as bar:
        yield bar.update
