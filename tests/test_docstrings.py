"""Every public docstring is whole: parameters, result, errors, cost and an example, in the sections of numpydoc."""

from __future__ import annotations

import importlib
import inspect
import re

import pytest

import torch_func_compat as tfc

MODULES = [
    "torch_func_compat",
    *(f"torch_func_compat.autograd.{name}" for name in ("functional", "checks", "gradcheck", "rows", "attach")),
    *(f"torch_func_compat.autograd.{name}" for name in ("nested", "estimators", "fields")),
    *(
        f"torch_func_compat.{name}"
        for name in ("sparse", "operators", "implicit", "distributed", "tad_mctc", "testing")
    ),
]
# They raise nothing of their own, whatever they are given.
RAISE_NOTHING = {
    *("available_backends", "unavailable_backends", "get_backend", "get_fallback", "get_checks"),
    *("is_batched", "is_functorch_tensor", "is_gradtracking", "unwrap", "unwrap_gradtracking"),
    *("replace_all_batch_norm_modules_", "mean_and_error", "rademacher"),
}
# Settings and looks at a tensor cost nothing that a user could count in passes.
COST_NOTHING = {
    *("available_backends", "unavailable_backends", "get_backend", "set_backend", "use_backend"),
    *("get_fallback", "set_fallback", "use_fallback", "explain", "get_checks", "use_checks"),
    *("is_batched", "is_functorch_tensor", "is_gradtracking", "unwrap", "unwrap_gradtracking"),
    *("stack_module_state", "replace_all_batch_norm_modules_", "mean_and_error", "rademacher"),
}

# Not whole yet. A docstring that becomes whole has to leave this list.
PENDING: set[str] = set()


def public():
    """Name -> each public function and class once, but for errors and warnings."""
    found = {}
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            value = getattr(module, name)
            if not getattr(value, "__module__", "").startswith("torch_func_compat"):
                continue  # torch's own under a name that tad_mctc gave it
            if inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, Exception)):
                found.setdefault(id(value), (f"{module.__name__.partition('.')[2]}.{name}".lstrip("."), value))
    return dict(found.values())


PUBLIC = public()
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}


def sections(value):
    """Heading -> text of a docstring; the summary is under the empty heading."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", inspect.getdoc(value) or "", flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2]))}


def documented(text):
    """The names of a section of parameters."""
    heads = [line.partition(" :")[0] for line in text.splitlines() if re.match(r"\S", line)]
    return [name.strip().lstrip("*") for head in heads for name in head.split(",")]


def parameters(value):
    """The names that a caller gives, in order."""
    return [name for name in inspect.signature(value).parameters if name not in ("self", "cls")]


def test_sections_are_found():
    def example(a, b, *, c=None):
        """Summary.

        Parameters
        ----------
        a, b : int
            Numbers.
        c
            See there.

        Returns
        -------
        int
            A number.
        """

    found = sections(example)
    assert list(found) == ["", "Parameters", "Returns"]
    assert documented(found["Parameters"]) == parameters(example) == ["a", "b", "c"]
    assert len(FUNCTIONS) > 80 and len(CLASSES) > 5


def lacks(name):
    """What the docstring of a public function or class lacks."""
    value, found = PUBLIC[name], sections(PUBLIC[name])
    last, missing = name.rpartition(".")[2], []
    if not re.match(r"[^\n]+\.\n", found[""] + "\n"):
        missing.append("a sentence in the first line")
    if ">>> " not in found.get("Examples", ""):
        missing.append("Examples")
    if inspect.isclass(value):
        takes_nothing = value is tfc.Function or not parameters(value)
        return missing + ["Parameters or Attributes"] * (
            not {"Parameters", "Attributes"} & {*found} and not takes_nothing
        )
    if sorted(documented(found.get("Parameters", ""))) != sorted(parameters(value)):
        missing.append("each parameter in Parameters")
    if "Returns" not in found and inspect.signature(value).return_annotation not in (None, "None"):
        missing.append("Returns")
    if "Raises" not in found and last not in RAISE_NOTHING:
        missing.append("Raises")
    if not re.search(r"\bCost\b", found.get("Notes", "")) and last not in COST_NOTHING:
        missing.append("the cost in Notes")
    return missing


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_is_whole(name):
    assert bool(lacks(name)) == (name in PENDING), lacks(name)


def test_exceptions_are_of_public_functions():
    names = {name.rpartition(".")[2] for name in FUNCTIONS}
    assert RAISE_NOTHING | COST_NOTHING <= names and PENDING <= {*PUBLIC}
    for name, value in FUNCTIONS.items():
        if name.rpartition(".")[2] in RAISE_NOTHING:
            assert "Raises" not in sections(value), name
