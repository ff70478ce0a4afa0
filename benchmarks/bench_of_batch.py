"""vmap of gradients and Hessians by this library against torch.func's: ``python benchmarks/bench_of_batch.py``.

Each number is the median of several times, by the processor time of the thread, relative to torch.func in the same
process.
"""

from __future__ import annotations

import statistics

import torch
from bench_by_hand import log_sum, network, product, rosenbrock, seconds

import torch_func_compat as tfc


def main() -> None:
    """Print the table."""
    print(f"torch {torch.__version__}, one thread; by this library relative to torch.func")
    print(f"{'':24}{'vmap(grad)':>12}{'vmap(hessian)':>16}")
    ratios: dict[str, list[float]] = {"grad": [], "hessian": []}
    for func in (network, rosenbrock, product, log_sum):
        for samples in (16, 256):
            batch = torch.randn(samples, 16)
            for name, found in ratios.items():
                ours = tfc.vmap(getattr(tfc, name)(func))
                theirs = torch.func.vmap(getattr(torch.func, name)(func))
                found.append(seconds(lambda: ours(batch)) / seconds(lambda: theirs(batch)))  # noqa: B023
            row = f"{func.__name__}, {samples} samples"
            print(f"{row:24}{ratios['grad'][-1]:12.2f}{ratios['hessian'][-1]:16.2f}")
    print(f"{'median':24}{statistics.median(ratios['grad']):12.2f}{statistics.median(ratios['hessian']):16.2f}")


if __name__ == "__main__":
    main()
