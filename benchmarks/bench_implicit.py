"""Derivatives of a solution: by what it solves, and by unrolling the iterations that found it.

``python benchmarks/bench_implicit.py`` prints ratios of times that were taken in turns within this process, by the time
of all its threads (JAX has its own), and peaks of memory of child processes. JAX takes part where it is installed. No
time is ever asserted.
"""

import os
import statistics
import sys
import time

import torch

import torch_func_compat as tfc
from torch_func_compat import implicit

F64 = torch.float64
STEPS = 30


def residual(z, weight, x):
    return z - torch.tanh(weight @ z) / 2 - x


def problem(size):
    i = torch.arange(size, dtype=F64)
    weight = torch.sin(1.3 * i[:, None] + 0.7 * i * i[:, None]) / size**0.5
    return weight, torch.cos(i)


def unrolled(z, weight, x, steps=STEPS):
    """Newton's method in the graph, with the Jacobian by hand."""
    identity = torch.eye(len(x), dtype=F64)
    for _ in range(steps):
        value = torch.tanh(weight @ z)
        matrix = identity - (1 - value**2)[:, None] * weight / 2
        z = z - torch.linalg.solve(matrix, z - value / 2 - x)
    return z


solution = implicit.root(residual, has_aux=True)


def by_theorem(weight, x):
    return solution(torch.zeros_like(x), weight, x)[0]


def gradient(solve, weight, x):
    leaf = weight.clone().requires_grad_()
    return torch.autograd.grad((solve(leaf, x) ** 2).sum(), leaf)[0]


def by_unrolling(weight, x):
    return unrolled(torch.zeros_like(x), weight, x)


def by_unrolling_few(weight, x):
    return unrolled(torch.zeros_like(x), weight, x, 5)


def by_jax(weight, x):
    """The gradient by JAX's custom_root, compiled, as a call without arguments; None where there is no JAX."""
    try:
        import jax
    except ImportError:
        return None
    jax.config.update("jax_enable_x64", True)
    np = jax.numpy

    def function(z, weight, x):
        return z - np.tanh(weight @ z) / 2 - x

    def newton(f, z):
        def step(carry):
            z, _ = carry
            return z - np.linalg.solve(jax.jacfwd(f)(z), f(z)), np.linalg.norm(f(z))

        return jax.lax.while_loop(lambda carry: carry[1] > 1e-13, step, (z, np.inf))[0]

    def linear(g, y):
        return np.linalg.solve(jax.jacfwd(g)(y), y)

    def loss(weight, x):
        root = jax.lax.custom_root(lambda z: function(z, weight, x), np.zeros_like(x), newton, linear)
        return (root**2).sum()

    compiled = jax.jit(jax.grad(loss))
    there = np.asarray(weight.numpy()), np.asarray(x.numpy())
    return lambda: compiled(*there).block_until_ready()


def turns(candidates, seconds=2.0):
    """Medians of the times of this process, of calls that take turns."""
    times = {name: [] for name in candidates}
    end = time.perf_counter() + seconds * len(candidates)
    while time.perf_counter() < end or len(times[next(iter(candidates))]) < 5:
        for name, call in candidates.items():
            call()
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def peak(call):
    """Megabytes by which a call raises the largest memory that a child process has had."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        import resource

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        call()
        os.write(write, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found = pipe.read()
    os.waitpid(pid, 0)
    return float(found) / 1024


def kept(call):
    """Kilobytes that the graph of a result holds, where torch can tell."""
    if not hasattr(torch.autograd.graph, "saved_tensors_hooks"):
        return float("nan")
    sizes = {}

    def pack(tensor):
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    del result
    return sum(sizes.values()) / 1024


def batches():
    """64 samples of different difficulty in one call, against the hardest one's iterations of one batched step."""
    # a square root, which takes one step more for each factor of two by which the guess is too large
    equation = lambda z, a: torch.stack([z[0] ** 2 - a, z[1] - z[0], z[2] - z[0] * z[1]])
    starts = (2.0 ** torch.linspace(0, 24, 64, dtype=F64))[:, None].expand(64, 3)
    two = torch.full((), 2.0, dtype=F64)
    found = implicit.root(equation, has_aux=True)
    together = tfc.vmap(lambda start: found(start, two))
    iterations = together(starts)[1].iterations
    limited = [
        tfc.vmap(lambda z, n=n: implicit.root(equation, implicit.newton(max_iterations=n), on_failure="nan")(z, two))
        for n in (2, 12)
    ]
    hard = torch.full((64, 3), 2.0**24, dtype=F64)  # so that no sample has converged by then
    times = turns({"batch": lambda: together(starts), "2": lambda: limited[0](hard), "12": lambda: limited[1](hard)})
    step, hardest = (times["12"] - times["2"]) / 10, int(iterations.max())
    print(f"64 samples, {int(iterations.min())} to {hardest} iterations: ", end="")
    print(f"{times['batch'] / (hardest * step):.2f} of the hardest one's iterations times a batched step, ", end="")
    print(f"which is {1e3 * step:.2f} ms")


def gradients(size):
    weight, x = problem(size)
    candidates = {
        "implicit": lambda: gradient(by_theorem, weight, x),
        f"unrolled, {STEPS} steps": lambda: gradient(by_unrolling, weight, x),
        "unrolled, 5 steps": lambda: gradient(by_unrolling_few, weight, x),
    }
    jax = by_jax(weight, x)
    if jax is not None:
        candidates["JAX custom_root, compiled"] = jax
    values = {name: torch.as_tensor(call().__array__()) for name, call in candidates.items()}
    times = turns(candidates)
    for name in candidates:
        difference = float((values[name] - values["implicit"]).abs().max())
        ratio = times[name] / times["implicit"]
        print(f"{size} unknowns, gradient, {name}: {ratio:.2f} of implicit's time, differs by {difference:.1e}")


def memory(size):
    weight, x = problem(size)
    leaf = weight.clone().requires_grad_()
    candidates = {
        "implicit": lambda: by_theorem(leaf, x),
        f"unrolled, {STEPS} steps": lambda: by_unrolling(leaf, x),
        "unrolled, 5 steps": lambda: by_unrolling_few(leaf, x),
    }
    for name, call in candidates.items():
        print(f"{size} unknowns, kept for the derivative, {name}: {kept(call):.0f} kB")
    for tol in (1e-3, 1e-14):
        plain = implicit.fixed_point(lambda z, w, x: torch.tanh(w @ z) / 2 + x, implicit.anderson(history=0, tol=tol))
        counted = implicit.fixed_point(
            lambda z, w, x: torch.tanh(w @ z) / 2 + x, implicit.anderson(history=0, tol=tol), has_aux=True
        )
        iterations = int(counted(x, weight, x)[1].iterations)
        size = kept(lambda plain=plain: plain(x, leaf, x))
        print(f"kept for the derivative after {iterations} plain iterations: {size:.0f} kB")


def main():
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, backend {tfc.get_backend()}")
    gradients(20)
    gradients(200)
    memory(200)
    weight, x = problem(500)
    for name, solve in {"implicit": by_theorem, f"unrolled, {STEPS} steps": by_unrolling}.items():
        megabytes = peak(lambda solve=solve: gradient(solve, weight, x))
        print(f"500 unknowns, gradient, peak of memory, {name}: {megabytes:.0f} MB")
    if tfc.get_backend() == "torch.func":
        batches()
    return 0


if __name__ == "__main__":
    with tfc.use_fallback("silent"):
        sys.exit(main())
