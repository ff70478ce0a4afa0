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
import random as chance
import runpy
import shutil
import subprocess
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
PYTHONS = {row["name"]: row for row in MATRIX["pythons"]}
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


def install(session, *requirements, **options):
    """Install, and try again after a while: gigabytes are downloaded, longer than uv's own patience at times."""
    for pause in (15, 60):
        try:
            return session.install(*requirements, **options)
        except nox.command.CommandFailed:
            session.warn(f"the installation failed; again in {pause} s")
            time.sleep(pause)
    session.install(*requirements, **options)


def install_project(session, *requirements):
    # Not editable: what is tested is the wheel. uv would otherwise not notice that the sources changed.
    install(session, ".", "--reinstall-package", "torch-func-compat", *requirements)


def environment_of_pytest():
    return {
        # The tensors of the tests are tiny: one thread per worker is faster than many.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        # Some containers set this. Each of the processes that the tests start would compile all of torch again.
        "PYTHONDONTWRITEBYTECODE": None,
    }


def run_pytest(session, *args):
    env = environment_of_pytest()
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
    # mypy reads torch and never runs it: the wheel for macOS has no CUDA, and a fraction of the size of the others.
    torch = ["--no-deps", "--python-platform", "aarch64-apple-darwin", f"torch=={NEWEST['torch']}"]
    install(session, *torch, env={"MACOSX_DEPLOYMENT_TARGET": "14.0"})
    install(session, *nox.project.dependency_groups(PYPROJECT, "lint"), "packaging", "numpy")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy", "--strict", "src", "tests/support/typed.py")


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
    run_pytest(session, *PARALLEL, *([] if environment.get("whole") else ["-m", "not any_torch"]))


def tests_of(session, name, python, requirements, optional=False):
    """Make an environment of that Python and run the tests in it.

    The session is skipped where there is no such Python and, if `optional`, no wheel for it.
    """
    folder = Path(session.create_tmp(), name).resolve()
    bin = folder / ("Scripts" if os.name == "nt" else "bin")
    missing = refused("uv", "venv", "--quiet", "--clear", "--python", python, str(folder))
    if missing:
        session.skip(f"there is no CPython {python}: {missing}")
    install = ["uv", "pip", "install", "--python", str(folder)]
    missing = optional and refused(*install, "--dry-run", *requirements)
    if missing:
        session.skip(f"CPython {python} cannot have {requirements[0]}: {missing}")
    try:
        # Not editable: what is tested is the wheel.
        session.run(*install, "--reinstall-package", "torch-func-compat", ".", *requirements, external=True)
        session.run(str(bin / "python"), "-VV", external=True)
        command = [str(bin / "python"), "-m", "pytest", *PARALLEL, *session.posargs]
        session.run(*command, env=environment_of_pytest(), external=True)
    finally:
        if asked("PRUNE"):
            shutil.rmtree(folder, ignore_errors=True)


def refused(*command):
    """What a command said, in one line, if it failed."""
    done = subprocess.run(command, capture_output=True, text=True)
    return " ".join(done.stderr.split()) if done.returncode else ""


@nox.session(venv_backend="none", tags=["all"])
@nox.parametrize("row", [nox.param(row, id=name) for name, row in PYTHONS.items() if "torch" in row])
def pythons(session, row):
    """The tests with the newest torch on a Python that many machines lack: skipped there, with the reason."""
    environment = {**NEWEST, "torch": row["torch"]}
    tests_of(session, row["name"], row["python"], requirements(environment, "test"), optional=True)


@nox.session(venv_backend="none")
def random(session):
    """The tests with torch, Python and numpy drawn among those that go together; -- --seed N draws them again."""
    seed = chance.SystemRandom().randrange(10**6)
    if session.posargs[:1] == ["--seed"]:
        seed = int(session.posargs[1])
        del session.posargs[:2]
    draw = chance.Random(seed)
    row = draw.choice([row for row in PYTHONS.values() if "minors" in row])
    first, last = (version(minor) for minor in row["minors"])
    environment = draw.choice([e for e in ENVIRONMENTS.values() if first <= version(e["torch"])[:2] <= last])
    capped = environment.get("numpy") == "<2"
    numpy = draw.choice([minor for minor in row["numpy"] if not capped or version(minor)[0] < 2])
    drawn = {**environment, "numpy": f"=={numpy}.*"}
    session.log(f"seed {seed}: torch {environment['torch']}, CPython {row['python']}, numpy {numpy}")
    tests_of(session, f"random-{seed}", row["python"], requirements(drawn, "test"))


def version(text):
    return tuple(map(int, text.split(".")))


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
    """Real packages plain and with the library in torch.func's place; -- --own-tests DIR runs their own tests.

    DIR is a checkout or an unpacked sdist, or a folder with several. A row that has none of its packages is skipped.
    """
    own = session.posargs[:1] == ["--own-tests"]
    if own and len(session.posargs) == 1:
        session.error("--own-tests needs a folder: a checkout, or a folder with checkouts")
    packages = [requirement.split("==")[0] for requirement in row["packages"]]
    found = [package for package in packages if downstream_checkout(session.posargs[1], package)] if own else []
    if own and not found:
        session.skip(f"{session.posargs[1]} has no checkout of {', '.join(packages)}")
    needs = [*row["needs"], *(row.get("own-needs", []) if own else [])]
    install_project(session, *requirements(environment, "test"), *needs)
    install(session, "--no-deps", *row["packages"])
    table = Path(session.cache_dir, "downstream.json").resolve()
    if not DOWNSTREAM_RUN:
        table.unlink(missing_ok=True)
    DOWNSTREAM_RUN.append(row["name"])
    compare = ["python", "tests/downstream/compare.py", "--swap", row["swap"], "--table", str(table)]
    env = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if own:
        selected = [f"--select={package}={arguments}" for package, arguments in row.get("own", {}).items()]
        session.run(*compare, "--packages", ",".join(found), *selected, *session.posargs, env=env)
    else:
        for suite in row["suites"]:
            session.run(*compare, "--name", suite, f"accept_{suite}.py", *session.posargs, env=env)


DOWNSTREAM_RUN = []  # names of the rows in this call of nox, whose results are one table


def downstream_checkout(folder, package):
    """Where the sources of a package are, by the rule of tests/downstream/compare.py."""
    namespace = runpy.run_path(str(ROOT / "tests" / "downstream" / "compare.py"))
    return namespace["checkout"](folder, package)


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
        "import torch, torch_func_compat; from packaging.version import Version; "
        "print('torch', torch.__version__, 'of commit', torch.version.git_version); "
        "assert Version(torch.__version__).is_devrelease, f'{torch.__version__} is no nightly'; "
        f"assert Version(torch.__version__) > Version('{NEWEST['torch']}'), 'older than the newest release'; "
        "assert 'site-packages' in torch_func_compat.__file__, torch_func_compat.__file__"
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
    session.run("python", "benchmarks/report.py", results, "docs/benchmarks/derivatives.json", env=env)


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
