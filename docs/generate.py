"""What the documentation takes from the code: each function here writes one file of ``_generated/``.

Sphinx runs this when a build starts, with the package importable and nothing else but the standard library. A
page includes such a file, or shows it, where it wants to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Iterable

DOCS = Path(__file__).resolve().parent
GENERATED = DOCS / "_generated"


def table(head: str, rows: Iterable[str]) -> str:
    """A table in Markdown; head and rows are cells joined by ' | '."""
    line = " | ".join("---" for _ in head.split(" | "))
    return "".join(f"| {row} |\n" for row in (head, line, *rows))


def refusals() -> str:
    """What torch refuses and the autograd backend computes, from the table that decides it."""
    from torch_func_compat._capabilities import CAPABILITIES

    return table("the function ... | to stay native", (f"{row.meaning} | {row.advice}" for row in CAPABILITIES))


FILES: dict[str, Callable[[], str]] = {"refusals.md": refusals}


def write_all() -> None:
    """Write every generated file."""
    GENERATED.mkdir(exist_ok=True)
    for name, make in FILES.items():
        (GENERATED / name).write_text(make(), encoding="utf-8")
