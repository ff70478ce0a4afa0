"""The kit for test suites: right derivatives pass, and each kind of wrong one is found and named."""

from __future__ import annotations

import ast
import textwrap
import warnings
from collections import OrderedDict, defaultdict, namedtuple

import pytest
import torch
from support.processes import PACKAGE, run_python

import torch_func_compat as tfc
from torch_func_compat import testing
from torch_func_compat.autograd import checks
from torch_func_compat.testing import BATCH_OPERATORS, OPERATORS, DerivativeError, Scenario, check, check_scenarios
from torch_func_compat.testing._point import Point
from torch_func_compat.testing._references import FiniteDifferences, Loop

X = torch.tensor([0.4, -0.7, 1.1], dtype=torch.float64)
BATCH = torch.stack([X, X.flip(0), 2 * X, X + 1])


def cubes(x):
    return (x**3).sum()


def field(x):
    return torch.stack([x[0] * x[1] ** 2, x.sin().sum()])


class Wrong(tfc.Function):
    """``x**3``, whose derivative is said to be ``2 x**2``."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] ** 2 * gradient


class WrongTwice(tfc.Function):
    """``x**3`` with the right first derivative, which is then taken for a constant."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * gradient


def problem(report, operator, backend=None):
    return report.row(operator, backend).problems[0]


# --- references -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, limit", [(FiniteDifferences, 1e-9), (Loop, 1e-14)])
def test_references_equal_closed_forms(kind, limit):
    x, y, _ = X
    found = kind(Point(field, (X,), 0))
    zero = torch.zeros_like(x)
    jacobian = torch.stack([torch.stack([y**2, 2 * x * y, zero]), X.cos()])
    hessian = torch.stack(
        [
            torch.stack([torch.stack([zero, 2 * y, zero]), torch.stack([2 * y, 2 * x, zero]), 0 * X]),
            torch.diag(-X.sin()),
        ]
    )
    for got, expected in (
        (found.value, field(X)),
        (found.jacobian(), jacobian),
        (found.hessian(), hessian),
        (found.diagonal(), hessian.diagonal(0, 1, 2)),
    ):
        assert got.shape == expected.shape
        assert float((got - expected).abs().max()) <= limit


def test_finite_differences_know_nothing_of_autograd():
    found = FiniteDifferences(Point(lambda x: Wrong.apply(x).sum() + (x - x.detach()).sum(), (X,), 0))
    assert float((found.jacobian()[0] - 3 * X**2).abs().max()) < 1e-9


def test_steps_grow_with_the_inputs():
    found = FiniteDifferences(Point(lambda x: (x**2).sum(), (1e4 * X,), 0))
    assert float((found.hessian()[0] - 2 * torch.eye(3, dtype=X.dtype)).abs().max()) < 1e-6


# --- right derivatives pass -------------------------------------------------------------------------------------


@pytest.mark.parametrize("against", ["finite-differences", "loop"])
@pytest.mark.parametrize("function", [cubes, field])
def test_all_operators_pass(function, against):
    report = check(function, (X,), against=against)
    operators = [name for name in OPERATORS if function is cubes or name in {row.operator for row in report}]
    expected = [(name, backend) for name in operators for backend in tfc.available_backends()]
    assert [(row.operator, row.backend) for row in report] == expected
    assert ("grad" in operators) == (function is cubes)
    for row in report:
        assert row.error <= (1e-8 if against == "finite-differences" else 1e-12)
        assert not row.fell_back or row.backend == "functorch"  # torch 1.11 to 1.13 refuse forward over forward mode
        assert (row.batched is None) == (row.operator == "vmap")
        assert row.differentiated is not None and row.differentiated <= 1e-12


def test_batch_operators_pass():
    report = check(lambda x: (x.sin() ** 2).sum(1), (BATCH,), operators=BATCH_OPERATORS)
    assert {row.operator for row in report} == set(BATCH_OPERATORS)
    check(lambda x, n: {"y": x.sin() ** n}, (BATCH, 3), operators=BATCH_OPERATORS, against="loop")


def test_structures(backend):
    Pair = namedtuple("Pair", "left right")

    def function(pair, weights, numbers):
        return OrderedDict(b=pair.left * weights["w"], a=[pair.right.sum() * numbers.sum(), (weights["v"].sin(),)])

    inputs = (Pair(X, X[:2]), defaultdict(list, w=X.exp(), v=X[:1]), torch.tensor([1, 2]))
    report = check(function, inputs, backends=backend, against="loop", differentiate=False)
    assert report.ok and len(report) > 8
    operators = ["vjp", "jacrev", "jvp", "hessian"]
    assert check(function, inputs, operators, backend, "loop", argnums=-2, differentiate=False).ok
    assert check(function, inputs, operators, backend, "loop", argnums=(1, 0), differentiate=False).ok


def test_closed_forms(backend):
    forms = {
        "grad": lambda x: 3 * x**2,
        "hessian": lambda x: torch.diag(6 * x),
        "hvp": lambda x: (cubes(x), (6 * x,)),
        "vjp": lambda x: (cubes(x), (6 * x**2,)),
    }
    tangents, cotangents = (torch.ones_like(X),), torch.tensor(2.0, dtype=X.dtype)
    assert check(cubes, (X,), ["grad", "hessian"], backend, forms).ok
    assert check(cubes, (X,), "hvp", backend, forms["hvp"], vector=tangents).ok
    assert check(cubes, (X,), "vjp", backend, forms["vjp"], vector=cotangents).ok
    with pytest.raises(DerivativeError, match=r"grad on .*values: differ by"):
        check(cubes, (X,), "grad", backend, lambda x: 3.001 * x**2)


def test_samples_that_are_given(backend):
    seen = []

    def function(x):
        seen.append(x)
        return cubes(x)

    samples = [(X,), (X + 5,)]
    report = check(function, (X,), "grad", backend, batch=samples)
    assert report.row("grad").batched == 0
    assert any(torch.equal(checks.unwrap(x), X + 5) for x in seen if not x.requires_grad)
    assert check(function, (X,), "grad", backend, batch=0).row("grad").batched is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes(dtype, backend):
    x = X.to(dtype)
    assert check(lambda x: x * x * x, (x,), ["jacrev", "jvp"], backend, differentiate=False, batch=0).ok


def test_inputs_of_several_dtypes(backend):
    operators = ["vjp", "jvp", "jacrev", "jacfwd", "hessian"]
    assert check(lambda a, b: a.double() * b, (X.float(), X), operators, backend, "loop", tolerance=1e-5).ok


# --- wrong ones are found -----------------------------------------------------------------------------------------


def test_a_wrong_backward_is_found(backend):
    function = lambda x: Wrong.apply(x).sum()
    report = check(function, (X,), backends=backend, raises=False)
    assert {row.operator for row in report.failed} == set(OPERATORS) - {"vmap"}
    assert problem(report, "grad").startswith("values: differ by")
    # plain autograd runs the same backward
    assert check(function, (X,), ["grad", "hessian"], backend, "loop").ok


def test_a_wrong_second_derivative_is_found(backend):
    report = check(lambda x: WrongTwice.apply(x).sum(), (X,), ["grad", "hessian", "hvp"], backend, raises=False)
    assert [row.operator for row in report.failed] == ["hessian", "hvp"]


def _broken(change):
    """The library's gradient, with something changed."""
    return {"grad": lambda func, argnums: lambda *args: change(tfc.grad(func, argnums)(*args))}


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda g: g.float(), "dtype: torch.float32, expected torch.float64"),
        (lambda g: g[None], r"shape: \(1, 3\), expected \(3,\)"),
        (lambda g: (g,), r"structure: tuple\(\*\), expected \*"),
        (lambda g: 1.5, "type: float, expected a tensor"),
        (lambda g: g * 1.001, "values: differ by"),
        (lambda g: g * float("nan"), "values: differ by inf"),
        (lambda g: g.detach(), "requires_grad: leaf 0 of the result does not require grad, and the inputs do"),
        (lambda g: g.detach().requires_grad_(), "requires_grad: the result requires grad, and no input does"),
        (lambda g: g.detach() * (1 + 0 * g), "derivative of the result: differs by"),
    ],
)
def test_each_difference_is_named(change, expected, backend):
    with pytest.raises(DerivativeError, match=rf"(?s)lambda.*grad on {backend}: {expected}"):
        check(lambda x: cubes(x), (X,), _broken(change), backend)


def test_a_function_that_differs_within_a_batch(backend):
    def by_dtype(x):
        return cubes(x).float() if checks.is_batched(x) else cubes(x)

    def by_value(x):
        return cubes(x) * (2 if checks.is_batched(x) else 1)

    if backend == "autograd":
        assert check(by_value, (X,), "jacrev", backend).ok  # its vmap is a loop over plain tensors
        return
    with tfc.use_checks("off"):  # by which the library itself would notice
        found = problem(check(by_dtype, (X,), "jvp", backend, raises=False), "jvp")
    assert found == "vmap over stacked inputs: dtype of leaf 0: torch.float32, expected torch.float64"
    with tfc.use_checks("off"):
        found = problem(check(by_value, (X,), "jvp", backend, raises=False), "jvp")
    assert found.startswith("vmap over stacked inputs: values: differ by")


def test_samples_that_depend_on_each_other(backend):
    centred = lambda x: ((x - x.mean(0)) ** 2).sum(1)
    report = check(centred, (BATCH,), "batch_jacobian", backend, raises=False)
    assert problem(report, "batch_jacobian").startswith("raises: the call raised DependentSamples")
    with tfc.use_checks("off"):
        report = check(centred, (BATCH,), "batch_jacobian", backend, raises=False)
    assert problem(report, "batch_jacobian").startswith("values: differ by")


def test_an_operator_that_raises(backend):
    def raises(x):
        if x.requires_grad or checks.is_functorch_tensor(x):
            raise KeyError("no derivative\nhere")
        return cubes(x)

    with pytest.raises(DerivativeError, match=r"raises: the call raised KeyError: 'no derivative"):
        check(raises, (X,), "grad", backend)
    assert not check(raises, (X,), "grad", backend, raises=False).ok


def test_falling_back_is_seen():
    def branch(x):
        return cubes(x) if float(x.sum()) > -9 else -cubes(x)

    native = tfc.available_backends()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", tfc.FallbackWarning)
        report = check(branch, (X,), ["grad", "vmap"], native)
    refused = native != "autograd"
    # reverse mode refuses nothing; a batch has no value to branch on
    assert [row.fell_back for row in report] == [refused, refused]
    assert ("ok, falls back" in str(report)) == refused
    if refused:
        with pytest.raises(DerivativeError, match="falls back: the backend refused the function"):
            check(branch, (X,), "vmap", native, allow_fallback=False)
        with tfc.use_fallback("error"), pytest.raises(DerivativeError, match="raises: the call raised RuntimeError"):
            check(branch, (X,), "vmap", native)


def test_other_warnings_go_on(backend):
    def warns(x):
        warnings.warn("mind the gap", UserWarning, stacklevel=1)
        return cubes(x)

    with pytest.warns(UserWarning, match="mind the gap"):
        check(warns, (X,), "grad", backend, "loop", batch=0)


def test_functions_that_are_differentiable_once(backend):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return 3 * ctx.saved_tensors[0] ** 2 * gradient

    with tfc.use_fallback("silent"):
        report = check(lambda x: Once.apply(x).sum(), (X,), "grad", backend)
    assert report.row("grad").differentiated is None


def test_parameters_of_a_module_require_grad(backend):
    module = torch.nn.Linear(3, 2).double()
    assert check(module, (X,), ["jacrev", "jvp", "hessian"], backend).ok


# --- counts and the report -----------------------------------------------------------------------------------------


def test_counts(backend):
    report = check(cubes, (X,), ["grad", "vjp", "jacrev", "hessian", "hvp"], backend)
    counts = {row.operator: (row.evaluations, row.passes) for row in report}
    assert counts == {"grad": (1, 1), "vjp": (1, 1), "jacrev": (1, 1), "hessian": (1, 2), "hvp": (1, 2)}
    chunks = {"hessian": lambda func, argnums: tfc.hessian(func, argnums, chunk_size=1)}
    row = check(cubes, (X,), chunks, backend).row("hessian")
    assert (row.evaluations, row.passes) == (1, 4)


FORMS = {"grad": lambda x: 3 * x**2, "hessian": lambda x: torch.diag(6 * x)}


def test_table(backend):
    report = check(cubes, (X,), ["grad", "hessian"], backend, FORMS)
    lines = str(report).splitlines()
    assert lines[0] == f"cubes, against a closed form, torch {torch.__version__}"
    assert lines[1].split() == ["operator", "backend", "error", "batched", "differentiated", "evaluations", "passes"]
    assert [line.split()[:2] for line in lines[2:]] == [["grad", backend], ["hessian", backend]]
    assert all(line.endswith("ok") for line in lines[2:])
    assert report.row("hessian", backend).evaluations == 1
    with pytest.raises(KeyError):
        report.row("jvp")


def test_scenarios_share_their_references():
    calls = []

    def function(x):
        calls.append(x)
        return cubes(x)

    def scenarios(*operators):
        return [Scenario(function, (X,), operator, batch=0) for operator in operators]

    counts = []
    for operators in (["jacrev"], ["jacrev", "jacrev"]):
        calls.clear()
        report = check_scenarios(scenarios(*operators), "autograd", differentiate=False)
        counts.append(len(calls) - sum(row.evaluations for row in report))
    assert counts == [2 + 4 * 3, 2 + 4 * 3]


# --- mistakes of the caller -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: check(cubes, (X,), "gard"), "there is no operator 'gard': expected one of vmap, grad"),
        (lambda: check(field, (X,), "grad"), r"grad takes a function that returns one number, got shapes \[\(2,\)\]"),
        (lambda: check(cubes, (torch.tensor([1, 2]),)), "there is nothing to differentiate"),
        (lambda: check(cubes, (X,), "grad", argnums=1), "argnums has 1, and there are 1 inputs"),
        (lambda: check(cubes, (X, 2), "grad", argnums=1), "input 1 is to be differentiated"),
        (lambda: check(cubes, (X,), against=cubes), "one closed form goes with one operator"),
        (lambda: check(cubes, (X,), ["grad"], against={}), "against has no closed form of grad"),
        (lambda: check(cubes, (X,), "grad", against="autograd"), "reference 'autograd': expected"),
        (lambda: check(cubes, (torch.complex(X, X),), "vjp"), "an input is complex"),
        (lambda: check(cubes, (X, torch.complex(X, X)), "vjp"), "split it into its real and imaginary parts"),
        (lambda: check(lambda x: torch.complex(x, x), (X,), "vjp"), "their real and imaginary parts"),
        (lambda: check(lambda x: cubes(x.float()), (X,), "grad"), "needs? a function that computes in float64"),
        (lambda: check(lambda x: x.float() @ X.float(), (X.float(),), "grad"), "it returned torch.float32"),
        (lambda: check(lambda x: x @ X.float(), (X.float(),), "grad"), "finite differences evaluate the function in"),
        (lambda: check(cubes, (X.sum(),), "batch_jacobian"), "expected inputs with one batch size"),
    ],
)
def test_mistakes_are_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nothing_of_the_caller_changes(backend):
    x = X.clone().requires_grad_()
    state = torch.get_rng_state()

    def overwrites(x):
        x = x.clone()
        x.mul_(2)
        return (x**2).sum()

    check(overwrites, (x,), backends=backend)
    assert x.grad is None and x.requires_grad and torch.equal(x, X)
    assert torch.equal(torch.get_rng_state(), state) and tfc.get_fallback() == "warn"


def test_nothing_private_of_the_package_is_imported():
    for path in sorted(PACKAGE.joinpath("testing").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 2:
                assert (node.module or node.names[0].name) in ("autograd", "autograd.internals"), path.name
    # pytest adds names that are no identifiers where it rewrites assertions
    names = {name for name in vars(testing) if name.isidentifier() and not name.startswith("_")}
    assert names - {"annotations"} == set(testing.__all__)


# --- the pytest plugin ---------------------------------------------------------------------------------------------

SUITE = """
import torch, pytest
import torch_func_compat as tfc

SEEN = []

def test_each(autograd_backend):
    assert tfc.get_backend() == autograd_backend
    SEEN.append(autograd_backend)

def test_all_were_seen():
    assert tuple(SEEN) == tfc.available_backends()

@pytest.mark.parametrize("autograd_backend", ["autograd"], indirect=True)
def test_one(autograd_backend):
    assert tfc.get_backend() == "autograd"
"""


def run_pytest(tmp_path, suite, *arguments):
    (tmp_path / "test_suite.py").write_text(textwrap.dedent(suite), encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), *arguments]
    return run_python("-m", "pytest", *options, str(tmp_path / "test_suite.py"), PYTEST_ADDOPTS=None)


PLUGIN = ["-p", "pytest_torch_func_compat"]


@pytest.mark.slow
@pytest.mark.any_torch
def test_the_fixture_runs_a_test_on_every_backend(tmp_path):
    process = run_pytest(tmp_path, SUITE, *PLUGIN)
    assert process.returncode == 0, process.stdout + process.stderr
    assert f"{len(tfc.available_backends()) + 2} passed" in process.stdout


@pytest.mark.any_torch
def test_the_plugin_imports_no_torch_before_it_is_used(tmp_path):
    suite = """
    import sys

    def test_plain():
        assert "pytest_torch_func_compat" in sys.modules
        assert "torch" not in sys.modules and "torch_func_compat" not in sys.modules
    """
    process = run_pytest(tmp_path, suite, *PLUGIN)
    assert process.returncode == 0, process.stdout + process.stderr


def test_the_fixture_agrees_with_ours(autograd_backend):
    assert tfc.get_backend() == autograd_backend


def test_check_runs_within_the_fixture(autograd_backend):
    assert check(cubes, (X,), "hessian", autograd_backend).row("hessian").backend == autograd_backend


def test_a_tensor_is_no_sequence_of_arguments():
    with pytest.raises(TypeError, match=r"write \(x,\) for one argument"):
        check(torch.sin, torch.ones(1))
