"""From the JSON of pytest-benchmark to what the documentation shows.

``python benchmarks/report.py results.json docs/benchmarks/derivatives.json`` writes the medians and peak memory of each
candidate, and curves over sizes from calls of its own. ``docs/times.py`` makes tables and figures of them.
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
        return _memory.measured(lambda: [call(x)])[1].peak / 1e6

    torch.set_num_threads(1)
    return {
        # B samples, N inputs, M outputs
        "J over B": [[b, jacobian(b, 16, 16)] for b in (64, 256, 1024, 4096)],
        "J over M": [[m, jacobian(64, 64, m)] for m in (8, 32, 128, 512)],
        "J over N": [[n, jacobian(64, n, 16)] for n in (64, 256, 1024, 4096)],
        "H over B": [[b, hessian(b, 16)] for b in (64, 256, 1024, 4096)],
        "H over N": [[n, hessian(64, n)] for n in (16, 64, 256)],
        "peak MB over chunk size": [[c, memory(c)] for c in (1, 4, 16, 64)],
    }


def main(source, target):
    results = json.loads(Path(source).read_text(encoding="utf-8"))
    written = {
        "machine": machine(results["machine_info"]),
        "milliseconds and peak MB": summarised(results),
        "scaling": scaling(),
    }
    Path(target).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:3])
