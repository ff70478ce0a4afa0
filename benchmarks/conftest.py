"""Options of the benchmarks, and the tables at their end."""

from collections import defaultdict
from statistics import median

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where derivatives are computed: cpu, cuda, ...")
    parser.addoption("--seconds", default=0.5, type=float, help="how long this library's call of a workload is timed")


@pytest.fixture(scope="session")
def device(request):
    torch.set_num_threads(1)
    return request.config.getoption("--device")


@pytest.fixture(scope="session")
def seconds(request):
    return request.config.getoption("--seconds")


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    # Of each turn the fastest round, which the rest of the machine disturbed least; then the median of the
    # turns' differences, since the two libraries of one turn ran within the same second.
    if any("library" in bench.extra_info for bench in session.benchmarks):
        _overhead(terminalreporter, session.benchmarks)
    if any("times" in bench.extra_info for bench in session.benchmarks):
        _ratios(terminalreporter, session.benchmarks)


def _ratios(terminalreporter, benchmarks):
    """How many times as long as this library the others take, by medians of calls that took turns."""
    terminalreporter.section("time of others / time of torch_func_compat")
    for bench in benchmarks:
        times = bench.extra_info.get("times")
        if not times:
            continue
        medians = {name: median(values) for name, values in times.items()}
        own = next(iter(medians.values()))
        terminalreporter.write_line(f"{bench.group} ({own * 1e3:.3g} ms)")
        for name, value in list(medians.items())[1:]:
            terminalreporter.write_line(f"    {value / own:8.2f}  {name}")


def _overhead(terminalreporter, benchmarks):
    fastest = defaultdict(lambda: defaultdict(dict))
    for bench in benchmarks:
        if "library" not in bench.extra_info:
            continue
        fastest[bench.group][bench.extra_info["library"]][bench.params["turn"]] = bench.stats.min * 1e6

    terminalreporter.section("overhead per call, in µs")
    row = "{:<34} {:>12} {:>18} {:>12} {:>8}".format
    terminalreporter.write_line(row("", "without", "torch_func_compat", "difference", "ratio"))
    for group, times in fastest.items():
        ours = times.pop("torch_func_compat")
        (theirs,) = times.values()  # torch.func, or a loop by hand
        difference = median(ours[turn] - theirs[turn] for turn in theirs)
        base = median(theirs.values())
        total = base + difference
        numbers = f"{base:.2f}", f"{total:.2f}", f"{difference:+.2f}", f"{total / base:.3f}"
        terminalreporter.write_line(row(group, *numbers))
