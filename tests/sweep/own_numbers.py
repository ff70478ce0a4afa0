"""The same for numbers: complex ones, and points where a formula is 0 / 0.

This file is a table, and longer than others for that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from arguments import (
    C,
    D,
    add,
    at,
    complex_,
    each,
    normal,
    positive,
    written,
    zeros,
)
from torch import Tensor


def _complex() -> None:
    x, z, s = positive(3), complex_(3), complex_()
    both = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "pow": torch.pow}
    for name, function in both.items():
        add(f"{name} of real and complex", lambda x, z, f=function: f(x, z), x, z)
        add(f"{name} of complex and real", lambda z, x, f=function: f(z, x), z, x)
        add(f"{name} of real and one complex", lambda x, z, f=function: f(x, z), x, s)
        add(f"{name} of real and a complex number", lambda x, f=function: f(x, 1 + 2j), x)
        add(f"{name} of complex and a number", lambda z, f=function: f(z, 2.5), z)
    add("__rpow__ of a complex number", lambda x: (1 + 2j) ** x, x)
    add("pow of complex and an integer", lambda z: (z**2, z**3, z**-1), z)
    add("addcmul of real and complex", lambda x, z: torch.addcmul(z, x, z), x, z)
    add("addcdiv of real and complex", lambda x, z: torch.addcdiv(z, x, z), x, z)
    add("where of real and complex", lambda x, z: torch.where(x > 1, x.to(C), z), x, z)
    add("cat of real and complex", lambda x, z: torch.cat([x, z]), x, z)
    add("stack of real and complex", lambda x, z: torch.stack([x.to(C), z]), x, z)
    add("real written into complex", lambda x, z: put_in(z.clone(), x), x, z)
    add("complex", lambda x, y: torch.complex(x, y), x, x)
    add("polar", lambda x, y: torch.polar(x, y), x, x)
    each(
        "of complex numbers",
        (z,),
        lambda z: z.angle(),
        lambda z: z.abs(),
        lambda z: z.sgn(),
        lambda z: z.conj(),
        lambda z: z.exp(),
        lambda z: z.log(),
        lambda z: z.sqrt(),
        lambda z: z.tanh(),
        lambda z: z.sin(),
    )
    add("abs at zero", lambda z: (z * 0).abs(), z)
    add("angle of real", lambda x: x.angle(), normal(3))
    each(
        "product of complex vectors",
        (
            z,
            complex_(3),
        ),
        lambda z, y: torch.vdot(z, y),
        lambda z, y: torch.dot(z, y),
    )
    add("matmul complex", lambda a, b: a @ b.conj(), complex_(3, 3), complex_(3, 3))
    each("transform of real numbers", (normal(4),), lambda x: torch.fft.fft(x), lambda x: torch.fft.rfft(x))
    each(
        "transform",
        (complex_(4),),
        lambda z: torch.fft.fft(z),
        lambda z: torch.fft.ifft(z),
        lambda z: torch.fft.irfft(z),
    )
    add("stft", lambda x: torch.stft(x, 4, 2, window=torch.ones(4, dtype=D), return_complex=True), normal(12))
    add("sum of conj", lambda z: (z.conj() * z).real.sum(), z)
    each(
        "reduction of complex numbers",
        (z,),
        lambda z: z.prod(),
        lambda z: z.cumprod(0),
        lambda z: z.sum(),
        lambda z: z.mean(),
        lambda z: z.var(),
        lambda z: z.std(),
    )
    add("lerp complex", lambda z, y, s: torch.lerp(z, y, s), z, complex_(3), s)
    add("mul_ of complex by real", written(lambda z, x: z.mul_(x)), z, x)
    each(
        "norm of complex numbers",
        (z,),
        lambda z: torch.linalg.norm(z),
        lambda z: z.norm(),
        lambda z: torch.linalg.vector_norm(z, 3),
    )


def put_in(z: Tensor, x: Tensor) -> Tensor:
    z[:2] = x[:2]
    return z


def _points() -> None:
    """Where a formula is 0 / 0, or has a kink."""
    o, c = zeros(3), at(1.0, 1.0, 1.0)
    for p in (1, 2, 3, float("inf"), 0.5):
        add(f"norm at zero p={p}", lambda x, p=p: torch.norm(x, p), o)
        add(f"linalg_vector_norm at zero p={p}", lambda x, p=p: torch.linalg.vector_norm(x, p), o)
    add("linalg_norm at zero", lambda x: torch.linalg.norm(x), o)
    add("norm of rows at zero", lambda x: torch.norm(x, dim=1), zeros(2, 3))
    add("square of a norm at zero", lambda x: torch.linalg.norm(x), o, finish=lambda y: y * y)
    add("dist at zero", lambda x, y: torch.dist(x, y), o, o)
    add("cdist at zero", lambda x, y: torch.cdist(x, y), zeros(1, 3), zeros(1, 3))
    add("pairwise_distance at zero", lambda x, y: F.pairwise_distance(x, y, eps=0.0), o, o)
    add("normalize at zero", lambda x: F.normalize(x, dim=0), o)
    add("cosine_similarity at zero", lambda x, y: F.cosine_similarity(x, y, dim=0), o, normal(3))
    add("hypot at zero", lambda x: torch.hypot(x, x * 0), o)
    add("atan2 at zero", lambda x, y: torch.atan2(x, y), o, normal(3))
    each(
        "logarithm at zero",
        (
            o,
            positive(3),
        ),
        lambda x, y: torch.xlogy(x, y),
        lambda x, y: torch.special.entr(x),
        lambda x, y: torch.special.xlog1py(x, y),
    )
    add("sinc at zero", lambda x: torch.sinc(x), o)
    add("prod with a zero", lambda x: x.prod(), at(1.0, 0.0, 2.0))
    add("prod with zeros", lambda x: x.prod(), at(1.0, 0.0, 0.0))
    add("prod of rows with a zero", lambda x: x.reshape(2, 2).prod(1), at(1.0, 0.0, 2.0, 3.0))
    add("cumprod with a zero", lambda x: x.cumprod(0), at(1.0, 0.0, 2.0))
    add("cumprod with zeros", lambda x: x.cumprod(0), at(0.0, 2.0, 0.0, 3.0))
    each("of a constant", (c,), lambda x: x.var(), lambda x: x.std())
    add("logsumexp of infinities", lambda x: torch.logsumexp(x, 0), at(-float("inf"), 0.0, 1.0))
    add("logsumexp of nothing", lambda x: torch.logsumexp(x * float("inf"), 0), at(-1.0, -1.0))
    each("of infinities", (at(-float("inf"), 0.0, 1.0),), lambda x: F.softmax(x, 0), lambda x: F.log_softmax(x, 0)[1:])
    add("logcumsumexp", lambda x: torch.logcumsumexp(x, 0), normal(3))
    each(
        "of ties",
        (c,),
        lambda x: x.max(),
        lambda x: x.min(),
        lambda x: x.amax(),
        lambda x: x.amin(),
        lambda x: torch.aminmax(x),
    )
    each(
        "of ties in rows",
        (c,),
        lambda x: x.max(0)[0],
        lambda x: x.cummax(0)[0],
        lambda x: x.cummin(0)[0],
        lambda x: x.argsort() * x,
        lambda x: F.max_pool1d(x[None], 2),
    )
    each(
        "of two ties",
        (
            c,
            c,
        ),
        lambda x, y: torch.maximum(x, y),
        lambda x, y: torch.minimum(x, y),
        lambda x, y: torch.fmax(x, y),
        lambda x, y: torch.fmin(x, y),
    )
    each(
        "of middle ties",
        (c,),
        lambda x: x.median(),
        lambda x: x.sort()[0],
        lambda x: x.kthvalue(2)[0],
        lambda x: x.mode()[0],
        lambda x: x.nanmedian(),
        lambda x: x.topk(2)[0],
    )
    each(
        "sorted",
        (normal(4),),
        lambda x: x.topk(2)[0],
        lambda x: x.sort(descending=True)[0],
        lambda x: x.cummax(0)[0],
        lambda x: x.msort(),
        lambda x: x.max(),
        lambda x: x.min(),
    )
    each("quantiles", (normal(4),), lambda x: x.quantile(0.3), lambda x: x.nanquantile(0.7))
    each(
        "kink at zero",
        (o,),
        lambda x: x.abs(),
        lambda x: x.sign(),
        lambda x: x.relu(),
        lambda x: F.leaky_relu(x),
        lambda x: F.elu(x),
        lambda x: x.clamp(0, 1),
        lambda x: F.hardtanh(x, 0, 1),
    )
    add(
        "hardshrink at a kink",
        lambda x: (F.hardshrink(x), F.softshrink(x), F.hardtanh(x), F.relu6(x)),
        at(0.5, -0.5, 1.0),
    )
    each(
        "of equals",
        (
            c,
            c,
        ),
        lambda x, y: torch.logaddexp(x, y),
        lambda x, y: torch.logaddexp2(x, y),
    )
    each(
        "singular at zero",
        (o,),
        lambda x: x.sqrt(),
        lambda x: x.rsqrt(),
        lambda x: x.log(),
        lambda x: x.reciprocal(),
        lambda x: x.square(),
    )
    add("layer_norm of a constant", lambda x: F.layer_norm(x, (3,)), c)
    each(
        "smooth at zero",
        (o,),
        lambda x: x.asin(),
        lambda x: x.atanh(),
        lambda x: x.expm1(),
        lambda x: x.log1p(),
        lambda x: x.tan(),
        lambda x: x.tanh(),
        lambda x: x.erf(),
        lambda x: x.sinh(),
    )
    add("acos at one", lambda x: torch.acos(x), c)
    add("nan_to_num", lambda x: torch.nan_to_num(x / x), at(0.0, 1.0, 2.0))
    add("nansum", lambda x: (x / x).nansum(), at(0.0, 1.0, 2.0))
    add("where around nan", lambda x: torch.where(x > 0, x.log(), x), at(0.0, 1.0, 2.0))
    add("kl_div at zero", lambda x, t: F.kl_div(x, t, reduction="sum"), normal(3), at(0.0, 0.5, 0.5))
    add("binary_cross_entropy", lambda x, t: F.binary_cross_entropy(x.sigmoid(), t), normal(3), at(0.0, 0.5, 1.0))
    each(
        "loss at a kink",
        (
            c,
            o,
        ),
        lambda x, y: F.huber_loss(x, y),
        lambda x, y: F.smooth_l1_loss(x, y),
        lambda x, y: F.l1_loss(x, y),
        lambda x, y: F.mse_loss(x, y),
    )
    each(
        "loss of equals",
        (
            c,
            c,
        ),
        lambda x, y: F.huber_loss(x, y),
        lambda x, y: F.smooth_l1_loss(x, y),
        lambda x, y: F.l1_loss(x, y),
    )
    add("renorm", lambda x: torch.renorm(x, 2, 0, 1.0), normal(3, 4))
    each(
        "of a vector",
        (normal(4),),
        lambda x: torch.trapezoid(x),
        lambda x: torch.cumulative_trapezoid(x),
        lambda x: torch.diff(x),
        lambda x: x.frac(),
        lambda x: x.round(),
    )
    add("gradient", lambda x: torch.gradient(x), normal(4))
    add(
        "frexp",
        lambda x: (torch.frexp(x)[0], torch.ldexp(x, torch.tensor(2)), torch.frac(x), torch.round(x)),
        normal(3),
    )
    for name in (
        "airy_ai",
        "bessel_j0",
        "bessel_j1",
        "bessel_y0",
        "i0",
        "i0e",
        "i1",
        "i1e",
        "ndtr",
        "log_ndtr",
        "ndtri",
    ):
        if hasattr(getattr(torch, "special", None), name):  # torch 1.8 has none
            add(
                f"special_{name}",
                lambda x, name=name: getattr(torch.special, name)(x),
                lambda g: (torch.rand(3, generator=g, dtype=D) * 0.5 + 0.25, True),
            )


_complex()
_points()
