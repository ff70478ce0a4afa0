"""The parameters of torch.func and torch.autograd.functional, as of the release that this library follows.

Ours have them on every torch; those of the newest torch, nightlies included, are compared with the table, so that
whatever a release adds is noticed.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from packaging.version import Version

import torch_func_compat as tfc

FOLLOWED = Version(tfc.__api_version__).release
NEWEST = Version(torch.__version__).release >= FOLLOWED

FUNC = {
    "functional_call": (
        "(module, parameter_and_buffer_dicts, args=None, kwargs=None, *, tie_weights=True, strict=False)"
    ),
    "functionalize": "(func, *, remove='mutations')",
    "grad": "(func, argnums=0, has_aux=False)",
    "grad_and_value": "(func, argnums=0, has_aux=False)",
    "hessian": "(func, argnums=0)",
    "jacfwd": "(func, argnums=0, has_aux=False, *, randomness='error')",
    "jacrev": "(func, argnums=0, *, has_aux=False, chunk_size=None, _preallocate_and_copy=False)",
    "jvp": "(func, primals, tangents, *, strict=False, has_aux=False)",
    "linearize": "(func, *primals)",
    "replace_all_batch_norm_modules_": "(root)",
    "stack_module_state": "(models)",
    "vjp": "(func, *primals, has_aux=False)",
    "vmap": "(func, in_dims=0, out_dims=0, randomness='error', *, chunk_size=None)",
}
# Names of torch.func that are no transforms and that this library leaves to it.
LEFT_OUT = {
    "debug_unwrap": "looks into torch.func's own wrappers: `autograd.checks.unwrap` does so on every torch",
    "rearrange": "the notation of einops for plain tensors, which works under every transform as any operation does",
}
EAGER = {
    "hessian": (
        "(func, inputs, create_graph=False, strict=False, vectorize=False, outer_jacobian_strategy='reverse-mode')"
    ),
    "hvp": "(func, inputs, v=None, create_graph=False, strict=False)",
    "jacobian": "(func, inputs, create_graph=False, strict=False, vectorize=False, strategy='reverse-mode')",
    "jvp": "(func, inputs, v=None, create_graph=False, strict=False)",
    "vhp": "(func, inputs, v=None, create_graph=False, strict=False)",
    "vjp": "(func, inputs, v=None, create_graph=False, strict=False)",
}
TABLES = {"torch.func": (FUNC, tfc), "torch.autograd.functional": (EAGER, tfc.functional)}
ROWS = [(space, name) for space, (table, _) in TABLES.items() for name in table]


def parameters(function):
    """Without annotations, which say less on old torch."""
    found = inspect.signature(function).parameters.values()
    return [parameter.replace(annotation=inspect.Parameter.empty) for parameter in found]


def text(found):
    return str(inspect.Signature(found))


def upstream(space):
    module = torch
    for part in space.split(".")[1:]:
        module = getattr(module, part)
    return module


@pytest.mark.parametrize("space, name", ROWS)
def test_ours_have_the_parameters_of_the_table(space, name):
    """In the same order, with the same defaults; ours may have keyword-only ones more."""
    table, ours = TABLES[space]
    known = dict.fromkeys(parameter.name for parameter in parse(table[name]))
    found = parameters(getattr(ours, name))
    more = [parameter for parameter in found if parameter.name not in known]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in more), more
    assert text([parameter for parameter in found if parameter.name in known]) == table[name]


def parse(signature):
    namespace = {}
    exec(f"def function{signature}: ...", namespace)
    return parameters(namespace["function"])


@pytest.mark.parametrize("space, name", ROWS)
def test_torch_has_the_parameters_of_the_table(space, name):
    if not NEWEST:
        with pytest.raises(AssertionError):  # the comparison notices a signature that is another
            compare(space, name, lambda func, other: None)
        return
    compare(space, name, getattr(upstream(space), name))


def compare(space, name, function):
    theirs = text(parameters(function))
    expected = TABLES[space][0][name]
    assert theirs == expected, (
        f"{space}.{name} of torch {torch.__version__} is {name}{theirs}, and this library follows {name}{expected}: "
        f"give `{TABLES[space][1].__name__}.{name}` what is new there (on every torch and backend, with tests and in "
        f"its docstring), then put the new parameters into the table above, and __api_version__ in __init__.py"
    )


@pytest.mark.skipif(Version(torch.__version__).release < (2, 0), reason="there is no torch.func")
def test_names_of_torch_func():
    names = public(upstream("torch.func"))
    check_names("torch.func", names, {*FUNC, *LEFT_OUT})
    if NEWEST:
        gone = {*FUNC, *LEFT_OUT} - names
        assert not gone, f"torch {torch.__version__} has no torch.func.{gone} any more: say so in the docstrings"


def test_names_of_torch_autograd_functional():
    check_names(
        "torch.autograd.functional", set(getattr(upstream("torch.autograd.functional"), "__all__", EAGER)), EAGER
    )


def public(module):
    """`torch.func` of older torch has no `__all__`."""
    return set(getattr(module, "__all__", (name for name in vars(module) if not name.startswith("_"))))


def check_names(space, theirs, ours):
    new = sorted(theirs - set(ours))
    assert not new, (
        f"torch {torch.__version__} has {new} in {space}, and this library does not: write each of them once, for "
        f"every torch and backend ('To add' in CONTRIBUTING.md), and put its parameters into the table above; or, if "
        f"it is no transform, its name and the reason into LEFT_OUT"
    )


def test_new_names_are_noticed():
    with pytest.raises(AssertionError, match=r"has \['new'\] in torch.func, and this library does not"):
        check_names("torch.func", {*FUNC, "new"}, FUNC)


def test_everything_in_the_tables_is_public():
    assert set(FUNC) <= set(tfc.__all__) and set(EAGER) == set(tfc.functional.__all__)
    assert not set(LEFT_OUT) & set(tfc.__all__)
    assert "functional" in tfc.__all__
