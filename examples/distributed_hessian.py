"""
The Hessian of a large cluster, its rows shared by several processes.

An argon cluster is cut out of a crystal and relaxed by one process; all get the geometry, each computes its share of
the rows of the Hessian (``torch_func_compat.distributed``), and one gets the whole and finds the wavenumbers::

    python examples/distributed_hessian.py                                     # one process
    torchrun --nproc_per_node 4 examples/distributed_hessian.py                # four, on torch >= 1.10
    python -m torch.distributed.launch --use_env --nproc_per_node 4 ...        # on torch 1.8 and 1.9

On several nodes it is started as any script is, with ``torchrun --nnodes ...``. With a GPU for each process, they
compute there and NCCL gathers; else gloo does. Units are those of ``vibrations.py``. The exit status is 0 only if every
check printed holds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from vibrations import ARGON_SIGMA, MASSES, argon_energy, normal_modes, rigid_motions

from torch_func_compat import distributed, grad


def crystal(atoms: int) -> Tensor:
    """
    The atoms of a face-centred cubic crystal that are nearest to one of them, positions ``(atoms, 3)`` in Å.
    """
    reach = int(atoms ** (1 / 3)) + 2
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    points = torch.stack([g.reshape(-1) for g in _grid(steps)], dim=-1)
    points = points[points.sum(-1) % 2 == 0]  # the sum of a lattice point's indices is even
    nearest = points.pow(2).sum(-1).argsort()[:atoms]
    return points[nearest] * 2 ** (1 / 6) * ARGON_SIGMA / 2**0.5


def _grid(steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = len(steps)
    x, y, z = steps[:, None, None], steps[None, :, None], steps[None, None, :]
    return x.expand(n, n, n), y.expand(n, n, n), z.expand(n, n, n)


def relaxed(xyz: Tensor, steps: int) -> Tensor:
    """
    The geometry after so many steps of L-BFGS.
    """
    found = xyz.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([found], max_iter=steps, history_size=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        energy = argon_energy(found)
        energy.backward()
        return energy

    optimizer.step(closure)
    return found.detach()


def start() -> torch.device:
    """
    Join the group that torchrun made, if it did, and choose this process's device.
    """
    if "RANK" not in os.environ:
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", 0))
    each_has_a_gpu = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    dist.init_process_group("nccl" if each_has_a_gpu else "gloo")
    if not each_has_a_gpu:
        return torch.device("cpu")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Command line; returns the exit status.
    """
    parser = argparse.ArgumentParser(description="The Hessian of an argon cluster by several processes.")
    parser.add_argument("--atoms", type=int, default=147)
    parser.add_argument("--steps", type=int, default=200, help="of the relaxation; default: 200")
    parser.add_argument("--chunk", type=int, default=8, help="rows at a time in each process; default: 8")
    options = parser.parse_args(arguments)
    device = start()
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    xyz = crystal(options.atoms).to(device)
    if rank == 0:
        xyz = relaxed(xyz, options.steps)
    if size > 1:
        dist.broadcast(xyz, 0)  # every process has to differentiate at the same point

    hessian = distributed.hessian(argon_energy, chunk_size=options.chunk, dst=0, check_inputs=True)
    hessian(xyz[:2])  # what torch imports when it first differentiates is not to be measured
    begin = time.perf_counter()
    matrix = hessian(xyz)
    seconds = time.perf_counter() - begin
    if matrix is None:  # another process has it
        return 0

    n = xyz.numel()
    xyz, matrix = xyz.cpu(), matrix.reshape(n, n).cpu()
    rigid = rigid_motions(xyz)
    masses = torch.full((1, options.atoms), MASSES["Ar"], dtype=torch.float64)
    wavenumbers = normal_modes(matrix, masses, rigid.shape[1])[0][0, rigid.shape[1] :]
    direction = torch.linspace(-1, 1, n, dtype=torch.float64).cos().reshape(xyz.shape)
    ahead, behind = (grad(argon_energy)(xyz + step * direction) for step in (1e-4, -1e-4))
    slope = (ahead - behind).reshape(-1) / 2e-4
    scale = float(matrix.abs().max())
    checks = {
        "along a direction, against a difference of gradients": (
            float((matrix @ direction.reshape(-1) - slope).abs().max()) / scale,
            1e-6,
        ),
        "against its transpose": (float((matrix - matrix.t()).abs().max()) / scale, 1e-12),
        "along translations": (float((matrix.reshape(n, -1, 3).sum(1)).abs().max()) / scale, 1e-10),
    }
    force = float(grad(argon_energy)(xyz).abs().max())
    print(f"torch {torch.__version__}, {size} process{'es' if size > 1 else ''}, {device.type}")
    print(f"  {options.atoms} atoms, {n} x {n} Hessian in {seconds:.2f} s")
    print(f"  largest force {force:.1e} kcal/mol/Angstrom, energy {float(argon_energy(xyz)):.6f} kcal/mol")
    print(f"  wavenumbers from {float(wavenumbers[0]):.3f} to {float(wavenumbers[-1]):.3f} cm^-1")
    for name, (value, limit) in checks.items():
        print(f"  {'ok' if value <= limit else 'FAILED':<8}{name}: {value:.1e} (limit {limit:.0e})")
    return 0 if all(value <= limit for value, limit in checks.values()) else 1


if __name__ == "__main__":
    status = main()
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(status)
