"""From the JSON of pytest-benchmark to what the documentation shows: a table of ratios, and plots.

``python benchmarks/report.py results.json FOLDER`` writes FOLDER/derivatives.json (medians and peak memory),
derivatives.md (the table), ratios.png and, from calls of its own, scaling.png.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median


def summarised(results):
    """{workload: {candidate: [median in ms, peak MB or None]}}, this library's candidate first."""
    found = {}
    for bench in results["benchmarks"]:
        times = bench["extra_info"].get("times")
        if not times:
            continue
        memory = bench["extra_info"].get("memory", {})
        found[bench["group"]] = {
            name: [round(median(values) * 1e3, 4), round(memory[name] / 1e6, 3) if name in memory else None]
            for name, values in times.items()
        }
    return found


def table(summary):
    """Markdown: what the others take, relative to this library."""
    lines = ["| workload | this library | times as long (peak memory), by |", "| --- | --- | --- |"]
    for workload, candidates in summary.items():
        (own, *_), *_ = candidates.values()
        others = sorted((value[0] / own, name, value[1]) for name, value in list(candidates.items())[1:])
        text = "; ".join(
            f"{name} **{ratio:.2f}**{f' ({memory:.3g} MB)' if memory else ''}" for ratio, name, memory in others
        )
        peak = next(iter(candidates.values()))[1]
        lines.append(f"| {workload} | {own:.3g} ms{f', {peak:.3g} MB' if peak else ''} | {text} |")
    return "\n".join(lines) + "\n"


def machine(info):
    """What was measured, in words."""
    from importlib.metadata import PackageNotFoundError, version

    words = []
    for package in ("torch", "jax"):
        try:
            words.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    cpu = info.get("cpu", {})
    words.append(f"one thread of {cpu.get('brand_raw', info['machine'])} ({cpu.get('count', '?')} cores)")
    return ", ".join(words)


def save(figure, path):
    """On white with a frame, to be read on pages of any colour."""
    figure.tight_layout()
    figure.patch.set_linewidth(2)
    figure.savefig(path, dpi=120, facecolor="white", edgecolor="0.6")


def plot_ratios(summary, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.28 * len(summary) + 2.5))
    names = sorted({name.partition(":")[0] for candidates in summary.values() for name in list(candidates)[1:]})
    for k, kind in enumerate(names):
        points = [
            (value[0] / next(iter(candidates.values()))[0], row)
            for row, candidates in enumerate(summary.values())
            for name, value in list(candidates.items())[1:]
            if name.partition(":")[0] == kind
        ]
        style = {"color": f"C{k % 10}", "marker": "os^"[k // 10]}
        axes.scatter(*zip(*points), s=18, label=kind, **style)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(summary)))
    axes.set_yticklabels(list(summary), fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("time / time of torch_func_compat")
    axes.legend(fontsize=7, ncol=3, loc="upper center", bbox_to_anchor=(0.35, -0.06))
    save(figure, path)


def scaling():
    """Times of batched derivatives over batch, inputs and outputs, and memory over the size of chunks."""
    from time import perf_counter

    import torch
    from workloads import network

    import torch_func_compat as tfc
    from torch_func_compat._arguments import memory as _memory

    def seconds(call):
        call()
        times = []
        for _ in range(7):
            start = perf_counter()
            call()
            times.append(perf_counter() - start)
        return median(times)

    def jacobian(batch, inputs, outputs):
        call = tfc.batch_jacobian(network(inputs, outputs, "cpu"), mode="reverse")
        x = torch.randn(batch, inputs)
        return seconds(lambda: call(x))

    def hessian(batch, inputs):
        module = network(inputs, 1, "cpu")
        call = tfc.batch_hessian(lambda x: module(x).squeeze(-1))
        x = torch.randn(batch, inputs)
        return seconds(lambda: call(x))

    def memory(chunk_size):
        module = network(64, 64, "cpu")
        call = tfc.batch_jacobian(module, mode="reverse", chunk_size=chunk_size)
        x = torch.randn(256, 64)
        return _memory.measured(lambda: [call(x)])[1] / 1e6

    torch.set_num_threads(1)
    return {
        "batched Jacobian over B (N = M = 16)": [[b, jacobian(b, 16, 16)] for b in (64, 256, 1024, 4096)],
        "batched Jacobian over M (B = 64, N = 64)": [[m, jacobian(64, 64, m)] for m in (8, 32, 128, 512)],
        "batched Jacobian over N (B = 64, M = 16)": [[n, jacobian(64, n, 16)] for n in (64, 256, 1024, 4096)],
        "batched Hessian over B (N = 16)": [[b, hessian(b, 16)] for b in (64, 256, 1024, 4096)],
        "batched Hessian over N (B = 64)": [[n, hessian(64, n)] for n in (16, 64, 256)],
        "peak MB over chunk size (B = 256, N = M = 64)": [[c, memory(c)] for c in (1, 4, 16, 64)],
    }


def slope(points):
    """Of the last half, where overhead no longer matters."""
    from math import log

    (x0, y0), (x1, y1) = points[len(points) // 2 - 1], points[-1]
    return log(y1 / y0) / log(x1 / x0)


def plot_scaling(curves, path):
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(2, 3, figsize=(11, 6))
    for axis, (name, points) in zip(axes.flat, curves.items()):
        axis.loglog(*zip(*points), "o-")
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_minor_formatter(ticker.NullFormatter())
        axis.set_xticks([x for x, _ in points])
        axis.set_xticklabels([str(x) for x, _ in points])
        axis.set_title(f"{name}\nslope {slope(points):.2f}", fontsize=8)
        axis.set_ylabel("MB" if "MB" in name else "s", fontsize=8)
    save(figure, path)


def main(source, folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    results = json.loads(Path(source).read_text(encoding="utf-8"))
    summary, curves = summarised(results), scaling()
    written = {
        "machine": machine(results["machine_info"]),
        "milliseconds and peak MB": summary,
        "scaling": curves,
    }
    (folder / "derivatives.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    text = f"{machine(results['machine_info'])}.\n\n{table(summary)}"
    (folder / "derivatives.md").write_text(text, encoding="utf-8")
    plot_ratios(summary, folder / "ratios.png")
    plot_scaling(curves, folder / "scaling.png")


if __name__ == "__main__":
    main(*sys.argv[1:3])
