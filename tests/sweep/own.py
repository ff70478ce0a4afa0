"""What torch's database lacks: writes in place, memory formats, mapped scalars and indices.

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
    integers,
    made,
    mask,
    normal,
    permutation,
    permutation_rows,
    positive,
    put,
    single,
    written,
    zeros,
)


def _in_place() -> None:
    x, v = normal(3, 4), normal(4)
    i, j = integers(3, 2), integers(4, 3, 4)
    add("add_ of a row", written(lambda x, v: x.add_(v, alpha=2)), x, v)
    add("sub_ of a row", written(lambda x, v: x.sub_(v)), x, v)
    add("mul_ by a row", written(lambda x, v: x.mul_(v)), x, v)
    add("div_ by a row", written(lambda x, v: x.div_(v)), x, positive(4))
    add("mul_ by a number", written(lambda x, v: x.mul_(v)), x, normal())
    add("add_ of itself", written(lambda x: x.add_(x.t())), normal(3, 3))
    add("copy_", written(lambda x, v: x.copy_(v)), x, v)
    add("fill_ by a tensor", written(lambda x, v: x.fill_(v)), x, normal())
    add("fill_", written(lambda x: x.fill_(2.0)), x)
    add("zero_", written(lambda x: x.zero_()), x)
    add("zero_ of a row", written(lambda x: (x[1].zero_(), None)[1]), x)
    add("masked_fill_", written(lambda x, m: x.masked_fill_(m, 2.0)), x, mask(3, 4))
    add("masked_fill_ broadcast", written(lambda x, m, s: x.masked_fill_(m, s)), x, mask(4), normal())
    add("masked_scatter_", written(lambda x, m, v: x.masked_scatter_(m, v)), x, mask(3, 4), normal(3, 4))
    add("index_add_", written(lambda x, i, v: x.index_add_(0, i, v)), x, i, normal(2, 4))
    add("index_copy_", written(lambda x, i, v: x.index_copy_(0, i, v)), x, permutation(3), normal(3, 4))
    add("index_fill_", written(lambda x, i: x.index_fill_(0, i, 2.0)), x, i)
    add("index_put_", written(lambda x, i, v: x.index_put_((i,), v)), x, permutation(3), normal(3, 4))
    add("index_put_ accumulate", written(lambda x, i, v: x.index_put_((i,), v, accumulate=True)), x, i, normal(2, 4))
    add("scatter_", written(lambda x, i, v: x.scatter_(0, i, v)), x, permutation_rows(3, 4), normal(3, 4))
    add("scatter_ of a number", written(lambda x, i: x.scatter_(0, i, 2.0)), x, permutation_rows(3, 4))
    add("scatter_add_", written(lambda x, i, v: x.scatter_add_(1, i, v)), x, j, normal(3, 4))
    for reduce in ("sum", "prod", "mean", "amax"):
        function = written(lambda x, i, v, reduce=reduce: x.scatter_reduce_(1, i, v, reduce))
        add(f"scatter_reduce_ {reduce}", function, x, j, normal(3, 4))
    add("put_", written(lambda x, i, v: x.put_(i, v)), x, permutation(12), normal(12))
    add("addcmul_", written(lambda x, a, b: x.addcmul_(a, b, value=2)), x, x, v)
    add("addcdiv_", written(lambda x, a, b: x.addcdiv_(a, b, value=2)), x, x, positive(4))
    add("addmm_", written(lambda x, a, b: x.addmm_(a, b)), x, normal(3, 2), normal(2, 4))
    add("addmv_", written(lambda x, a, b: x.addmv_(a, b)), v, normal(4, 3), normal(3))
    add("addr_", written(lambda x, a, b: x.addr_(a, b)), x, normal(3), v)
    add("baddbmm_", written(lambda x, a, b: x.baddbmm_(a, b)), normal(2, 3, 4), normal(2, 3, 2), normal(2, 2, 4))
    add("lerp_", written(lambda x, a, s: x.lerp_(a, s)), x, x, normal())
    add("clamp_", written(lambda x: x.clamp_(-0.5, 0.5)), x)
    add("clamp_ by tensors", written(lambda x, lo: x.clamp_(min=lo)), x, v)
    add("fill_diagonal_", written(lambda x: x.fill_diagonal_(2.0)), x)
    add("renorm_", written(lambda x: x.renorm_(2, 0, 1.0)), x)
    for name in ("t_", "squeeze_"):
        add(name, written(lambda x, name=name: getattr(x, name)()), normal(1, 3))
    add("transpose_", written(lambda x: x.transpose_(0, 1)), x)
    add("swapaxes_", written(lambda x: x.swapaxes_(0, 1)), x)
    add("unsqueeze_", written(lambda x: x.unsqueeze_(0)), x)
    add("resize_", written(lambda x: x.resize_(4, 3)), x)
    add("resize_ smaller", written(lambda x: x.resize_(2, 3)), x)
    add("resize_as_", written(lambda x, v: x.resize_as_(v)), normal(4), normal(2, 2))
    add("as_strided_", written(lambda x: x.as_strided_((2, 2), (1, 2), 1)), x)
    add("cumsum_", written(lambda x: x.cumsum_(0)), x)
    add("cumprod_", written(lambda x: x.cumprod_(0)), x)
    add("cumprod_ with zeros", written(lambda x: x.cumprod_(0)), at(1.0, 0.0, 2.0, 0.0))
    add("relu inplace", written(lambda x: F.relu(x, inplace=True)), x)
    for name in ("leaky_relu", "elu", "celu", "silu", "hardtanh", "hardswish", "mish", "relu6", "threshold", "selu"):
        more = (0.1, 20.0) if name == "threshold" else ()
        function = written(lambda x, name=name, more=more: getattr(F, name)(x, *more, inplace=True))
        add(f"{name} inplace", function, x)
    add("dropout of nothing", lambda x: F.dropout(x, 0.0), x)
    add("dropout in evaluation", lambda x: F.dropout(x, 0.5, training=False), x)
    add("alpha_dropout in evaluation", lambda x: F.alpha_dropout(x, 0.5, training=False), x)
    add("pow_", written(lambda x, p: x.pow_(p)), positive(3, 4), v)
    add("add_ to a view", written(lambda x, v: (x[0].add_(v), None)[1]), x, v)
    add("mul_ of a diagonal", written(lambda x: (x.diagonal().mul_(2), None)[1]), normal(3, 3))
    add("add_ to an unbind", written(lambda x: (x.unbind(0)[1].add_(x[0]), None)[1]), x)
    add("data of", lambda x: x.data * x, x, differences=False)
    add("detach of", lambda x: x.detach() * x, x, differences=False)
    add("detach_ of", written(lambda x: x.detach_()), normal(3, 4), differences=False)
    add("item of", lambda x: x.sum().item() * x, x, differences=False)
    add("__float__ of", lambda x: float(x.detach().sum()) * x, x, differences=False)
    add("tolist of", lambda x: x.new_tensor(x[0].tolist()) * x, x, differences=False)
    add("__bool__ of", lambda x: x * 2 if x.sum() > 0 else x * 3, x)
    add("__index__ of", lambda x, i: x[:, : int(i) + 1].sum() + range(5)[i] * x, x, integers(3))


def _indices() -> None:
    x, v, i = normal(3, 4), normal(4), integers(3)
    add("__setitem__ of a row", written(lambda x, v: put(0, x, v)), x, v)
    add("__setitem__ of a slice", written(lambda x, v: put(slice(1, None), x, v)), x, v)
    add("__setitem__ by a mask", written(lambda x, m: put(m, x, 2.0)), x, mask(3, 4))
    add("__setitem__ by indices", written(lambda x, i, v: put(i, x, v)), x, permutation(3), normal(3, 4))
    add("__setitem__ at a mapped place", written(lambda x, i, v: put(i, x, v)), x, i, v)
    add("__setitem__ at a mapped column", written(lambda x, i, v: put((..., i), x, v)), x, i, normal(3))
    places = permutation(3), permutation(3), normal(3, 2)
    add(
        "__setitem__ at places apart",
        written(lambda x, i, j, v: put((i, slice(None), j), x, v)),
        normal(3, 2, 4),
        *places,
    )
    add("__setitem__ of a column", written(lambda x, v: put((slice(None), 1), x, v)), x, normal(3))
    add("__setitem__ of sums", written(lambda x, v: put((..., 0), x, x[..., 0] + v)), x, normal(3))
    add("__setitem__ into zeros", made(3, 4)(lambda out, v: put(0, out, v)), v)
    add("__setitem__ into zeros by indices", made(3, 4)(lambda out, i, v: put(i, out, v)), permutation(3), x)
    add("index_add_ into zeros", made(3, 4)(lambda out, i, v: out.index_add_(0, i, v)), integers(3, 2), normal(2, 4))
    add("scatter_add_ into zeros", made(3, 4)(lambda o, i, v: o.scatter_add_(1, i, v)), integers(4, 3, 4), x)
    add("copy_ into zeros", made(3, 4)(lambda out, v: out.copy_(v)), v)
    add("masked_fill_ of zeros", made(3, 4)(lambda out, m, s: out.masked_fill_(m, s)), mask(4), normal())
    add("fill_ of zeros", made(3, 4)(lambda out, s: out.fill_(s)), normal())
    add("new_zeros written", lambda x: x.new_zeros(3, 4).index_fill(0, torch.tensor([1]), 1.0) * x, x)
    each(
        "__getitem__",
        (x,),
        lambda x: x[0],
        lambda x: x[-1, 2],
        lambda x: x[..., None],
        lambda x: x[1:, ::2],
        lambda x: x[None],
        lambda x: x[:, 0],
        lambda x: x[..., -1],
    )
    add("__getitem__ at a mapped place", lambda x, i: x[i], x, i)
    add("__getitem__ at mapped places", lambda x, i, j: x[i, j], x, integers(3, 2), integers(4, 2))
    add("__getitem__ at mapped places that broadcast", lambda x, i, j: x[i, j], x, integers(3, 2, 1), integers(4, 2))
    add("__getitem__ of columns", lambda x, j: x[:, j], x, integers(4, 2))
    add("__getitem__ apart", lambda x, i, j: x[i, :, j], normal(3, 2, 4), integers(3, 2), integers(4, 2))
    add("__getitem__ by a mask", lambda x: x[torch.tensor([True, False, True])], x)
    add("__getitem__ by a list", lambda x: x[[0, 2, 2]], x)
    add("take", lambda x, i: x.take(i), x, integers(12, 5))
    add("take_along_dim", lambda x, i: x.take_along_dim(i, 1), x, integers(4, 3, 2))
    add("gather", lambda x, i: x.gather(1, i), x, integers(4, 3, 2))
    add("gather of argsort", lambda x: x.gather(1, x.argsort(1)), x)
    add("index_select", lambda x, i: x.index_select(0, i), x, integers(3, 4))
    add("index_select at the back", lambda x, i: x.index_select(-1, i), x, integers(4, 3))
    add("narrow", lambda x: x.narrow(1, 1, 2), x)
    add("select", lambda x: x.select(1, 1), x)
    add("one_hot", lambda x, i: F.one_hot(i, 4) * x, x, integers(4, 3))
    add("embedding", lambda i, w: F.embedding(i, w), integers(3, 5), x)
    add("embedding padding_idx", lambda i, w: F.embedding(i, w, padding_idx=0), integers(3, 5), x, differences=False)
    add(
        "embedding max_norm", lambda i, w: F.embedding(i, w.clone(), max_norm=1.0), integers(3, 5), x, differences=False
    )
    for mode in ("sum", "mean", "max"):
        add(f"embedding_bag {mode}", lambda i, w, mode=mode: F.embedding_bag(i, w, mode=mode), integers(3, 2, 3), x)
    bag = lambda i, w, s: F.embedding_bag(i, w, mode="sum", per_sample_weights=s)
    add("embedding_bag weights", bag, integers(3, 2, 3), x, normal(2, 3))
    add("embedding_bag padding_idx", lambda i, w: F.embedding_bag(i, w, padding_idx=0), integers(3, 2, 3), x)
    add("repeat_interleave", lambda x: x.repeat_interleave(2, 0), x)
    add("repeat_interleave by numbers", lambda x: x.repeat_interleave(torch.tensor([1, 0, 2]), 0), x)
    add("searchsorted", lambda x, v: torch.searchsorted(x, v), normal(5), normal(3))
    add("bucketize", lambda x, v: torch.bucketize(x, v), normal(5), at(-0.5, 0.0, 0.5))
    add("argmax of", lambda x: x[torch.arange(3), x.argmax(1)], x)
    add("where mapped", lambda m, x, v: torch.where(m, x, v), mask(4), x, normal(3, 1))
    add("where of numbers", lambda m, x: torch.where(m, x, 0.0), mask(3, 1), x)
    add("masked_fill broadcast", lambda x, m: x.masked_fill(m, -1e9), x, mask(4))
    add("masked_fill by a tensor", lambda x, m, s: x.masked_fill(m, s), x, mask(3, 1), normal())
    add("masked_select", lambda x: x.masked_select(torch.tensor([True, False, True, True])), x)
    add("index_put broadcast", lambda x, i, s: x.index_put((i,), s), x, permutation(3), normal())
    add("tril_indices", lambda x: x[tuple(torch.tril_indices(3, 3))], x)


def _views() -> None:
    x, image = normal(3, 4), normal(2, 3, 4, 4)
    last = torch.channels_last
    add("contiguous channels_last", lambda x: x.contiguous(memory_format=last), image)
    add("to channels_last", lambda x: x.to(memory_format=last) * 2, image)
    add("clone channels_last", lambda x: x.clone(memory_format=last), image)
    add("zeros_like channels_last", lambda x: torch.zeros_like(x, memory_format=last) + x, image)
    add("contiguous", lambda x: x.t().contiguous().view(-1), x)
    add("view of a transpose", lambda x: x.t().reshape(2, 6), x)
    add("view as complex", lambda x: torch.view_as_complex(x), normal(3, 2))
    add("view as real", lambda z: torch.view_as_real(z), complex_(3))
    add("as_strided", lambda x: x.as_strided((2, 3), (1, 4)), x)
    add("as_strided overlapping", lambda x: x.as_strided((3, 3), (2, 1), 1), x)
    add("as_strided_scatter", lambda x, v: torch.as_strided_scatter(x, v, (2,), (2,), 1), x, normal(2))
    add("unfold", lambda x: x.unfold(1, 2, 1), x)
    add("expand", lambda x: x.expand(2, 3, 4), x)
    add("expand_as", lambda x, y: x.expand_as(y), normal(4), x)
    add("view_as", lambda x, y: x.view_as(y), x, normal(2, 6))
    add("reshape_as", lambda x, y: x.reshape_as(y), x, normal(2, 6))
    add("type_as", lambda x, y: x.type_as(y), single(3), normal(2))
    each("of a matrix", (x,), lambda x: x.T, lambda x: x.mT, lambda x: x.H, lambda x: x.mH)
    add("real", lambda z: (z.real, z.imag, z.real * z.imag), complex_(3))
    add("roll of a number", lambda x: torch.roll(x.sum(), 1), x)
    add("roll flat", lambda x: torch.roll(x, 1), x)
    add("roll of a vector", lambda x: torch.roll(x, 1), normal(3))
    add("roll", lambda x: torch.roll(x, (1, 2), (0, 1)), x)
    each("turned", (x,), lambda x: x.flip(0), lambda x: x.fliplr(), lambda x: x.flipud(), lambda x: x.rot90())
    add("unflatten", lambda x: x.unflatten(1, (2, 2)), x)
    each(
        "in parts",
        (x,),
        lambda x: x.split(2, 1),
        lambda x: x.chunk(2, 1),
        lambda x: x.tensor_split(2, 1),
        lambda x: x.unbind(0),
    )
    add("meshgrid", lambda x, y: torch.meshgrid(x, y), normal(2), normal(3))
    add("cartesian_prod", lambda x, y: torch.cartesian_prod(x, y), normal(2), normal(3))
    add("combinations", lambda x: torch.combinations(x), normal(4))
    add("block_diag", lambda x, y: torch.block_diag(x, y), normal(2, 2), normal(1, 3))
    each(
        "diagonals",
        (
            normal(3, 3),
            normal(3),
        ),
        lambda x, y: torch.diag(x),
        lambda x, y: torch.diag(y),
        lambda x, y: torch.diag_embed(y),
    )
    each(
        "joined",
        (
            x,
            x,
        ),
        lambda x, y: torch.stack([x, y], 1),
        lambda x, y: torch.cat([x, y]),
        lambda x, y: torch.hstack([x, y]),
        lambda x, y: torch.vstack([x, y]),
    )
    each("triangles", (normal(3, 3),), lambda x: x.triu(1), lambda x: x.tril(-1), lambda x: torch.trace(x))
    add("broadcast_tensors", lambda x, y: torch.broadcast_tensors(x, y), normal(4), normal(3, 1))
    each(
        "at least",
        (normal(3),),
        lambda x: torch.atleast_1d(x),
        lambda x: torch.atleast_2d(x),
        lambda x: torch.atleast_3d(x),
    )
    each("squeezed", (normal(1, 3),), lambda x: x.squeeze(), lambda x: x.squeeze(0), lambda x: x.unsqueeze(1))
    add("tensor of numbers", lambda x: x * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=D), x)
    add("new_tensor", lambda x: x * x.new_tensor([1.0, 2, 3, 4]), x)
    each("new", (x,), lambda x: x * x.new_full((4,), 2.0), lambda x: x * x.new_ones(4), lambda x: x + x.new_zeros(4))
    each(
        "made",
        (x,),
        lambda x: x * torch.arange(4),
        lambda x: x * torch.linspace(0, 1, 4, dtype=D),
        lambda x: x * torch.full((4,), 2.0),
    )
    each(
        "made of one value",
        (x,),
        lambda x: x @ torch.eye(4, dtype=D),
        lambda x: x + torch.ones(4, dtype=D),
        lambda x: x + torch.zeros(3, 1, dtype=D),
    )
    each(
        "made alike",
        (x,),
        lambda x: torch.ones_like(x) * x,
        lambda x: torch.full_like(x, 2.0) * x,
        lambda x: torch.empty_like(x).fill_(1.0) * x,
        lambda x: torch.zeros_like(x) + x,
    )
    add("as_tensor", lambda x: torch.as_tensor(x) * 2, x)
    each(
        "of another precision",
        (x,),
        lambda x: x.float(),
        lambda x: x.double(),
        lambda x: x.to(torch.float32),
        lambda x: x.type(torch.float32),
        lambda x: x.half(),
    )
    add("to complex", lambda x: x.to(C) * 1j, x)
    add("fold", lambda x: F.fold(x, (3, 3), (2, 2)), normal(1, 4, 4))
    add("pad", lambda x: (F.pad(x, (1, 1)), F.pad(x, (1, 1), value=2.0)), x)
    for mode in ("reflect", "replicate", "circular"):
        add(f"pad {mode}", lambda x, mode=mode: F.pad(x, (1, 1), mode=mode), normal(1, 2, 4))


def _promotion() -> None:
    """A mapped number is no tensor of dimension one: it does not raise the precision of others."""
    x, s = single(3), normal()
    for name in ("add", "sub", "mul", "div", "pow", "atan2", "fmod", "maximum", "copysign", "hypot", "xlogy", "where"):
        if name == "where":
            add("where promotes", lambda m, x, s: torch.where(m, x, s), mask(3), x, s)
        else:
            add(f"{name} promotes", lambda x, s, name=name: getattr(torch, name)(x.abs() + 1, s.abs() + 1), x, s)
            if name in ("add", "sub", "mul", "div", "pow"):
                add(f"{name} promotes a number", lambda x, s, n=name: getattr(torch, n)(s.abs() + 1, x.abs() + 1), x, s)
    add("add promotes integers", lambda i, s: i + s, integers(5, 3), normal())
    add("mul promotes integers", lambda i, x: i * x, integers(5), single(3))
    each(
        "operator",
        (normal(3),),
        lambda x: 1 - x,
        lambda x: 2.0 / (x * x + 1),
        lambda x: 2**x,
        lambda x: abs(x),
        lambda x: -x,
        lambda x: +x,
        lambda x: x % 2,
        lambda x: x // 2,
        lambda x: x / 3,
        lambda x: x.__rmul__(2),
    )
    each(
        "comparison",
        (
            x,
            x,
        ),
        lambda x, y: x > y,
        lambda x, y: x <= 0,
        lambda x, y: x == y,
        lambda x, y: x != y,
        lambda x, y: x >= y,
        lambda x, y: ~(x < y),
        lambda x, y: (x > 0) & (y > 0),
        lambda x, y: (x > 0) | (y > 0),
        lambda x, y: (x > 0) ^ (y > 0),
    )
    add("lerp by a number", lambda x, y, s: torch.lerp(x, y, s), normal(3), normal(3), s)
    add("clamp by a mapped number", lambda x, s: torch.clamp(x, min=s), normal(3), s)
    add("clamp by mapped numbers", lambda x, lo, hi: torch.clamp(x, lo, hi), normal(3), s, s)
    add("pow by a mapped number", lambda x, p: x**p, positive(3), s)
    add("pow of a mapped number", lambda s, p: s**p, positive(), normal(3))
    for p in (2, 3, 0, 0.5, -1, 1):
        add(f"pow by {p}", lambda x, p=p: x**p, positive(3))
    for p in (2, 3, 0, 1):
        add(f"pow of zero by {p}", lambda x, p=p: x**p, zeros(3))
    add("addcmul of numbers", lambda x, y, z: torch.addcmul(x, y, z, value=0.5), normal(3), s, s)
    add("sum of dtype", lambda x: x.sum(dtype=torch.float64), single(3))
    add("type promotion of complex", lambda x, z: x * z + z, single(3), complex_())


_in_place()
_indices()
_views()
_promotion()
