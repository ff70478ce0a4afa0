"""Laplacians of batches by both modes, by a trace of vmap(torch.func.hessian), by folx with JAX, and by torch-jet.

``python benchmarks/bench_laplacian.py`` measures what is installed; ``--plot FILE`` draws it. All candidates take turns
in one process, in float32. Time is that of the processor (of all threads, for JAX has some of its own). Memory is that
of the tensors that were alive at once (of torch's candidates, on torch 1.8 or from 2 on). No time is asserted.
"""

import argparse
import random
import statistics
import time

import torch
from torch.nn import Linear, Module, Sequential, Tanh

import torch_func_compat as tfc
from torch_func_compat._arguments import memory as _memory

BATCH = 64
WIDTH = 64


class Determinant(Module):
    """log|det| of orbitals of electrons that see their mean: (B, 3 n) to (B,)."""

    def __init__(self, electrons, width=32):
        super().__init__()
        self.electrons = electrons
        self.first, self.second, self.last = Linear(4, width), Linear(width, width), Linear(width, electrons)

    def forward(self, x):
        x = x.reshape(*x.shape[:-1], self.electrons, 3)
        r = (x * x).sum(-1, keepdim=True) ** 0.5
        h = torch.tanh(self.first(torch.cat([x, r], -1)))
        h = torch.tanh(self.second(h) + h.mean(-2, keepdim=True))
        return torch.linalg.slogdet(self.last(h) * torch.exp(-r))[1]


def network(inputs):
    layers = [Linear(inputs, WIDTH), Tanh(), Linear(WIDTH, WIDTH), Tanh(), Linear(WIDTH, WIDTH), Tanh()]
    return Sequential(*layers, Linear(WIDTH, 1))


def functions(sizes, electrons):
    for size in sizes:
        torch.manual_seed(0)
        yield f"network, D = {size}", network(size), torch.randn(BATCH, size)
    for count in electrons:
        torch.manual_seed(0)
        yield f"{count} electrons, D = {3 * count}", Determinant(count), torch.randn(BATCH, 3 * count)


def in_jax(function):
    """The same function of one sample, for JAX."""
    import jax.numpy as jnp

    weights = {name: jnp.asarray(value.detach().numpy()) for name, value in function.named_parameters()}

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    if isinstance(function, Determinant):

        def wave(x):
            x = x.reshape(function.electrons, 3)
            r = jnp.sqrt((x * x).sum(-1, keepdims=True))
            h = jnp.tanh(linear("first", jnp.concatenate([x, r], -1)))
            h = jnp.tanh(linear("second", h) + h.mean(0, keepdims=True))
            return jnp.linalg.slogdet(linear("last", h) * jnp.exp(-r))[1]

        return wave

    def layers(x):
        for name in ("0", "2", "4"):
            x = jnp.tanh(linear(name, x))
        return linear("6", x)[0]

    return layers


def candidates(function, x):
    """Name to call; all without a graph of parameters, which JAX has none of, either."""

    def without_graph(call):
        def run():
            with torch.no_grad():
                return call()

        return run

    modes = {mode: tfc.batch_laplacian(function, mode=mode) for mode in ("forward", "rows", "auto")}
    found = {mode: without_graph(lambda transformed=transformed: transformed(x)) for mode, transformed in modes.items()}
    if hasattr(torch, "func"):
        hessian = torch.func.vmap(torch.func.hessian(lambda row: function(row).reshape(())))
        found["torch.func.hessian"] = without_graph(lambda: hessian(x).diagonal(0, -2, -1).sum(-1))
    try:
        import jet

        single = jet.laplacian(function, (x[0],))
        mapped = torch.func.vmap(single)
        mapped(x)
        found["torch-jet"] = without_graph(lambda: mapped(x))
    except Exception as error:  # noqa: BLE001 - whatever it cannot do
        print(f"torch-jet is not measured ({type(error).__name__}: {str(error)[:80]})")
    try:
        import folx
        import jax

        compiled = jax.jit(jax.vmap(lambda row: folx.forward_laplacian(in_jax(function))(row).laplacian))
        array = jax.numpy.asarray(x.numpy())
        compiled(array).block_until_ready()
        found["folx, JAX jit"] = lambda: compiled(array).block_until_ready()
    except Exception as error:  # noqa: BLE001
        print(f"folx is not measured ({type(error).__name__}: {str(error)[:80]})")
    return found


def training(function, x):
    """The same with derivatives of the Laplacian by the parameters."""
    found = {}
    for mode in ("forward", "rows"):
        transformed = tfc.batch_laplacian(function, mode=mode)

        def run(transformed=transformed):
            for parameter in function.parameters():
                parameter.grad = None
            transformed(x).pow(2).mean().backward()
            return torch.zeros(1)

        found[f"{mode}, trained"] = run
    return found


def peak(call):
    """Bytes that were alive at once; None where that is not seen."""
    if torch.__version__.startswith("1.") and not torch.__version__.startswith("1.8"):
        return None  # within its watch, subclasses of tensors are not made
    try:
        return _memory.measured(lambda: [call()])[1].peak
    except RuntimeError:
        return None


def measured(calls, seconds):
    """Medians of the time of each, in turns."""
    times = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    for call in calls.values():
        call()
    order, draw = list(calls), random.Random(0)
    clock = time.process_time  # of all threads, since JAX computes in others
    while any(len(times[name]) < 5 for name in calls) or max(spent.values()) < seconds:
        draw.shuffle(order)
        for name in order:
            start = clock()
            calls[name]()
            times[name].append(clock() - start)
            spent[name] += times[name][-1]
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[3, 10, 30, 50, 100])
    parser.add_argument("--electrons", type=int, nargs="*", default=[2, 4, 10, 20])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--plot", help="a file for the plot")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {BATCH} samples; ratios to mode='rows'")
    table = []
    for title, function, x in functions(options.sizes, options.electrons):
        for calls, base in ((candidates(function, x), "rows"), (training(function, x), "rows, trained")):
            times = measured(calls, options.seconds)
            memory = {name: peak(call) for name, call in calls.items() if "JAX" not in name and "jet" not in name}
            for name, seconds in times.items():
                needed = memory.get(name)
                of_memory = f"{needed / memory[base]:5.2f}x memory" if needed and memory.get(base) else ""
                print(f"{title:24} {name:20} {seconds * 1e3:9.3f} ms {seconds / times[base]:6.2f}x time {of_memory}")
                table.append((title, x.shape[1], isinstance(function, Determinant), name, seconds / times[base]))
    if options.plot:
        plot(table, options.plot)


def plot(table, path):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    # 'auto' is 'forward' here; five series can be told apart
    names = [name for name in dict.fromkeys(row[3] for row in table) if not name.startswith(("rows", "auto"))]
    for axis, determinants, title in zip(axes, (False, True), ("network of 4 layers", "determinant of orbitals")):
        for k, name in enumerate(names):
            points = [(size, ratio) for _, size, kind, other, ratio in table if kind == determinants and other == name]
            if points:
                axis.plot(*zip(*points), marker="o", color=f"C{k}")
        axis.axhline(1, color="gray", linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel="inputs of a sample", title=title)
        sizes = sorted({row[1] for row in table if row[2] == determinants})
        axis.set_xticks(sizes, sizes)
        axis.minorticks_off()
    axes[0].set_ylabel("time / time by rows")
    axes[0].set_yticks([0.25, 0.5, 1, 2], ["1/4", "1/2", "1", "2"])
    lines = [pyplot.Line2D([], [], marker="o", color=f"C{k}", label=name) for k, name in enumerate(names)]
    figure.legend(handles=lines, loc="center right", fontsize="small")
    figure.tight_layout(rect=(0, 0, 0.83, 1))
    figure.savefig(path)


if __name__ == "__main__":
    main()
