"""Every backend on every torch gives what the newest torch.func gave: golden/values.json, made by golden/make.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from golden.cases import CASES, flatten
from support.tolerances import assert_close

import torch_func_compat

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("values.json").read_text())["values"]


@pytest.mark.parametrize("name", list(CASES))
def test_golden(backend, name):
    result = flatten(CASES[name](torch_func_compat))
    expected = {
        path: torch.tensor(leaf["values"], dtype=torch.float64).reshape(leaf["shape"])
        for path, leaf in GOLDEN[name].items()
    }
    assert_close(result, expected)


def test_every_value_has_its_case():
    assert list(GOLDEN) == list(CASES)
