"""functional_call, stack_module_state and what else is done with modules, on every torch and backend."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.tolerances import assert_close
from torch import nn

import torch_func_compat as tfc
from torch_func_compat import functional, functional_call, replace_all_batch_norm_modules_, stack_module_state
from torch_func_compat._torch import facts, pytree

DTYPE = torch.float64
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
POINT = torch.tensor([0.5, -1.0, 2.0], dtype=DTYPE)


def numbers(*shape):
    return torch.cos(torch.arange(1, 1 + torch.Size(shape).numel(), dtype=DTYPE)).reshape(shape)


class Net(nn.Module):
    """A parameter and a buffer here, and a layer below."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, dtype=DTYPE))
        self.register_buffer("shift", torch.zeros(2, dtype=DTYPE))
        self.layer = nn.Linear(3, 2).to(DTYPE)

    def forward(self, x, factor=1.0):
        return torch.tanh(self.layer(x)) * self.scale * factor + self.shift


GIVEN = {
    "scale": numbers(2),
    "shift": numbers(2) + 1,
    "layer.weight": numbers(2, 3),
    "layer.bias": -numbers(2),
}


def closed_form(state, x):
    return torch.tanh(x @ state["layer.weight"].t() + state["layer.bias"]) * state["scale"] + state["shift"]


def tensors(module):
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


class Unchanged:
    """Checks that a module has the tensors that it had, with their values."""

    def __init__(self, module):
        self.module = module

    def __enter__(self):
        self.tables = [(part, *map(dict, (part._parameters, part._buffers))) for part in self.module.modules()]
        self.values = {name: value.clone() for name, value in tensors(self.module).items()}
        self.type = type(self.module)
        return self.module

    def __exit__(self, *error):
        for part, parameters, buffers in self.tables:
            for before, now in ((parameters, part._parameters), (buffers, part._buffers)):
                assert list(before) == list(now)
                assert all(before[name] is now[name] for name in before)
        assert_close(tensors(self.module), self.values)
        assert type(self.module) is self.type


def test_what_is_given_is_used(backend):
    with Unchanged(Net()) as net:
        expected = closed_form(GIVEN, POINT)
        parameters = {name: value for name, value in GIVEN.items() if name != "shift"}
        for given in (GIVEN, [GIVEN], (parameters, {"shift": GIVEN["shift"]})):
            assert_close(functional_call(net, given, POINT), expected)
            assert_close(functional_call(net, given, (POINT,), strict=True), expected)
        assert_close(functional_call(net, GIVEN, (POINT,), {"factor": 2.0}), 2 * expected - GIVEN["shift"])
        assert_close(functional_call(net, GIVEN, kwargs={"x": POINT}), expected)
        # what is not given is the module's own
        own = {**tensors(net), "scale": GIVEN["scale"]}
        assert_close(functional_call(net, {"scale": GIVEN["scale"]}, POINT), closed_form(own, POINT))


def test_differentiated_by_every_transform(backend):
    def f(state):
        return functional_call(net, state, POINT)

    def g(state):
        return closed_form(state, POINT)

    direction = {name: numbers(*value.shape) + 0.5 for name, value in GIVEN.items()}
    with Unchanged(Net()) as net:
        assert_close(tfc.grad(lambda p: f(p).sum())(GIVEN), tfc.grad(lambda p: g(p).sum())(GIVEN))
        assert_close(tfc.jvp(f, (GIVEN,), (direction,)), tfc.jvp(g, (GIVEN,), (direction,)))
        for transform in (tfc.jacrev, tfc.jacfwd, tfc.hessian):
            assert_close(transform(f)(GIVEN), transform(g)(GIVEN))
        assert_close(tfc.vjp(f, GIVEN)[1](numbers(2)), tfc.vjp(g, GIVEN)[1](numbers(2)))
        weights = (GIVEN["layer.weight"],)
        by_weight = functional.jacobian(lambda w: f({**GIVEN, "layer.weight": w}), weights, vectorize=True)
        assert_close(by_weight, functional.jacobian(lambda w: g({**GIVEN, "layer.weight": w}), weights))


def test_gradients_of_samples(backend):
    with Unchanged(Net()) as net:
        inputs = numbers(4, 3)

        def loss(state, x):
            return functional_call(net, state, (x,)).pow(2).sum()

        found = tfc.vmap(tfc.grad(loss), in_dims=(None, 0))(GIVEN, inputs)
        for i, x in enumerate(inputs):
            expected = tfc.grad(lambda p: closed_form(p, x).pow(2).sum())(GIVEN)  # noqa: B023
            assert_close({name: value[i] for name, value in found.items()}, expected)


def test_ensemble(backend):
    torch.manual_seed(3)
    models = [Net() for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    assert list(parameters) == ["scale", "layer.weight", "layer.bias"] and list(buffers) == ["shift"]
    assert all(p.is_leaf and p.requires_grad for p in parameters.values())
    assert not any(b.requires_grad for b in buffers.values())
    assert_close(parameters["layer.weight"].detach(), torch.stack([m.layer.weight.detach() for m in models]))
    ensemble = tfc.vmap(lambda p, b, x: functional_call(models[0], (p, b), (x,)), in_dims=(0, 0, None))
    outputs = ensemble(parameters, buffers, POINT)
    assert_close(outputs.detach(), torch.stack([model(POINT).detach() for model in models]))
    outputs.sum().backward()
    assert parameters["scale"].grad.shape == (3, 2)
    assert all(p.grad is None for model in models for p in model.parameters())
    # a ModuleList is as good as a list
    assert_close(stack_module_state(nn.ModuleList(models))[1], buffers)


def test_stack_module_state_errors():
    for models, message in (
        ([], "Expected at least one model, got 0"),
        ([Net(), Net().eval()], "same training/eval mode"),
        ([nn.Linear(2, 2), nn.ReLU()], "Expected all models to be of the same class"),
        ([nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)], "to have the same .requires_grad"),
        ([nn.Linear(2, 2), nn.Linear(2, 2, bias=False)], "same parameters and buffers.*bias"),
    ):
        with pytest.raises(RuntimeError, match=message):
            stack_module_state(models)
    frozen = stack_module_state([nn.Linear(2, 2).requires_grad_(False) for _ in range(2)])[0]
    assert not any(value.requires_grad for value in frozen.values())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.ones((), dtype=DTYPE))
        self.second = self.first
        self.register_buffer("third", self.first)

    def forward(self, x):
        return x + self.first + 10 * self.second + 100 * self.third


def test_tied_weights(backend):
    one, two = torch.tensor(1.0, dtype=DTYPE), torch.tensor(2.0, dtype=DTYPE)
    zero = torch.zeros((), dtype=DTYPE)
    with Unchanged(Tied()) as tied:
        for name in ("first", "second", "third"):
            assert_close(functional_call(tied, {name: two}, zero), 222 * one)
        assert_close(functional_call(tied, {"first": two}, zero, tie_weights=False), 112 * one)
        assert_close(functional_call(tied, {"first": two, "second": two}, zero), 222 * one)
        assert_close(functional_call(tied, {"first": two}, zero, strict=True), 222 * one)
        different = {"first": one, "second": two}
        assert_close(functional_call(tied, different, zero, tie_weights=False), 121 * one)
        with pytest.raises(ValueError, match=r"got multiple values for keys.*which are tied"):
            functional_call(tied, different, zero)
        with pytest.raises(RuntimeError, match=r"Missing key.*'second', 'third'"):
            functional_call(tied, {"first": two}, zero, tie_weights=False, strict=True)
        assert_close(tfc.grad(lambda p: functional_call(tied, p, zero))({"second": two}), {"second": 111 * one})


def test_submodule_with_two_names(backend):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2, bias=False).to(DTYPE)
            self.b = self.a

        def forward(self, x):
            return self.b(self.a(x))

    weight, x = numbers(2, 2), numbers(2)
    with Unchanged(Twice()) as twice:
        for name in ("a.weight", "b.weight"):
            assert_close(functional_call(twice, {name: weight}, x), weight @ weight @ x)
        # both names, two tensors: the last one is in the one place that there is
        both = {"a.weight": torch.zeros_like(weight), "b.weight": weight}
        assert_close(functional_call(twice, both, x, tie_weights=False), weight @ weight @ x)
    twice.a.twice = twice  # a cycle
    assert_close(functional_call(twice, {"a.twice.b.weight": weight}, x), weight @ weight @ x)


def test_restored_when_it_raises(backend):
    class Refuses(Net):
        def forward(self, x):
            super().forward(x)
            raise ZeroDivisionError

    with Unchanged(Refuses()) as net:
        with pytest.raises(ZeroDivisionError):
            functional_call(net, GIVEN, POINT)
        with pytest.raises(ZeroDivisionError):
            tfc.grad(lambda p: functional_call(net, p, POINT))(GIVEN)
        with pytest.raises(ZeroDivisionError):
            tfc.vmap(lambda x: functional_call(net, GIVEN, x))(POINT[None])
        # one that cannot be placed, after others that were
        with pytest.raises(AttributeError, match="has no attribute `nowhere`"):
            functional_call(net, {**GIVEN, "layer.nowhere.weight": POINT}, POINT)


def test_errors():
    net = Net()
    for given, error, message in (
        (3, ValueError, "Expected parameter_and_buffer_dicts to be a dict, or a list/tuple of dicts"),
        ([GIVEN, None], ValueError, "Expected all elements of parameter_and_buffer_dicts to be dictionaries"),
        ([GIVEN, {"scale": numbers(2)}], ValueError, "'scale'. appeared in multiple dictionaries"),
        ({"scale": 2.0}, TypeError, "`scale`: 2.0 is not an instance of torch.Tensor"),
        ({"layer.in_features": POINT}, TypeError, "attribute `in_features`: 3 is not an instance of torch.Tensor"),
        ({"layer.bias.weight": POINT}, TypeError, r"submodule `layer.bias.weight`: Param"),
        ({"": POINT}, KeyError, "be empty"),
    ):
        with Unchanged(net), pytest.raises(error, match=message):
            functional_call(net, given, POINT)
    with pytest.raises(RuntimeError, match=r"for Net:\n\tUnexpected key.*'new'\.\n\tMissing key.*'shift'"):
        functional_call(net, {**{k: v for k, v in GIVEN.items() if k != "shift"}, "new": POINT}, POINT, strict=True)
    with pytest.raises(AttributeError, match=r"expected a torch\.nn\.Module first, got <class 'function'>"):
        functional_call(lambda x: x, GIVEN, POINT)
    with pytest.raises(TypeError, match=r"expected a list of modules, got <class '.*Net'>"):
        stack_module_state(net)
    with pytest.raises(RuntimeError, match="can't be used with Jitted modules"):
        functional_call(torch.jit.script(nn.Linear(3, 2)), {}, POINT)
    with pytest.raises(RuntimeError, match=r"can't be used with nn\.DataParallel"):
        functional_call(nn.DataParallel(nn.Linear(3, 2)), {}, POINT)


def test_what_the_module_changes(backend):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros((), dtype=DTYPE))
            self.register_buffer("total", torch.zeros((), dtype=DTYPE))

        def forward(self, x):
            self.count = self.count + 1  # another tensor
            self.total += x.detach()  # the same one
            return x * self.count

    with Unchanged(Counts()) as module:
        count, total = torch.ones((), dtype=DTYPE), torch.ones((), dtype=DTYPE)
        for given in (dict(count=count, total=total), (dict(count=count), dict(total=total))):
            total.fill_(1.0)
            assert_close(functional_call(module, given, POINT[2]), 2 * POINT[2])
            changed = given if isinstance(given, dict) else {**given[0], **given[1]}
            assert_close(changed, dict(count=count + 1, total=POINT[2] + 1))
            assert changed["total"] is total and float(count) == 1.0


def test_batch_norm_in_training(backend):
    norm = nn.BatchNorm1d(2).to(DTYPE)
    x = numbers(5, 2)
    buffers = {name: value.clone() for name, value in norm.named_buffers()}
    with Unchanged(norm):
        output = functional_call(norm, (dict(norm.named_parameters()), buffers), x)
    mean, variance = x.mean(0), ((x - x.mean(0)) ** 2).mean(0)
    assert_close(output.detach(), (x - mean) / (variance + norm.eps).sqrt())
    assert_close(buffers["running_mean"], 0.1 * mean)
    assert int(buffers["num_batches_tracked"]) == 1
    # statistics of an ensemble, given to vmap, are updated as well
    stacked = {name: torch.stack([value, value]) for name, value in norm.named_buffers()}
    inputs = torch.stack([x, 2 * x])
    with tfc.use_fallback("silent"):
        tfc.vmap(lambda b, x: functional_call(norm, b, x))(stacked, inputs)
    assert_close(stacked["running_mean"], torch.stack([0.1 * mean, 0.2 * mean]))


def test_replace_all_batch_norm_modules(backend):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm2d(4))).to(DTYPE)
    assert replace_all_batch_norm_modules_(model) is model
    assert not list(model.buffers())
    assert all(value.running_mean is None and not value.track_running_stats for value in (model[1], model[2][0]))
    x = numbers(2, 4, 3)
    mapped = tfc.vmap(lambda x: model[:2](x))(x)
    assert_close(mapped.detach(), torch.stack([model[:2](sample).detach() for sample in x]))
    alone = nn.BatchNorm1d(2)
    assert replace_all_batch_norm_modules_(alone).running_var is None


def test_recurrent_networks_compute_with_what_is_given():
    """torch < 1.12 keeps a list of an RNN's weights beside them."""
    torch.manual_seed(1)
    given, other = nn.GRU(2, 3).to(DTYPE), nn.GRU(2, 3).to(DTYPE)
    x = numbers(4, 1, 2)
    before = other(x)[0].detach()
    state = {name: value.detach() for name, value in given.named_parameters()}
    with Unchanged(other):
        assert_close(functional_call(other, state, x)[0].detach(), given(x)[0].detach())
    assert_close(other(x)[0].detach(), before)
    state = {name: value.clone().requires_grad_() for name, value in state.items()}
    functional_call(other, state, x)[0].sum().backward()
    assert all(value.grad is not None for value in state.values())
    reference = weakref.ref(state["weight_ih_l0"])
    del state
    assert reference() is None  # the module does not hold on to it


@pytest.mark.skipif(not hasattr(nn.utils, "parametrize"), reason="there are no parametrizations before torch 1.9")
def test_parametrizations(backend):
    class Symmetric(nn.Module):
        def forward(self, w):
            return w + w.t()

        def right_inverse(self, w):
            return w.triu() - w.diag().diag() / 2

    layer = nn.Linear(3, 3, bias=False).to(DTYPE)
    nn.utils.parametrize.register_parametrization(layer, "weight", Symmetric())
    weight = numbers(3, 3)
    with Unchanged(layer):
        # by its own name, it is used as it is
        assert_close(functional_call(layer, {"weight": weight}, POINT), weight @ POINT)
        jacobian = tfc.jacrev(lambda w: functional_call(layer, {"weight": w}, POINT))(weight)
        assert_close(jacobian, torch.eye(3, dtype=DTYPE)[:, :, None] * POINT)
        original = {"parametrizations.weight.original": weight}
        assert_close(functional_call(layer, original, POINT), (weight + weight.t()) @ POINT)
        assert_close(functional_call(layer, original, POINT, strict=True), (weight + weight.t()) @ POINT)


class Diagonal(nn.Module):
    """A parametrization by a square."""

    def forward(self, x):
        return x * x


@pytest.mark.skipif("TORCH < (1, 9)", reason="there are no parametrizations")
def test_cached_parametrizations(backend):
    layer = nn.utils.parametrize.register_parametrization(nn.Linear(3, 2).to(DTYPE), "weight", Diagonal())
    name, own = "parametrizations.weight.original", layer.weight.detach().clone()
    states = [{name: numbers(2, 3) + k, "bias": numbers(2)} for k in range(2)]
    expected = [state[name] ** 2 @ POINT + state["bias"] for state in states]
    with nn.utils.parametrize.cached():
        assert_close(layer.weight, own)
        for state, value in zip(states, expected):
            assert_close(functional_call(layer, state, POINT), value)
        stacked = {key: torch.stack([state[key] for state in states]) for key in states[0]}
        assert_close(tfc.vmap(lambda state: functional_call(layer, state, POINT))(stacked), torch.stack(expected))
        found = tfc.grad(lambda state: functional_call(layer, state, POINT).sum())(states[1])
        assert_close(found[name], 2 * states[1][name] * POINT)
        assert_close(layer.weight, own)
        assert nn.utils.parametrize._cache


def checkpoints():
    from torch.utils.checkpoint import checkpoint

    kinds = {"reentrant": lambda f, x: checkpoint(f, x, **({"use_reentrant": True} if TORCH >= (1, 11) else {}))}
    if TORCH >= (1, 11):
        kinds["not reentrant"] = lambda f, x: checkpoint(f, x, use_reentrant=False)
    return kinds


class Checkpointed(nn.Module):
    """The same with checkpoints, one within the other."""

    def __init__(self, checkpoint):
        super().__init__()
        self.inner = Net()
        self.outer = nn.Linear(2, 3).to(DTYPE)
        self.checkpoint = checkpoint

    def block(self, x):
        return self.outer(self.inner(x).sin())

    def forward(self, x):
        return self.checkpoint(self.block, self.checkpoint(self.block, x)).tanh()


@pytest.mark.parametrize("kind", checkpoints())
def test_what_a_checkpoint_runs_again_finds_what_was_given(backend, kind):
    plain, module = Checkpointed(lambda f, x: f(x)), Checkpointed(checkpoints()[kind])
    given = {name: numbers(*tensor.shape) for name, tensor in tensors(module).items()}
    originals = dict(vars(torch.utils.checkpoint))

    def loss(module):
        return lambda state, x: functional_call(module, state, x).pow(2).sum()

    with tfc.use_fallback("silent"):
        for transform in (
            lambda f: tfc.grad(f, argnums=(0, 1))(given, POINT),
            lambda f: tfc.vmap(tfc.grad(f, argnums=(0, 1)), (None, 0))(given, torch.stack([POINT, -POINT])),
            lambda f: tfc.jvp(f, (given, POINT), (given, POINT)),
            lambda f: tfc.jacrev(tfc.grad(f, argnums=1), argnums=1)(given, POINT),
        ):
            found, expected = transform(loss(module)), transform(loss(plain))
            for one, other in zip(pytree.flatten(found)[0], pytree.flatten(expected)[0]):
                assert_close(one, other)
    assert vars(torch.utils.checkpoint) == originals


@pytest.mark.parametrize("kind", checkpoints())
def test_backward_after_a_call_with_a_checkpoint(kind):
    # In a thread of its own: on torch 1.8, a pass that has failed forbids checkpoints in its thread from then on.
    with ThreadPoolExecutor(1) as executor:
        executor.submit(_backward_after_a_call, kind).result()


def _backward_after_a_call(kind):
    gradients = []
    for checkpoint in (checkpoints()[kind], lambda f, x: f(x)):
        module = Checkpointed(checkpoint)
        given = {name: numbers(*tensor.shape).requires_grad_() for name, tensor in tensors(module).items()}
        x = POINT.clone().requires_grad_()
        functional_call(module, given, x).pow(2).sum().backward()
        gradients.append([x.grad, *(tensor.grad for tensor in given.values())])
        assert all(tensor.grad is None for tensor in module.parameters())
    for one, other in zip(*gradients):
        assert_close(one, other)


class Heads(nn.Module):
    """An ensemble within a module."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(3, 2).to(DTYPE) for _ in range(2)])

    def forward(self, x):
        parameters, _ = stack_module_state(list(self.heads))
        return tfc.vmap(lambda p: functional_call(self.heads[0], p, x))(parameters).sin()


def test_an_ensemble_within_what_is_differentiated(backend):
    module = Heads()
    given = {name: numbers(*tensor.shape) + len(name) for name, tensor in module.named_parameters()}

    def by_hand(state, x):
        heads = [x @ state[f"heads.{k}.weight"].t() + state[f"heads.{k}.bias"] for k in range(2)]
        return torch.stack(heads).sin()

    for transform in (
        lambda f: tfc.jacrev(f)(given, POINT),
        lambda f: tfc.jacfwd(f)(given, POINT),
        lambda f: tfc.vmap(tfc.grad(lambda s, x: f(s, x).sum()), (None, 0))(given, torch.stack([POINT, -POINT])),
        lambda f: tfc.hessian(lambda s, x: f(s, x).sum())(given, POINT)["heads.0.weight"],
    ):
        found, expected = transform(lambda s, x: functional_call(module, s, x)), transform(by_hand)
        assert found.keys() == expected.keys()
        for name in found:
            assert_close(found[name], expected[name])


def test_an_ensemble_of_own_parameters_is_pushed_forward(recwarn):
    module = Heads()
    _, tangent = tfc.jvp(module, (POINT,), (POINT,))
    inner = torch.stack([head(POINT) - head.bias for head in module.heads])
    assert_close(tangent, torch.stack([head(POINT) for head in module.heads]).cos() * inner)
    assert not [warning for warning in recwarn if issubclass(warning.category, tfc.FallbackWarning)]


def test_attributes_that_are_not_registered(backend):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = torch.ones((), dtype=DTYPE)
            self.nothing = None

        def forward(self, x):
            extra = getattr(self, "extra", 0.0)
            return self.factor * x + extra + (0.0 if self.nothing is None else self.nothing)

    plain = Plain()
    before = dict(plain.__dict__)
    three = torch.tensor(3.0, dtype=DTYPE)
    given = {"factor": three, "extra": nn.Parameter(three.clone()), "nothing": three}
    assert_close(functional_call(plain, given, three).detach(), 5 * three)
    assert plain.__dict__ == before and not list(plain.parameters())
    gone = {"factor": None}
    with pytest.raises(TypeError):
        functional_call(plain, gone, three)
    assert plain.factor is before["factor"]


def test_nested_calls(backend):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3, bias=False).to(DTYPE)

        def forward(self, x):
            doubled = functional_call(self.inner, {"weight": 2 * self.inner.weight}, x)
            return doubled - self.inner(x)

    weight = numbers(3, 3)
    with Unchanged(Outer()) as outer:
        assert_close(functional_call(outer, {"inner.weight": weight}, POINT), weight @ POINT)


def test_threads_do_not_see_each_others_tensors():
    barrier = threading.Barrier(2, timeout=0.2)

    class Waits(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros((), dtype=DTYPE))

        def forward(self, x):
            try:  # as long as the other thread may need to come here, too
                barrier.wait()
            except threading.BrokenBarrierError:
                pass
            return self.weight * x

    with Unchanged(nn.Sequential(Waits())) as module:
        results = {}

        def work(value):
            weight = torch.full((), value, dtype=DTYPE)
            # by way of the whole, and of the part
            if value > 1:
                results[value] = functional_call(module, {"0.weight": weight}, POINT)
            else:
                results[value] = functional_call(module[0], {"weight": weight}, POINT)

        threads = [threading.Thread(target=work, args=(float(n),)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert_close([results[float(n)] for n in range(4)], [n * POINT for n in range(4)])


def test_threads_that_would_wait_for_each_other():
    barrier = threading.Barrier(2, timeout=10)
    errors = []

    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x, nested=False):
            if nested:
                return x
            barrier.wait()
            # in a list, not a submodule
            return functional_call(self.others[0], {"weight": x}, (x, True))

    def work(module):
        try:
            functional_call(module, {"weight": torch.ones(1)}, torch.ones(1))
        except RuntimeError as error:
            errors.append(str(error))

    first, second = Calls(), Calls()
    first.others, second.others = [second], [first]
    threads = [threading.Thread(target=work, args=(module,)) for module in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert errors and all("another thread is calling this module" in text for text in errors[:1])


def test_functionalize(backend):
    def f(x):
        y = x.clone()
        y.mul_(2.0)
        return (y * y * x).sum()

    x = POINT.clone()
    expected = 12 * x * x
    if TORCH < (1, 12) or tfc.available_backends() == ("autograd",):
        with pytest.raises(NotImplementedError, match=r"functionalize needs torch >= 2.0"):
            tfc.functionalize(f)
        return
    for remove in ("mutations", "mutations_and_views"):
        functional_f = tfc.functionalize(f, remove=remove)
        assert_close(functional_f(x), f(x))
        assert_close(tfc.grad(functional_f)(x), expected)
        assert_close(tfc.functionalize(tfc.grad(f), remove=remove)(x), expected)
        assert_close(tfc.vmap(functional_f)(torch.stack([x, 2 * x])), torch.stack([f(x), f(2 * x)]))
        leaf = x.clone().requires_grad_()
        functional_f(leaf).backward()
        assert_close(leaf.grad, expected)
    with pytest.raises(RuntimeError, match="expected remove to be 'mutations'"):
        tfc.functionalize(f, remove="all")


@pytest.mark.skipif(not hasattr(torch, "compiler"), reason="torch.compile does not say that it is compiling")
def test_compiled():
    net, inputs = Net(), numbers(4, 3)
    fullgraph = facts.has("compiled_transforms")

    def compiled(library):
        gradients = library.vmap(library.grad(lambda p, x: library.functional_call(net, p, (x,)).sum()), (None, 0))
        return torch.compile(lambda p, x: gradients(p, x), backend="eager", fullgraph=fullgraph)(GIVEN, inputs)

    if fullgraph:
        try:
            compiled(torch.func)
        except Exception as error:  # noqa: BLE001 - of many types
            pytest.skip(f"torch {facts.VERSION} does not compile its own: {type(error).__name__}")
    with Unchanged(net):
        expected = tfc.vmap(tfc.grad(lambda p, x: functional_call(net, p, (x,)).sum()), (None, 0))(GIVEN, inputs)
        assert_close(compiled(tfc), expected)
