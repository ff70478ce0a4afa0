"""Functions that torch.func or functorch refuse under some transform, on some release; all of them
map a vector of four numbers to one or more, by operations that torch 1.8 has unless said."""

from __future__ import annotations

import ctypes
import warnings

import torch
import torch.utils.dlpack
from packaging.version import Version
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint as torch_checkpoint

import torch_func_compat as tfc

TORCH = Version(str(torch.__version__)).release


class OldSine(torch.autograd.Function):
    """The style of torch 1.x: no setup_context, no rules."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x.cos()


class NumpySine(torch.autograd.Function):
    """Neither the forward nor the backward can be seen into, nor differentiated again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(_numpy(x)).sin()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(_numpy(grad)) * torch.from_numpy(_numpy(x)).cos()


class Once(tfc.Function):
    """Forward mode has neither a rule nor a transpose to go by."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x.cos()


@tfc.Function.from_legacy
class OldExponential(torch.autograd.Function):
    """Adapted, and in place."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        ctx.save_for_backward(x.exp_())
        return x

    @staticmethod
    def backward(ctx, grad):
        (value,) = ctx.saved_tensors
        return grad * value


def _numpy(x):
    return x.detach().cpu().numpy().copy()


if TORCH >= (2, 0):

    class NewSine(torch.autograd.Function):
        """The style of torch 2, without vmap and jvp rules."""

        @staticmethod
        def forward(x):
            return x.sin()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return grad * x.cos()

    class RuledSine(NewSine):
        """With a vmap rule, without a jvp rule."""

        generate_vmap_rule = True


def old_function(x):
    return OldSine.apply(x)


def numpy_function(x):
    return NumpySine.apply(x)


def new_function(x):
    return NewSine.apply(x)


def ruled_function(x):
    return RuledSine.apply(x)


def item(x):
    return x * x.sum().item()


def branch(x):
    return x.sin() if x.sum() > 1 else x.cos()


def mask(x):
    return x[x > 0.3].sum()


def nonzero(x):
    return x[torch.nonzero(x > 0.3)[:, 0]].sum()


def numpy(x):
    return torch.from_numpy(_numpy(x)) * x


def tolist(x):
    return torch.tensor([[value] for value in x.tolist()], dtype=x.dtype)[:, 0] * x


def dlpack(x):
    return torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(x.detach().clone())) * x


def c_function(x):
    """Through compiled code, which is given addresses."""
    copy, source = torch.empty(4, dtype=torch.float64), x.detach().contiguous()
    ctypes.memmove(copy.data_ptr(), address(source), 4 * 8)
    return copy * x


def address(tensor):
    # torch < 2.1 gives no address of a batched tensor, and no error
    return tensor.data_ptr() or _numpy(tensor).ctypes.data


def data(x):
    return x.data * x


def autograd_inside(x):
    y = x.detach().requires_grad_()
    return torch.autograd.grad(y.sin().sum(), y)[0] + x


def functional_inside(x):
    return torch.autograd.functional.jacobian(torch.sin, x.detach()).sum(0) + x


def functional_within(x):
    """The same, and differentiated on."""
    return torch.autograd.functional.jacobian(torch.sin, x, create_graph=True).sum(0)


def unique_size(x):
    return torch.unique((2 * x).round().detach()).numel() * x


def requires_grad_inside(x):
    y = x.clone().requires_grad_()
    return torch.autograd.grad(y.sin().sum(), y, create_graph=True)[0]


def backward_inside(x):
    y = x.detach().requires_grad_()
    y.sin().sum().backward()
    return y.grad * x


def inplace(x):
    buffer = torch.zeros(4, dtype=x.dtype)
    buffer[:] = x
    return buffer * 2


def inplace_add(x):
    buffer = torch.zeros(4, dtype=x.dtype)
    buffer.add_(x)
    return buffer * 2


def inplace_number(x):
    total = torch.zeros((), dtype=x.dtype)
    for i in range(4):
        total += x[i] ** 2
    return total


def allclose(x):
    return x * 2 if torch.allclose(x, x) else -x


def saved_tensor_hooks(x):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t * 1, lambda t: t):
        return x.sin()


def channels_last(x):
    return x.reshape(1, 1, 2, 2).clone(memory_format=torch.channels_last).sin()


def scatter_strided(x):
    return torch.as_strided_scatter(torch.zeros(4, dtype=x.dtype), x[:2] * x[2:], (2,), (2,), 0)


def inference_mode(x):
    with getattr(torch, "inference_mode", torch.no_grad)():
        x.detach().clone()
    return (x * x).sum()


class Angle(torch.Tensor):
    """A subclass with a method."""

    def act(self, point):
        rows = [self.cos() * point[0] - self.sin() * point[1], self.sin() * point[0] + self.cos() * point[1]]
        return torch.stack([row.as_subclass(torch.Tensor) for row in rows])


class Scaled(torch.Tensor):
    """A subclass with an attribute and a sine of its own, which a plain tensor in its place would not have."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        if func is torch.sin:
            result = result.as_subclass(torch.Tensor) * args[0].scale
        return result


def scaled(x):
    made = x.as_subclass(Scaled)
    made.scale = 3.0
    return made


def autocast_linear(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return torch.nn.functional.linear(x.float(), torch.ones(2, 4), torch.ones(2))


def rrelu(x):
    return torch.nn.functional.rrelu(x - 0.5, training=True)


def checkpoint(x):
    return torch_checkpoint(torch.sin, x, use_reentrant=False)


def sparse(x):
    return torch.sparse.mm(torch.eye(4, dtype=x.dtype).to_sparse(), x.reshape(4, 1)).reshape(4)


def unique(x):
    return torch.unique(x.detach()).sum() * x


def reentrant_checkpoint(x):
    return torch_checkpoint(torch.sin, x, use_reentrant=True) if TORCH >= (1, 11) else torch_checkpoint(torch.sin, x)


def recurrent(kind):
    torch.manual_seed(0)
    module = kind(4, 3, batch_first=True).double().requires_grad_(False)
    return lambda x: module(x.reshape(1, 1, 4))[0].reshape(3)


_gru, _lstm, _rnn = map(recurrent, (torch.nn.GRU, torch.nn.LSTM, torch.nn.RNN))
_hooked = torch.nn.Linear(4, 4).double().requires_grad_(False)
_hooked.register_full_backward_hook(lambda module, grad_input, grad_output: None)
_batch_norm = torch.nn.BatchNorm1d(4).double().requires_grad_(False)


def gru(x):
    return _gru(x)


def lstm(x):
    return _lstm(x)


def rnn(x):
    return _rnn(x)


def module_with_hook(x):
    return _hooked(x).sin()


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is deprecated on the newest pythons

    @torch.jit.script
    def _scripted(x):
        # type: (torch.Tensor) -> torch.Tensor
        if bool(x.sum() > 1):
            return x.sin()
        return x.cos()


def torchscript(x):
    return _scripted(x)


_x = torch.linspace(0.1, 1.0, 4, dtype=torch.float64)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    _traced = torch.jit.trace(lambda x: x.sin(), _x)


def traced(x):
    return _traced(x)


_matrix = torch.diag(_x)


def optimized_script():
    """A traced function with an optimized plan for derivatives: that takes some calls, none within a transform."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        optimized = torch.jit.trace(lambda x: _matrix.mv(x).tanh() * x, _x.clone())
    for _ in range(2):
        optimized(_x.clone().requires_grad_()).sum().backward()
    for _ in range(2):  # without gradients: what is fused would be refused for another reason
        optimized(_x)
    return optimized


def batch_norm(x):
    return _batch_norm(torch.stack([x, 2 * x]))


FUNCTIONS = [
    old_function,
    numpy_function,
    item,
    branch,
    mask,
    nonzero,
    numpy,
    data,
    autograd_inside,
    inplace,
    inplace_add,
    inplace_number,
    allclose,
    sparse,
    gru,
    batch_norm,
]
FUNCTIONS += [functional_inside, requires_grad_inside, backward_inside, tolist, dlpack, c_function, unique]
FUNCTIONS += [functional_within, unique_size, lstm, rnn, module_with_hook, torchscript, traced]
if TORCH >= (2, 4):
    # torch 2.4 cannot read annotations that are strings
    @torch.library.custom_op("torch_func_compat_tests::sine", mutates_args=(), schema="(Tensor x) -> Tensor")
    def custom_op(x):
        return torch.from_numpy(_numpy(x)).sin()

    custom_op.register_autograd(
        lambda ctx, grad: grad * ctx.saved_tensors[0].cos(),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )

    def library_operator(x):
        return custom_op(x)

    FUNCTIONS.append(library_operator)
if TORCH >= (2, 0):
    FUNCTIONS += [new_function, ruled_function]
if TORCH >= (1, 10):
    FUNCTIONS.append(saved_tensor_hooks)
if TORCH >= (1, 11):  # use_reentrant=False came with it
    FUNCTIONS.append(checkpoint)
