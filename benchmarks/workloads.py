"""What is timed: derivatives that people ask for, each computed by this library and by whatever else computes it.

`WORKLOADS` maps a name to a function of the device that returns a dict of candidates: calls without arguments. The
first one is this library's. Candidates that the installed torch does not have, or that need JAX where there is none,
are left out.
"""

from __future__ import annotations

import functools

import torch

import torch_func_compat as tfc

try:
    import torch.func as torch_func
except ImportError:  # torch < 2.0
    torch_func = None
try:
    import functorch
except ImportError:
    functorch = None
try:
    import jax
    import jax.numpy as jnp
except ImportError:
    jax = None

OURS = "torch_func_compat"
WORKLOADS = {}


def workload(name, *args):
    def register(function):
        WORKLOADS[name] = functools.partial(function, *args)
        return function

    return register


def network(inputs, outputs, device, hidden=64, layers=2):
    torch.manual_seed(0)
    sizes = [inputs] + [hidden] * layers
    modules = [m for a, b in zip(sizes, sizes[1:]) for m in (torch.nn.Linear(a, b), torch.nn.Tanh())]
    return torch.nn.Sequential(*modules, torch.nn.Linear(hidden, outputs)).to(device).requires_grad_(False)


def jax_network(module):
    layers = [(jnp.array(m.weight.cpu().numpy()), jnp.array(m.bias.cpu().numpy())) for m in module[::2]]

    def function(x):
        for weight, bias in layers[:-1]:
            x = jnp.tanh(weight @ x + bias)
        return layers[-1][0] @ x + layers[-1][1]

    return function


def jitted(function, *args):
    compiled = jax.jit(function)
    arrays = [jnp.array(arg.cpu().numpy()) for arg in args]
    return lambda: jax.block_until_ready(compiled(*arrays))


def libraries():
    """Those with vmap and the like."""
    if torch_func is not None:
        yield "torch.func", torch_func
    elif functorch is not None:
        yield "functorch", functorch


def loop(function, samples):
    return lambda: torch.stack([function(sample) for sample in samples])


# Jacobians of a batch: one row or column in all samples at once.
SHAPES = [
    (64, 31, 33),
    (64, 128, 8),
    (64, 8, 128),
    (256, 16, 16),
    (1024, 3, 1),
    (1024, 1, 3),
    (64, 8, 256),
    (16, 64, 64),
]


def batched_jacobian(shape, device):
    batch, inputs, outputs = shape
    module, x = network(inputs, outputs, device), torch.randn(batch, inputs, device=device)
    found = {OURS: functools.partial(tfc.batch_jacobian(module), x)}
    for mode in ("reverse", "forward"):
        found[f"{OURS}, {mode} mode"] = functools.partial(tfc.batch_jacobian(module, mode=mode), x)

    def sum_trick():
        leaf = x.detach().requires_grad_()
        output = module(leaf)
        rows = [torch.autograd.grad(column.sum(), leaf, retain_graph=True)[0] for column in output.unbind(1)]
        return torch.stack(rows, 1)

    found["sum trick in a loop"] = sum_trick
    if torch_func is not None:
        units = torch.eye(inputs, device=device)
        column = lambda unit: torch_func.jvp(module, (x,), (unit.expand(batch, inputs),))[1]
        found["torch.func: jvp of columns"] = lambda: torch_func.vmap(column)(units).permute(1, 2, 0)
    for name, library in libraries():
        found[f"{name}: vmap(jacrev)"] = functools.partial(library.vmap(library.jacrev(module)), x)
        found[f"{name}: vmap(jacfwd)"] = functools.partial(library.vmap(library.jacfwd(module)), x)
    if jax is not None:
        jacobian = jax.jacfwd if outputs > inputs else jax.jacrev
        found["JAX, jit"] = jitted(jax.vmap(jacobian(jax_network(module))), x)
    return found


for shape in SHAPES:
    WORKLOADS["batched Jacobian {}x{}->{}".format(*shape)] = functools.partial(batched_jacobian, shape)


# Hessians of a batch: the question of the forum.
def batched_hessian(shape, device):
    batch, inputs, layers, hidden = shape
    module, x = network(inputs, 1, device, hidden, layers), torch.randn(batch, inputs, device=device)

    def energies(x):
        return module(x).squeeze(-1)

    def sum_trick():
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(energies(leaf).sum(), leaf, create_graph=True)
        columns = [torch.autograd.grad(column.sum(), leaf, retain_graph=True)[0] for column in gradient.unbind(1)]
        return torch.stack(columns, 1)

    found = {OURS: functools.partial(tfc.batch_hessian(energies), x), "sum trick in a loop": sum_trick}
    found[f"{OURS}: vmap(hessian)"] = functools.partial(tfc.vmap(tfc.hessian(energies)), x)
    if hasattr(torch, "compiler"):
        torch._dynamo.reset()  # else the sizes of the workload before count as varying
        for name, call in (
            ("", lambda x: tfc.batch_hessian(energies)(x)),
            (" of vmap(hessian)", lambda x: tfc.vmap(tfc.hessian(energies))(x)),
        ):
            found[f"{OURS}, torch.compile{name}"] = functools.partial(torch.compile(call, dynamic=False), x)
    for name, library in libraries():
        found[f"{name}: vmap(hessian)"] = functools.partial(library.vmap(library.hessian(energies)), x)
    one = lambda sample: energies(sample[None])[0]
    for vectorize in (False, True):
        hessian = lambda sample, v=vectorize: torch.autograd.functional.hessian(one, sample, vectorize=v)
        found["functional.hessian in a loop" + ", vectorize" * vectorize] = loop(hessian, x)
    if jax is not None:
        function = jax_network(module)
        scalar = lambda x: function(x)[0]
        found["JAX, jit"] = jitted(jax.vmap(jax.hessian(scalar)), x)
        found["JAX, jit of jacrev(jacrev)"] = jitted(jax.vmap(jax.jacrev(jax.jacrev(scalar))), x)
    return found


for shape in [(64, 32, 2, 64), (128, 64, 3, 64), (64, 128, 2, 64), (64, 200, 3, 64)]:
    WORKLOADS["batched Hessian {}x{}, {} layers".format(*shape)] = functools.partial(batched_hessian, shape)


def single_jacobian(shape, device):
    """torch.func's tutorial: rows one by one, and the two modes."""
    inputs, outputs = shape
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, inputs, device=device), torch.randn(outputs, device=device)
    x = torch.randn(inputs, device=device)
    predict = lambda x: torch.nn.functional.linear(x, weight, bias).tanh()
    rows = lambda: torch.autograd.functional.jacobian(predict, x)
    found = {OURS: functools.partial(tfc.jacobian(predict), x), "functional.jacobian": rows}
    found["functional.jacobian, vectorize"] = lambda: torch.autograd.functional.jacobian(predict, x, vectorize=True)
    for name, library in libraries():
        found[f"{name}: jacrev"] = functools.partial(library.jacrev(predict), x)
        found[f"{name}: jacfwd"] = functools.partial(library.jacfwd(predict), x)
    if jax is not None:
        w, b = jnp.array(weight.cpu().numpy()), jnp.array(bias.cpu().numpy())
        mode = jax.jacfwd if outputs > inputs else jax.jacrev
        found["JAX, jit"] = jitted(mode(lambda x: jnp.tanh(w @ x + b)), x)
    return found


for shape in [(16, 16), (64, 64), (2048, 32), (32, 2048)]:
    WORKLOADS["Jacobian {}->{}".format(*shape)] = functools.partial(single_jacobian, shape)


def pair_energy(positions):
    """A Lennard-Jones energy of molecules (..., atoms, 3)."""
    atoms = positions.shape[-2]
    first, second = torch.triu_indices(atoms, atoms, 1, device=positions.device)
    squares = (positions[..., first, :] - positions[..., second, :]).pow(2).sum(-1)
    sixth = squares.pow(-3)
    return 4 * (sixth * sixth - sixth).sum(-1)


def jax_pair_energy(positions):
    first, second = jnp.triu_indices(positions.shape[-2], 1)
    squares = ((positions[..., first, :] - positions[..., second, :]) ** 2).sum(-1)
    sixth = squares**-3.0
    return 4 * (sixth * sixth - sixth).sum(-1)


def molecules(device, batch=0, atoms=8):
    torch.manual_seed(0)
    grid = torch.cartesian_prod(*[torch.arange(2.0)] * 3)[:atoms] * 1.2
    shape = (batch, atoms, 3) if batch else (atoms, 3)
    return (grid + 0.05 * torch.randn(shape)).to(device)


@workload("molecule: gradient")
def molecule_gradient(device):
    x = molecules(device)
    found = {OURS: functools.partial(tfc.grad(pair_energy), x)}
    for name, library in libraries():
        found[f"{name}: grad"] = functools.partial(library.grad(pair_energy), x)

    def by_hand():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(pair_energy(leaf), leaf)[0]

    found["torch.autograd.grad"] = by_hand
    if jax is not None:
        found["JAX, jit"] = jitted(jax.grad(jax_pair_energy), x)
    return found


def hessian_of(function, device_to_x, device, in_jax=None):
    x = device_to_x(device)
    found = {OURS: functools.partial(tfc.hessian(function), x)}
    for name, library in libraries():
        found[f"{name}: hessian"] = functools.partial(library.hessian(function), x)
    found["functional.hessian"] = lambda: torch.autograd.functional.hessian(function, x)
    found["functional.hessian, vectorize"] = lambda: torch.autograd.functional.hessian(function, x, vectorize=True)
    if jax is not None and in_jax is not None:
        found["JAX, jit"] = jitted(jax.hessian(in_jax), x)
    return found


WORKLOADS["molecule: Hessian"] = functools.partial(hessian_of, pair_energy, molecules, in_jax=jax and jax_pair_energy)


@workload("molecules: batched Hessian")
def molecule_hessians(device):
    x = molecules(device, batch=32, atoms=5)
    found = {OURS: functools.partial(tfc.batch_hessian(pair_energy), x)}
    for name, library in libraries():
        found[f"{name}: vmap(hessian)"] = functools.partial(library.vmap(library.hessian(pair_energy)), x)
    found["functional.hessian in a loop"] = loop(lambda x: torch.autograd.functional.hessian(pair_energy, x), x)
    if jax is not None:
        found["JAX, jit"] = jitted(jax.vmap(jax.hessian(jax_pair_energy)), x)
    return found


@workload("PINN: u, u_x, u_xx")
def pinn(device):
    module, x = network(1, 1, device), torch.linspace(-1, 1, 1024, device=device)[:, None]

    def value(x):
        u = module(x)
        return u, u

    first_and_value = tfc.batch_jacobian(value, has_aux=True)

    def again(x):
        found = first_and_value(x)
        return found[0], found

    ours = functools.partial(tfc.batch_jacobian(again, has_aux=True), x)  # u_xx, (u_x, u)

    def by_hand():
        leaf = x.detach().requires_grad_()
        u = module(leaf)
        (first,) = torch.autograd.grad(u.sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), leaf)
        return u, first, second

    found = {OURS: ours, "sum trick": by_hand}
    for name, library in libraries():
        u = lambda x: module(x)[0]
        first, second = library.vmap(library.grad(u)), library.vmap(library.hessian(u))
        found[f"{name}: vmap"] = lambda first=first, second=second: (module(x), first(x), second(x))
    if jax is not None:
        function = jax_network(module)
        scalar = lambda x: function(x)[0]
        all_three = lambda x: (scalar(x), jax.grad(scalar)(x), jax.hessian(scalar)(x))
        found["JAX, jit"] = jitted(jax.vmap(all_three), x)
    return found


# Hessians of functions with one output, an operation each.
def _vector(device, size=24):
    torch.manual_seed(0)
    return torch.rand(size, device=device) + 0.5


def _matrix(x):
    rows = x[: 4 * (len(x) // 4)].reshape(4, -1)
    return rows @ rows.t() + torch.eye(4, device=x.device)


def _attention(x):
    heads = x.reshape(-1, 4)
    return ((heads @ heads.t()).softmax(-1) @ heads).tanh().sum()


def hessian_of_network(inputs, device):
    module = network(inputs, 1, device)
    function = jax and jax_network(module)
    in_jax = jax and (lambda x: function(x)[0])
    return hessian_of(lambda x: module(x)[0], functools.partial(_vector, size=inputs), device, in_jax)


for _inputs in (4, 32, 200):
    WORKLOADS[f"Hessian of a network {_inputs}->1"] = functools.partial(hessian_of_network, _inputs)

OPERATIONS = {
    "attention": _attention,
    "exp": lambda x: x.exp().sum(),
    "tanh of a product": lambda x: torch.tanh(torch.ger(x, x)).sum(),
    "softplus": lambda x: torch.nn.functional.softplus(x).pow(2).sum(),
    "softmax": lambda x: (x.softmax(0) * x).sum(),
    "logsumexp": lambda x: x.logsumexp(0),
    "norm": lambda x: x.norm(),
    "cumulative product": lambda x: x.cumprod(0).sum(),
    "logdet": lambda x: _matrix(x).logdet(),
    "solve": lambda x: torch.linalg.solve(_matrix(x), x[:4, None]).sum(),
    "eigh": lambda x: torch.linalg.eigh(_matrix(x))[0].pow(2).sum(),
    "convolution": lambda x: torch.nn.functional.conv1d(x[None, None], x[None, None, :5]).tanh().sum(),
    "Rosenbrock": lambda x: (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum(),
    "gather": lambda x: x[torch.arange(len(x), device=x.device).flip(0)].mul(x).pow(2).sum(),
    "layer_norm": lambda x: (torch.nn.functional.layer_norm(x, x.shape) * x.sin()).sum(),
}


def _in_jax():
    """The same by JAX."""
    linear = jnp.linalg

    def matrix(x):
        rows = x[: 4 * (len(x) // 4)].reshape(4, -1)
        return rows @ rows.T + jnp.eye(4)

    def attention(x):
        heads = x.reshape(-1, 4)
        return jnp.tanh(jax.nn.softmax(heads @ heads.T) @ heads).sum()

    def normalised(x):
        return (x - x.mean()) / jnp.sqrt(x.var() + 1e-5)

    return {
        "attention": attention,
        "exp": lambda x: jnp.exp(x).sum(),
        "tanh of a product": lambda x: jnp.tanh(jnp.outer(x, x)).sum(),
        "softplus": lambda x: (jax.nn.softplus(x) ** 2).sum(),
        "softmax": lambda x: (jax.nn.softmax(x) * x).sum(),
        "logsumexp": jax.nn.logsumexp,
        "norm": linear.norm,
        "cumulative product": lambda x: jnp.cumprod(x).sum(),
        "logdet": lambda x: linear.slogdet(matrix(x))[1],
        "solve": lambda x: linear.solve(matrix(x), x[:4]).sum(),
        "eigh": lambda x: (linear.eigh(matrix(x))[0] ** 2).sum(),
        "convolution": lambda x: jnp.tanh(jnp.correlate(x, x[:5])).sum(),
        "Rosenbrock": lambda x: (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum(),
        "gather": lambda x: ((x[jnp.arange(len(x))[::-1]] * x) ** 2).sum(),
        "layer_norm": lambda x: (normalised(x) * jnp.sin(x)).sum(),
    }


IN_JAX = {} if jax is None else _in_jax()
for _name, _function in OPERATIONS.items():
    WORKLOADS[f"Hessian of {_name}"] = functools.partial(hessian_of, _function, _vector, in_jax=IN_JAX.get(_name))
