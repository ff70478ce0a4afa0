"""The options of a transform, and the report of its last call."""

from __future__ import annotations

from typing import Any, Callable

from .._arguments.call import Argnums, Function, name_of
from .._arguments.chunks import Chunks
from .._arguments.partition import Partition


class Report:
    """The mode and the chunks of the last call of a transform; `torch_func_compat.explain` reads it.

    Attributes
    ----------
    mode : str
        The mode that was chosen and why; empty where there was no choice.
    chunk_size : int or None
        Rows, columns or samples of a chunk; None without chunks.
    """

    def __init__(self) -> None:
        self.mode = ""
        self.chunk_size: int | None = None


class Options:
    """The options of all operators. Each operator reads its own.

    Parameters
    ----------
    name : str
        The public name of the transform, for messages.
    func : callable
        The user's function, for messages.
    argnums, has_aux, randomness, out_dims, chunks
        As the public functions have them.
    in_dims
        That of vmap. For a derivative, the batch dimensions of a function of a whole batch, or None for a function of
        one sample.
    mode : str
        'auto', or the mode of a Jacobian or Hessian.
    check : bool or None
        Whether to test in each call that samples are independent; None is in the first call.
    partition : Partition or None
        Compute this process's share of the rows or columns only.
    report : Report or None
        Where to report.
    running_library : callable or None
        Returns the backend of the library that has a transform running, or None.
    """

    # A plain class, since torch.compile traces neither named tuples with defaults nor dataclasses.replace().
    def __init__(
        self,
        name: str,
        func: Function,
        *,
        argnums: Argnums = 0,
        has_aux: bool = False,
        in_dims: Any = None,
        out_dims: Any = 0,
        randomness: str = "error",
        mode: str = "auto",
        strict: bool = False,
        check: bool | None = False,
        chunks: Chunks | None = None,
        partition: Partition | None = None,
        report: Report | None = None,
        running_library: Callable[[], Any] | None = None,
    ) -> None:
        self.name = name
        self.func = func
        self.argnums = argnums
        self.has_aux = has_aux
        self.in_dims = in_dims
        self.out_dims = out_dims
        self.randomness = randomness
        self.mode = mode
        self.strict = strict
        self.check = check
        self.chunks = Chunks() if chunks is None else chunks
        self.partition = partition
        self.report = report
        self.running_library = running_library

    def inner(self, *, has_aux: bool | None = None, argnums: Argnums | None = None, chunked: bool = True) -> Options:
        """The options of a derivative within this one: whole, not checked on its own, without a report."""
        return Options(
            self.name,
            self.func,
            argnums=self.argnums if argnums is None else argnums,
            has_aux=self.has_aux if has_aux is None else has_aux,
            in_dims=self.in_dims,
            randomness=self.randomness,
            chunks=self.chunks if chunked else None,
        )

    def with_aux(self, argnums: Argnums | None = None) -> Options:
        """The same for a function that returns aux."""
        return Options(
            self.name,
            self.func,
            argnums=self.argnums if argnums is None else argnums,
            has_aux=True,
            in_dims=self.in_dims,
            randomness=self.randomness,
            mode=self.mode,
            check=self.check,
            chunks=self.chunks,
            partition=self.partition,
            report=self.report,
        )

    def label(self) -> str:
        """The transform and its function, for messages."""
        return f"{self.name}({name_of(self.func)})"

    def report_chunk(self, size: int) -> None:
        """Report the size of the chunks."""
        if self.report is not None:
            self.report.chunk_size = size
