"""Tables and pictures that follow from the code: each function here makes one file of ``_generated/``.

Sphinx runs this when a build starts. It needs the package, torch and the standard library. Pages include the files.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Callable, Iterable

import cookbook
import figures
import plots
import support_matrix
import times

DOCS = Path(__file__).resolve().parent
GENERATED = DOCS / "_generated"


def table(head: str, rows: Iterable[str]) -> str:
    """A table in Markdown; head and rows are cells joined by ' | '."""
    line = " | ".join("---" for _ in head.split(" | "))
    return "".join(f"| {row} |\n" for row in (head, line, *rows))


def refusals() -> str:
    """The functions that torch refuses and the autograd backend computes, from the table that decides it."""
    from torch_func_compat._guards.refusals import CAPABILITIES

    rows = (f"{row.meaning} | {_words(row.pattern)} | {row.cost} | {row.advice}" for row in CAPABILITIES)
    return table("the function ... | torch says | what it costs here | to stay native", rows)


def wrong_answers() -> str:
    """What torch gets wrong, from the table of it."""
    from torch_func_compat._guards.known_mistakes import WRONG_ANSWERS

    right = [f"{row.what} | {row.where} | {row.remedy} | `{row.test}`" for row in WRONG_ANSWERS if row.remedy]
    others = [row for row in WRONG_ANSWERS if not row.remedy]
    raised = [f"{row.what} | {row.where} | `{row.test}`" for row in others if not row.is_open]
    still = [f"{row.what} | {row.where}" for row in others if row.is_open]
    return (
        f"## Computed right\n\n{table('what | where | what this library does | test', right)}\n"
        f"## Raised\n\n{table('what | where | test', raised)}\n"
        f"## Not avoided\n\n{table('what | where', still)}"
    )


def _words(pattern: str) -> str:
    """The first text that a regular expression of the table stands for, as far as it can be read."""
    first = re.split(r"(?<!\\)\|", re.sub(r"(?<!\\)\((?:[^()\\]|\\.)*\)\??", "…", pattern))[0]
    return f"`{re.sub(r'…+ *', '… ', plain(first)).strip()}`"


def plain(pattern: str) -> str:
    """Without wildcards and backslashes."""
    return re.sub(r"\\(.)", r"\1", re.sub(r"\.\*|\\[wSd]\+|\\1|,\?", "…", pattern)).replace("`", "'")


def messages() -> str:
    """Every error and warning, as the sources have it, with its cause and its cure."""
    from causes import CAUSES
    from messages import all_messages

    found = [(message, f"{message.kind}: {message.text}") for message in all_messages()]
    sections = []
    for topic, causes in CAUSES.items():
        rows = []
        for words, cause, cure in causes:
            # the first cause whose words occur is that of a message
            texts = {
                text: None
                for _, text in found
                if words in text and next(c.words for row in CAUSES.values() for c in row if c.words in text) == words
            }
            rows.append(f"{'<br>'.join(map(code, texts))} | {cause} | {cure}")
        sections.append(f"## {topic}\n\n" + table("message | cause | cure", rows))
    return "\n".join(sections)


def code(text: str) -> str:
    """Words of a message as code that a table can hold."""
    text = text.replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def compositions() -> str:
    """The fused operations that are evaluated in elementary ones, from the table that decides it."""
    from torch_func_compat._guards.compositions import COMPOSITIONS

    names: dict[tuple[str, str, str], list[str]] = {}
    for row in COMPOSITIONS:
        until = f"before {row.until[0]}.{row.until[1]}" if row.until else "every torch"
        key = ("first", "second", "third")[row.order - 1], until, row.reason
        names.setdefault(key, []).extend(f"`torch.{name}`" for name in row.functions if not name.startswith("_C."))
    rows = (f"{', '.join(found)} | {order} | {until} | {reason}" for (order, until, reason), found in names.items())
    return table("operation | from which derivative on | where | what torch lacks", rows)


def cost_of_falling_back() -> str:
    """The headline figure, of what measure_falling_back.py measured."""
    found = json.loads((DOCS / "benchmarks" / "falling-back.json").read_text(encoding="utf-8"))
    milliseconds = {name: [1e3 * value for value in values] for name, values in found["seconds"].items()}
    series = [plots.Series(name, found["sizes"], values) for name, values in milliseconds.items()]
    title = f"Gradients of a network, torch {found['torch'].split('+')[0]}, one thread"
    return plots.plot(title, "samples in the batch", "time in ms", series, logx=True, logy=True)


FILES: dict[str, Callable[[], str]] = {
    "refusals.md": refusals,
    "wrong-answers.md": wrong_answers,
    "messages.md": messages,
    "compositions.md": compositions,
    "support.md": support_matrix.page,
    "falling-back.svg": cost_of_falling_back,
    "times.md": times.table,
    "times.svg": times.figure,
    "times-over-sizes.svg": times.over_sizes,
    "memory-over-chunks.svg": times.over_chunks,
    "rooms.svg": figures.rooms,
    "vibrations.svg": figures.spectrum,
    **{f"cookbook-{recipe}.svg": picture for recipe, picture in cookbook.PICTURES.items()},
}


def write_all() -> None:
    """Write every generated file. Pages of names that have gone are removed; autosummary writes the others."""
    shutil.rmtree(DOCS / "reference", ignore_errors=True)
    GENERATED.mkdir(exist_ok=True)
    made = {name: make() for name, make in FILES.items()}
    for name, content in {**made, **support_matrix.pictures()}.items():
        (GENERATED / name).write_text(content, encoding="utf-8")
