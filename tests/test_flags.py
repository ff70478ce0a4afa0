"""A branch that an earlier call did not take is tested when it is taken."""

from __future__ import annotations

import functools
import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
from support.tolerances import assert_close

import torch_func_compat as tfc
from torch_func_compat._guards.flags import Flags
from torch_func_compat._guards.verdicts import RIGHT, Verdicts
from torch_func_compat._torch import facts

X = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
BATCH = torch.stack([X, 2 * X, X.cos()])
GLOBAL = False


class Settings:
    rolls = False

    def __init__(self):
        self.rolls = False

    def method(self, x):
        return _either(x, self.rolls)


class Model(torch.nn.Module):
    def forward(self, x):
        return _either(x, self.training)


def _either(x, rolls):
    return x.roll(1, 0).cumsum(0) if rolls else 2 * x


def _by_global(x):
    return _either(x, GLOBAL)


def _closed_over():
    value = 0.5

    def func(x):
        return _either(x, value > 1)

    def switch(to):
        nonlocal value
        value = 2.5 if to else 0.75

    return func, switch


def _listed():
    values = [0]
    return lambda x: _either(x, values[0]), functools.partial(values.__setitem__, 0)


def _in_a_dict():
    values = {"mode": "no"}
    return lambda x: _either(x, values["mode"] == "roll"), lambda to: values.update(mode="roll" if to else "none")


def _global():
    return _by_global, lambda to: globals().__setitem__("GLOBAL", to)


def _attribute():
    settings = Settings()
    return lambda x: _either(x, settings.rolls), lambda to: setattr(settings, "rolls", to)


def _method():
    settings = Settings()
    return settings.method, lambda to: setattr(settings, "rolls", to)


def _model():
    model = Model().eval()
    return model, model.train


def _inner_model():
    model = torch.nn.Sequential(torch.nn.Identity(), Model()).eval()
    return lambda x: model(x), model[1].train


PLACES = [_in_a_dict, _global, _attribute, _method, _model, _inner_model]
if facts.has("torch_function_modes"):  # else numbers are not watched, since they may count steps
    PLACES += [_closed_over, _listed]


@pytest.mark.parametrize("place", PLACES)
def test_another_branch_of_a_batch_is_tested(backend, place):
    func, switch = place()
    mapped = tfc.vmap(func)
    with tfc.use_fallback("silent"):
        for to in (False, True, False, True):
            switch(to)
            assert_close(mapped(BATCH), torch.stack([_either(x, to) for x in BATCH]))
    switch(False)


@pytest.mark.skipif(not facts.has("torch_function_modes"), reason="numbers may count steps")
def test_a_number_of_a_new_function_counts(backend):
    with tfc.use_fallback("silent"):
        for number in (0.1, 0.2, 0.3, 2.0):
            found = tfc.vmap(lambda x, number=number: _either(x, number > 1))(BATCH)
            assert_close(found, torch.stack([_either(x, number > 1) for x in BATCH]))


def test_another_branch_of_forward_mode_is_tested(backend):
    exponent, powers = torch.tensor(1.2 + 0.3j, dtype=torch.complex128), [False]

    def func(x):
        return torch.view_as_real(x.abs() ** exponent if powers[0] else x * exponent)

    with tfc.use_fallback("silent"):
        tfc.jvp(func, (X,), (X,))
        powers[0] = True
        found = tfc.jvp(func, (X,), (X,))[1]
    assert_close(found, torch.view_as_real(exponent * X.abs() ** exponent))


def test_numbers_that_leave_torch_in_another_branch_are_seen(backend):
    leaves = [False]

    def func(x):
        return x.sum(), torch.as_tensor(np.sin(x.detach().numpy())).sum() if leaves[0] else x.detach().sum()

    tfc.jacrev(func)(X)
    leaves[0] = True
    if facts.has("torch_func"):
        with pytest.raises(RuntimeError, match="numbers left torch"):
            tfc.jacrev(func)(X)
    else:
        with pytest.warns(UserWarning, match="numbers left torch"):
            tfc.jacrev(func)(X)


def test_a_number_that_counts_calls_does_not_lead_to_tests_forever(backend):
    calls = []
    settings = Settings()

    def func(x):
        settings.rolls += 1
        calls.append(0)
        return x.roll(1)

    mapped = tfc.vmap(func)
    with tfc.use_fallback("silent"), warnings.catch_warnings():
        for _ in range(40):
            assert_close(mapped(BATCH), torch.stack([x.roll(1) for x in BATCH]))
    before = len(calls)
    mapped(BATCH)
    assert len(calls) - before <= len(BATCH)


def test_a_flag_counts_after_many_changes_of_a_number(backend):
    settings = Settings()
    settings.step = 0

    def func(x):
        settings.step += 1
        return _either(x, settings.rolls)

    mapped = tfc.vmap(func)
    with tfc.use_fallback("silent"):
        for _ in range(40):
            mapped(BATCH)
        settings.rolls = True
        assert_close(mapped(BATCH), torch.stack([_either(x, True) for x in BATCH]))


def test_flags_keep_nothing_alive():
    def made():
        settings = Settings()
        settings.func = lambda x: _either(x, settings.rolls)
        return settings

    settings = made()
    found = Flags(settings.func)
    before = found.values(settings.func)
    settings.rolls = True
    assert found.values(settings.func) != before
    alive = weakref.ref(settings)
    del settings
    gc.collect()
    assert alive() is None


def test_verdicts_hold_for_the_flags_that_they_were_given_for():
    values = [True]
    func = lambda x: x + values[0]
    verdicts = Verdicts()
    verdicts.set(func, "call", RIGHT, {("add", "v")})
    assert verdicts.get(func, "call") == RIGHT
    values[0] = False
    assert verdicts.get(func, "call") is None
    assert verdicts.holds_for(func, "call", {("add", "v")})
    assert not verdicts.holds_for(func, "call", {("add", "v"), ("roll", "v")})
    verdicts.set(func, "call", RIGHT, {("add", "v"), ("roll", "v")})
    assert verdicts.get(func, "call") == RIGHT
    values.clear()
    assert verdicts.get(func, "call") is None


def _small_network():
    return torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Linear(4, 3))
    ).double()


@pytest.mark.parametrize("made", [torch.jit.script, lambda m: torch.jit.trace(m, X)], ids=["script", "trace"])
@pytest.mark.parametrize("transform", [tfc.jacrev, tfc.jacfwd, tfc.hessian, tfc.laplacian])
def test_scripted_modules_with_parts(backend, made, transform):
    network = _small_network()
    scripted = made(network)
    with tfc.use_fallback("silent"):
        expected = transform(lambda x: network(x))(X)
        assert_close(transform(scripted)(X), expected)
        assert_close(transform(lambda x: scripted(x))(X), expected)
        assert_close(tfc.vmap(transform(scripted))(X[None]), expected[None])
        assert_close(tfc.batch_jacobian(scripted)(X[None]), tfc.jacrev(network)(X)[None])


def test_the_mode_of_a_scripted_module_is_a_flag():
    scripted = torch.jit.script(_small_network())
    flags = Flags(scripted)
    before = flags.values(scripted)
    scripted.eval()
    assert flags.values(scripted) != before
