"""
Normal modes of real molecules from nothing but an energy function.

The energy is a plain torch function of the positions. Everything else follows from it by three transforms of
``torch_func_compat``: ``grad`` (forces), ``hessian`` (force constants) and ``vmap`` (many geometries or many
isotopologues at once). The script runs unchanged, and gives the same wavenumbers, on every supported torch::

    python examples/vibrations.py                      # every system, as tables
    python examples/vibrations.py --molecule water     # one of them
    python examples/vibrations.py --json               # the same for machines, with Hessian and normal modes

Units: positions in Å, energies in kcal/mol, forces in kcal/mol/Å, force constants in kcal/mol/Å², masses in
u, wavenumbers (frequency divided by the speed of light) in cm⁻¹. All arithmetic is in float64. The exit
status is 0 only if every check printed below a table holds.

References
----------
.. [1] S. Habershon, T. E. Markland, D. E. Manolopoulos, J. Chem. Phys. 131, 024501 (2009),
   doi:10.1063/1.3167790. The flexible, anharmonic water model q-TIP4P/F.
.. [2] A. Michels, Hub. Wijker, Hk. Wijker, Physica 15, 627 (1949), doi:10.1016/0031-8914(49)90119-6.
   The Lennard-Jones parameters of argon.
.. [3] M. Wang, W. J. Huang, F. G. Kondev, G. Audi, S. Naimi, Chin. Phys. C 45, 030003 (2021),
   doi:10.1088/1674-1137/abddaf. Atomic masses (AME2020).
.. [4] E. Tiesinga, P. J. Mohr, D. B. Newell, B. N. Taylor, Rev. Mod. Phys. 93, 025010 (2021),
   doi:10.1103/RevModPhys.93.025010. Physical constants (CODATA 2018).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from torch_func_compat import grad, hessian, vmap

# CODATA 2018 [4], in SI; exact unless an uncertainty is given.
SPEED_OF_LIGHT = 299_792_458.0  # m/s
PLANCK = 6.626_070_15e-34  # J s
BOLTZMANN = 1.380_649e-23  # J/K
ELEMENTARY_CHARGE = 1.602_176_634e-19  # C
AVOGADRO = 6.022_140_76e23  # 1/mol
ATOMIC_MASS = 1.660_539_066_60e-27  # kg, (50) in the last digits
VACUUM_PERMITTIVITY = 8.854_187_8128e-12  # F/m, (13) in the last digits

KCAL_PER_MOL = 4184.0 / AVOGADRO  # J, thermochemical calorie
ANGSTROM = 1e-10  # m
# e²/(4 π ε₀) in kcal/mol Å, and the wavenumber in cm⁻¹ of 1 u on a spring of 1 kcal/mol/Å².
COULOMB = ELEMENTARY_CHARGE**2 / (4 * math.pi * VACUUM_PERMITTIVITY) / (KCAL_PER_MOL * ANGSTROM)
PER_CM = math.sqrt(KCAL_PER_MOL / ATOMIC_MASS) / ANGSTROM / (2 * math.pi * SPEED_OF_LIGHT * 100)
# h c × 1 cm⁻¹ in kcal/mol, and ħ/ω at 1 cm⁻¹ in u Å².
HC = PLANCK * SPEED_OF_LIGHT * 100 / KCAL_PER_MOL
HBAR_OVER_OMEGA = PLANCK / (4 * math.pi**2 * SPEED_OF_LIGHT * 100) / (ATOMIC_MASS * ANGSTROM**2)

# Masses in u of ¹H, ²H, ¹⁶O and ⁴⁰Ar [3].
MASSES = {"H": 1.007825031898, "D": 2.014101777844, "O": 15.994914619257, "Ar": 39.96238312204}

# q-TIP4P/F [1]: a Morse potential to fourth order for each bond, ½ k (θ - θ0)² for the angle; between
# molecules one Lennard-Jones site on the oxygen, and charges on the hydrogens and a site M near the oxygen.
BOND_DEPTH, BOND_ALPHA, BOND_R0 = 116.09, 2.287, 0.9419  # kcal/mol, 1/Å, Å
ANGLE_K, ANGLE_0 = 87.85, math.radians(107.4)  # kcal/mol/rad², rad
WATER_EPSILON, WATER_SIGMA = 0.1852, 3.1589  # kcal/mol, Å
CHARGES = (-1.1128, 0.5564, 0.5564)  # e, in the order M H H
M_WEIGHT = 0.73612  # r_M = w r_O + (1 - w) (r_H + r_H') / 2

ARGON_EPSILON, ARGON_SIGMA = 119.8 * BOLTZMANN / KCAL_PER_MOL, 3.405  # kcal/mol from K, Å [2]


def lennard_jones(r2: Tensor, epsilon: float, sigma: float) -> Tensor:
    """
    Sum of 12-6 pair energies.

    Parameters
    ----------
    r2 : Tensor
        Squared distances in Å², any shape.
    epsilon, sigma : float
        Well depth in kcal/mol, and the distance of zero energy in Å.

    Returns
    -------
    Tensor
        Energy in kcal/mol, 0-dim.
    """
    s6 = (sigma**2 / r2) ** 3
    return (4 * epsilon * (s6 * s6 - s6)).sum()


def argon_energy(xyz: Tensor) -> Tensor:
    """
    Energy in kcal/mol of an argon cluster, positions ``(N, 3)`` in Å.
    """
    i, j = torch.triu_indices(xyz.shape[0], xyz.shape[0], offset=1)
    return lennard_jones((xyz[i] - xyz[j]).pow(2).sum(-1), ARGON_EPSILON, ARGON_SIGMA)


def water_energy(xyz: Tensor) -> Tensor:
    """
    q-TIP4P/F energy in kcal/mol of water molecules, positions ``(3 n, 3)`` in Å, atoms as O H H, O H H, ...
    """
    molecules = xyz.reshape(-1, 3, 3)  # molecule, atom, direction
    oxygen, hydrogens = molecules[:, 0], molecules[:, 1:]
    bonds = hydrogens - oxygen[:, None]
    r = bonds.pow(2).sum(-1).sqrt()  # molecule, bond
    theta = torch.acos((bonds[:, 0] * bonds[:, 1]).sum(-1) / (r[:, 0] * r[:, 1]))
    x = BOND_ALPHA * (r - BOND_R0)
    energy = BOND_DEPTH * (x**2 - x**3 + 7 / 12 * x**4).sum() + 0.5 * ANGLE_K * (theta - ANGLE_0).pow(2).sum()

    q = torch.tensor(CHARGES, dtype=xyz.dtype, device=xyz.device)
    qq = COULOMB * q[:, None] * q[None, :]
    m = M_WEIGHT * oxygen + (1 - M_WEIGHT) * hydrogens.mean(1)
    sites = torch.cat([m[:, None], hydrogens], dim=1)
    for i in range(molecules.shape[0]):
        for j in range(i):
            r2 = (sites[i][:, None] - sites[j][None, :]).pow(2).sum(-1)
            energy = energy + (qq / r2.sqrt()).sum()
            energy = energy + lennard_jones((oxygen[i] - oxygen[j]).pow(2).sum(), WATER_EPSILON, WATER_SIGMA)
    return energy


def icosahedron() -> list[list[float]]:
    """
    A centre and twelve neighbours at the distance of an argon pair: 13 positions in Å.
    """
    golden = (1 + math.sqrt(5)) / 2
    scale = 2 ** (1 / 6) * ARGON_SIGMA / math.hypot(1, golden)
    corners = [[0.0, s, t * golden] for s in (-1, 1) for t in (-1, 1)]
    shell = [[c[k - 2], c[k - 1], c[k]] for k in range(3) for c in corners]
    return [[0.0, 0.0, 0.0]] + [[scale * x for x in c] for c in shell]


@dataclass(frozen=True)
class System:
    """
    A molecule: what it is, its energy function, where to start from, and which nuclei to put there.
    """

    title: str
    energy: Callable[[Tensor], Tensor]
    start: Sequence[Sequence[float]]  # Å
    isotopologues: dict[str, tuple[str, ...]]  # label -> nuclides, keys of MASSES


# None of the starting geometries is a minimum; relax() finds it.
SYSTEMS = {
    "water": System(
        "water molecule, q-TIP4P/F force field [1]",
        water_energy,
        [[0.0, 0.0, 0.0], [0.76, 0.0, 0.59], [-0.76, 0.0, 0.59]],
        {"H2O": ("O", "H", "H"), "HDO": ("O", "H", "D"), "D2O": ("O", "D", "D")},
    ),
    "water2": System(
        "hydrogen-bonded water dimer, q-TIP4P/F force field [1]",
        water_energy,
        [
            [0.0, 0.0, 0.0],
            [0.96, 0.0, 0.05],
            [-0.30, 0.0, 0.91],
            [2.8, 0.0, 0.0],
            [3.2, 0.76, -0.43],
            [3.2, -0.76, -0.43],
        ],
        {"(H2O)2": ("O", "H", "H") * 2, "(D2O)2": ("O", "D", "D") * 2},
    ),
    "ar2": System(
        "argon dimer, Lennard-Jones [2]",
        argon_energy,
        [[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]],
        {"Ar2": ("Ar",) * 2},
    ),
    "ar13": System(
        "icosahedral argon cluster, Lennard-Jones [2]",
        argon_energy,
        icosahedron(),
        {"Ar13": ("Ar",) * 13},
    ),
}


def rigid_motions(xyz: Tensor) -> Tensor:
    """
    Orthonormal basis of the directions that move a geometry without deforming it.

    Parameters
    ----------
    xyz : Tensor
        Positions in Å, ``(N, 3)``.

    Returns
    -------
    Tensor
        ``(3 N, 6)``, or ``(3 N, 5)`` for a linear molecule: three translations and the rotations it has.
    """
    axes = torch.eye(3, dtype=xyz.dtype)
    centred = xyz - xyz.mean(0)
    shifts = [axis.expand_as(xyz) for axis in axes]
    turns = [torch.cross(axis.expand_as(xyz), centred, dim=1) for axis in axes]
    u, s, _ = torch.linalg.svd(torch.stack(shifts + turns).reshape(6, -1).t(), full_matrices=False)
    basis: Tensor = u[:, s > 1e-6 * s[0]]
    return basis


def relax(
    energy: Callable[[Tensor], Tensor], xyz: Tensor, tolerance: float = 1e-10, longest: float = 0.2
) -> tuple[Tensor, int]:
    """
    Minimise the energy by Newton steps.

    Parameters
    ----------
    energy : Callable[[Tensor], Tensor]
        Energy in kcal/mol of positions ``(N, 3)`` in Å.
    xyz : Tensor
        Where to start, in Å.
    tolerance : float
        Largest component of the force at the minimum, in kcal/mol/Å.
    longest : float
        Largest component of a step, in Å.

    Returns
    -------
    tuple[Tensor, int]
        The minimum in Å, and the number of steps taken.
    """
    for steps in range(100):
        gradient = grad(energy)(xyz).reshape(-1)
        if gradient.abs().max() < tolerance:
            return xyz, steps
        # The gradient has no part along rigid motions: take them out of the Hessian and give them a stiffness
        # of one, so that it can be inverted. |λ| in place of λ makes every step lead downhill.
        rigid = rigid_motions(xyz)
        keep = torch.eye(xyz.numel(), dtype=xyz.dtype) - rigid @ rigid.t()
        curvature, directions = torch.linalg.eigh(keep @ force_constants(energy, xyz) @ keep + rigid @ rigid.t())
        step = -directions @ (directions.t() @ gradient / curvature.abs())
        xyz = xyz + (step * min(1.0, longest / float(step.abs().max()))).reshape(xyz.shape)
    raise RuntimeError(f"no minimum within {steps + 1} Newton steps")


def force_constants(energy: Callable[[Tensor], Tensor], xyz: Tensor) -> Tensor:
    """
    Hessian of the energy as a matrix, ``(3 N, 3 N)`` in kcal/mol/Å².
    """
    matrix: Tensor = hessian(energy)(xyz)
    return matrix.reshape(xyz.numel(), xyz.numel())


def mass_weighted(matrix: Tensor, masses: Tensor) -> Tensor:
    """
    Hessian in mass-weighted coordinates, ``H_ij / sqrt(m_i m_j)`` in kcal/mol/Å²/u.

    Parameters
    ----------
    matrix : Tensor
        Hessian in kcal/mol/Å², ``(3 N, 3 N)``.
    masses : Tensor
        Masses in u, ``(N,)``.
    """
    weight = masses.rsqrt()[:, None].expand(-1, 3).reshape(-1)
    return matrix * weight[:, None] * weight[None, :]


def normal_modes(matrix: Tensor, masses: Tensor, n_rigid: int) -> tuple[Tensor, Tensor]:
    """
    Harmonic wavenumbers and normal modes of isotopologues that share one Hessian.

    Parameters
    ----------
    matrix : Tensor
        Hessian in kcal/mol/Å², ``(3 N, 3 N)``.
    masses : Tensor
        Masses in u, ``(K, N)`` for K isotopologues.
    n_rigid : int
        Number of rigid motions. As many modes, those of the smallest |wavenumber|, are put first.

    Returns
    -------
    tuple[Tensor, Tensor]
        Wavenumbers in cm⁻¹, ``(K, 3 N)``: the zero modes, then the vibrations in ascending order, an
        imaginary one as a negative number. Mass-weighted modes, the orthonormal columns of ``(K, 3 N, 3 N)``.
    """
    curvature, modes = torch.linalg.eigh(vmap(mass_weighted, in_dims=(None, 0))(matrix, masses))
    rank = curvature.abs().argsort(dim=-1)
    order = torch.cat([rank[:, :n_rigid], rank[:, n_rigid:].sort(dim=-1)[0]], dim=-1)
    curvature = curvature.gather(-1, order)
    modes = modes.gather(-1, order[:, None, :].expand_as(modes))
    return PER_CM * curvature.sign() * curvature.abs().sqrt(), modes


def finite_difference_hessian(energy: Callable[[Tensor], Tensor], xyz: Tensor, step: float = 1e-4) -> Tensor:
    """
    Hessian in kcal/mol/Å² from central differences of 6 N gradients, taken in one batch; `step` in Å.
    """
    n = xyz.numel()
    moves = step * torch.eye(n, dtype=xyz.dtype).reshape(n, *xyz.shape)
    gradients: Tensor = vmap(grad(energy))(torch.cat([xyz + moves, xyz - moves])).reshape(2, n, n)
    return (gradients[0] - gradients[1]) / (2 * step)


def batch_error(energy: Callable[[Tensor], Tensor], geometries: Tensor) -> float:
    """
    Largest difference of a batch of Hessians from the same in a loop, relative to the largest force constant.

    Parameters
    ----------
    energy : Callable[[Tensor], Tensor]
        Energy in kcal/mol of positions ``(N, 3)`` in Å.
    geometries : Tensor
        Positions in Å, ``(B, N, 3)``.
    """
    batched = vmap(hessian(energy))(geometries)
    looped = torch.stack([hessian(energy)(xyz) for xyz in geometries])
    return float((batched - looped).abs().max() / looped.abs().max())


def analyse(system: System) -> dict[str, Any]:
    """
    Relax a molecule, find its normal modes and check them.

    Parameters
    ----------
    system : System
        The molecule.

    Returns
    -------
    dict[str, Any]
        Plain lists and numbers; units are in the names. ``checks`` maps a name to its value and its limit.
    """
    xyz, steps = relax(system.energy, torch.tensor(system.start, dtype=torch.float64))
    matrix = force_constants(system.energy, xyz)
    rigid = rigid_motions(xyz)
    n_rigid = rigid.shape[1]
    nuclides = list(system.isotopologues.values())
    masses = torch.tensor([[MASSES[n] for n in atoms] for atoms in nuclides], dtype=torch.float64)
    wavenumbers, modes = normal_modes(matrix, masses, n_rigid)

    # To the classical turning points of the ground state, ±sqrt(ħ/ω), along the softest and stiffest mode.
    reach = (HBAR_OVER_OMEGA / wavenumbers[0, n_rigid:].abs()).sqrt() * modes[0][:, n_rigid:]
    moves = reach[:, [0, -1]].t().reshape(2, -1, 3) / masses[0].sqrt()[:, None]

    difference = finite_difference_hessian(system.energy, xyz) - matrix
    scale = float(matrix.abs().max())
    checks = {
        "largest force at the minimum, kcal/mol/Angstrom": (
            float(grad(system.energy)(xyz).abs().max()),
            1e-8,
        ),
        "Hessian against differences of the gradient, relative": (
            float(difference.abs().max()) / scale,
            1e-6,
        ),
        "Hessian against its transpose, relative": (float((matrix - matrix.t()).abs().max()) / scale, 1e-12),
        "Hessian along rigid motions, relative": (float((matrix @ rigid).abs().max()) / scale, 1e-9),
        "largest zero mode, cm^-1": (float(wavenumbers[:, :n_rigid].abs().max()), 1e-2),
        "imaginary vibrations": (float((wavenumbers[:, n_rigid:] < 0).sum()), 0.0),
        "vmap of Hessians against a loop, relative": (
            batch_error(system.energy, torch.cat([xyz + moves, xyz - moves])),
            1e-12,
        ),
    }
    isotopologues = {
        label: {
            "nuclides": list(atoms),
            "wavenumbers_per_cm": wavenumbers[k, n_rigid:].tolist(),
            "zero_modes_per_cm": wavenumbers[k, :n_rigid].tolist(),
            "zero_point_energy_kcal_per_mol": 0.5 * HC * float(wavenumbers[k, n_rigid:].sum()),
            "normal_modes_mass_weighted": modes[k][:, n_rigid:].t().tolist(),
        }
        for k, (label, atoms) in enumerate(system.isotopologues.items())
    }
    return {
        "title": system.title,
        "newton_steps": steps,
        "energy_kcal_per_mol": float(system.energy(xyz)),
        "geometry_angstrom": xyz.tolist(),
        "hessian_kcal_per_mol_per_angstrom2": matrix.tolist(),
        "isotopologues": isotopologues,
        "checks": {name: {"value": value, "limit": limit} for name, (value, limit) in checks.items()},
    }


def levels(wavenumbers: Sequence[float], width: float = 1e-4) -> list[list[int]]:
    """
    Indices of ascending wavenumbers, put together where the next is closer than `width`; both in cm⁻¹.
    """
    groups: list[list[int]] = []
    for k, value in enumerate(wavenumbers):
        if k and value - wavenumbers[k - 1] < width:
            groups[-1].append(k)
        else:
            groups.append([k])
    return groups


def table(result: dict[str, Any]) -> str:
    """
    A result of `analyse` in words.
    """
    lines = [
        result["title"],
        f"  energy at the minimum {result['energy_kcal_per_mol']:.8f} kcal/mol, "
        f"found in {result['newton_steps']} Newton steps",
    ]
    for label, found in result["isotopologues"].items():
        values, nuclides = found["wavenumbers_per_cm"], found["nuclides"]
        kinds = list(dict.fromkeys(nuclides))
        shares = "  ".join(f"{'on ' + kind:>6}" for kind in kinds)
        lines += ["", f"  {label:<10}wavenumber/cm^-1  degeneracy  period/fs  {shares}"]
        for group in levels(values):
            wavenumber = sum(values[k] for k in group) / len(group)
            # How much of the kinetic energy each kind of nucleus has; over a whole level, since the modes
            # within a degenerate one may be mixed at will.
            part = dict.fromkeys(kinds, 0.0)
            for k in group:
                for i, component in enumerate(found["normal_modes_mass_weighted"][k]):
                    part[nuclides[i // 3]] += 100 * component**2 / len(group)
            period = 1e15 / (abs(wavenumber) * 100 * SPEED_OF_LIGHT)
            shares = "  ".join(f"{value:5.1f}%" for value in part.values())
            lines.append(f"  {'':<10}{wavenumber:16.6f}  {len(group):10d}  {period:9.3f}  {shares}")
        lines.append(
            f"  {'':<10}{len(values)} vibration{'s' if len(values) > 1 else ''}, "
            f"{len(found['zero_modes_per_cm'])} zero modes (translations, rotations), "
            f"zero-point energy {found['zero_point_energy_kcal_per_mol']:.6f} kcal/mol"
        )
    lines.append("")
    for name, check in result["checks"].items():
        verdict = "ok" if check["value"] <= check["limit"] else "FAILED"
        lines.append(f"  {verdict:<8}{name}: {check['value']:.1e} (limit {check['limit']:.0e})")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Command line; returns the exit status.
    """
    parser = argparse.ArgumentParser(description="Harmonic vibrations of molecules through torch_func_compat.")
    parser.add_argument("--molecule", choices=[*SYSTEMS, "all"], default="all", help="default: all")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(arguments)

    names = list(SYSTEMS) if options.molecule == "all" else [options.molecule]
    results = {name: analyse(SYSTEMS[name]) for name in names}
    if options.json:
        print(json.dumps({"torch": torch.__version__, "molecules": results}, indent=1))
    else:
        print(f"torch {torch.__version__}")
        for result in results.values():
            print("\n" + table(result))
    checks = [check for result in results.values() for check in result["checks"].values()]
    return 0 if all(check["value"] <= check["limit"] for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
