"""Transform calls with one right answer each, for whatever `api` has torch.func's names.

Inputs come from closed formulas and nothing here is random, so that every torch on every machine is
asked the same. Functions use only what torch 1.8 has.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def wave(*shape: int, phase: float = 0.0) -> Tensor:
    """cos(phase), cos(phase + 1), ... in float64."""
    size = int(torch.Size(shape).numel())
    return torch.cos(torch.arange(size, dtype=torch.float64) + phase).reshape(shape)


def spd(n: int) -> Tensor:
    """Symmetric, positive definite, with eigenvalues that keep a distance."""
    a = wave(n, n, phase=0.3)
    return 0.1 * (a + a.t()) + torch.diag(torch.arange(1, n + 1, dtype=torch.float64))


X, Y, S, M = wave(3), wave(3, phase=0.5), wave(), wave(2, 3, phase=0.2)
BATCH, WEIGHT, BIAS = wave(4, 3, phase=0.7), wave(3, 3, phase=1.1), wave(3, phase=2.0)
TREE = {"w": wave(2, 3, phase=0.4), "b": (wave(2, phase=0.9),)}


def cubic(x: Tensor) -> Tensor:
    return x.pow(3).sum() + x.prod()


def layer(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(w @ x + b)


def network(params: dict[str, Any], x: Tensor) -> Tensor:
    return F.softplus(params["w"] @ x.sin() + params["b"][0]).sum()


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight=BIAS, bias=X)


def symmetric(a: Tensor) -> Tensor:
    return (a + a.t()) / 2


def eigenvalues(a: Tensor) -> Tensor:
    return torch.linalg.eigh(symmetric(a))[0]


def attention(x: Tensor) -> Tensor:
    return torch.softmax(x @ WEIGHT @ x.t() / 3**0.5, dim=-1) @ x


def convolution(x: Tensor) -> Tensor:
    return F.conv2d(x.reshape(1, 1, 4, 3), wave(2, 1, 2, 2, phase=0.6), BIAS[:2], padding=1).tanh().flatten()


def kernel(x: Tensor, y: Tensor) -> Tensor:
    return torch.exp(-(x - y).pow(2).sum())


def energy(positions: Tensor) -> Tensor:
    """Lennard-Jones pairs."""
    distances = torch.stack([(positions[i] - positions[j]).norm() for i in range(3) for j in range(i)])
    return (distances.pow(-12) - distances.pow(-6)).sum()


POSITIONS = torch.tensor([[0.0, 0.0, 0.0], [1.2, 0.1, 0.0], [0.4, 1.1, 0.3]], dtype=torch.float64)

CASES: dict[str, Callable[[Any], Any]] = {
    # grad
    "grad": lambda api: api.grad(cubic)(X),
    "grad 0-dim": lambda api: api.grad(torch.sin)(S),
    "grad grad grad": lambda api: api.grad(api.grad(api.grad(lambda s: s.sin() * s.exp())))(S),
    "grad argnums": lambda api: api.grad(kernel, argnums=(0, 1))(X, Y),
    "grad argnums -1": lambda api: api.grad(kernel, argnums=-1)(X, Y),
    "grad pytree": lambda api: api.grad(network)(TREE, X),
    "grad aux": lambda api: api.grad(lambda x: (cubic(x), {"sin": x.sin()}), has_aux=True)(X),
    "grad unused": lambda api: api.grad(lambda x, y: cubic(x), argnums=(0, 1))(X, Y),
    "grad_and_value": lambda api: api.grad_and_value(network)(TREE, X),
    "grad_and_value aux": lambda api: api.grad_and_value(lambda x: (cubic(x), x.sin()), has_aux=True)(X),
    "grad energy": lambda api: api.grad(energy)(POSITIONS),
    "grad logdet": lambda api: api.grad(torch.logdet)(spd(3)),
    "grad inner closed over": lambda api: api.grad(lambda x: x * api.grad(lambda y: x * y * y)(x))(S),
    # vjp and jvp
    "vjp": lambda api: api.vjp(layer, X, WEIGHT, BIAS)[1](Y),
    "vjp pytree": lambda api: api.vjp(lambda p: {"y": network(p, X), "b": p["b"]}, TREE)[1]({"y": S, "b": (Y[:2],)}),
    "vjp value": lambda api: api.vjp(attention, BATCH)[0],
    "vjp of vjp": lambda api: api.vjp(lambda x: api.vjp(norm, x)[1](Y)[0], X)[1](BIAS),
    "jvp": lambda api: api.jvp(layer, (X, WEIGHT, BIAS), (Y, WEIGHT.cos(), X)),
    "jvp pytree": lambda api: api.jvp(network, (TREE, X), ({"w": M, "b": (Y[:2],)}, Y)),
    "jvp of jvp": lambda api: api.jvp(lambda x: api.jvp(attention, (x,), (BATCH.sin(),))[1], (BATCH,), (BATCH.cos(),)),
    "jvp of grad": lambda api: api.jvp(api.grad(energy), (POSITIONS,), (POSITIONS.cos(),)),
    "vjp of jvp": lambda api: api.vjp(lambda x: api.jvp(torch.tanh, (x,), (Y,))[1], X)[1](BIAS),
    # Jacobians
    "jacrev": lambda api: api.jacrev(layer)(X, WEIGHT, BIAS),
    "jacfwd": lambda api: api.jacfwd(layer)(X, WEIGHT, BIAS),
    "jacrev argnums": lambda api: api.jacrev(layer, argnums=(0, 2))(X, WEIGHT, BIAS),
    # torch.func.jacfwd gives zeros for negative argnums: no case here
    "jacfwd argnums": lambda api: api.jacfwd(layer, argnums=(2, 1))(X, WEIGHT, BIAS),
    "jacrev pytree": lambda api: api.jacrev(lambda p: {"y": network(p, X), "w": p["w"].sin()[0]})(TREE),
    "jacfwd pytree": lambda api: api.jacfwd(lambda p: (network(p, X), p["b"][0].exp()))(TREE),
    "jacrev chunks": lambda api: api.jacrev(attention, chunk_size=5)(BATCH),
    "jacrev softmax": lambda api: api.jacrev(lambda x: torch.softmax(x, -1))(BATCH),
    "jacfwd log_softmax": lambda api: api.jacfwd(lambda x: torch.log_softmax(x, 0))(BATCH),
    "jacrev layer_norm": lambda api: api.jacrev(norm)(M),
    "jacrev eigenvalues": lambda api: api.jacrev(eigenvalues)(spd(3)),
    "jacfwd eigenvalues": lambda api: api.jacfwd(eigenvalues)(spd(3)),
    "jacrev convolution": lambda api: api.jacrev(convolution)(wave(12)),
    "jacfwd inverse": lambda api: api.jacfwd(torch.inverse)(spd(2)),
    "jacrev aux": lambda api: api.jacrev(lambda x: (x.exp(), x.sum()), has_aux=True)(X),
    "jacfwd aux": lambda api: api.jacfwd(lambda x: (x.exp(), x.sum()), has_aux=True)(X),
    "jacrev 0-dim to 0-dim": lambda api: api.jacrev(torch.sin)(S),
    # second derivatives
    "hessian": lambda api: api.hessian(cubic)(X),
    "hessian vector": lambda api: api.hessian(lambda x: layer(x, WEIGHT, BIAS))(X),
    "hessian argnums": lambda api: api.hessian(kernel, argnums=(0, 1))(X, Y),
    "hessian pytree": lambda api: api.hessian(network)(TREE, X),
    "hessian energy": lambda api: api.hessian(energy)(POSITIONS),
    "hessian layer_norm": lambda api: api.hessian(lambda x: norm(x).pow(2).sum())(X),
    "hessian logdet": lambda api: api.hessian(lambda a: torch.logdet(symmetric(a)))(spd(2)),
    "hessian eigenvalues": lambda api: api.hessian(lambda a: eigenvalues(a)[0])(spd(3)),
    "hessian attention": lambda api: api.hessian(lambda x: attention(x).sin().sum())(M),
    "hessian convolution": lambda api: api.hessian(lambda x: convolution(x).sum())(wave(12)),
    "jacrev jacrev": lambda api: api.jacrev(api.jacrev(lambda x: torch.softmax(x, -1)))(X),
    "jacfwd jacfwd": lambda api: api.jacfwd(api.jacfwd(lambda x: torch.softmax(x, -1)))(X),
    "jacrev jacfwd": lambda api: api.jacrev(api.jacfwd(attention))(M),
    "jacfwd hessian": lambda api: api.jacfwd(api.hessian(cubic))(X),
    # vmap
    "vmap": lambda api: api.vmap(layer, in_dims=(0, None, None))(BATCH, WEIGHT, BIAS),
    "vmap dims": lambda api: api.vmap(lambda a, b: (a * b, a.sum()), in_dims=(1, 0), out_dims=(-1, 0))(
        BATCH.t(), BATCH
    ),
    "vmap vmap": lambda api: api.vmap(api.vmap(kernel, (None, 0)), (0, None))(BATCH, M),
    "vmap chunks": lambda api: api.vmap(norm, chunk_size=3)(BATCH),
    "vmap grad": lambda api: api.vmap(api.grad(network), in_dims=(None, 0))(TREE, BATCH),
    "vmap jacrev": lambda api: api.vmap(api.jacrev(layer), in_dims=(0, None, None))(BATCH, WEIGHT, BIAS),
    "vmap hessian": lambda api: api.vmap(api.hessian(cubic))(BATCH),
    "vmap hessian vmap": lambda api: api.vmap(api.hessian(lambda x: api.vmap(kernel, (None, 0))(x, M).sum()))(BATCH),
    "jacrev vmap": lambda api: api.jacrev(api.vmap(norm))(M),
    "jacfwd vmap grad": lambda api: api.jacfwd(api.vmap(api.grad(cubic)))(M),
    "grad vmap vjp": lambda api: api.grad(lambda x: api.vmap(lambda v: api.vjp(torch.tanh, x)[1](v)[0])(BATCH).sum())(
        X
    ),
}


def flatten(tree: Any, path: str = "") -> dict[str, Tensor]:
    """The tensors of a result by their paths, which tell tuple ``(0)``, list ``[0]`` and dict ``{key}`` apart."""
    if isinstance(tree, Tensor):
        return {path: tree}
    if isinstance(tree, dict):
        items = [(f"{{{key}}}", value) for key, value in tree.items()]
    else:
        marks = {tuple: "({})", list: "[{}]"}[type(tree)]
        items = [(marks.format(i), value) for i, value in enumerate(tree)]
    return {name: leaf for mark, value in items for name, leaf in flatten(value, path + mark).items()}
