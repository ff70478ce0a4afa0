"""The same for networks: layers, losses, attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from arguments import D, add, at, constant, integers, mask, matrix, normal, positive


def _normalisations() -> None:
    x, v, image = normal(3, 4), normal(4), normal(2, 4, 3)
    add("layer_norm", lambda x: F.layer_norm(x, (4,)), x)
    add("layer_norm affine", lambda x, w, b: F.layer_norm(x, (4,), w, b), x, v, v)
    add("layer_norm of two", lambda x: F.layer_norm(x, (3, 4)), x)
    add("native_layer_norm", lambda x, w, b: torch.native_layer_norm(x, (4,), w, b, 1e-5)[0], x, v, v)
    add("group_norm", lambda x, w, b: F.group_norm(x, 2, w, b), image, v, v)
    add("group_norm plain", lambda x: F.group_norm(x, 2), image)
    add("instance_norm", lambda x, w, b: F.instance_norm(x, weight=w, bias=b), image, v, v)
    add("instance_norm plain", lambda x: F.instance_norm(x), image)
    statistics = lambda x, m, s: F.instance_norm(x, m, s, use_input_stats=False)
    add("instance_norm of statistics", statistics, image, constant(4), positive(4))
    add("batch_norm training", lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), image, v, v)
    add("batch_norm training plain", lambda x: F.batch_norm(x, None, None, training=True), x)
    add("batch_norm of statistics", lambda x, m, s: F.batch_norm(x, m, s), x, constant(4), positive(4))
    add("batch_norm of statistics affine", lambda x, m, s, w: F.batch_norm(x, m, s, w, w), x, v, positive(4), v)
    running = lambda x: F.batch_norm(x, torch.zeros(4, dtype=D), torch.ones(4, dtype=D), training=True)
    add("batch_norm running", running, image)
    add("local_response_norm", lambda x: F.local_response_norm(x, 2), image)
    if hasattr(F, "rms_norm"):
        add("rms_norm", lambda x, w: F.rms_norm(x, (4,), w), x, v)
    add("normalize", lambda x: F.normalize(x, dim=-1), x)
    add("_weight_norm", lambda v, g: torch._weight_norm(v, g, 0), x, positive(3, 1))
    add("prelu", lambda x, w: F.prelu(x, w), x, normal(4))
    add("prelu of one", lambda x, w: F.prelu(x, w), x, normal(1))
    add("prelu of as many as samples", lambda x, w: F.prelu(x, w), normal(3, 3), normal(3))
    add("prelu of an image", lambda x, w: F.prelu(x, w), image, normal(4))


def _layers() -> None:
    x, image, weight = normal(3, 4), normal(2, 2, 5, 5), normal(4, 2, 2, 2)
    add("linear", lambda x, w, b: F.linear(x, w, b), x, normal(2, 4), normal(2))
    add("bilinear", lambda x, y, w, b: F.bilinear(x, y, w, b), x, normal(3, 2), normal(2, 4, 2), normal(2))
    add("conv1d", lambda x, w, b: F.conv1d(x, w, b, padding=1), normal(1, 2, 5), normal(3, 2, 3), normal(3))
    add("conv1d same", lambda x, w: F.conv1d(x, w, padding="same"), normal(1, 2, 5), normal(3, 2, 3))
    add("conv2d", lambda x, w, b: F.conv2d(x, w, b, stride=2), image, weight, normal(4))
    add("conv2d unbatched", lambda x, w: F.conv2d(x, w, dilation=2), normal(2, 5, 5), weight)
    add("conv2d groups", lambda x, w: F.conv2d(x, w, groups=2), image, normal(4, 1, 2, 2))
    last = lambda x, w: F.conv2d(x.contiguous(memory_format=torch.channels_last), w)
    add("conv2d channels_last", last, image, weight)
    add("conv3d", lambda x, w: F.conv3d(x, w), normal(1, 1, 3, 3, 3), normal(2, 1, 2, 2, 2))
    add("conv_transpose1d", lambda x, w: F.conv_transpose1d(x, w, stride=2), normal(1, 2, 3), normal(2, 3, 2))
    add("conv_transpose2d", lambda x, w: F.conv_transpose2d(x, w), image, normal(2, 3, 2, 2))
    add("conv_transpose2d groups", lambda x, w: F.conv_transpose2d(x, w, groups=2), image, normal(2, 1, 2, 2))
    for name in ("max_pool2d", "avg_pool2d"):
        add(f"{name}", lambda x, name=name: getattr(F, name)(x, 2), image)
        add(f"{name} unbatched", lambda x, name=name: getattr(F, name)(x, 3, 1, 1), normal(2, 4, 4))
    add("max_pool1d", lambda x: F.max_pool1d(x, 2), normal(1, 2, 4))
    add("max_pool2d indices", lambda x: F.max_pool2d(x, 2, return_indices=True), image)
    unpool = lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)
    add("max_unpool2d", unpool, normal(1, 2, 4, 4))
    add("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 2), image)
    add("adaptive_max_pool2d", lambda x: F.adaptive_max_pool2d(x, 2), image)
    add("lp_pool2d", lambda x: F.lp_pool2d(x * x + 1, 2, 2), image)
    for mode in ("nearest", "bilinear", "bicubic", "area", "nearest-exact"):
        add(f"interpolate {mode}", lambda x, mode=mode: F.interpolate(x, scale_factor=2, mode=mode), normal(1, 1, 2, 3))
    add("interpolate linear", lambda x: F.interpolate(x, size=5, mode="linear", align_corners=True), normal(1, 2, 3))
    for mode in ("bilinear", "nearest", "bicubic"):
        grid = lambda x, g, mode=mode: F.grid_sample(x, g.tanh(), mode=mode, align_corners=False)
        add(f"grid_sample {mode}", grid, normal(1, 2, 3, 3), normal(1, 2, 2, 2))
    border = lambda x, g: F.grid_sample(x, 2 * g.tanh(), padding_mode="border", align_corners=True)
    add("grid_sample border", border, normal(1, 2, 3, 3), normal(1, 2, 2, 2))
    add("affine_grid", lambda t: F.affine_grid(t, [1, 1, 2, 2], align_corners=False), normal(1, 2, 3))
    add("pixel_shuffle", lambda x: (F.pixel_shuffle(x, 2), F.pixel_unshuffle(x, 2)), normal(1, 4, 2, 2))
    add("unfold of an image", lambda x: F.unfold(x, 2), image)
    add("softmax", lambda x: (F.softmax(x, -1), F.log_softmax(x, 0), x.softmax(0), F.softmin(x, 0)), x)
    names = "relu gelu silu mish elu selu celu softplus softsign tanhshrink sigmoid tanh logsigmoid hardsigmoid"
    for name in f"{names} hardswish glu leaky_relu threshold softshrink".split():
        more = (0.1, 0.2) if name == "threshold" else ()
        add(f"nn.{name}", lambda x, name=name, more=more: getattr(F, name)(x, *more), x)
    add("gelu tanh", lambda x: F.gelu(x, approximate="tanh"), x)
    cell = (normal(2, 3), normal(2, 4), normal(12, 3), normal(12, 4), normal(12), normal(12))
    add("gru_cell", lambda x, h, w, u, b, c: torch.gru_cell(x, h, w, u, b, c), *cell)
    cell = (normal(2, 3), normal(2, 4), normal(2, 4), normal(16, 3), normal(16, 4), normal(16), normal(16))
    add("lstm_cell", lambda x, h, c, w, u, a, b: torch.lstm_cell(x, (h, c), w, u, a, b), *cell)
    cell = (normal(2, 3), normal(2, 4), normal(4, 3), normal(4, 4))
    add("rnn_tanh_cell", lambda x, h, w, u: (torch.rnn_tanh_cell(x, h, w, u), torch.rnn_relu_cell(x, h, w, u)), *cell)
    for name, gates in (("lstm", 4), ("gru", 3), ("rnn_tanh", 1)):
        sizes = (normal(2, 1, 3), normal(2 * gates, 3), normal(2 * gates, 2), normal(2 * gates), normal(2 * gates))

        def recur(x: Any, *weights: Any, name: str = name) -> Any:
            state = torch.zeros(1, 1, 2, dtype=D)
            states = (state, state) if name == "lstm" else state
            return getattr(torch, name)(x, states, weights, True, 1, 0.0, False, False, False)[0]

        add(name, recur, *sizes)


def _losses() -> None:
    x, y, labels = normal(3, 4), normal(3, 4), integers(4, 3)
    for reduction in ("mean", "sum", "none"):
        for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss"):
            if hasattr(F, name):
                loss = lambda x, y, name=name, r=reduction: getattr(F, name)(x, y, reduction=r)
                add(f"{name} {reduction}", loss, x, y)
        add(f"cross_entropy {reduction}", lambda x, t, r=reduction: F.cross_entropy(x, t, reduction=r), x, labels)
        nll = lambda x, t, r=reduction: F.nll_loss(F.log_softmax(x, 1), t, reduction=r)
        add(f"nll_loss {reduction}", nll, x, labels)
        add(f"kl_div {reduction}", lambda x, t, r=reduction: F.kl_div(x, t.exp(), reduction=r), x, y)
        bce = lambda x, t, r=reduction: F.binary_cross_entropy_with_logits(x, t.sigmoid(), reduction=r)
        add(f"binary_cross_entropy_with_logits {reduction}", bce, x, y)
        add(
            f"poisson_nll_loss {reduction}", lambda x, t, r=reduction: F.poisson_nll_loss(x, t.exp(), reduction=r), x, y
        )
        multi = lambda x, t, r=reduction: F.multi_margin_loss(x, t, reduction=r)
        add(f"multi_margin_loss {reduction}", multi, x, labels)
    add("cross_entropy weights", lambda x, t, w: F.cross_entropy(x, t, w, label_smoothing=0.1), x, labels, positive(4))
    add("cross_entropy ignore_index", lambda x, t: F.cross_entropy(x, t, ignore_index=0), x, labels)
    add("cross_entropy of probabilities", lambda x, y: F.cross_entropy(x, y.softmax(1)), x, y)
    add("cross_entropy of one", lambda x, t: F.cross_entropy(x, t), normal(4), integers(4))
    add("nll_loss of an image", lambda x, t: F.nll_loss(x, t), normal(1, 3, 2, 2), integers(3, 1, 2, 2))
    add("kl_div log_target", lambda x, y: F.kl_div(x, y, log_target=True, reduction="sum"), x, y)
    weighted = lambda x, t, w: F.binary_cross_entropy_with_logits(x, t.sigmoid(), w, pos_weight=w)
    add("binary_cross_entropy_with_logits weights", weighted, x, y, positive(4))
    add("gaussian_nll_loss", lambda x, t, v: F.gaussian_nll_loss(x, t, v), x, y, positive(3, 4))
    sign = at(1.0, -1.0, 1.0)
    add("margin_ranking_loss", lambda x, y, t: F.margin_ranking_loss(x, y, t), normal(3), normal(3), sign)
    add("hinge_embedding_loss", lambda x, t: F.hinge_embedding_loss(x, t), normal(3), sign)
    add("cosine_embedding_loss", lambda x, y, t: F.cosine_embedding_loss(x, y, t), x, y, sign)
    add("triplet_margin_loss", lambda x, y, z: F.triplet_margin_loss(x, y, z), x, y, normal(3, 4))
    add("multilabel_soft_margin_loss", lambda x, t: F.multilabel_soft_margin_loss(x, t.double()), x, mask(3, 4))
    multi = lambda x: F.multilabel_margin_loss(x, torch.tensor([[3, 0, -1, 1], [0, 1, -1, 2], [1, -1, 0, 2]]))
    add("multilabel_margin_loss", multi, x)
    ctc = lambda x, t: F.ctc_loss(F.log_softmax(x, -1), t + 1, torch.tensor([5]), torch.tensor([2]))
    add("ctc_loss", ctc, normal(5, 1, 4), integers(3, 1, 2))
    add("cosine_similarity", lambda x, y: F.cosine_similarity(x, y, dim=1), x, y)
    add("pairwise_distance", lambda x, y: F.pairwise_distance(x, y), x, y)


def _attention() -> None:
    q = normal(2, 3, 4)
    if hasattr(F, "scaled_dot_product_attention"):
        attend = F.scaled_dot_product_attention
        add("scaled_dot_product_attention", lambda q, k, v: attend(q, k, v), q, normal(2, 5, 4), normal(2, 5, 4))
        add("scaled_dot_product_attention of heads", attend, *[normal(1, 2, 3, 4)] * 3)
        add("scaled_dot_product_attention causal", lambda q, k, v: attend(q, k, v, is_causal=True), q, q, q)
        add(
            "scaled_dot_product_attention mask",
            lambda q, k, m: attend(q, k, k, m | torch.eye(3).bool()),
            q,
            q,
            mask(3, 3),
        )
        add("scaled_dot_product_attention bias", lambda q, k, m: attend(q, k, k, m), q, q, normal(3, 3))
    torch.manual_seed(0)
    # without batch_first, which torch 1.8 lacks
    attention = torch.nn.MultiheadAttention(4, 2).double().requires_grad_(False)
    add("MultiheadAttention", lambda x: attention(x, x, x)[0], q)
    add("MultiheadAttention without weights", lambda x: attention(x, x, x, need_weights=False)[0], q)
    encoder = torch.nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0).double().requires_grad_(False)
    add("TransformerEncoderLayer", lambda x: encoder(x), q)
    add("matmul of scores", lambda q, k: (q @ k.transpose(-2, -1) / 2).softmax(-1) @ k, q, q)
    add("solve and norm", lambda a, x: torch.linalg.solve(a, x).norm(), matrix(3), normal(3))


_normalisations()
_layers()
_losses()
_attention()
