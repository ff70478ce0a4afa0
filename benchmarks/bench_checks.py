"""What the tests of a first call cost: ``python benchmarks/bench_checks.py``.

Each number is the CPU time of a call relative to the same call with ``use_checks("off")``, in medians of one process:
the first call of a new function (all of whose operations are proven on a torch that was swept, and are recorded), a
call that is tested, and a later call.
"""

from __future__ import annotations

import itertools
import statistics
import time
import types

import torch

import torch_func_compat as tfc

torch.set_num_threads(1)
torch.manual_seed(0)
X = torch.linspace(0.1, 1.0, 6)
BATCH = torch.rand(64, 6)
W1, W2 = torch.rand(16, 6) - 0.5, torch.rand(6, 16) - 0.5
SYMMETRIC = torch.rand(6, 6) + 6 * torch.eye(6)


def network(x):
    return torch.tanh(x @ W1.t()) @ W2.t()


def energy(x):
    return network(x).pow(2).sum()


def product(x):
    return (x.sin() * x.exp()).sum()


def quadratic(x):
    return x @ SYMMETRIC @ x


def normalised(x):
    return torch.nn.functional.softmax(x * 2, -1).log().sum()


WORKLOADS = {
    "vmap": (tfc.vmap, network, BATCH),
    "vmap, sums": (tfc.vmap, product, BATCH),
    "vmap(grad), network": (lambda f: tfc.vmap(tfc.grad(f)), energy, BATCH),
    "vmap(grad), product": (lambda f: tfc.vmap(tfc.grad(f)), product, BATCH),
    "vmap(grad), quadratic": (lambda f: tfc.vmap(tfc.grad(f)), quadratic, BATCH),
    "vmap(grad), softmax": (lambda f: tfc.vmap(tfc.grad(f)), normalised, BATCH),
    "vmap(jacrev)": (lambda f: tfc.vmap(tfc.jacrev(f)), network, BATCH),
    "vmap(jacfwd)": (lambda f: tfc.vmap(tfc.jacfwd(f)), network, BATCH),
    "vmap(hessian), network": (lambda f: tfc.vmap(tfc.hessian(f)), energy, BATCH),
    "vmap(hessian), product": (lambda f: tfc.vmap(tfc.hessian(f)), product, BATCH),
    "vmap(laplacian)": (lambda f: tfc.vmap(tfc.laplacian(f, mode="rows")), product, BATCH),
    "jvp, network": (lambda f: lambda x: tfc.jvp(f, (x,), (x,)), network, X),
    "jvp, product": (lambda f: lambda x: tfc.jvp(f, (x,), (x,)), product, X),
    "jacfwd, network": (tfc.jacfwd, network, X),
    "jacfwd, batch": (tfc.jacfwd, network, BATCH[:4]),
    "jacfwd(grad)": (lambda f: tfc.jacfwd(tfc.grad(f)), energy, X),
    "hessian, forward-reverse": (lambda f: tfc.hessian(f, mode="forward-reverse"), energy, X),
    "hessian, forward-forward": (lambda f: tfc.hessian(f, mode="forward-forward"), energy, X),
    "hvp": (lambda f: lambda x: tfc.hvp(f, (x,), (x,)), energy, X),
    "batch_jacobian": (tfc.batch_jacobian, network, BATCH),
}
_numbers = itertools.count()


def new(func):
    """The same function under another name, of which nothing is known."""
    return types.FunctionType(func.__code__.replace(co_name=f"f{next(_numbers)}"), func.__globals__)


def seconds(call, *args):
    start = time.thread_time()
    call(*args)
    return time.thread_time() - start


def main():
    rows = []
    for name, (transform, func, x) in WORKLOADS.items():
        for when in ("off", "first-call", "always"):  # what is imported and found once
            with tfc.use_checks(when):
                transform(new(func))(x)
        times = {key: [] for key in ("off", "first", "tested", "later", "later off")}
        for _ in range(15):
            made = {}
            for key, when in (("off", "off"), ("tested", "always"), ("first", "first-call")):
                made[key] = transform(new(func))
                with tfc.use_checks(when):
                    times[key].append(seconds(made[key], x))
            for _ in range(3):
                times["later"].append(seconds(made["first"], x))
                with tfc.use_checks("off"):
                    times["later off"].append(seconds(made["off"], x))
        middle = {key: statistics.median(values) for key, values in times.items()}
        row = [middle["first"] / middle["off"], middle["tested"] / middle["off"], middle["later"] / middle["later off"]]
        rows.append(row)
        print(f"{name:28}" + "".join(f"{ratio:8.2f}" for ratio in row))
    print(f"{'median':28}" + "".join(f"{statistics.median(column):8.2f}" for column in zip(*rows)))


if __name__ == "__main__":
    print(f"torch {torch.__version__}\n{'':28}{'first':>8}{'tested':>8}{'later':>8}")
    main()
