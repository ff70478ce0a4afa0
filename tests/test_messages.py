"""docs/causes.py knows every message of the library, and no other."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.any_torch

if sys.version_info < (3, 9):
    pytest.skip("ast.unparse is of Python 3.9", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
causes, messages = importlib.import_module("causes"), importlib.import_module("messages")
sys.path.remove(str(ROOT / "docs"))

if not messages.SOURCES.is_dir():
    pytest.skip("the sources are not here", allow_module_level=True)

WORDS = [cause.words for rows in causes.CAUSES.values() for cause in rows]


@pytest.fixture(scope="module")
def places():
    """Where each message is. It reads all sources, which is not for the collection of tests."""
    return {f"{m.kind}: {m.text}": f"{m.file}:{m.line}" for m in messages.all_messages()}


def test_every_message_has_a_cause(places):
    unknown = [f"{where}: {text}" for text, where in places.items() if not any(words in text for words in WORDS)]
    assert not unknown, "say in docs/causes.py what leads to it and what to do:\n" + "\n".join(unknown)


def test_every_cause_has_a_message(places):
    taken = {next((words for words in WORDS if words in text), None) for text in places}
    assert [words for words in WORDS if words not in taken] == []


def test_collector():
    source = """
SAYING = 'so {} that'
def f(x, error):
    if x:
        raise ValueError(f"{x}: not " "this" f" {x!r}")
    elif not x:
        raise errors.OddError
    warnings.warn("so " + "so", FutureWarning, stacklevel=2)
    warnings.warn(str(x))
    raise error
    raise MistakenRule(SAYING.format(x))
    return KeyError("made here, raised elsewhere")
"""
    found = sorted(messages.messages_in(ast.parse(source), "file.py"), key=lambda message: message.line)
    assert [(m.kind, m.text, m.line) for m in found] == [
        ("ValueError", "…: not this …", 5),
        ("OddError", "… (file.py)", 7),
        ("FutureWarning", "so so", 8),
        ("UserWarning", "… (file.py)", 9),
        ("MistakenRule", "so … that", 11),
        ("KeyError", "made here, raised elsewhere", 12),
    ]
