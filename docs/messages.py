"""Every error and warning of the library, found in its sources: what the page about messages is made of.

The sources say when a message is raised and in which words; ``causes.py`` adds what led to it and what to do. A test
holds the two together: no message without a cause, and no cause without a message.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Iterator, NamedTuple

SOURCES = Path(__file__).resolve().parent.parent / "src" / "torch_func_compat"
ERROR = re.compile(r"(?:\w+\.)*(\w*(?:Error|Warning|Rule))$")


class Message(NamedTuple):
    """One place that raises or warns."""

    kind: str  # the class: RuntimeError, FallbackWarning, ...
    text: str  # with … for what is known only when it is raised
    file: str
    line: int


def text_of(node: ast.expr | None) -> str:
    """The words of an expression: literals as they are, all else as …"""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(value) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return "…"


def messages_in(tree: ast.AST, file: str) -> Iterator[Message]:
    """The messages of one module. What only passes on an error that exists (``raise error``) is none."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, (ast.Name, ast.Attribute)):
            kind = ERROR.match(ast.unparse(node.exc))
            if kind:
                yield Message(kind[1], "…", file, node.lineno)
        elif isinstance(node, ast.Call) and ERROR.match(ast.unparse(node.func)):
            # also where it is made in one place and raised in another
            first = node.args[0] if node.args else None
            text = text_of(first)
            if isinstance(first, ast.Call) and ast.unparse(first.func).endswith(".format"):
                # a constant of another module, filled in: NOT_TRANSPOSED.format(...)
                text = f"…{ast.unparse(first.func)[: -len('.format')]}…"
            yield Message(ERROR.match(ast.unparse(node.func))[1], text, file, node.lineno)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
            category = ast.unparse(node.args[1]) if len(node.args) > 1 else "UserWarning"
            yield Message(category, text_of(node.args[0]), file, node.lineno)


def all_messages() -> list[Message]:
    """Those of the whole library, module by module."""
    return [
        message
        for path in sorted(SOURCES.rglob("*.py"))
        for message in messages_in(ast.parse(path.read_text(encoding="utf-8")), path.relative_to(SOURCES).as_posix())
    ]


if __name__ == "__main__":
    for message in all_messages():
        print(f"{message.file}:{message.line} {message.kind}: {message.text}")
