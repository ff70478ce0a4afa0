"""``python -m torch_func_compat``, the report of a user."""

from __future__ import annotations

import inspect
import json
import random
import re
import sys

import pytest
import torch
from support.processes import run_python

import torch_func_compat as tfc
import torch_func_compat._selfcheck.advice
from torch_func_compat import __main__, _selfcheck, _transforms
from torch_func_compat._torch import facts, pytree

TRANSFORMS = [
    name
    for name in tfc.__all__
    if inspect.isfunction(getattr(tfc, name))
    and next(iter(inspect.signature(getattr(tfc, name)).parameters), "") == "func"
    and name != "functionalize"  # torch's own where it has it, and no derivative
    and name not in ("partials", "divergence", "curl")  # of fields, which test_fields.py is about
]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in __main__.VARIABLES:
        monkeypatch.delenv(name, raising=False)


def report(capsys, *arguments):
    """The exit status and what ``--json`` printed."""
    status = __main__.main(["--json", *arguments])
    return status, json.loads(capsys.readouterr().out)


def broken(*args, **kwargs):
    """In the place of `_transforms.TRANSFORMS["jacrev"]`: an error of one part in a million."""
    right = JACREV(*args, **kwargs)
    return lambda *args, **kwargs: pytree.map(lambda x: x * (1 + 1e-6), right(*args, **kwargs))


JACREV = _transforms.TRANSFORMS["jacrev"]


def test_every_transform_is_checked():
    assert sorted(_selfcheck.CHECKS) == sorted(TRANSFORMS)


@pytest.mark.slow
def test_report():
    process = run_python("-m", "torch_func_compat")
    text = process.stdout
    assert process.returncode == 0, text + process.stderr
    assert text.isascii() and process.stderr == ""
    assert str(torch.__version__) in text and tfc.__version__ in text
    assert re.search(rf"^  backend +{re.escape(tfc.get_backend())}$", text, re.MULTILINE)
    for operator in TRANSFORMS:
        assert re.search(rf"\b{operator}\b", text)
    checks = len(TRANSFORMS) * len(tfc.available_backends())
    (line,) = re.findall(r"^All .*$", text, re.MULTILINE)
    assert line.startswith(f"All {checks} checks against closed forms passed on cpu; the largest error is ")
    assert "FAILED" not in text and not re.search(r"^ok ", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= __main__.WIDTH
    assert len(text.splitlines()) < 60  # a screenful


def test_verbose_report(capsys):
    assert __main__.main(["--verbose"]) == 0
    text = capsys.readouterr().out
    words = " ".join(text.split())  # lines are wrapped
    assert re.search(rf"^  {re.escape(tfc.get_backend())} +available, in use$", text, re.MULTILINE)
    for name, reason in tfc.unavailable_backends().items():
        assert f"{name} not available: {' '.join(reason.split())}" in words
    for fact in facts.FACTS.values():
        assert fact.meaning in words
    for operator in TRANSFORMS:
        for backend in tfc.available_backends():
            assert re.search(rf"^ok +{operator} +{re.escape(backend)} +cpu +\d\.\de-?\+?\d\d$", text, re.MULTILINE)


def test_columns_are_aligned(capsys):
    assert __main__.main(["--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("Routes") + 1
    table = lines[start : start + 1 + len(TRANSFORMS)]
    columns = [table[0].index(backend) for backend in tfc.available_backends()]
    for line in table[1:]:
        for column in columns:
            assert line[column - 2 : column] == "  " and line[column] != " ", line


def test_limits_have_a_way_out(capsys):
    status, found = report(capsys)
    assert status == 0
    assert all(row["what"] and row["advice"] for row in found["limits"])
    what = " ".join(row["what"] for row in found["limits"])
    batches = {"torch.func", "functorch"} & set(tfc.available_backends())
    assert ("vmap calls the function once per sample" in what) == (not batches)
    assert ("Third derivatives of layer_norm" in what) == (facts.TORCH < (2, 0))
    assert ("the graph breaks at every transform" in what) == ((2, 0) <= facts.TORCH < (2, 5))
    assert __main__.main([]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for row in found["limits"]:
        assert row["what"] in words and row["advice"] in words


@pytest.mark.parametrize(
    "release, advice",
    [((1, 8, 1), "2.0 or newer"), ((1, 11, 0), "functorch==0.1.1"), ((1, 12, 1), "functorch==0.2.1")],
)
def test_advice_for_a_torch_that_cannot_batch(release, advice):
    assert advice in _selfcheck.advice._library_for(release)


def test_gpu_that_torch_cannot_use():
    cuda = {"devices": ["H200"], "usable": False, "reason": "no kernel image"}
    assert "H200: no kernel image" in _selfcheck.advice.limits(("autograd",), cuda)[-1]["what"]
    usable = {"devices": ["H200"], "usable": True, "reason": None}
    assert not any("H200" in row["what"] for row in _selfcheck.advice.limits(("autograd",), usable))


def test_limits_are_seen():
    """Two of the limits, provoked exactly where the report names them."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.slope = 2 * x
            return x * x

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.slope

    cuda = {"devices": [], "usable": False, "reason": None}
    what = " ".join(row["what"] for row in _selfcheck.advice.limits(tfc.available_backends(), cuda))
    x = torch.tensor(3.0, requires_grad=True)
    (first,) = torch.autograd.grad(Square.apply(x), x, create_graph=True)
    assert (not first.requires_grad) == ("second derivatives raise, or are zero" in what)
    calls = []
    tfc.vmap(lambda x: calls.append(1) or x.sin())(torch.ones(5))
    assert (len(calls) >= 5) == ("vmap calls the function once per sample" in what)


def test_build_unlike_its_release(monkeypatch):
    fact = facts.FACTS["torch_func"]
    monkeypatch.setitem(facts.FACTS, "torch_func", fact._replace(since=(9, 0), until=None))
    unlike = _selfcheck.advice.unlike_its_release()
    assert ("torch_func" in unlike) == facts.has("torch_func")
    cuda = {"devices": [], "usable": False, "reason": None}
    what = [row["what"] for row in _selfcheck.advice.limits(("autograd",), cuda)]
    assert any(fact.meaning in text for text in what) == facts.has("torch_func")


def test_json(capsys):
    status, found = report(capsys)
    assert status == 0 and found["passed"] is True
    assert found["torch"] == str(torch.__version__)
    assert found["version"] == tfc.__version__
    assert found["backends"]["available"] == list(tfc.available_backends())
    assert found["backends"]["unavailable"] == tfc.unavailable_backends()
    assert found["backends"]["answers"] == tfc.available_backends()[0]
    assert {(row["operator"], row["backend"]) for row in found["checks"]} == {
        (operator, backend) for operator in TRANSFORMS for backend in tfc.available_backends()
    }
    assert all(row["passed"] and row["error"] <= row["limit"] for row in found["checks"])
    assert {name: row["holds"] for name, row in found["facts"].items()} == {n: facts.has(n) for n in facts.FACTS}


def test_one_backend(capsys):
    status, found = report(capsys, "--backend", "autograd")
    assert status == 0
    assert {row["backend"] for row in found["checks"]} == {"autograd"}
    assert {name for row in found["operators"].values() for name in row} == {"autograd"}


def test_on_a_device(capsys, device):
    status, found = report(capsys, "--device", str(device))
    assert status == 0
    assert {row["device"] for row in found["checks"]} == {str(device)}


def test_what_answers():
    """Where the answer is known beforehand, by the design of the backends."""
    for backend in tfc.available_backends():
        answers = {name: _selfcheck.answered_by(name, backend) for name in _selfcheck.CHECKS}
        if backend == "torch.func":
            assert {name for name, answer in answers.items() if answer == "native"} == {"vmap"}
        elif backend == "functorch":
            assert set(answers.values()) == {"derived", "vectorised rows"}
            assert answers["vmap"] == answers["jacfwd"] == "derived"
        else:
            assert answers["vmap"] == "looped"
            assert answers["grad"] == answers["vjp"] == "derived"
            assert answers["jacrev"] == answers["jacfwd"] == answers["hessian"] == "vectorised rows"


def test_rows_that_torch_cannot_batch_are_seen(monkeypatch):
    def in_numpy(point):
        def jacobian():
            class Double(torch.autograd.Function):
                @staticmethod
                def forward(ctx, x):
                    return 2 * x

                @staticmethod
                def backward(ctx, grad):
                    return torch.from_numpy(2 * grad.detach().numpy())

            return tfc.jacrev(Double.apply)(point.x)

        yield jacobian(), torch.diag(torch.full_like(point.x, 2))

    monkeypatch.setitem(_selfcheck.CHECKS, "jacrev", in_numpy)
    assert _selfcheck.answered_by("jacrev", "autograd") == "looped"
    assert _selfcheck.largest_error("jacrev", "autograd", "cpu") == 0


def test_wrong_operator(capsys, monkeypatch):
    monkeypatch.setitem(_transforms.TRANSFORMS, "jacrev", broken)
    assert __main__.main(["--backend", "autograd"]) == 1
    text = capsys.readouterr().out
    assert re.search(r"^FAILED +jacrev +autograd +cpu +error \d\.\de-0\d, limit 1e-10$", text, re.MULTILINE)
    assert not re.search(r"^ok ", text, re.MULTILINE)
    assert re.search(r"^FAILED +\d of \d+ checks$", text, re.MULTILINE)
    assert "checks passed" not in text


@pytest.mark.parametrize(
    "result",
    [
        lambda p: p.x * float("nan"),
        lambda p: p.x[:2],
        lambda p: p.x.to(torch.float16),
        lambda p: p.x.clone().requires_grad_(),
        lambda p: (p.x,),
        lambda p: 1 // 0,
    ],
    ids=["nan", "shape", "dtype", "requires_grad", "structure", "error"],
)
def test_wrong_result(capsys, monkeypatch, result):
    monkeypatch.setitem(_selfcheck.CHECKS, "grad", lambda p: iter([(result(p), p.x)]))
    status, found = report(capsys, "--backend", "autograd")
    assert status == 1 and found["passed"] is False
    (failed,) = [row for row in found["checks"] if not row["passed"]]
    assert failed["operator"] == "grad" and failed["message"]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_exit_status_of_a_failure(capsys, monkeypatch):
    def vjp(*args, **kwargs):
        raise TypeError("broken\nby \xe9")

    monkeypatch.setitem(_transforms.PRODUCTS, "vjp", vjp)
    monkeypatch.setattr(sys, "argv", ["torch_func_compat", "--backend", "autograd"])
    assert __main__.main() == 1
    text = capsys.readouterr().out
    assert re.search(r"^FAILED +vjp +autograd +cpu +TypeError: broken by \\xe9$", text, re.MULTILINE)
    assert re.search(r"^  fails: raised TypeError +vjp\b", text, re.MULTILINE)


def test_setting_that_nothing_fits(capsys, monkeypatch):
    monkeypatch.setattr(__main__, "get_backend", lambda: (_ for _ in ()).throw(ValueError("VARIABLE=x: unknown")))
    assert __main__.main(["--backend", "autograd"]) == 1
    assert "FAILED  VARIABLE=x: unknown\n" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--backend", "jax"], ["--device", "nowhere"], ["--nonsense"]])
def test_bad_arguments(capsys, arguments):
    with pytest.raises(SystemExit) as error:
        __main__.main(arguments)
    assert error.value.code == 2
    assert arguments[-1] in capsys.readouterr().err


def test_leaves_nothing_changed(capsys):
    def state():
        return (
            torch.get_rng_state().tolist(),
            random.getstate(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            tfc.get_backend(),
            tfc.get_fallback(),
            sys.getprofile(),
        )

    before = state()
    assert __main__.main([]) == 0
    assert state() == before
