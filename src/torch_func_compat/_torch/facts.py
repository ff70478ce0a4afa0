"""The features and bugs of this torch: ONE table of facts, each with its probe, its versions and its source.

A fact that can be probed (an attribute, a parameter, a behaviour on three numbers) is probed, so that
vendor builds and nightlies are judged by their features and not by their names. A version range stands
only where the answer is a bug that no small input shows. ``since`` and ``until`` are
the releases in which the fact holds, as measured; a test in every environment compares them with the
probe. Probes run once, when first asked, never at import.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, NamedTuple

import torch
from packaging.version import Version
from torch.utils.hooks import RemovableHandle


def release(version: str) -> tuple[int, ...]:
    """The release that a version of torch belongs to.

    Vendor builds call themselves "2.1.0a0+32f93b1" and nightlies "2.16.0.dev20261101+cpu": only the release
    counts, for a pre-release has the code of its release.
    """
    return Version(version).release


VERSION = str(torch.__version__)
TORCH = release(VERSION)

# As they were found: a test suite may put this library into the place of torch.func.
FUNC: dict[str, Any] = dict(vars(getattr(torch, "func", object)))


class Fact(NamedTuple):
    """One row. `probe` answers for the running torch; without one, the versions do."""

    meaning: str
    since: tuple[int, int] | None
    until: tuple[int, int] | None  # the first release in which it no longer holds
    source: str
    probe: Callable[[], bool] | None = None

    def expected(self, torch_release: tuple[int, ...]) -> bool:
        """The answer of `since` and `until` for a release."""
        after = self.since is None or torch_release >= self.since
        return after and (self.until is None or torch_release < self.until)

    def holds(self) -> bool:
        """The answer for the running torch."""
        return self.expected(TORCH) if self.probe is None else self.probe()


def _has_torch_func() -> bool:
    try:
        import torch.func  # noqa: F401
    except ImportError:
        return False
    return True


def _apart(probe: Callable[[], bool]) -> Callable[[], bool]:
    """`probe` in a thread of its own, which has no grad mode, transform, default device or autocast of the caller's."""

    @functools.wraps(probe)
    def asked() -> bool:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(probe).result()

    return asked


@_apart
def _retain_grad_is_a_hook() -> bool:
    """Does retain_grad() register a visible hook?"""
    tensor, before = torch.zeros(1, requires_grad=True, device="cpu").clone(), RemovableHandle.next_id
    tensor.retain_grad()
    return RemovableHandle.next_id != before


@_apart
def _weight_norm_twice() -> bool:
    """Is the second derivative of v g / |v| by v, which is zero in one dimension, something else?"""
    v = torch.full((1, 1), 2.0, dtype=torch.float32, device="cpu").requires_grad_()
    (first,) = torch.autograd.grad(torch._weight_norm(v, torch.ones_like(v)), v, create_graph=True)
    return bool(torch.autograd.grad(first, v, allow_unused=True)[0])


@_apart
def _kl_div_twice() -> bool:
    """Is the mixed derivative of t (log t - x), which is -1, something else?"""
    x, t = (torch.full((1,), value, dtype=torch.float32, device="cpu").requires_grad_() for value in (0.0, 1.0))
    (first,) = torch.autograd.grad(torch.kl_div(x, t, 2), x, create_graph=True)
    return bool(torch.autograd.grad(first, t)[0] != -1)


FACTS: dict[str, Fact] = {
    "torch_func": Fact(
        "torch.func exists",
        (2, 0),
        None,
        "https://pytorch.org/docs/stable/func.html",
        _has_torch_func,
    ),
    "functorch_is_separate": Fact(
        "functorch is a package of its own that transforms this torch",
        (1, 11),
        (2, 0),
        "https://pytorch.org/functorch/stable/install.html",
    ),
    "activations_are_looped_over": Fact(
        "batched backward passes loop over rows of tanh, relu, gelu and other activations, for lack of batching rules",
        # not probed: all that could be seen is the time it takes
        None,
        (2, 0),
        "https://github.com/pytorch/pytorch/blob/v1.13.1/aten/src/ATen/BatchingRegistrations.cpp",
    ),
    "retain_grad_is_a_hook": Fact(
        "retain_grad() registers a hook in Python; later it is part of C++, which does not tell whether it was called",
        None,
        (1, 10),
        "https://github.com/pytorch/pytorch/blob/v1.9.1/torch/_tensor.py",
        _retain_grad_is_a_hook,
    ),
    "compiled_transforms_pass_backward_by": Fact(
        "torch.compile takes the derivative of the forward of an autograd.Function within torch.func's transforms, and "
        "not its backward, or loses what that takes from saved tensors",
        # not probed: to compile takes seconds
        (2, 1),
        None,
        "https://github.com/pytorch/pytorch/issues/193279; measured on 2.6, 2.13 and 2.15",
    ),
    "mapped_indices_are_wrong": Fact(
        "functorch's vmap of a[i, j] is wrong, without an error, for mapped i and j of different dimensions",
        (1, 11),
        (1, 12),
        "measured: functorch 0.1.1, for i of shape (2, 1) and j of shape (2,) in a batch of two; not 0.2.1",
    ),
    "nested_tensors_draw_at_import": Fact(
        "torch.nested draws random numbers while torch._dynamo imports it, which a running vmap forbids",
        (2, 3),
        (2, 4),
        "measured: the first autograd.Function within torch.func.vmap fails on 2.3.1; not on 2.2.2 and 2.4.1",
    ),
    "leaves_keep_python_attributes": Fact(
        "a tensor that only the autograd graph holds keeps its Python attributes, also through garbage collection",
        # Not probed: it takes a run of the garbage collector, and a profiler in use can hide the answer.
        (2, 6),
        None,
        "https://github.com/pytorch/pytorch/pull/56017 (1.9, without reference cycles); measured on 1.8-2.15",
    ),
    "nccl_cannot_gather": Fact(
        "torch.distributed.gather refuses groups of backend nccl",
        # not probed: it takes two GPUs
        None,
        (1, 11),
        "https://github.com/pytorch/pytorch/issues/54021",
    ),
    "writes_to_slices_are_lost": Fact(
        "functorch differentiates nothing that is written into a slice of a tensor from outside",
        (1, 11),
        (1, 13),
        "measured: grad of b[1:] = x * x is 0 on 1.11 and 1.12 and an error from 1.13 on; no upstream issue found",
    ),
    "weight_norm_twice": Fact(
        "second derivatives of torch._weight_norm are wrong: its backward takes the saved norms for constant",
        (1, 12),
        None,
        "https://github.com/pytorch/pytorch/issues/198017",
        _weight_norm_twice,
    ),
    "kl_div_twice": Fact(
        "the mixed derivatives of torch.kl_div by its input and its target are zero",
        None,
        (1, 13),
        "measured: torch 1.8 to 1.12; no upstream issue found",
        _kl_div_twice,
    ),
    "functorch_loses_complex_parts": Fact(
        "functorch's forward mode and batched rows are wrong for some complex numbers: abs, angle, fft, stft",
        (1, 11),
        (1, 13),
        "measured: functorch 0.1.1 and 0.2.1, not torch 1.13; no upstream issue found",
    ),
    "optimized_scripts_lose_terms": Fact(
        "nested derivatives of what TorchScript has optimized lack terms in functorch's transforms, and plain ones do "
        "once a batched backward was optimized",
        (1, 11),
        None,
        "measured: the second derivative of a traced (x**2).sin() lacks a term; no upstream issue found",
    ),
    "saved_tensor_hooks_lose_terms": Fact(
        "functorch takes what a saved-tensor hook returns for constant in nested derivatives",
        (1, 11),
        (1, 13),
        "measured: functorch 0.1.1 and 0.2.1; from 1.13 on torch refuses; no upstream issue found",
    ),
    "functional_is_zero_within_vmap": Fact(
        "torch.autograd.functional gives zeros in functorch's transforms, without an error",
        (1, 11),
        (1, 12),
        "https://github.com/pytorch/functorch/issues/847",
    ),
    "torch_function_modes": Fact(
        "a TorchFunctionMode sees every function of torch that is called, and may answer in its place",
        # torch 1.13 has the class, and modules that pass it by
        (2, 0),
        None,
        "https://pytorch.org/docs/2.0/torch.overrides.html",
    ),
    "modes_see_grad_mode": Fact(
        "a TorchFunctionMode sees the switches of grad mode",
        (2, 1),
        None,
        "measured: 2.6.0 and 2.15.0 do, 2.0.1 does not",
    ),
    "hooks_of_inputs_run": Fact(
        "hooks that are registered on a tensor run where torch.autograd.grad differentiates by that tensor",
        (2, 0),
        None,
        "https://pytorch.org/docs/2.0/notes/autograd.html#behavior-of-tensor-hooks-when-tensor-is-modified-in-place",
    ),
    "dispatch_mode": Fact(
        "a TorchDispatchMode sees every operation, those of a backward pass and of functorch's levels, too",
        # not probed: torch 1.12 has a class of that name that is used in another way
        (1, 13),
        None,
        "https://github.com/pytorch/pytorch/blob/v1.13.0/torch/utils/_python_dispatch.py",
    ),
    "compiled_transforms": Fact(
        # torch 2.5 traces transforms, but not the modes that see in them what torch gets wrong.
        "torch.compile traces torch.func's transforms and function modes within; before, its graph breaks there",
        (2, 6),
        None,
        "https://pytorch.org/docs/2.1/torch.compiler_faq.html#limited-torch-func-support",
    ),
    "frames_lose_ctx": Fact(
        "torch.compile, which compiles the forward of a torch.autograd.Function by itself, fails on what its ctx has",
        # not probed: that takes a compilation
        (2, 1),
        (2, 3),
        "measured: InternalTorchDynamoError: save_for_backward (2.1.2), needs_input_grad (2.2.2); no issue found",
    ),
    "watched_forward_mode_takes_no_numbers": Fact(
        "within a TorchDispatchMode, forward mode of a product with a number raises: alias() expected a tensor",
        # not probed: that takes a forward-mode derivative, and 2.3 was not looked at
        (1, 13),
        (2, 4),
        "measured: jacfwd of x * 2 with chunk_size=auto on torch 1.13.1, 2.0.1, 2.1.2 and 2.2.2; right on 2.4.1",
    ),
    "traces_of_derivatives_crash": Fact(
        "torch.jit.trace of a function that differentiates kills the process, or hangs",
        # not probed, for that reason; 1.9 and 1.10 were not looked at
        None,
        (1, 11),
        "measured: 1.8.1, jvp, jacfwd and hessian of (x.sin() * x).sum(); not 1.11.0",
    ),
    "traces_of_transforms_crash": Fact(
        "torch.jit.trace of functorch's transforms kills the process or fails an assertion",
        (1, 11),
        (2, 0),
        "measured: 1.11.0, vmap(grad(f)) and jvp; not a loop of torch.autograd.grad",
    ),
    "inference_mode": Fact(
        "torch.inference_mode exists",
        (1, 9),
        None,
        "https://pytorch.org/docs/stable/generated/torch.autograd.grad_mode.inference_mode.html",
        lambda: hasattr(torch, "is_inference_mode_enabled"),
    ),
    "forward_ad_levels": Fact(
        "torch.autograd.forward_ad makes dual tensors that operations propagate",
        (1, 9),
        None,
        "https://pytorch.org/docs/stable/autograd.html#forward-mode-automatic-differentiation",
    ),
}

_answers: dict[str, bool] = {}


def has(name: str) -> bool:
    """Whether the fact `name` holds for the running torch (probed once)."""
    answer = _answers.get(name)
    if answer is None:
        answer = _answers[name] = FACTS[name].holds()
    return answer
