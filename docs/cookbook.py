"""The pictures of the cookbook, drawn from the numbers that the recipes' own programs compute."""

from __future__ import annotations

import re
import weakref
from pathlib import Path
from typing import Any, Callable

import figures
from figures import GREEN, ORANGE, arrow, box, svg, text
from plots import Series, plot

DOCS = Path(__file__).resolve().parent


def run(recipe: str) -> dict[str, Any]:
    """The variables of a recipe after its blocks have run one after the other."""
    page = (DOCS / f"cookbook-{recipe}.md").read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": recipe}
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)):
        exec(compile(block, f"cookbook-{recipe}.md, block {number}", "exec", dont_inherit=True), namespace)
    return namespace


def pinn() -> str:
    n = run("pinn")
    x, found, exact = n["x"].tolist(), n["found"].tolist(), n["exact"].tolist()
    series = [Series("exact", x, exact), Series("network", x, found, dots=True)]
    return plot("Heat conduction in a rod", "position x / L", "temperature u / (q L²/k)", series)


def molecular_hessian() -> str:
    n = run("molecular-hessian")
    sides, modes = n["sides"].tolist(), n["wavenumbers"]
    series = [
        Series("breathing", sides, modes[:, -1].tolist()),
        Series("bending, twofold", sides, modes[:, -2].tolist()),
    ]
    return plot("Vibrations of three argon atoms", "side of the triangle in Å", "wavenumber in cm⁻¹", series)


def per_sample_gradients() -> str:
    n = run("per-sample-gradients")
    norms, wrong = n["norms"].tolist(), set(n["wrong"].tolist())
    right = [i for i in range(len(norms)) if i not in wrong]
    series = [
        Series("right target", right, [norms[i] for i in right], dots=True),
        Series("wrong target", sorted(wrong), [norms[i] for i in sorted(wrong)], dots=True),
    ]
    return plot("Gradient of each sample", "sample number", "norm of the gradient (loss per unit weight)", series)


def laplace_ggn() -> str:
    n = run("laplace-ggn")
    grid, mean, deviation = n["grid"][:, 0], n["mean"], n["deviation"]
    series = [
        Series("mean", grid.tolist(), mean.tolist()),
        Series("mean + 2 σ", grid.tolist(), (mean + 2 * deviation).tolist(), dashed=True),
        Series("mean - 2 σ", grid.tolist(), (mean - 2 * deviation).tolist(), dashed=True),
        Series("data", n["x"][:, 0].tolist(), n["y"][:, 0].tolist(), dots=True),
    ]
    return plot("A network with error bars", "input x (no unit)", "output y (no unit)", series)


def solver_derivative() -> str:
    n = run("solver-derivative")
    times = n["times"].tolist()
    series = [Series(f"e = {e:g}", times, curve.tolist()) for e, curve in n["curves"].items()]
    return plot("Kepler's equation, differentiated", "mean anomaly M in rad", "dE/dM in rad per rad", series)


def shim() -> str:
    """The choices that a shim makes, and the import that is left."""
    parts = [
        text(190, 28, "before", 16, figures.INK, font_weight="600"),
        text(570, 28, "after", 16, figures.INK, font_weight="600"),
        box(100, 44, 180, 50, "your package", ["import compat"]),
        arrow(190, 94, 116),
        box(100, 116, 180, 50, "compat.py", ["torch_version < ..."], ORANGE),
        *(arrow(x, 166, 196) for x in (122, 190, 258)),
        box(10, 196, 112, 62, "torch.func", ["2.0 and newer"], ORANGE),
        box(134, 196, 112, 62, "functorch", ["1.11 to 1.13"], ORANGE),
        box(258, 196, 112, 62, "a loop", ["older, or None"], ORANGE),
        box(480, 44, 180, 50, "your package", ["import torch_func_compat"]),
        arrow(570, 94, 116),
        box(
            450,
            116,
            240,
            142,
            "torch_func_compat",
            ["torch 1.8 to 2.15", "one semantics", "loops where torch refuses"],
            GREEN,
        ),
    ]
    return svg(760, 276, parts, "A shim with three cases, and one import in its place")


class _Live:
    """The bytes of the tensors that live, and their peak, while torch runs (a TorchDispatchMode)."""

    def __new__(cls) -> Any:
        from torch.utils._python_dispatch import TorchDispatchMode

        class Mode(TorchDispatchMode):
            now = peak = 0

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = func(*args, **(kwargs or {}))
                for tensor in result if isinstance(result, (tuple, list)) else (result,):
                    if hasattr(tensor, "untyped_storage"):
                        self.count(tensor.untyped_storage())
                return result

            def count(self, storage: Any) -> None:
                key, size = storage._cdata, storage.nbytes()
                if key in self.seen:
                    return
                self.seen.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.free, key, size)

            def free(self, key: int, size: int) -> None:
                self.seen.discard(key)
                self.now -= size

        mode = Mode()
        mode.seen = set()
        return mode


def memory() -> str:
    n = run("memory")
    sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    peaks = []
    for size in sizes:
        transform = n["jacrev"](n["layers"], chunk_size=size)
        transform(n["x"])
        with _Live() as live:
            transform(n["x"])
        peaks.append(live.peak / 1e6)
    result = n["whole"].numel() * 8 / 1e6
    series = [Series("peak", sizes, peaks), Series("the result", sizes, [result] * len(sizes), dashed=True)]
    return plot("Memory of a 256 x 256 Jacobian", "chunk_size (rows at a time)", "memory in MB", series, logx=True)


PICTURES: dict[str, Callable[[], str]] = {
    "pinn": pinn,
    "molecular-hessian": molecular_hessian,
    "per-sample-gradients": per_sample_gradients,
    "laplace-ggn": laplace_ggn,
    "shim": shim,
    "solver-derivative": solver_derivative,
    "memory": memory,
}
