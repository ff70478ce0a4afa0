"""The table of differences at the end of the benchmarks."""

from collections import defaultdict
from statistics import median


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    # Of each turn the fastest round, which the rest of the machine disturbed least; then the median of the
    # turns' differences, since the two libraries of one turn ran within the same second.
    fastest = defaultdict(lambda: defaultdict(dict))
    for bench in session.benchmarks:
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
