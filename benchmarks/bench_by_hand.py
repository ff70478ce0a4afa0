"""Derivatives by this library against what a user writes by hand with torch.autograd: ratios in one process.

    python benchmarks/bench_by_hand.py

Each time is the median of several, by the processor time of the thread; 1 is by hand. The targets are those that the
project set itself for its second edition.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, Callable

import torch
from torch import Tensor

import torch_func_compat as tfc

torch.set_num_threads(1)
torch.manual_seed(0)


def seconds(call: Callable[[], Any]) -> float:
    """The time of one call, from calls of about 20 ms together."""
    call()
    start = time.thread_time()
    call()
    count = max(int(0.02 / max(time.thread_time() - start, 1e-6)), 1)
    found = []
    for _ in range(9):
        start = time.thread_time()
        for _ in range(count):
            call()
        found.append((time.thread_time() - start) / count)
    return statistics.median(found)


W1, B1, W2, B2 = torch.randn(16, 16), torch.randn(16), torch.randn(16, 16), torch.randn(16)
X = torch.randn(16)
WIDE = [torch.randn(800, 800) / 28 for _ in range(2)]
PARAMETERS = {"w1": W1, "b1": B1, "w2": W2, "b2": B2}
VECTORS = {name: torch.randn_like(value) for name, value in PARAMETERS.items()}
BATCH = torch.randn(64, 16)


def network(x: Tensor) -> Tensor:
    return torch.tanh(torch.tanh(x @ W1 + B1) @ W2 + B2).sum()


def wide(x: Tensor) -> Tensor:
    return torch.tanh(torch.tanh(x @ WIDE[0]) @ WIDE[1]).sum()


def loss(p: dict[str, Tensor]) -> Tensor:
    return (torch.tanh(torch.tanh(X @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]) ** 2).sum()


def branch(x: Tensor) -> Tensor:
    return network(x) if x.sum() > 0 else (x**3).sum()


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def product(x: Tensor) -> Tensor:
    return (x**2).sum().sin() * x.prod()


def log_sum(x: Tensor) -> Tensor:
    return torch.logsumexp(x * x.sin(), 0)


def gradient_by_hand(func: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(func(x), x)[0]


def hvp_by_hand() -> Any:
    leaves = {name: value.detach().requires_grad_() for name, value in PARAMETERS.items()}
    wanted = tuple(leaves.values())
    first = torch.autograd.grad(loss(leaves), wanted, create_graph=True)
    return torch.autograd.grad(first, wanted, tuple(VECTORS.values()))


def rows_by_hand() -> Tensor:
    x = X.detach().requires_grad_()
    (first,) = torch.autograd.grad(network(x), x, create_graph=True)
    return torch.stack([torch.autograd.grad(first[i], x, retain_graph=True)[0] for i in range(len(first))])


def pinn(by_library: bool) -> Callable[[], Any]:
    """A training step of u_t - u_xx at 500 points, three layers of 32."""
    layers = torch.nn.Sequential(
        *(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    )
    points = torch.rand(500, 2)
    field = lambda z: layers(z)[:, 0]
    first, second = tfc.batch_jacobian(field), tfc.batch_hessian(field)

    def step() -> None:
        layers.zero_grad()
        if by_library:
            residual = first(points)[:, 0] - second(points)[:, 1, 1]
        else:
            z = points.detach().requires_grad_()
            (slope,) = torch.autograd.grad(field(z).sum(), z, create_graph=True)
            (curvature,) = torch.autograd.grad(slope[:, 1].sum(), z, create_graph=True)
            residual = slope[:, 0] - curvature[:, 1]
        residual.pow(2).mean().backward()

    return step


vectorized = lambda func: lambda: torch.autograd.functional.hessian(func, X, vectorize=True)
made = {func: (tfc.grad(func), tfc.hessian(func)) for func in (network, wide, branch, rosenbrock, product, log_sum)}
per_sample = tfc.vmap(tfc.grad(branch))
hessians = tfc.vmap(tfc.hessian(branch))
in_chunks = tfc.hessian(network, chunk_size=1)
big = torch.randn(800)

# name: (by this library, by hand, the target)
ROWS: dict[str, tuple[Callable[[], Any], Callable[[], Any], float]] = {
    "grad, 16 wide": (lambda: made[network][0](X), lambda: gradient_by_hand(network, X), 1.5),
    "grad, 800 wide": (lambda: made[wide][0](big), lambda: gradient_by_hand(wide, big), 1.1),
    "hvp, dictionary": (lambda: tfc.hvp(loss, (PARAMETERS,), (VECTORS,)), hvp_by_hand, 1.3),
    "hessian, network": (lambda: made[network][1](X), vectorized(network), 1.0),
    "hessian, Rosenbrock": (lambda: made[rosenbrock][1](X), vectorized(rosenbrock), 1.0),
    "hessian, product": (lambda: made[product][1](X), vectorized(product), 1.0),
    "hessian, logsumexp": (lambda: made[log_sum][1](X), vectorized(log_sum), 1.0),
    "vmap(grad), branch": (lambda: per_sample(BATCH), lambda: [gradient_by_hand(branch, x) for x in BATCH], 1.5),
    "vmap(hessian), branch": (
        lambda: hessians(BATCH),
        lambda: [torch.autograd.functional.hessian(branch, x, vectorize=True) for x in BATCH],
        1.5,
    ),
    "hessian by rows": (lambda: in_chunks(X), rows_by_hand, 1.5),
    "PINN step": (pinn(True), pinn(False), 2.2),
}


def main() -> None:
    """Print the table."""
    tfc.set_fallback("silent")
    print(f"torch {torch.__version__}, one thread; by this library relative to by hand")
    for name, (ours, by_hand, target) in ROWS.items():
        print(f"  {name:22} {seconds(ours) / seconds(by_hand):5.2f}   target {target}")


if __name__ == "__main__":
    main()
