"""Training steps of physics-informed networks by `partials`, against what one writes by hand with autograd.grad.

``python benchmarks/bench_fields.py`` prints ratios of CPU time, as medians of calls that take turns in one process.
"""

import random
import statistics
import time

import torch
from torch.nn import Linear, Sequential, Tanh

import torch_func_compat as tfc
from torch_func_compat.autograd.fields import divergence, partials

POINTS = 500
ROUNDS = 200


def network(inputs, outputs):
    torch.manual_seed(0)
    return Sequential(Linear(inputs, 32), Tanh(), Linear(32, 32), Tanh(), Linear(32, 32), Tanh(), Linear(32, outputs))


def by_hand(value, *wanted):
    """Derivatives of a sum, to be differentiated again."""
    return torch.autograd.grad(value.sum(), wanted, create_graph=True)


def heat():
    """u_t and u_xx."""
    field, points = network(2, 1), torch.rand(POINTS, 2)
    found = partials(field, ("t", "xx"), coordinates="tx")

    def ours():
        d = found(points)
        return d["t"] - d["xx"]

    def hand():
        t, x = (column.requires_grad_() for column in points.detach().clone().split(1, 1))
        u = field(torch.cat([t, x], 1))
        u_t, u_x = by_hand(u, t, x)
        return u_t - by_hand(u_x, x)[0]

    def batched():
        first = tfc.batch_jacobian(field)(points)[:, 0]
        return first[:, 0] - tfc.batch_hessian(field)(points)[:, 0, 1, 1]

    return field, {"by hand": hand, "partials": ours, "batch_jacobian and batch_hessian": batched}


def korteweg_de_vries():
    """u_t + u u_x + u_xxx."""
    field, points = network(2, 1), torch.rand(POINTS, 2)
    found = partials(field, ("", "t", "x", "xxx"), coordinates="tx")

    def ours():
        d = found(points)
        return d["t"] + d[""] * d["x"] + d["xxx"]

    def hand():
        t, x = (column.requires_grad_() for column in points.detach().clone().split(1, 1))
        u = field(torch.cat([t, x], 1))
        u_t, u_x = by_hand(u, t, x)
        (u_xx,) = by_hand(u_x, x)
        return u_t + u * u_x + by_hand(u_xx, x)[0]

    return field, {"by hand": hand, "partials": ours}


def navier_stokes():
    """The residual of u, v and p in two dimensions and time."""
    field, points = network(3, 3), torch.rand(POINTS, 3)
    velocity = ("", "t", "x", "y", "xx", "yy")
    found = partials(field, {"u": velocity, "v": velocity, "p": ("x", "y")}, coordinates="txy")

    def ours():
        d = found(points)
        u, v, p = d["u"], d["v"], d["p"]
        one = u["t"] + u[""] * u["x"] + v[""] * u["y"] + p["x"] - 0.01 * (u["xx"] + u["yy"])
        two = v["t"] + u[""] * v["x"] + v[""] * v["y"] + p["y"] - 0.01 * (v["xx"] + v["yy"])
        return one**2 + two**2 + (u["x"] + v["y"]) ** 2

    def hand():
        t, x, y = (column.requires_grad_() for column in points.detach().clone().split(1, 1))
        u, v, p = field(torch.cat([t, x, y], 1)).split(1, 1)
        u_t, u_x, u_y = by_hand(u, t, x, y)
        v_t, v_x, v_y = by_hand(v, t, x, y)
        p_x, p_y = by_hand(p, x, y)
        (u_xx,), (u_yy,), (v_xx,), (v_yy,) = by_hand(u_x, x), by_hand(u_y, y), by_hand(v_x, x), by_hand(v_y, y)
        one = u_t + u * u_x + v * u_y + p_x - 0.01 * (u_xx + u_yy)
        two = v_t + u * v_x + v * v_y + p_y - 0.01 * (v_xx + v_yy)
        return one**2 + two**2 + (u_x + v_y) ** 2

    return field, {"by hand": hand, "partials": ours}


def continuity():
    """The divergence of a flow in three dimensions."""
    field, points = network(3, 3), torch.rand(POINTS, 3)
    found = divergence(field)

    def hand():
        x = points.detach().clone().requires_grad_()
        flow = field(x)
        return sum(by_hand(flow[:, k], x)[0][:, k] for k in range(3))

    return field, {"by hand": hand, "divergence": lambda: found(points)}


def step(field, residual):
    """A training step without its optimiser."""
    for parameter in field.parameters():
        parameter.grad = None
    residual().pow(2).mean().backward()


def main():
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {POINTS} points, seconds by time.thread_time")
    for equation in (heat, korteweg_de_vries, navier_stokes, continuity):
        field, candidates = equation()
        times = {name: [] for name in candidates}
        order = list(candidates)
        for _ in range(ROUNDS):
            random.shuffle(order)
            for name in order:
                start = time.thread_time()
                step(field, candidates[name])
                times[name].append(time.thread_time() - start)
        base = statistics.median(times["by hand"])
        for name in candidates:
            median = statistics.median(times[name])
            print(f"{equation.__name__:20} {name:34} {median * 1e3:8.3f} ms {median / base:6.2f}x by hand")


if __name__ == "__main__":
    main()
