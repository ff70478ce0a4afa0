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


def text_of(node: ast.expr | None, named: dict[str, str]) -> str:
    """The words of an expression: literals as they are, names of constants by their words, all else as …"""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(value, named) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left, named) + text_of(node.right, named)
    if isinstance(node, ast.Name):
        return named.get(node.id, "…")
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return re.sub(r"\{\w*\}", "…", text_of(node.func.value, named))
    return "…"


def constants_in(tree: ast.AST) -> dict[str, str]:
    """The texts that have a name."""
    return {
        node.targets[0].id: node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }


def messages_in(tree: ast.AST, file: str, named: dict[str, str] | None = None) -> Iterator[Message]:
    """The messages of one module. What only passes on an error that exists (``raise error``) is none."""
    named = {**(named or {}), **constants_in(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, (ast.Name, ast.Attribute)):
            kind, text = ERROR.match(ast.unparse(node.exc)), "…"
        elif isinstance(node, ast.Call):
            # also where it is made in one place and raised in another
            kind = ERROR.match(ast.unparse(node.func))
            text = text_of(node.args[0] if node.args else None, named)
            if ast.unparse(node.func) in ("warnings.warn", "warn_user"):
                kind = re.match(r"(?:.*\.)?(\w+)", ast.unparse(node.args[1]) if len(node.args) > 1 else "UserWarning")
                if file == "_torch/callers.py":  # passed on by warn_user()
                    continue
        else:
            continue
        if kind:
            yield Message(kind[1], f"… ({file})" if text == "…" else text, file, node.lineno)


def all_messages() -> list[Message]:
    """Those of the whole library, module by module."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCES.rglob("*.py"))}
    named = {name: text for tree in trees.values() for name, text in constants_in(tree).items() if name.isupper()}
    return [
        message
        for path, tree in trees.items()
        for message in messages_in(tree, path.relative_to(SOURCES).as_posix(), named)
    ]


if __name__ == "__main__":
    for message in all_messages():
        print(f"{message.file}:{message.line} {message.kind}: {message.text}")
