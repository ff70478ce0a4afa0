"""What falling back costs: ``python docs/measure_falling_back.py`` writes docs/benchmarks/falling-back.json.

Gradients of a batch of samples, in three ways: batched by torch, by this library after torch refused the function
(a branch on a value), and by the loop that one would write by hand. The three take turns on one thread; each time is
the median of the turns. ``generate.py`` draws the figure from the file.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any, Callable

import torch

import torch_func_compat as tfc

SIZES = [1, 4, 16, 64, 256, 1024]
TURNS = 15
WEIGHTS = [torch.randn(64, 64, generator=torch.Generator().manual_seed(seed)) / 8 for seed in (0, 1)]


def network(x: Any) -> Any:
    """Two layers of 64."""
    return torch.tanh(WEIGHTS[1] @ torch.tanh(WEIGHTS[0] @ x)).sum()


def branching(x: Any) -> Any:
    """The same; the branch on a value is what torch's vmap refuses."""
    return network(x) if x.abs().sum() > 0 else x.sum()


def by_hand(xs: Any) -> Any:
    """A loop of torch.autograd.grad."""
    found = []
    for x in xs:
        x = x.detach().requires_grad_()
        found.append(torch.autograd.grad(branching(x), x)[0])
    return torch.stack(found)


def seconds(call: Callable[[Any], Any], xs: Any) -> float:
    start = time.thread_time()
    call(xs)
    return time.thread_time() - start


def main() -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    tfc.set_fallback("silent")
    ways = {
        "batched": tfc.vmap(tfc.grad(network)),
        "fallen back": tfc.vmap(tfc.grad(branching)),
        "loop by hand": by_hand,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for size in SIZES:
        xs = torch.randn(size, 64)
        for call in ways.values():
            call(xs)
        turns = [{name: seconds(call, xs) for name, call in ways.items()} for _ in range(TURNS)]
        for name in ways:
            times[name].append(statistics.median(turn[name] for turn in turns))
    found = {"torch": str(torch.__version__), "sizes": SIZES, "seconds": times}
    path = Path(__file__).with_name("benchmarks") / "falling-back.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, values in times.items():
        print(f"{name:14}", "  ".join(f"{1e3 * value:9.3f} ms" for value in values))


if __name__ == "__main__":
    main()
