"""Development tasks: a plain ``nox`` lints and runs the tests of tier ``pr``; ``nox -l`` lists the rest.

What is particular to one machine (indexes, wheel folders, caches) comes through uv's own environment
variables. Three more are read here:

``TORCH_FUNC_COMPAT_NOX_COVERAGE=1``   the tests also measure coverage, for ``nox -s coverage``
``TORCH_FUNC_COMPAT_NOX_PRUNE=1``      each environment (2-6 GB) is deleted after its session, with its downloads
``TORCH_FUNC_COMPAT_NIGHTLY_INDEX``    the package index with the torch that ``nightly`` tests
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from pathlib import Path
from xml.etree import ElementTree

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"
nox.options.tags = ["pr"]

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml("pyproject.toml")
MATRIX = nox.project.load_toml("matrix.toml")
ENVIRONMENTS = {row["name"]: row for row in MATRIX["environments"]}
DOWNSTREAM = {row["name"]: (ENVIRONMENTS[row["environment"]], row) for row in MATRIX["downstream"]}
OLDEST, *_, NEWEST = ENVIRONMENTS.values()


def asked(name):
    return os.environ.get(f"TORCH_FUNC_COMPAT_NOX_{name}", "") not in ("", "0")


def over_the_table(tags_of=lambda row: []):
    """Run a session in each environment of the table; ``tags_of`` gives the tags of a row."""
    rows = [nox.param(row["python"], row, id=name, tags=tags_of(row)) for name, row in ENVIRONMENTS.items()]
    return nox.parametrize("python, environment", rows)


def disposable(function):
    """Delete the session's environment when it ends, and what was downloaded for it, where that is asked for."""

    @functools.wraps(function)
    def session_function(session, *args, **kwargs):
        location = getattr(session.virtualenv, "location", None)
        if not (location and asked("PRUNE")):
            return function(session, *args, **kwargs)
        # No two environments have a torch in common, and uv's own cache would fill the disk with all of them.
        session.env["UV_CACHE_DIR"] = str(Path(location, "cache").resolve())
        try:
            function(session, *args, **kwargs)
        finally:
            shutil.rmtree(location, ignore_errors=True)

    return session_function


def requirements(environment, *groups):
    """What pins an environment of the table, and the dependency groups that go into it."""
    pins = [f"torch=={environment['torch']}"]
    if "functorch" in environment:
        pins.append(f"functorch=={environment['functorch']}")
    if "numpy" in environment:
        pins.append(f"numpy{environment['numpy']}")
    return [*pins, *environment.get("extra", []), *nox.project.dependency_groups(PYPROJECT, *groups)]


def install(session, *requirements):
    """Install, and try again after a while: gigabytes are downloaded, longer than uv's own patience at times."""
    for pause in (15, 60):
        try:
            return session.install(*requirements)
        except nox.command.CommandFailed:
            session.warn(f"the installation failed; again in {pause} s")
            time.sleep(pause)
    session.install(*requirements)


def install_project(session, *requirements):
    # Not editable: what is tested is the wheel. uv would otherwise not notice that the sources changed.
    install(session, ".", "--reinstall-package", "torch-func-compat", *requirements)


def run_pytest(session, *args):
    # The tensors of the tests are tiny: one thread per worker is faster than many.
    env = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if asked("COVERAGE"):
        # Each Python starts coverage itself, so that those which the tests start are measured too. A worker
        # of xdist may be killed before it has saved its data, so there are none.
        hook = "import sysconfig, pathlib; pathlib.Path(sysconfig.get_path('purelib'), 'measure.pth')"
        session.run("python", "-c", hook + ".write_text('import coverage; coverage.process_startup()')")
        env["COVERAGE_PROCESS_START"] = str(ROOT / "pyproject.toml")
        env["COVERAGE_FILE"] = str(ROOT / ".coverage")
        args = [*args, "-n", "0"]
    session.run("pytest", *args, *session.posargs, env=env)


PARALLEL = ["-n", "auto", "--maxprocesses", "8", "--dist", "worksteal"]


@nox.session(python=NEWEST["python"], tags=["pr", "all"])
@disposable
def lint(session):
    """Formatting and style of everything, types of the library against the newest torch."""
    install(session, *requirements(NEWEST, "lint"), "packaging", "numpy")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy", "--strict", "src")


@nox.session(python=NEWEST["python"], tags=["all"])
@disposable
def types(session):
    """Whether the installed package tells a type checker the type of all that is public (pyright comes from npm)."""
    install_project(session, *requirements(NEWEST), "pyright[nodejs]", "numpy")
    session.run("pyright", "--verifytypes", "torch_func_compat", "--ignoreexternal")


@nox.session
@over_the_table(lambda row: sorted({row["tier"], "all", *row.get("also", [])}))
@disposable
def tests(session, environment):
    """The tests in one environment of the table; arguments after -- go to pytest."""
    install_project(session, *requirements(environment, "test"))
    run_pytest(session, *PARALLEL)


@nox.session
@over_the_table()
@disposable
def tests_cuda(session, environment):
    """The tests on a GPU (UV_TORCH_BACKEND chooses the CUDA of the torch wheel)."""
    install_project(session, *requirements(environment, "test"))
    session.run("python", "-c", "import torch; assert torch.cuda.is_available(), 'torch sees no GPU'")
    report = Path(session.create_tmp(), "tests_cuda.xml")
    run_pytest(session, "-n", "4", "--device", "cuda", f"--junitxml={report}")
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    if all(suite.get("tests") == suite.get("skipped") for suite in suites):
        session.error("every test was skipped")


@nox.session
@nox.parametrize(
    "python, environment, row", [nox.param(env["python"], env, row, id=name) for name, (env, row) in DOWNSTREAM.items()]
)
@disposable
def downstream(session, environment, row):
    """Real packages plain and with the library in torch.func's place; -- --own-tests DIR runs a checkout's own."""
    install_project(session, *requirements(environment, "test"), *row["needs"])
    install(session, "--no-deps", *row["packages"])
    compare = ["python", "tests/downstream/compare.py", "--swap", row["swap"]]
    env = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if session.posargs:
        session.run(*compare, "--name", row["name"], *session.posargs, env=env)
        return
    for suite in row["suites"]:
        session.run(*compare, "--name", suite, f"accept_{suite}.py", env=env)


@nox.session
@over_the_table()
@disposable
def matrix(session, environment):
    """See how each operator is computed, for the documentation's support matrix: docs/support/*.json."""
    install_project(session, *requirements(environment, "test"))
    release = environment["torch"]
    Path(ROOT, "docs", "support", f"torch-{release}.json").unlink(missing_ok=True)
    run_pytest(session, "-n", "0", "tests/test_support.py", "--support", str(ROOT / "docs" / "support"))


@nox.session
@over_the_table()
@disposable
def sweep(session, environment):
    """Every operation of torch's own database through every kind of derivative: which are proven on this torch."""
    install_project(session, *requirements(environment, "test"), "expecttest", "pyyaml")
    session.run("python", "-W", "ignore", "tests/sweep/sweep.py", *session.posargs)


@nox.session(python=NEWEST["python"])
@disposable
def nightly(session):
    """The tests on torch's nightly, from the index in TORCH_FUNC_COMPAT_NIGHTLY_INDEX."""
    index = os.environ.get("TORCH_FUNC_COMPAT_NIGHTLY_INDEX")
    if not index:
        session.error("set TORCH_FUNC_COMPAT_NIGHTLY_INDEX to the package index of torch's nightlies")
    test = nox.project.dependency_groups(PYPROJECT, "test")
    # A bound that is itself a pre-release admits those of torch, and of no other package.
    install_project(session, "--index", index, "torch>=2.0.dev0", *test)
    check = (
        "import torch; from packaging.version import Version; "
        "assert Version(torch.__version__).is_devrelease, f'{torch.__version__} is no nightly'"
    )
    session.run("python", "-c", check)
    run_pytest(session, *PARALLEL)


@nox.session(python=NEWEST["python"])
def coverage(session):
    """Combine what measured tests left behind; only the sum of several environments has to meet the bar."""
    install(session, "coverage")
    session.run("coverage", "combine")
    session.run("coverage", "html", "--skip-covered")
    session.run("coverage", "report", "--fail-under=95")


@nox.session(python=NEWEST["python"])
@disposable
def docs(session):
    """Build the documentation and check its links; a warning is an error."""
    install_project(session, *requirements(NEWEST, "docs"))
    session.run("sphinx-build", "-W", "--keep-going", "-E", "docs", "docs/_build/html", *session.posargs)
    session.run("python", "docs/check_html.py", "docs/_build/html")


@nox.session(python=NEWEST["python"])
@disposable
def bench(session):
    """Overheads over torch and loops by hand; derivatives by this library and by others, for docs/benchmarks."""
    install_project(session, *requirements(NEWEST, "bench"))
    files = ("bench_overhead.py", "bench_function.py", "bench_loop.py")
    benchmarks = [*(f"benchmarks/{file}" for file in files), "--benchmark-quiet"]
    env = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
    session.run("pytest", *benchmarks, *session.posargs, env=env)
    results = str(Path(session.create_tmp(), "derivatives.json").resolve())
    derivatives = ["benchmarks/bench_derivatives.py", "--benchmark-quiet", f"--benchmark-json={results}"]
    session.run("pytest", *derivatives, *session.posargs, env=env)
    session.run("python", "benchmarks/report.py", results, "docs/benchmarks", env=env)


@nox.session
@over_the_table()
@disposable
def bench_rows(session, environment):
    """What rows of Jacobians take on the autograd backend, in one environment of the table."""
    install_project(session, *requirements(environment, "test"), "pytest-benchmark")
    session.run(
        "pytest", "benchmarks/bench_rows.py", "--benchmark-quiet", *session.posargs, env={"OMP_NUM_THREADS": "1"}
    )


@nox.session(venv_backend="none")
def dev(session):
    """Make .venv with the newest torch, or .venv-NAME with -- NAME; the library is editable in it."""
    name = session.posargs[0] if session.posargs else NEWEST["name"]
    folder = f".venv-{name}" if session.posargs else ".venv"
    environment = ENVIRONMENTS[name]
    session.run("uv", "venv", "--clear", "--python", environment["python"], folder, external=True)
    install = ["uv", "pip", "install", "--python", folder, "--editable", "."]
    session.run(*install, *requirements(environment, "dev"), external=True)


@nox.session
def build(session):
    """The sdist and the wheel, in dist/; then their tests on the oldest and the newest torch."""
    install(session, "build", "twine")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))
    for environment in (OLDEST, NEWEST):
        session.notify(f"built({environment['name']})")


@nox.session
@over_the_table()
@disposable
def built(session, environment):
    """The tests that the sdist brings, of the wheel that is installed, with neither source tree in sight."""
    (sdist,), (wheel,) = Path("dist").glob("*.tar.gz"), Path("dist").glob("*.whl")
    install(session, str(wheel), "--reinstall-package", "torch-func-compat", *requirements(environment, "test"))
    folder = Path(session.create_tmp())
    shutil.rmtree(folder / "unpacked", ignore_errors=True)
    shutil.unpack_archive(sdist, folder / "unpacked")
    (tree,) = (folder / "unpacked").iterdir()
    shutil.rmtree(tree / "src")
    session.chdir(tree)
    session.run("python", "-c", "import torch_func_compat as t; assert 'site-packages' in t.__file__, t.__file__")
    run_pytest(session, *PARALLEL)
