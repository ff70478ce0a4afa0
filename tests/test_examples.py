"""
The example as a user runs it: a script in a fresh interpreter, in whatever directory.

What it reports is held to stored wavenumbers, which must come out the same on every torch, and to closed
forms and rules of vibrational spectroscopy that share no code with it.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest
import torch
from support.processes import run_python

pytestmark = pytest.mark.any_torch

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "vibrations.py"

# cm^-1, made by this script on torch 2.13.0 (CPU, float64).
WAVENUMBERS = {
    ("water", "H2O"): [1580.26675394, 3853.07393501, 3920.71311919],
    ("water", "HDO"): [1383.23476002, 2829.42965161, 3888.25410821],
    ("water", "D2O"): [1153.51248156, 2784.97542044, 2876.27691063],
    ("water2", "(H2O)2"): [
        113.05622243,
        144.35478958,
        157.05150022,
        239.65438967,
        434.94254837,
        712.44380836,
        1582.14275452,
        1631.05516362,
        3606.68893228,
        3820.28591674,
        3884.37730805,
        3909.68236771,
    ],
    ("water2", "(D2O)2"): [
        82.07231755,
        108.00416356,
        113.08866257,
        220.33179218,
        326.21024859,
        513.59086688,
        1154.55611955,
        1188.45619893,
        2625.37194969,
        2762.08933181,
        2848.69796270,
        2853.31124541,
    ],
    ("ar2", "Ar2"): [26.31550476],
    ("ar13", "Ar13"): [
        *[16.07615868] * 5,
        *[21.67350212] * 4,
        *[23.31112483] * 5,
        *[24.09409081] * 3,
        *[29.76490210] * 4,
        *[29.96150263] * 3,
        *[34.47330497] * 5,
        *[37.10638094] * 1,
        *[59.92860308] * 3,
    ],
}

# 1 kcal/mol/Å²/u as the square of a wavenumber in cm^-1, from CODATA 2018.
PER_CM = math.sqrt(4184.0 / 6.02214076e23 / 1.66053906660e-27) * 1e10 / (2 * math.pi * 29979245800.0)
MASSES = {"H": 1.007825031898, "D": 2.014101777844, "O": 15.994914619257, "Ar": 39.96238312204}  # u


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """
    What ``--json`` prints for every molecule.
    """
    process = run_python(str(SCRIPT), "--json", cwd=tmp_path_factory.mktemp("elsewhere"))
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr
    return json.loads(process.stdout)


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """
    The script as a module.
    """
    spec = importlib.util.spec_from_file_location("vibrations", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def wavenumbers(report: dict[str, Any], molecule: str, label: str) -> Any:
    return report["molecules"][molecule]["isotopologues"][label]["wavenumbers_per_cm"]


@pytest.mark.slow
def test_report_names_torch(report: dict[str, Any]) -> None:
    assert report["torch"] == str(torch.__version__)  # some releases cannot compare it as it is


@pytest.mark.parametrize("molecule, label", WAVENUMBERS)
def test_wavenumbers(report: dict[str, Any], molecule: str, label: str) -> None:
    assert wavenumbers(report, molecule, label) == pytest.approx(WAVENUMBERS[molecule, label], rel=1e-6)


@pytest.mark.parametrize("molecule, label", WAVENUMBERS)
def test_zero_modes(report: dict[str, Any], molecule: str, label: str) -> None:
    found = report["molecules"][molecule]["isotopologues"][label]
    assert len(found["zero_modes_per_cm"]) == (5 if molecule == "ar2" else 6)
    assert len(found["zero_modes_per_cm"] + found["wavenumbers_per_cm"]) == 3 * len(found["nuclides"])
    assert max(map(abs, found["zero_modes_per_cm"])) < 1e-2


@pytest.mark.parametrize("molecule", ["water", "water2", "ar2", "ar13"])
def test_checks(report: dict[str, Any], molecule: str) -> None:
    checks = report["molecules"][molecule]["checks"]
    assert any("differences of the gradient" in name for name in checks)
    assert any("vmap" in name for name in checks)
    for name, check in checks.items():
        assert check["value"] <= check["limit"], name


@pytest.mark.parametrize("molecule", ["water", "water2", "ar2"])
def test_hessian_is_second_difference_of_energy(report: dict[str, Any], example: Any, molecule: str) -> None:
    """
    From values of the energy alone, without any derivative of torch.
    """
    result = report["molecules"][molecule]
    xyz = torch.tensor(result["geometry_angstrom"], dtype=torch.float64)
    found = torch.tensor(result["hessian_kcal_per_mol_per_angstrom2"], dtype=torch.float64)
    energy, n, step = example.SYSTEMS[molecule].energy, xyz.numel(), 1e-3
    moves = step * torch.eye(n, dtype=torch.float64).reshape(n, *xyz.shape)
    expected = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(i + 1):
            corners = [s * t * energy(xyz + s * moves[i] + t * moves[j]) for s in (1, -1) for t in (1, -1)]
            expected[i, j] = expected[j, i] = sum(corners) / (4 * step**2)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("label, nuclides", [("H2O", "OHH"), ("HDO", "OHD"), ("D2O", "ODD")])
def test_water_is_wilsons_gf_matrix(report: dict[str, Any], label: str, nuclides: str) -> None:
    """
    Wilson's GF method for a bent molecule, in its two bond lengths and the angle; F is the force field's own.
    """
    r, theta = 0.9419, math.radians(107.4)
    stretch, bend = 2 * 116.09 * 2.287**2, 87.85
    o, a, b = (1 / MASSES[n] for n in nuclides)
    cos, sin = math.cos(theta), math.sin(theta)
    g = torch.tensor(
        [
            [o + a, o * cos, -o * sin / r],
            [o * cos, o + b, -o * sin / r],
            [-o * sin / r, -o * sin / r, (a + b + 2 * o * (1 - cos)) / r**2],
        ],
        dtype=torch.float64,
    )
    root = torch.tensor([stretch, stretch, bend], dtype=torch.float64).sqrt()
    expected = PER_CM * torch.linalg.eigvalsh(root[:, None] * g * root[None, :]).sqrt()
    assert wavenumbers(report, "water", label) == pytest.approx(expected.tolist(), rel=1e-9)


def test_argon_dimer_is_one_spring(report: dict[str, Any]) -> None:
    """
    The curvature at the bottom of the Lennard-Jones well is 72 ε / (2^(1/3) σ²).
    """
    epsilon, sigma = 119.8 * 1.380649e-23 * 6.02214076e23 / 4184.0, 3.405  # kcal/mol, Å
    stiffness = 72 * epsilon / (2 ** (1 / 3) * sigma**2)
    expected = PER_CM * math.sqrt(stiffness / (MASSES["Ar"] / 2))
    assert wavenumbers(report, "ar2", "Ar2") == pytest.approx([expected], rel=1e-9)


def test_argon_cluster_is_the_icosahedron(report: dict[str, Any], example: Any) -> None:
    """
    Its energy is the published global minimum, -44.326801 ε (D. J. Wales, J. P. K. Doye, J. Phys. Chem. A
    101, 5111 (1997)), and its levels have the degeneracies of the icosahedral group, which are 1, 3, 4 and 5.
    """
    pair, cluster = (report["molecules"][name]["energy_kcal_per_mol"] for name in ("ar2", "ar13"))
    assert cluster / -pair == pytest.approx(-44.326801, abs=1e-6)
    values = wavenumbers(report, "ar13", "Ar13")
    assert [len(level) for level in example.levels(values)] == [5, 4, 5, 3, 4, 3, 5, 1, 3]


def test_water_dimer_obeys_the_product_rule(report: dict[str, Any]) -> None:
    """
    Teller and Redlich: the product of the wavenumbers of one isotopologue over that of another follows from
    masses and geometry alone.
    """
    xyz = torch.tensor(report["molecules"]["water2"]["geometry_angstrom"], dtype=torch.float64)

    def rigid_part(nuclides: str) -> float:
        m = torch.tensor([MASSES[n] for n in nuclides], dtype=torch.float64)
        centred = xyz - (m[:, None] * xyz).sum(0) / m.sum()
        second = (m[:, None, None] * centred[:, :, None] * centred[:, None, :]).sum(0)
        moments = torch.linalg.eigvalsh(second.diagonal().sum() * torch.eye(3, dtype=torch.float64) - second)
        return float((m.sum() ** 3 * moments.prod() / m.prod() ** 3).sqrt())

    light, heavy = (wavenumbers(report, "water2", name) for name in ("(H2O)2", "(D2O)2"))
    found = math.exp(sum(math.log(d / h) for d, h in zip(heavy, light)))
    assert found == pytest.approx(rigid_part("ODDODD") / rigid_part("OHHOHH"), rel=1e-9)


def test_table(report: dict[str, Any], example: Any, capsys: Any, monkeypatch: Any) -> None:
    """
    The tables say what the JSON says; the analysis, which is the slow part, is not done again.
    """
    results = {example.SYSTEMS[name].title: result for name, result in report["molecules"].items()}
    monkeypatch.setattr(example, "analyse", lambda system: results[system.title])
    assert example.main([]) == 0
    table = capsys.readouterr().out
    assert table.startswith(f"torch {torch.__version__}\n")
    assert "wavenumber/cm^-1" in table and "kcal/mol" in table and "FAILED" not in table
    for title, result in results.items():
        assert title in table
        for label in result["isotopologues"]:
            assert f"\n  {label} " in table
    rows = re.findall(r"^ +(\d+\.\d{6}) +(\d+) ", table, flags=re.MULTILINE)
    printed = [float(value) for value, degeneracy in rows for _ in range(int(degeneracy))]
    assert printed == pytest.approx([value for stored in WAVENUMBERS.values() for value in stored], rel=1e-6)


def test_failed_check(report: dict[str, Any], example: Any, capsys: Any, monkeypatch: Any) -> None:
    result = {**report["molecules"]["ar2"], "checks": {"something": {"value": 2.0, "limit": 1.0}}}
    monkeypatch.setattr(example, "analyse", lambda system: result)
    assert example.main(["--molecule", "ar2"]) == 1
    assert "FAILED  something: 2.0e+00 (limit 1e+00)" in capsys.readouterr().out


def test_unknown_molecule(example: Any, capsys: Any) -> None:
    with pytest.raises(SystemExit) as error:
        example.main(["--molecule", "unobtainium"])
    assert error.value.code == 2
    assert "water2" in capsys.readouterr().err
