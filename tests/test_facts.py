"""The table of facts against the torch that is running."""

from __future__ import annotations

import contextlib

import pytest
import torch
from support.modes import default_dtype

import torch_func_compat as tfc
from torch_func_compat._torch import facts


@pytest.mark.parametrize("name", [name for name, fact in facts.FACTS.items() if fact.probe is not None])
def test_table_is_what_the_probe_finds(name):
    fact = facts.FACTS[name]
    assert fact.holds() is fact.expected(facts.TORCH), f"{fact.meaning}: torch {facts.VERSION}"


@pytest.mark.parametrize("name", facts.FACTS)
def test_row_is_complete(name):
    fact = facts.FACTS[name]
    assert fact.meaning
    assert fact.source.startswith(("https://", "measured: "))
    assert fact.since is None or fact.until is None or fact.since < fact.until


@pytest.mark.parametrize("name", facts.FACTS)
def test_probed_once(name, monkeypatch):
    answer = facts.has(name)
    monkeypatch.setitem(facts.FACTS, name, facts.FACTS[name]._replace(probe=lambda: not answer))
    assert facts.has(name) is answer


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": getattr(torch, "inference_mode", torch.no_grad),
    "default_dtype_float16": lambda: default_dtype(torch.float16),
    "default_device_meta": lambda: torch.device("meta") if facts.has("torch_func") else contextlib.nullcontext(),
}


@pytest.mark.parametrize("name", facts.FACTS)
def test_modes_of_the_caller_change_no_answer(name, backend):
    expected = facts.FACTS[name].holds()
    found = {}
    for mode, entered in MODES.items():
        with entered():
            found[mode] = facts.FACTS[name].holds()

    def within(x):
        found["transforms"] = facts.FACTS[name].holds()
        return x * x

    tfc.vmap(tfc.grad(within))(torch.ones(2))
    tfc.jvp(within, (torch.ones(()),), (torch.ones(()),))
    assert found == dict.fromkeys((*MODES, "transforms"), expected)


def test_unknown_name():
    with pytest.raises(KeyError):
        facts.has("no such fact")


@pytest.mark.parametrize(
    "version, release",
    [
        ("1.8.1", (1, 8, 1)),
        ("1.8.1+cu102", (1, 8, 1)),
        ("2.1.0a0+32f93b1", (2, 1, 0)),
        ("1.13.0a0+git", (1, 13, 0)),
        ("1.13.0a0+git7c98e70", (1, 13, 0)),
        ("2.16.0.dev20261101+cpu", (2, 16, 0)),
        ("2.10.0+cpu", (2, 10, 0)),
        ("2.3.0rc1", (2, 3, 0)),
        ("2.4.0.post301", (2, 4, 0)),
    ],
)
def test_versions_of_vendors(version, release):
    assert facts.release(version) == release


@pytest.mark.parametrize(
    "version, expected",
    [("1.10.2", False), ("1.11.0a0+git", True), ("1.13.1", True), ("2.0.0.dev20221220", False), ("2.10.0", False)],
)
def test_range(version, expected):
    """`since` is in it, `until` is not, and 2.10 comes after 2.9."""
    assert facts.FACTS["functorch_is_separate"].expected(facts.release(version)) is expected
