"""The recorder of operations, and the tables of what is proven about them."""

from __future__ import annotations

import functools
import importlib.util
import json
import pkgutil
import re
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import torch_func_compat as tfc
from torch_func_compat._guards import proven
from torch_func_compat._guards.proven import METADATA, parse, table, unproven
from torch_func_compat._guards.recorder import AUTOCAST, bare, levels, recorded
from torch_func_compat._torch import facts
from torch_func_compat._torch.closures import scripts_in

MODES = facts.has("torch_function_modes")
needs_modes = pytest.mark.skipif(not MODES, reason="there are no function modes")
X = torch.linspace(-1.0, 1.3, 6, dtype=torch.float64).reshape(2, 3)
TABLES = sorted(Path(proven.__file__).with_suffix("").glob("*.txt"))


def names(function, *args):
    with recorded() as pairs:
        function(*args)
    return {name for name, _ in pairs}


def _sets(x):
    x.requires_grad = False
    x.data = x


CALLS = {
    "roll": lambda x: torch.roll(x, 1),
    "roll of a method": lambda x: x.roll(1),
    "roll of an operator": lambda x: torch.ops.aten.roll(x, [1]),
    "roll of an overload": lambda x: torch.ops.aten.roll.default(x, [1]),
    "add": lambda x: x + 1,
    "add_": lambda x: x.clone().add_(1),
    "__rsub__": lambda x: 1 - x,
    "__rpow__": lambda x: 2**x,
    "pow": lambda x: x**2,
    "matmul": lambda x: x @ x.t(),
    "__getitem__": lambda x: x[0, 1],
    "__setitem__": lambda x: x.clone().__setitem__(0, 1.0),
    "layer_norm": lambda x: F.layer_norm(x, (3,)),
    "linear": lambda x: F.linear(x, x),
    "gelu": lambda x: torch._C._nn.gelu(x),
    "max_pool1d": lambda x: F.max_pool1d(x, 2),
    "relu": lambda x: F.relu(x),
    "relu_": lambda x: F.relu(x.clone(), inplace=True),
    "sin.out": lambda x: torch.sin(x, out=torch.empty_like(x)),
    "linalg_det": lambda x: torch.linalg.det(x[:, :2]),
    "fft_fft": lambda x: torch.fft.fft(x),
    "special_expit": lambda x: torch.special.expit(x),
    "einsum": lambda x: torch.einsum("ij->j", x),
    "T": lambda x: x.T,
    "grad": lambda x: x.grad,
    "data=": lambda x: _sets(x.clone()),
    "requires_grad=": lambda x: _sets(x.clone()),
    "prims::sin": lambda x: torch.ops.prims.sin(x),
    "zeros": lambda x: torch.zeros(3),
    "pow:complex": lambda x: x ** (1 + 2j),
    "cat:complex": lambda x: torch.cat([x, torch.complex(x, x)]),
    "add:mixed": lambda x: x + x.float(),
    "stack:mixed": lambda x: torch.stack([x, x.float()]),
}


@needs_modes
@pytest.mark.parametrize("call", CALLS)
def test_names(call):
    assert call.split()[0] in names(CALLS[call], X)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


@needs_modes
def test_what_is_not_torchs_own_has_a_name_that_no_table_has():
    assert "custom_function_call" in names(lambda x: torch.func.grad(lambda x: Square.apply(x).sum())(x), X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert names(torch.sin, X) == {AUTOCAST}
    assert unproven({(AUTOCAST, "v"), ("custom_function_call", "vg")}) == {AUTOCAST, "custom_function_call"}


def test_torchscript_is_found_around_a_function():
    traced = torch.jit.trace(lambda x: x.sin(), (X,))
    scripted = torch.nn.Sequential(torch.jit.script(torch.nn.Linear(3, 2)))
    inner = lambda x: traced(x)
    for func in (traced, scripted, inner, lambda x: inner(x), functools.partial(lambda module, x: module(x), scripted)):
        assert scripts_in(func)
    for func in (torch.sin, torch.nn.Linear(3, 2), lambda x: x.sin(), functools.partial(torch.mul, X)):
        assert not scripts_in(func)


@needs_modes
def test_functions_of_others_are_unknown():
    def overridable(x):
        return torch.overrides.handle_torch_function(overridable, (x,), x)

    class Mine(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return 1

    assert names(overridable, X.as_subclass(Mine)) >= {"?overridable"}


@needs_modes
def test_other_threads_are_not_recorded():
    thread = threading.Thread(target=lambda: torch.cos(X))
    with recorded() as pairs:
        thread.start()
        thread.join()
    assert "cos" not in {name for name, _ in pairs}


@needs_modes
def test_recorders_nest():
    with recorded() as outer:
        torch.sin(X)
        with recorded() as inner:
            torch.cos(X)
    assert {name for name, _ in inner} == {"cos"}
    assert {name for name, _ in outer} - METADATA == {"sin", "cos"}


@needs_modes
def test_levels():
    seen = []

    def f(x):
        seen.append(levels())
        return (x * x).sum()

    f(X)
    torch.func.vmap(f)(X)
    torch.func.vmap(torch.func.vmap(f))(X)
    torch.func.vmap(torch.func.grad(f))(X)
    torch.func.jvp(torch.func.grad(f), (X,), (X,))
    torch.func.hessian(f)(X)
    torch.func.grad(lambda x: torch.func.jvp(f, (x,), (x,))[1])(X)
    torch.func.vmap(torch.func.grad(lambda x: torch.func.vmap(f)(x[None])[0]))(X)
    assert seen == ["", "v", "v", "vg", "jg", "vjg", "gj", "vgv"]
    assert levels() == ""


@needs_modes
def test_pairs_of_a_transform():
    with tfc.use_backend("torch.func"), recorded() as pairs:
        tfc.vmap(tfc.jacrev(lambda x: x.sin().sum()))(X)
        tfc.jacfwd(torch.cos)(X)
    assert {("sin", "vg"), ("sum", "vg"), ("cos", "vj")} <= pairs


@pytest.mark.skipif(MODES, reason="there are function modes")
def test_without_modes_nothing_is_recorded():
    assert names(torch.sin, X) == set()


def test_errors_pass_through_and_end_the_recording():
    with pytest.raises(ZeroDivisionError), recorded():
        1 / 0  # noqa: B018
    if MODES:
        assert torch._C._len_torch_function_stack() == 0


def test_unproven(monkeypatch):
    monkeypatch.setattr(proven, "table", lambda major, minor: parse("# title\n[v vg]\nsin cos\n[v]\nroll_\n"))
    pairs = {("sin", "v"), ("sin", "vg"), ("cos", "j"), ("roll_", "vg"), ("roll_", "v"), ("exp", "v")}
    assert unproven(pairs) == {"cos", "roll_", "exp"}
    assert unproven({("sin:complex", "v"), ("dtype:complex", "v")}) == {"sin:complex"}
    # nothing is transformed, or nothing is computed
    assert unproven({("exp", ""), ("shape", "vjj"), *(("dim", at) for at in ("v", "j"))}) == set()


def test_a_release_without_a_table_proves_nothing(monkeypatch):
    monkeypatch.setattr(facts, "TORCH", (99, 0, 0))
    assert unproven({("add", "v")}) == {"add"}


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_tables_are_well_formed(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# torch {path.stem}.")
    found = parse(text)
    listed = [name for line in text.splitlines() if line[0] not in "[#" for name in line.split()]
    assert len(found) == len(listed) > 400
    assert all(re.fullmatch(r"[\w:=.]+", name) for name in listed)
    assert not METADATA & set(listed)
    assert not {"custom_function_call", "triplet_margin_with_distance_loss"} & set(map(bare, listed))
    assert all(re.fullmatch(r"a?[vgj]+", at) for levels in found.values() for at in levels)
    assert {"v", "j", "vj", "vg", "jg", "vjg", "vgg"} <= found["sin"]
    assert pkgutil.get_data(proven.__package__, f"proven/{path.name}")


def test_all_releases_have_a_table():
    matrix = Path(__file__).parents[1] / "matrix.toml"
    releases = re.findall(r'name = "torch-(2\.\d+)\.', matrix.read_text(encoding="utf-8"))
    assert len(releases) >= 16
    assert set(releases) == {path.stem for path in TABLES}


def test_the_table_of_this_release_is_found():
    """Also where the package is installed from a wheel."""
    assert TABLES
    assert bool(table(*facts.TORCH[:2])) == (facts.TORCH >= (2, 0))


def _roll(library):
    return library.vmap(lambda x: torch.roll(x, 1))(X), torch.stack([torch.roll(x, 1) for x in X])


def _index_fill(library):
    place = torch.tensor([0])
    return (
        library.vmap(lambda x: torch.zeros(2).double().index_fill(0, place, x))(X[0]),
        torch.stack([torch.zeros(2).double().index_fill(0, place, x) for x in X[0]]),
    )


def _cholesky_inverse(library):
    factor = torch.tensor([[2.0, 0.0], [1.0, 3.0]]).double()
    dense = lambda a: torch.linalg.inv(a.tril() @ a.tril().transpose(-2, -1))
    wanted = torch.autograd.functional.jacobian(dense, factor)
    return library.jacfwd(lambda a: torch.cholesky_inverse(a.tril()))(factor), wanted


WRONG = {("roll", "v"): _roll, ("index_fill", "v"): _index_fill, ("cholesky_inverse", "vj"): _cholesky_inverse}


@needs_modes
@pytest.mark.parametrize(("name", "at"), WRONG)
def test_what_torch_gets_wrong_is_not_proven(name, at):
    got, wanted = WRONG[name, at](torch.func)
    if not torch.allclose(got, wanted):
        assert unproven({(name, at)}) == {name}
    else:
        assert unproven({(name, at)}) <= {name}


def _verdict(*cases):
    """What the sweep makes of cases: the name of an operation, levels, what became of it, and what was recorded."""
    path = Path(__file__).parent / "sweep" / "judge.py"
    spec = importlib.util.spec_from_file_location("sweep_judge", path)
    judge = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(judge)
    results = []
    for name, at, outcome, *main in cases:
        key = json.dumps([at, outcome, [[operation, at] for operation in main], [["reshape", "v"]]])
        found = {key: {"kind": "values", "case": f"{name}(x)", "text": "", "count": 1}}
        results.append({"name": name, "seconds": 0.0, "cases": 1, "found": found})
    return judge.Verdict(results)


def test_the_sweep_proves_what_was_right_and_never_wrong():
    verdict = _verdict(
        ("sin", "v", "right", "sin"),
        ("roll", "v", "right", "roll"),
        ("roll", "v", "wrong", "roll"),
        ("roll", "vg", "right", "roll"),
        ("roll", "j", "right", "roll"),
        ("glu", "v", "right", "glu"),
        ("glu", "j", "refused", "glu"),
        ("cond", "v", "right", "?cond"),
        ("Square", "vg", "right", "custom_function_call"),
    )
    expected = {("sin", "v"), ("glu", "v"), ("roll", "j"), ("reshape", "v")}
    assert verdict.proven == expected  # and not roll under vg, where it is mapped, too
    assert parse(verdict.table()) == {"sin": {"v"}, "glu": {"v"}, "roll": {"j"}, "reshape": {"v"}}
    assert "roll [v]" in verdict.report()


def test_the_sweep_proves_in_place_what_it_proves_out_of_place():
    cases = [("x", "v", "right", "add_"), ("x", "v", "right", "add"), ("x", "v", "right", "fill_")]
    assert _verdict(*cases).proven == {("add_", "v"), ("add", "v"), ("fill_", "v"), ("reshape", "v")}
    cases = [("x", "j", "right", "cumprod_"), ("x", "j", "refused", "cumprod"), ("x", "j", "right", "__add__")]
    assert _verdict(*cases).proven == {("__add__", "j"), ("reshape", "v")}


def test_the_sweep_blames_the_operation_that_is_not_right_alone():
    alone = [("mul", "v", "right", "mul"), ("fold", "j", "right", "fold")]
    assert _verdict(*alone, ("x of y", "v", "wrong", "mul", "fold")).disproved == {("fold", "v")}
    # that of its own name
    assert _verdict(*alone, ("mul", "v", "wrong", "mul", "fold")).disproved == {("mul", "v")}
    # those that were right least often
    often = [("mul", "v", "right", "mul")] * 9
    both = [("fold", "v", "right", "fold"), ("x of y", "v", "wrong", "mul", "fold")]
    assert _verdict(*often, *both).disproved == {("fold", "v")}
