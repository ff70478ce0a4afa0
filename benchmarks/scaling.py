"""
Strong scaling of `torch_func_compat.distributed` over local processes of one thread each, and a model of it.

::

    python benchmarks/scaling.py run scaling.json          # measure, with as many processes as there are cores
    python benchmarks/scaling.py plot scaling.json scaling.svg
    python benchmarks/scaling.py table scaling.json        # for docs/scaling.md

Every job is done by 1, 2, ... of the same processes in turn, round after round, so that what else the machine does
meets all alike; of each the fastest round counts, which was disturbed least. The model is made of what is measured
apart from it, in the same rounds: shares of few and of many rows for the time of one and of what every process does
(the evaluation of the function), gathers of two sizes for latency and bandwidth, an empty job for the messages.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "src")]

from distributed_hessian import crystal  # noqa: E402
from vibrations import argon_energy  # noqa: E402

from torch_func_compat import distributed  # noqa: E402
from torch_func_compat.distributed._collectives import Parcel, Team  # noqa: E402


class Job:
    """A Jacobian or Hessian whose rows are shared."""

    def __init__(self, title: str, transform: Callable[..., Any], func: Callable[..., Any], x: Any, chunk: int) -> None:
        self.title = title
        self.transform = transform
        self.func = func
        self.x = x
        self.chunk = chunk

    def run(self, group: Any) -> Any:
        """Do it."""
        return self.transform(self.func, chunk_size=self.chunk, group=group)(self.x)


def _perturbed(atoms: int) -> torch.Tensor:
    torch.manual_seed(0)
    return crystal(atoms) + 0.05 * torch.randn(atoms, 3, dtype=torch.float64)


def _layers(n: int, depth: int) -> tuple[Callable[..., Any], torch.Tensor]:
    torch.manual_seed(0)
    weights = [torch.randn(n, n, dtype=torch.float64) / n**0.5 for _ in range(depth)]

    def network(x: torch.Tensor) -> torch.Tensor:
        for weight in weights:
            x = (weight @ x).tanh()
        return x

    return network, torch.randn(n, dtype=torch.float64)


def jobs() -> dict[str, Job]:
    """From much arithmetic for each byte of the result to hardly any."""
    network, x = _layers(1000, 4)
    return {
        "cluster 300": Job("Hessian, cluster of 300 atoms", distributed.hessian, argon_energy, _perturbed(300), 8),
        "cluster 100": Job("Hessian, cluster of 100 atoms", distributed.hessian, argon_energy, _perturbed(100), 32),
        "network": Job("Jacobian, 4 layers of 1000", distributed.jacrev, network, x, 100),
        "elementwise": Job("Jacobian, sine of 3000", distributed.jacrev, torch.sin, torch.linspace(0, 1, 3000), 300),
    }


def _timed(group: Any, task: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and those that this process computed."""
    dist.barrier(group=group)
    begin, computed = time.perf_counter(), time.process_time()
    task()
    return time.perf_counter() - begin, time.process_time() - computed


def _gather(group: Any, rows: int, columns: int) -> Callable[[], Any]:
    """The exchange of a result of that size, as the library does it, without the computation."""
    team = Team(group)
    share = torch.zeros(rows // team.size, columns, dtype=torch.float64)
    return lambda: Parcel(team, share, rows, None).send()


SIZES = ((64, 64), (2048, 2048))  # of the gathers: 32 KiB and 32 MiB


def member(rank: int, size: int, meet: str, rounds: int, output: str, only: str | None) -> None:
    """One process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=size)
    groups = {p: dist.new_group(list(range(p))) for p in range(1, size + 1)}
    work = {name: job for name, job in jobs().items() if only in (None, name)}
    times: dict[str, list[tuple[float, float]]] = {}

    def note(key: str, p: int, task: Callable[[], Any]) -> None:
        dist.barrier()
        if rank < p:
            times.setdefault(f"{key}|{p}", []).append(_timed(groups[p], task))

    for turn in range(rounds + 1):
        for name, job in work.items():
            for p, group in groups.items():
                note(name, p, lambda job=job, group=group: job.run(group))  # type: ignore[misc]
            # one chunk, and a third of all rows: their difference is what rows cost
            for rows in _few_and_many(job):
                note(f"{name}, {rows} rows", 1, lambda job=job, rows=rows: _rows(job, rows))  # type: ignore[misc]
        for p, group in groups.items():
            for shape in SIZES:
                if rank < p and p > 1:
                    task = _gather(group, *shape)
                note(f"gather {shape[0] * shape[1] * 8}", p, task if rank < p and p > 1 else lambda: None)
            note("messages", p, lambda group=group: Team(group).agree("", lambda: (None, None)))  # type: ignore[misc]
        if turn == 0:
            times.clear()  # the first round imports and allocates
    if rank == 0:
        report = dict(
            torch=str(torch.__version__),
            processor=_processor(),
            cores=os.cpu_count(),
            rounds=rounds,
            jobs={name: _facts(job) for name, job in work.items()},
            seconds=times,
        )
        Path(output).write_text(json.dumps(report, indent=1) + "\n")
    dist.barrier()


def _few_and_many(job: Job) -> tuple[int, int]:
    return job.chunk, _facts(job)["rows"] // 3


def _rows(job: Job, rows: int) -> Any:
    """The first rows in this process alone."""
    from torch_func_compat._arguments.chunks import Chunks
    from torch_func_compat._arguments.partition import Part
    from torch_func_compat._dispatch.transform import transform

    class First(Part):
        def bounds(self, _: int) -> tuple[int, int]:
            return 0, rows

    part = First(lambda: (0, 1), lambda: True)
    name = job.transform.__name__
    return transform(name, job.func, dict(argnums=0, has_aux=False), dict(chunks=Chunks(job.chunk), part=part))(job.x)


def _facts(job: Job) -> dict[str, Any]:
    n = job.x.numel()
    return dict(title=job.title, rows=n, bytes_per_row=n * job.x.element_size(), chunk=job.chunk)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def model(report: dict[str, Any], name: str, p: int) -> dict[str, float]:
    """
    Seconds that a job takes `p` processes: what all do, a share of the rows, messages and the gather.
    """
    best = {key: min(values)[0] for key, values in report["seconds"].items()}
    job = report["jobs"][name]
    few, many = job["chunk"], job["rows"] // 3
    per_row = (best[f"{name}, {many} rows|1"] - best[f"{name}, {few} rows|1"]) / (many - few)
    common = max(best[f"{name}, {few} rows|1"] - per_row * few, 0.0)
    messages = gather = 0.0
    if p > 1:
        small, large = (rows * columns * 8 for rows, columns in SIZES)
        per_byte = (best[f"gather {large}|{p}"] - best[f"gather {small}|{p}"]) / (large - small)
        latency = max(best[f"gather {small}|{p}"] - small * per_byte, 0.0)
        messages = best[f"messages|{p}"]
        gather = latency + per_byte * job["rows"] * job["bytes_per_row"]
    return dict(common=common, rows=per_row * -(-job["rows"] // p), messages=messages, gather=gather)


def measured(report: dict[str, Any], name: str) -> dict[int, float]:
    """Seconds of the fastest round, by the number of processes."""
    found = {}
    for key, values in report["seconds"].items():
        job, p = key.split("|")
        if job == name:
            found[int(p)] = min(values)[0]
    return found


def _by_rounds(report: dict[str, Any], name: str, p: int) -> float:
    """The median of the speed-ups of single rounds."""
    alone, together = report["seconds"][f"{name}|1"], report["seconds"][f"{name}|{p}"]
    return statistics.median(one[0] / many[0] for one, many in zip(alone, together))


def table(report: dict[str, Any]) -> str:
    """The rows of the table in docs/scaling.md."""
    lines = [
        "| job | bytes/row | time/row | processes | seconds | model | speed-up | median round | messages, gather |",
        "| --- " * 9 + "|",
    ]
    for name, job in report["jobs"].items():
        seconds = measured(report, name)
        for p, value in seconds.items():
            parts = model(report, name, p)
            row = parts["rows"] / -(-job["rows"] // p)
            share = (parts["gather"] + parts["messages"]) / sum(parts.values())
            lines.append(
                f"| {job['title'] if p == 1 else ''} | {job['bytes_per_row'] if p == 1 else ''} "
                f"| {f'{row * 1e6:.0f} µs' if p == 1 else ''} | {p} | {value:.3f} | {sum(parts.values()):.3f} "
                f"| {seconds[1] / value:.2f} | {_by_rounds(report, name, p):.2f} | {100 * share:.0f}% |"
            )
    return "\n".join(lines)


def plot(report: dict[str, Any], path: str) -> None:
    """Measured speed-ups, and the model's as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "scaling"
    figure, axes = pyplot.subplots(figsize=(6, 4.2))
    most = max(measured(report, next(iter(report["jobs"]))))
    for name, job in report["jobs"].items():
        seconds = measured(report, name)
        (marks,) = axes.plot(list(seconds), [seconds[1] / value for value in seconds.values()], "o", label=job["title"])
        modelled = {p: sum(model(report, name, p).values()) for p in seconds}
        axes.plot(list(modelled), [modelled[1] / v for v in modelled.values()], "-", color=marks.get_color(), lw=1)
    axes.plot([1, most], [1, most], "k:", lw=1, label="ideal")
    axes.set(xlabel="processes of one thread", ylabel="speed-up over one process", xticks=range(1, most + 1))
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(f"measured (points) and model (lines), torch {report['torch']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Strong scaling of torch_func_compat.distributed.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("json")
    run.add_argument("--processes", type=int, default=os.cpu_count())
    run.add_argument("--rounds", type=int, default=7)
    run.add_argument("--only", help="one of the jobs")
    for command in ("table", "plot"):
        commands.add_parser(command).add_argument("json")
    commands.choices["plot"].add_argument("figure")
    options = parser.parse_args()
    if options.command == "run":
        os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that are started
        with tempfile.TemporaryDirectory() as folder:
            meet = Path(folder, "meet").as_uri()
            arguments = options.processes, meet, options.rounds, options.json, options.only
            mp.spawn(member, arguments, nprocs=options.processes)
        return 0
    report = json.loads(Path(options.json).read_text())
    if options.command == "table":
        print(table(report))
    else:
        plot(report, options.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
