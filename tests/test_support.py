"""The support matrix: how each operator is computed for functions of several kinds, seen while its values are checked.

``pytest tests/test_support.py --support docs/support`` writes what was seen into a file for this torch; the page of the
documentation is made of these files.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import torch_func_compat as tfc
from torch_func_compat import _selfcheck, functional
from torch_func_compat._guards.recognition import refusal
from torch_func_compat._torch import facts

ENERGY, FIELD = _selfcheck.energy, _selfcheck.field


def plain(x):
    return x


def branching(x):
    return x if float(x.sum()) < 1e6 else 0 * x


class Legacy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.clone()


class Ours(tfc.Function):
    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad.clone()


# What the function does with its first argument, on the way
KINDS = {
    "torch operations": plain,
    "a branch on a value": branching,
    "an autograd.Function in the old style": Legacy.apply,
    "this library's Function": Ours.apply,
}


def energy(x, a):
    return _selfcheck.energy(x, a)  # by way of the module: the kinds put theirs there


def field(x, a):
    return _selfcheck.field(x, a)


def energies(p):
    return torch.exp((p.batch * p.a).sum(1))


def eager(call, expected):
    """A function of `torch_func_compat.functional`, mapped: what torch's own cannot do."""

    def cases(p):
        yield tfc.vmap(lambda x: call(x, p))(p.batch), torch.stack([expected(x, p) for x in p.batch])

    return cases


def second(x, p):
    return torch.ger(p.a, p.a) * ENERGY(x, p.a)


def functional_call(p):
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros_like(p.a))

        def forward(self, x):
            return energy(self.weight, x)

    module = Module()
    gradients = tfc.vmap(tfc.grad(lambda w, x: tfc.functional_call(module, w, (x,))), in_dims=(None, 0))
    yield gradients({"weight": p.a}, p.batch), {"weight": energies(p)[:, None] * p.batch}


def stack_module_state(p):
    models = [torch.nn.Linear(3, 1, bias=False).to(p.x) for _ in range(2)]
    ensemble = tfc.vmap(
        lambda w, b, x: energy(tfc.functional_call(models[0], (w, b), (x,)), x[:1]), in_dims=(0, 0, None)
    )
    stacked, buffers = tfc.stack_module_state(models)
    stacked = {name: value.detach() for name, value in stacked.items()}
    yield ensemble(stacked, buffers, p.x), torch.stack([ENERGY(m.weight.detach()[0] @ p.x, p.x[:1]) for m in models])


def replace_all_batch_norm_modules_(p):
    norm = tfc.replace_all_batch_norm_modules_(torch.nn.BatchNorm1d(3, affine=False).to(p.x))
    batches = torch.stack([p.batch, 2 * p.batch])
    centred = batches - batches.mean(1, keepdim=True)
    expected = centred / ((centred**2).mean(1, keepdim=True) + norm.eps).sqrt()
    yield tfc.vmap(norm)(batches), expected


def functionalize(p):
    yield tfc.functionalize(energy)(p.x, p.a), ENERGY(p.x, p.a)


MORE = {
    "functional.vjp": eager(lambda x, p: functional.vjp(energy, (x, p.a))[1][0], lambda x, p: p.a * ENERGY(x, p.a)),
    "functional.jvp": eager(
        lambda x, p: functional.jvp(lambda y: field(y, p.a), x, p.a)[1],
        lambda x, p: _selfcheck.field_jacobian(x, p.a) @ p.a,
    ),
    "functional.jacobian": eager(
        lambda x, p: functional.jacobian(lambda y: field(y, p.a), x, vectorize=True),
        lambda x, p: _selfcheck.field_jacobian(x, p.a),
    ),
    "functional.hessian": eager(lambda x, p: functional.hessian(lambda y: energy(y, p.a), x, vectorize=True), second),
    "functional.vhp": eager(
        lambda x, p: functional.vhp(lambda y: energy(y, p.a), x, p.x)[1], lambda x, p: second(x, p) @ p.x
    ),
    "functional.hvp": eager(
        lambda x, p: functional.hvp(lambda y: energy(y, p.a), x, p.x)[1], lambda x, p: second(x, p) @ p.x
    ),
    "functional_call": functional_call,
    "stack_module_state": stack_module_state,
    "replace_all_batch_norm_modules_": replace_all_batch_norm_modules_,
    "functionalize": functionalize,
}
CHECKS = {**_selfcheck.CHECKS, **MORE}
# These are not given the function that has something on the way
APART = ("stack_module_state", "replace_all_batch_norm_modules_", "functionalize", "bjacrev")
ROWS = [
    (kind, name)
    for kind in KINDS
    for name in CHECKS
    if kind == "torch operations" or not (name in APART or name.startswith("batch_"))
]


def largest_error(name, point):
    return max(_selfcheck._difference(*case) for case in CHECKS[name](point))


def seen(name, point):
    """The route of the first case of an operator."""
    next(CHECKS[name](point))  # what is found out or imported at a first call is not looked at
    with _selfcheck._Watch() as watch:
        next(CHECKS[name](point))
    if watch.looped or False in watch.rows:
        return "looped"
    if True in watch.rows:
        return "vectorised rows"
    return "derived" if watch.derived else "native"


@pytest.mark.parametrize("kind, name", ROWS)
def test_operator(request, monkeypatch, backend, kind, name):
    passed = []

    def on_the_way(x):
        passed.append(True)
        return KINDS[kind](x)

    monkeypatch.setattr(_selfcheck, "energy", lambda x, a: ENERGY(on_the_way(x), a))
    monkeypatch.setattr(_selfcheck, "field", lambda x, a: FIELD(on_the_way(x), a))
    for fact in facts.FACTS:
        facts.has(fact)  # probes of values are not to be watched
    point, why = _selfcheck.Point.on("cpu"), ""
    try:
        with tfc.use_fallback("error"):
            route = seen(name, point)
    except NotImplementedError as error:
        if name != "functionalize":
            raise
        route, why = "refused", str(error)
    except (RuntimeError, IndexError) as error:
        refused = refusal(error)
        assert refused is not None, error
        with tfc.use_fallback("silent"):
            route, why = f"falls back, {seen(name, point)}", refused.meaning
    if route != "refused":
        with tfc.use_fallback("silent"):
            assert largest_error(name, point) <= _selfcheck.limit_on("cpu")
    assert passed or kind == "torch operations"
    assert route != "refused" or facts.TORCH < (1, 13)
    folder = request.config.getoption("--support")
    if folder:
        record(Path(folder), kind, name, backend, route, why)


def record(folder, kind, name, backend, route, why):
    """Add an entry to the file of this torch, which has one line for each operator."""
    file = folder / f"torch-{'.'.join(map(str, facts.TORCH))}.json"
    seen = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    seen.setdefault(kind, {}).setdefault(name, {})[backend] = [route, why] if why else [route]
    kinds = []
    for kind, row in seen.items():
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(cells)}" for name, cells in row.items())
        kinds.append(f" {json.dumps(kind)}: {{\n{lines}\n }}")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text("{\n" + ",\n".join(kinds) + "\n}\n", encoding="utf-8")
