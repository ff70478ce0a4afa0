"""The report of a check, as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Iterator, Sequence

import torch


@dataclass(frozen=True)
class Row:
    """The observation of one operator on one backend.

    Attributes
    ----------
    name : str
        The scenario's.
    operator, backend, against : str
        The operator, the backend that computed it, and the reference.
    error : float
        Largest difference of the values, relative to ``max(1, largest value expected)``; NaN where there is none.
    batched : float or None
        The same of `vmap` over stacked inputs, compared with a loop over the samples; None where it was not asked.
    differentiated : float or None
        The same of the derivative of the result; None where the result has none, or plain autograd cannot say.
    evaluations, passes : int
        Calls of the function and backward passes of the engine, for one call of the operator.
    fell_back : bool
        The backend refused, and a loop computed the result.
    problems : tuple of str
        What is wrong; empty where all is right.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.testing import check
    >>> row = check(torch.sin, (torch.ones(2, dtype=torch.float64),), "jacrev", "autograd").row("jacrev")
    >>> row.evaluations, row.passes, row.problems
    (1, 1, ())
    """

    name: str
    operator: str
    backend: str
    against: str
    error: float = math.nan
    batched: float | None = None
    differentiated: float | None = None
    evaluations: int = 0
    passes: int = 0
    fell_back: bool = False
    problems: Sequence[str] = field(default_factory=tuple)


class Report:
    """The rows of a check. ``print(report)`` shows them as a table.

    Attributes
    ----------
    rows : tuple of Row
        One for each operator and backend.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.testing import check
    >>> report = check(torch.sin, (torch.ones(2, dtype=torch.float64),), ["jvp", "jacrev"], "autograd")
    >>> report.ok, len(report), report.failed
    (True, 2, ())
    """

    HEADS = ("operator", "backend", "error", "batched", "differentiated", "evaluations", "passes", "")

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows: tuple[Row, ...] = tuple(rows)

    @property
    def ok(self) -> bool:
        """Whether there is no problem in any row."""
        return not self.failed

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows with problems."""
        return tuple(row for row in self.rows if row.problems)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, operator: str, backend: str | None = None) -> Row:
        """The first row of that operator, on that backend where one is named."""
        for row in self.rows:
            if row.operator == operator and backend in (None, row.backend):
                return row
        raise KeyError(f"no row of {operator!r}" + (f" on {backend!r}" if backend else ""))

    def __str__(self) -> str:
        parts = []
        for title in dict.fromkeys((row.name, row.against) for row in self.rows):
            rows = [row for row in self.rows if (row.name, row.against) == title]
            lines = [self.HEADS, *(_cells(row) for row in rows)]
            widths = [max(map(len, column)) for column in zip(*lines)]
            parts.append(f"{title[0]}, against {title[1]}, torch {torch.__version__}")
            parts += ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
        for row in self.failed:
            parts += [f"{row.name}: {row.operator} on {row.backend}: {problem}" for problem in row.problems]
        return "\n".join(parts)


class DerivativeError(AssertionError):
    """A check found a difference. `report` has all that it found.

    Attributes
    ----------
    report : Report
    """

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        self.report: Report = report

    def __str__(self) -> str:
        count = len(self.report.failed)
        return f"{count} of {len(self.report)} checks found a difference\n{self.report}"


def _cells(row: Row) -> tuple[str, ...]:
    how = "WRONG" if row.problems else "ok"
    numbers = [_number(value) for value in (row.error, row.batched, row.differentiated)]
    last = how + (", falls back" if row.fell_back else "")
    return (row.operator, row.backend, *numbers, str(row.evaluations), str(row.passes), last)


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.1e}"
