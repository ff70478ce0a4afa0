"""Functions of a (2, 3) tensor of numbers between 0.2 and 1.2, at least one for each rule of the forward Laplacian."""

import torch
from torch.nn import functional as F

DTYPE = torch.float64
X = torch.tensor([[0.31, 0.72, 0.55], [1.13, 0.24, 0.93]], dtype=DTYPE)
W = torch.tensor([[0.4, -0.7, 0.2], [0.9, 0.1, -0.5], [-0.3, 0.6, 0.8]], dtype=DTYPE)
V = torch.tensor([0.5, -1.2, 0.7], dtype=DTYPE)
MASK = torch.tensor([[True, False, True], [False, True, True]])
INDEX = torch.tensor([2, 0, 2])


def s(x):
    """Something curved to put what is linear upon."""
    return x**3 + x.sin()


def square(x):
    """A well-conditioned (3, 3) matrix."""
    return x.t() @ x + torch.diag_embed(x[0] + 1)


def batch(x):
    return torch.stack([square(x), square(x.sin()) * 2])


def attention_inputs(x):
    return torch.stack([x, x.sin()]) @ W, torch.stack([x.cos(), x]) @ W, torch.stack([x**2, x])


torch.manual_seed(0)
HEADS = torch.nn.MultiheadAttention(4, 2).double().eval()
with torch.no_grad():
    HEADS.in_proj_bias.copy_(torch.linspace(-1, 1, 12))

ELEMENTWISE = {
    name: getattr(torch, name)
    for name in (
        "exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal sin cos tan atan arctan sinh cosh tanh asinh "
        "sigmoid erf erfc abs absolute lgamma digamma sinc relu selu celu neg"
    ).split()
    if hasattr(torch, name)
}
ELEMENTWISE.update(
    asin=lambda x: torch.asin(x / 2),
    acos=lambda x: torch.acos(x / 2),
    atanh=lambda x: torch.atanh(x / 2),
    acosh=lambda x: torch.acosh(x + 1),
    gelu=F.gelu,
    silu=F.silu,
    softplus=F.softplus,
    sharp=lambda x: F.softplus(x, 2.0, 5.0),
    softsign=F.softsign,
    logsigmoid=F.logsigmoid,
    tanhshrink=F.tanhshrink,
    elu=lambda x: F.elu(x - 0.6, 0.7),
    leaky_relu=lambda x: F.leaky_relu(s(x) - 0.6, 0.1),
    relu6=F.relu6,
    hardtanh=lambda x: F.hardtanh(s(x)),
    clamp=lambda x: s(x).clamp(0.4, 1.0),
    clamp_min=lambda x: s(x).clamp_min(0.6),
    cube=lambda x: x**3,
    root=lambda x: x**0.7,
    inverse_square=lambda x: torch.pow(x, -2),
    power_of_two=lambda x: 2.0**x,
    power=lambda x: x ** (x * 2),
    power_of_constant=lambda x: torch.pow(V.abs(), x),
    power_by_constant=lambda x: torch.pow(x, V),
    power_of_integer=lambda x: (x - 0.6) ** 4,
    atan2=lambda x: torch.atan2(x, x[:1] + 0.3),
    maximum=lambda x: torch.maximum(s(x), x.flip(1)),
    minimum=lambda x: torch.minimum(s(x), V),
    xlogy=lambda x: torch.xlogy(x, s(x)) if hasattr(torch, "xlogy") else s(x),
    logaddexp=lambda x: torch.logaddexp(s(x), x[:, :1]),
    modules=lambda x: torch.nn.Sequential(torch.nn.Tanh(), torch.nn.SiLU(), torch.nn.Softplus())(x),
)
if hasattr(F, "mish"):
    ELEMENTWISE["mish"] = F.mish
if hasattr(torch, "special"):
    ELEMENTWISE["expit"] = torch.special.expit

ARITHMETIC = {
    "add": lambda x: s(x) + x.exp() + 1,
    "add alpha": lambda x: torch.add(s(x), x.exp(), alpha=2),
    "radd": lambda x: 1 + s(x) + V,
    "radd tensor": lambda x: V + s(x),
    "sub": lambda x: s(x) - x[0] * x[1] - 1,
    "rsub": lambda x: 1 - s(x),
    "rsub tensor": lambda x: V - s(x),
    "torch.rsub": lambda x: torch.rsub(s(x), x, alpha=2),
    "broadcast add": lambda x: s(x)[:, :1] + s(x)[1] + V[:, None, None],
    "mul": lambda x: s(x) * x.exp() * 2,
    "mul itself": lambda x: s(x) * s(x),
    "broadcast mul": lambda x: s(x)[:, :1] * x.exp()[1] * V[:, None, None],
    "mul by more": lambda x: s(x) * V[:, None, None],
    "div": lambda x: s(x) / x.exp(),
    "div by number": lambda x: s(x) / 3,
    "div by tensor": lambda x: s(x)[0] / V,
    "rdiv": lambda x: 1 / s(x),
    "rdiv tensor": lambda x: V / s(x),
    "broadcast div": lambda x: s(x)[:, None] / x.exp(),
    "addcmul": lambda x: torch.addcmul(s(x), x, x.exp(), value=2),
    "addcdiv": lambda x: torch.addcdiv(s(x), x, x.exp(), value=2),
    "lerp": lambda x: torch.lerp(s(x), x.exp(), 0.3),
}
if hasattr(torch, "positive"):
    ARITHMETIC["positive"] = lambda x: +s(x)

SHAPES = {
    "reshape": lambda x: s(x).reshape(3, 2) * V[:, None],
    "view": lambda x: s(x).view(-1),
    "flatten": lambda x: s(x).flatten() * x.flatten().exp(),
    "squeeze": lambda x: s(x)[:, :1].squeeze(1),
    "unsqueeze": lambda x: s(x).unsqueeze(1) * x,
    "transpose": lambda x: s(x).transpose(0, 1) @ x,
    "t": lambda x: s(x).t() @ x,
    "T": lambda x: s(x).T @ x,
    "permute": lambda x: s(x)[None].permute(2, 0, 1) * x.t()[:, None],
    "expand": lambda x: s(x)[:, None].expand(2, 4, 3) * x[:, None],
    "expand_as": lambda x: s(x)[:, :1].expand_as(x) * x,
    "repeat": lambda x: s(x).repeat(2, 1) * x.repeat(1, 1).repeat(2, 1),
    "repeat front": lambda x: s(x).repeat(2, 1, 2),
    "repeat_interleave": lambda x: s(x).repeat_interleave(2, 1),
    "flip": lambda x: s(x).flip(0) * x,
    "flip dims": lambda x: torch.flip(s(x), [0, 1]) * x,
    "roll": lambda x: s(x).roll(1, 1) * x,
    "tril": lambda x: square(x).tril(),
    "triu": lambda x: square(x).triu(1),
    "diagonal": lambda x: square(x).diagonal(),
    "diag_embed": lambda x: torch.diag_embed(s(x)) @ W,
    "pad": lambda x: F.pad(s(x), (1, 0, 0, 2), value=3.0),
    "cat": lambda x: torch.cat([s(x), x, W[:, :3]], 0),
    "cat last": lambda x: torch.cat([s(x), W[:2]], -1) @ torch.cat([W, W]),
    "stack": lambda x: torch.stack([s(x), x.exp(), W[:2]], 1),
    "unbind": lambda x: s(x).unbind(0)[0] * x.unbind(1)[2][0],
    "iteration": lambda x: sum(row * row[0] for row in s(x)),
    "split": lambda x: s(x).split(2, 1)[0] * x.split([1, 2], 1)[1],
    "chunk": lambda x: s(x).chunk(2, 0)[1],
    "float": lambda x: s(x).to(torch.float32).double().sum(0) * 0 + s(x).double().sum(0),
    "like": lambda x: s(x) * torch.ones_like(x) + x.new_zeros(3),
    "hstack": lambda x: torch.hstack([s(x), x.exp()]) * torch.hstack([x[0], x[1]]),
    "vstack": lambda x: torch.vstack([s(x), x[0]]) * x[1],
    "contiguous": lambda x: s(x).t().contiguous().clone(),
    "shape": lambda x: s(x) * x.shape[1] + x.dim() + x.numel(),
    "detach": lambda x: s(x) * x.detach() ** 2,
}

SELECTIONS = {
    "integer": lambda x: s(x)[1],
    "slice": lambda x: s(x)[:, 1:] * x[:, :-1],
    "none": lambda x: s(x)[:, None] - s(x)[None],
    "ellipsis": lambda x: s(x)[..., 0] * x[..., 1],
    "list": lambda x: s(x)[:, [2, 0]],
    "tensor": lambda x: s(x)[:, INDEX] * x,
    "pair": lambda x: s(x)[[0, 1], [2, 1]],
    "boolean": lambda x: s(x)[MASK],
    "boolean rows": lambda x: s(x)[torch.tensor([True, False])],
    "scattered": lambda x: torch.stack([s(x), x.exp()])[[0, 1], :, [2, 1]],
    "scattered by an integer": lambda x: torch.stack([s(x), x.exp()])[0, :, INDEX],
    "adjacent": lambda x: torch.stack([s(x), x.exp()])[:, [0, 1], [2, 1]],
    "with none between": lambda x: s(x)[[0, 1], None, [2, 1]],
    "select": lambda x: s(x).select(1, 2),
    "narrow": lambda x: s(x).narrow(1, 1, 2),
    "index_select": lambda x: torch.index_select(s(x), 1, INDEX),
    "gather": lambda x: s(x).gather(1, torch.tensor([[0, 2], [1, 1]])),
    "index_add": lambda x: torch.zeros(2, 4, dtype=DTYPE).index_add(1, INDEX, s(x)),
    "index_add to it": lambda x: s(x).index_add(1, INDEX, x.exp()) * x,
    "index_add a constant": lambda x: torch.index_add(s(x), 1, INDEX, W[:2]) * x,
    "scatter_add": lambda x: s(x).scatter_add(1, torch.tensor([[0, 2], [1, 1]]), x.exp()[:, 1:]) * x,
    "where": lambda x: torch.where(x > 0.6, s(x), x.exp()),
    "where mask": lambda x: torch.where(MASK, s(x), x[:1]),
    "where constant": lambda x: torch.where(x > 0.6, s(x), V.expand(2, 3)),
    "masked_fill": lambda x: s(x).masked_fill(MASK, 2.0) * x,
    "max": lambda x: s(x).max(1)[0],
    "min keepdim": lambda x: s(x).min(0, keepdim=True).values * x,
    "sort": lambda x: s(x).sort(1)[0] * V,
    "topk": lambda x: s(x).topk(2, 1)[0],
    "argsort": lambda x: s(x)[0][x[0].argsort()] * V,
    "mask of comparison": lambda x: s(x) * (x > 0.6).to(x.dtype),
}

REDUCTIONS = {
    "sum": lambda x: s(x).sum() * x.sum(),
    "sum dim": lambda x: s(x).sum(0) * x.sum(-1, keepdim=True),
    "sum dims": lambda x: s(x).sum((0, 1)),
    "mean": lambda x: s(x).mean() * x.mean(1),
    "cumsum": lambda x: s(x).cumsum(1) * x,
    "trace": lambda x: torch.trace(square(x)),
    "prod": lambda x: s(x).prod(1) * x.prod(),
    "var": lambda x: s(x).var(1) * x.var(),
    "std": lambda x: s(x).std(0, unbiased=False),
    "norm": lambda x: s(x).norm() * x.norm(dim=1),
    "linalg.norm": lambda x: torch.linalg.norm(s(x), dim=-1),
    "distances": lambda x: (s(x)[:, None] - x[None]).norm(dim=-1),
    "cdist": lambda x: torch.cdist(s(x), x + 1),
    "logsumexp": lambda x: torch.logsumexp(s(x), 1),
    "softmax": lambda x: torch.softmax(s(x), 1),
    "F.softmax": lambda x: F.softmax(s(x) * 3, 0),
    "log_softmax": lambda x: F.log_softmax(s(x), -1),
    "masked softmax": lambda x: torch.softmax(s(x).masked_fill(MASK, -float("inf")), -1),
    "layer_norm": lambda x: F.layer_norm(s(x), (3,), V, V + 1),
    "LayerNorm": torch.nn.LayerNorm(3).double(),
    "group_norm": lambda x: F.group_norm(torch.cat([s(x), x[:, :1]], 1), 2, torch.cat([V, V[:1]])),
    "batch_norm": lambda x: F.batch_norm(s(x), V, V.abs(), V, V, False),
    "normalize": lambda x: F.normalize(s(x), dim=1),
    "cosine_similarity": lambda x: F.cosine_similarity(s(x), x.exp(), dim=1),
    "glu": lambda x: F.glu(torch.cat([s(x), x], 1)),
    "dropout in eval mode": lambda x: F.dropout(s(x), 0.5, training=False),
}

PRODUCTS = {
    "matrix by constant": lambda x: s(x) @ W,
    "constant by matrix": lambda x: W @ s(x).t(),
    "both": lambda x: s(x) @ x.exp().t(),
    "matrix by vector": lambda x: s(x) @ x[0],
    "constant by vector": lambda x: W @ s(x)[0],
    "vector by constant": lambda x: s(x)[0] @ W,
    "vector by matrix": lambda x: x[0] @ square(x),
    "dot": lambda x: torch.dot(s(x)[0], x[1]),
    "mv": lambda x: torch.mv(s(x), x[0]),
    "mm": lambda x: torch.mm(s(x), x.t()),
    "bmm": lambda x: torch.bmm(batch(x), batch(x.exp())),
    "batched by matrix": lambda x: batch(x) @ square(x),
    "batched by constant": lambda x: batch(x) @ W,
    "constant by batched": lambda x: W @ batch(x),
    "more batches of constants": lambda x: square(x) @ torch.stack([W, W.t()]),
    "batched by vector": lambda x: batch(x) @ x[0],
    "linear": lambda x: F.linear(s(x), W, V),
    "linear of a vector": lambda x: F.linear(s(x)[0], W),
    "linear by carried": lambda x: F.linear(W, s(x), x[:, 0]),
    "addmm": lambda x: torch.addmm(V, s(x), square(x), beta=2, alpha=3),
    "outer": lambda x: torch.ger(s(x)[0], x[1]),
    "einsum one": lambda x: torch.einsum("ij->j", s(x)),
    "einsum two": lambda x: torch.einsum("ij,kj->ik", s(x), x.exp()),
    "einsum three": lambda x: torch.einsum("ij,jk,lk->il", s(x), W, x),
    "einsum thrice": lambda x: torch.einsum("ij,ij,kj->ik", s(x), x, x.exp()),
    "einsum implicit": lambda x: torch.einsum("ij,jk", s(x), square(x)),
    "einsum ellipsis": lambda x: torch.einsum("...ij,jk->...ik", batch(x), square(x)),
    "einsum diagonal": lambda x: torch.einsum("ii->i", square(x)),
    "tensordot": lambda x: torch.tensordot(s(x), x.exp(), ([1], [1])),
    "tensordot number": lambda x: torch.tensordot(s(x), square(x), 1),
    "cross": lambda x: torch.cross(s(x), x.exp().flip(0), dim=1),
    "bilinear": lambda x: F.bilinear(s(x), x, torch.stack([W, W.t()]), V[:2]),
    "conv1d": lambda x: F.conv1d(s(x)[:, None], W[:, None, :2], V, padding=1),
    "conv2d": lambda x: F.conv2d(batch(x)[:, None], W[None, None, :2, :2]),
    "avg_pool1d": lambda x: F.avg_pool1d(s(x)[:, None], 2, 1),
}

DETERMINANTS = {
    "det": lambda x: torch.det(square(x)),
    "logdet": lambda x: torch.logdet(square(x)),
    "slogdet": lambda x: torch.slogdet(square(x))[1] * torch.slogdet(-square(x))[0],
    "slogdet batch": lambda x: torch.slogdet(batch(x))[1],
    "orbitals": lambda x: torch.logsumexp(torch.slogdet(batch(x))[1], 0),
    "inverse": lambda x: torch.inverse(square(x)),
    "inverse batch": lambda x: torch.inverse(batch(x)) @ x[0],
}

ATTENTION = {
    "by hand": lambda x: torch.softmax(s(x) @ x.t() / 3**0.5, -1) @ x.exp(),
    "module": lambda x: HEADS(*[torch.cat([y, y[..., :1]], -1) for y in attention_inputs(x)])[0],
    "module weights": lambda x: HEADS(*[torch.cat([y, y[..., :1]], -1) for y in attention_inputs(x)])[1],
    "module masks": lambda x: (
        HEADS(
            *[torch.cat([y, y[..., :1]], -1) for y in attention_inputs(x)],
            key_padding_mask=torch.tensor([[False, True], [False, False]]),
            attn_mask=torch.tensor([[0.5, -1.0], [0.0, 2.0]], dtype=DTYPE),
        )[0]
        if torch.__version__.split(".")[0] != "1"  # older ones mix no masks of booleans and numbers
        else HEADS(
            *[torch.cat([y, y[..., :1]], -1) for y in attention_inputs(x)],
            key_padding_mask=torch.tensor([[False, True], [False, False]]),
        )[0]
    ),
}
if hasattr(F, "scaled_dot_product_attention"):
    ATTENTION.update(
        {
            "plain": lambda x: F.scaled_dot_product_attention(*attention_inputs(x)),
            "causal": lambda x: F.scaled_dot_product_attention(*attention_inputs(x), is_causal=True),
            "mask": lambda x: F.scaled_dot_product_attention(
                *attention_inputs(x), torch.tensor([[True, False], [True, True]])
            ),
            "bias": lambda x: F.scaled_dot_product_attention(*attention_inputs(x), W[:2, :2]),
        }
    )
if hasattr(F, "rms_norm"):
    REDUCTIONS["rms_norm"] = lambda x: F.rms_norm(s(x), (3,), V)
if hasattr(torch.linalg, "vector_norm"):
    REDUCTIONS["vector_norm"] = lambda x: torch.linalg.vector_norm(s(x), dim=1)
if hasattr(torch.linalg, "cross"):
    PRODUCTS["linalg.cross"] = lambda x: torch.linalg.cross(s(x), x.exp())
if hasattr(torch.linalg, "inv"):
    DETERMINANTS["linalg.inv"] = lambda x: torch.linalg.inv(square(x))
    DETERMINANTS["linalg.det"] = lambda x: torch.linalg.det(square(x))
    DETERMINANTS["linalg.slogdet"] = lambda x: torch.linalg.slogdet(square(x))[1]
    DETERMINANTS["linalg.solve"] = lambda x: torch.linalg.solve(square(x), s(x).t())
    DETERMINANTS["linalg.solve constant"] = lambda x: torch.linalg.solve(square(X), s(x).t())
if hasattr(torch, "movedim"):
    SHAPES["movedim"] = lambda x: torch.movedim(s(x)[None], 2, 0) * x.t()[:, None]
if hasattr(torch, "diff"):
    SHAPES["diff"] = lambda x: torch.diff(s(x)) * torch.diff(x, dim=1)
if hasattr(torch.Tensor, "mT"):
    SHAPES["mT"] = lambda x: batch(x).mT @ W

PROGRAMS = {
    f"{kind}: {name}": program
    for kind, programs in (
        ("elementwise", ELEMENTWISE),
        ("arithmetic", ARITHMETIC),
        ("shapes", SHAPES),
        ("selections", SELECTIONS),
        ("reductions", REDUCTIONS),
        ("products", PRODUCTS),
        ("determinants", DETERMINANTS),
        ("attention", ATTENTION),
    )
    for name, program in programs.items()
}


def normalised(x):
    return (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def attention(q, k, v, bias=0.0):
    return torch.softmax(q @ k.transpose(-2, -1) / 3**0.5 + bias, -1) @ v


# Where torch's own derivatives are wrong to third order or not there to second, the same without fused operations
LOW = torch.tensor([[0.0, -float("inf")], [0.0, 0.0]], dtype=DTYPE)
REFERENCES = {
    "reductions: layer_norm": lambda x: normalised(s(x)) * V + V + 1,
    "reductions: LayerNorm": normalised,
    "reductions: group_norm": lambda x: (
        torch.cat([normalised(y) for y in torch.cat([s(x), x[:, :1]], 1).split(2, 1)], 1) * torch.cat([V, V[:1]])
    ),
    "reductions: cdist": lambda x: (s(x)[:, None] - x[None] - 1).norm(dim=-1),
    "attention: plain": lambda x: attention(*attention_inputs(x)),
    "attention: causal": lambda x: attention(*attention_inputs(x), LOW),
    "attention: mask": lambda x: attention(*attention_inputs(x), LOW),
    "attention: bias": lambda x: attention(*attention_inputs(x), W[:2, :2]),
}
