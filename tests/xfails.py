"""Every failure that is expected, with its reason and where it is known upstream. Strict: a pass fails."""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from packaging.version import Version

TORCH = Version(str(torch.__version__)).release


class XFail(NamedTuple):
    test: str  # below tests/, as a pattern: "test_vmap.py::test_name[torch.func*"; [ stands for itself
    reason: str
    link: str
    raises: tuple[type[BaseException], ...] = (Exception,)
    applies: Callable[[], bool] = lambda: True


_SECOND = "test_nesting.py::test_second_derivatives_are_never_silently_wrong"
_THIRD = "test_nesting.py::test_third_derivatives_are_never_silently_wrong"
_NO_GRAD = "test_state.py::test_no_grad_inside_is_respected"
_NATIVE = "[*func*"  # torch.func and functorch


def _wrong(test: str, reason: str, issue: int, since: tuple[int, ...], until: tuple[int, ...] = (99,)) -> XFail:
    """A wrong answer of torch itself, without an error."""
    link = f"https://github.com/pytorch/pytorch/issues/{issue}"
    return XFail(test, reason, link, (AssertionError,), lambda: since <= TORCH < until)


_CONSTANT = "the jvp of a fused operation takes what it saved for constant"
_TWICE = "the double backward takes the saved mean and invstd for constant"

XFAILS: tuple[XFail, ...] = (
    XFail(
        "test_state.py::test_a_backward_through_the_output_leaves_the_pullback_its_graph[autograd]",
        "one run makes one graph, which the output and the pullback share: pass retain_graph=True to the backward",
        "https://pytorch.org/docs/stable/generated/torch.Tensor.backward.html",
        (RuntimeError,),
    ),
    _wrong(f"{_SECOND}{_NATIVE}-layer_norm*-jacfwd-*", _CONSTANT, 196700, (1, 11)),
    _wrong(f"{_SECOND}{_NATIVE}-batch_norm-jacfwd-*", _CONSTANT, 196699, (1, 11)),
    _wrong(f"{_SECOND}{_NATIVE}-instance_norm-jacfwd-*", _CONSTANT, 196699, (1, 11)),
    _wrong(f"{_SECOND}{_NATIVE}-logdet-jacfwd-*", _CONSTANT, 192540, (1, 13), (2, 15)),
    _wrong(f"{_SECOND}{_NATIVE}-solve-jacfwd-*", _CONSTANT, 192540, (1, 13), (2, 15)),
    # no issue of its own was found: the umbrella for derivatives of higher order that are wrong
    _wrong(f"{_SECOND}[*-weight_norm-*", "the backward takes the saved norms for constant", 198017, (1, 12)),
    _wrong(f"{_THIRD}{_NATIVE}-layer_norm*-jacrev]", _TWICE, 175754, (1, 11)),
    _wrong(f"{_THIRD}{_NATIVE}-layer_norm*-jacfwd]", _TWICE, 175754, (1, 12)),
    _wrong(f"{_THIRD}{_NATIVE}-batch_norm-jacrev]", _TWICE, 186256, (1, 11)),
    _wrong(f"{_THIRD}{_NATIVE}-batch_norm-jacfwd]", _TWICE, 186256, (1, 13)),
    _wrong(f"{_THIRD}{_NATIVE}-instance_norm-jacrev]", _TWICE, 186256, (1, 11)),
    _wrong(f"{_THIRD}{_NATIVE}-instance_norm-jacfwd]", _TWICE, 186256, (1, 13)),
    _wrong(f"{_NO_GRAD}{_NATIVE}-jvp]", "no_grad does not apply to forward mode", 78961, (1, 11)),
    _wrong(f"{_NO_GRAD}{_NATIVE}-jacfwd]", "no_grad does not apply to forward mode", 78961, (1, 11)),
)
