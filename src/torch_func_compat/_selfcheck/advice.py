"""The limits of this torch for a user, and the ways out.

The table of facts (`_torch.facts`) describes torch. Most of it never reaches a user, because the library works around
it. This table has the rest.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

from .._torch import facts


class Limit(NamedTuple):
    """One row: where the limit holds, what the user notices, and the way out."""

    holds: Callable[[tuple[str, ...]], bool]  # given the available backends
    meets: str
    advice: str


def _no_library(backends: tuple[str, ...]) -> bool:
    return not {"torch.func", "functorch"} & set(backends)


def _library_for(torch_release: tuple[int, ...]) -> str:
    """How to get a backend that batches, for a torch that has none."""
    functorch = {(1, 11): "0.1.1", (1, 12): "0.2.1"}.get((torch_release[0], torch_release[1]))
    return f"Install functorch=={functorch}" if functorch else "Install torch 2.0 or newer"


LIMITS = {
    "no batching": Limit(
        _no_library,
        "Each vmap calls the function once per sample, and jvp and jacfwd take two backward passes",
        f"{_library_for(facts.TORCH)}; or use batch_jacobian, batch_hessian and batch_laplacian, which take a "
        "function of the whole batch and need no vmap",
    ),
    "one thread": Limit(
        lambda backends: "functorch" in backends,
        "One thread at a time can be in functorch; the others wait",
        "Install torch 2.0 or newer, or use processes",
    ),
    "lost writes": Limit(
        lambda backends: "functorch" in backends and facts.has("writes_to_slices_are_lost"),
        "Transforms refuse a function that writes into a slice of a tensor from outside, because "
        "functorch would lose the derivative",
        "Build the tensor within the function, or install torch 1.13 or newer",
    ),
    "graph breaks": Limit(
        lambda backends: "torch.func" in backends and not facts.has("compiled_transforms"),
        "With torch.compile, the graph breaks at every transform, and fullgraph=True fails",
        "Compile the function that you transform, or install torch 2.6 or newer",
    ),
    "compiled Function": Limit(
        lambda backends: facts.has("compiled_transforms") and facts.has("compiled_transforms_pass_backward_by"),
        "With torch.compile, the graph breaks at a transform of an autograd.Function, and fullgraph=True fails",
        "Transform such functions outside of torch.compile, or write them in plain torch operations",
    ),
    "normalisation thrice": Limit(
        lambda backends: not facts.has("torch_func"),
        "Third derivatives of layer_norm and batch_norm raise, because torch gets them wrong",
        "Install torch 2.0 or newer, or write the normalisation in elementary operations",
    ),
    "weight norm twice": Limit(
        lambda backends: facts.has("weight_norm_twice") and not facts.has("torch_function_modes"),
        "Second derivatives of weight_norm by its v raise, because torch gets them wrong",
        "Install torch 2.0 or newer, or write v * (g / v.norm()) yourself",
    ),
    "kl_div twice": Limit(
        lambda backends: facts.has("kl_div_twice"),
        "Mixed derivatives of kl_div by input and target raise, because torch gives zero",
        "Install torch 1.13 or newer, or write target * (target.log() - input) yourself",
    ),
    "autograd.Function twice": Limit(
        lambda backends: True,
        "PyTorch treats what a torch.autograd.Function stores on ctx beside its inputs and outputs as constant: "
        "second derivatives raise, or are zero where the whole gradient consists of it",
        "Derive from this package's Function, or return the intermediate as an output",
    ),
}


def unlike_its_release() -> list[str]:
    """Facts in which this build of torch differs from the release that it is named after."""
    return [name for name, fact in facts.FACTS.items() if facts.has(name) != fact.expected(facts.TORCH)]


def limits(backends: tuple[str, ...], cuda: dict[str, Any]) -> list[dict[str, str]]:
    """The limits of this torch with these backends and this GPU, each with a way out."""
    found = [{"what": row.meets, "advice": row.advice} for row in LIMITS.values() if row.holds(backends)]
    if cuda["devices"] and not cuda["usable"]:
        what = f"This torch cannot compute on {cuda['devices'][0]}: {cuda['reason']}"
        found.append({"what": what, "advice": "Install a torch that is built for this GPU and its driver"})
    for name in unlike_its_release():
        what = f"This build is unlike other builds of its release: '{facts.FACTS[name].meaning}' is {facts.has(name)}"
        found.append({"what": what, "advice": "Run the checks again after an upgrade, and report it"})
    return found
