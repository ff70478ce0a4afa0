"""The index of tests finds modules by what tests import and use, and rows of tables by their names."""

from __future__ import annotations

import pytest
from support import index

pytestmark = pytest.mark.any_torch

if not (index.ROOT / "src").is_dir():
    pytest.skip("the sources are not here", allow_module_level=True)


def test_modules():
    files, above = index.by_module(), index.importers()
    assert "test_testing.py" in files["testing"] and "test_facts.py" in files["_torch.facts"]
    assert "test_batched.py" in files["autograd.batched"]  # by tfc.batch_hessian, which is defined there
    assert not files["_forward_laplacian.determinants"]
    assert index.nearest("_forward_laplacian.determinants", files, above) == ["_forward_laplacian.carried"]
    assert [name for name in files if not (files[name] or index.nearest(name, files, above))] == []


def test_rows():
    rows, texts = list(index.rows()), index.tests()
    assert {"torch_func", "_weight_norm"} <= {word for row in rows for word in row.name.split()}
    assert all(index.about(row, texts) for row in rows if row.table == "_torch.facts.FACTS")
    assert index.about(index.Row("_guards.wrong.TABLE", "anything", "test_wrong_answers.py::test_this"), texts) == [
        "test_wrong_answers.py::test_this"
    ]


@pytest.mark.slow
def test_output(capsys):
    index.main(["_dispatch.choice"])
    printed = capsys.readouterr().out.splitlines()
    assert printed and all("_dispatch.choice" in line for line in printed)
