"""Functions of every kind, each with the same map in plain torch operations, which torch differentiates.

All map a vector of four numbers to a vector.
"""

from __future__ import annotations

import math
from typing import Callable, NamedTuple

import torch
from torch.autograd.function import once_differentiable

import torch_func_compat as tfc


class Sine(tfc.Function):
    """The least that there is: a forward and a backward."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x.cos()


class SineJvp(Sine):
    """And a rule for forward mode, the derivative of which must reach the tangent and what was saved."""

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return tangent * x.cos()


class SineGenerated(Sine):
    generate_vmap_rule = True


class SineJvpGenerated(SineJvp):
    generate_vmap_rule = True


class SineVmap(SineJvp):
    @staticmethod
    def vmap(info, in_dims, x):
        (dim,) = in_dims
        assert x.shape[dim] == info.batch_size
        return SineVmap.apply(x.movedim(dim, -1)), x.dim() - 1


class SineVmapWithoutJvp(Sine):
    @staticmethod
    def vmap(info, in_dims, x):
        return SineVmapWithoutJvp.apply(x), in_dims[0]


class NumpySine(tfc.Function):
    """Forwards in numpy that are each other's derivatives."""

    @staticmethod
    def forward(x, shift):
        return torch.from_numpy((x.detach().cpu() + shift).sin().numpy().copy()).to(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.shift = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * NumpySine.apply(x, ctx.shift + math.pi / 2), None


class Product(tfc.Function):
    """Several inputs and outputs, and a cotangent that nobody asked for."""

    @staticmethod
    def forward(x, y):
        return x * y, x.sin() + y, x.cos()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, first, second, third):
        x, y = ctx.saved_tensors
        return first * y + second * x.cos() - third * x.sin(), first * x + second


class ProductJvp(Product):
    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx, dx, dy):
        x, y = ctx.saved_tensors
        return dx * y + x * dy, dx * x.cos() + dy, -dx * x.sin()


class ProductNoneTangents(ProductJvp):
    """Not materialised: what does not move and what nobody asked for are None."""

    generate_vmap_rule = False

    @staticmethod
    def setup_context(ctx, inputs, output):
        ProductJvp.setup_context(ctx, inputs, output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, first, second, third):
        x, y = ctx.saved_tensors
        dx = [a * b for a, b in ((first, y), (second, x.cos()), (third, -x.sin())) if a is not None]
        dy = [a * b for a, b in ((first, x), (second, 1)) if a is not None]
        return sum(dx) if dx else None, sum(dy) if dy else None

    @staticmethod
    def jvp(ctx, dx, dy):
        x, y = ctx.saved_tensors
        if dx is None:
            return x * dy, dy.clone(), None
        if dy is None:
            return dx * y, dx * x.cos(), -dx * x.sin()
        return dx * y + x * dy, dx * x.cos() + dy, -dx * x.sin()


class Scaled(tfc.Function):
    """Arguments that are no tensors, keywords and defaults, and no gradient for a tensor."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, power, weight=None, name="scaled", *rest):
        assert name == "scaled"
        return x**power * weight

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.power, weight, ctx.name = inputs[:4]
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        assert ctx.name == "scaled" and ctx.needs_input_grad[1:] == (False,) * 3
        return grad * weight * ctx.power * x ** (ctx.power - 1), None, None, None


class Sorted(tfc.Function):
    """An output that is not differentiable."""

    @staticmethod
    def forward(x):
        return tuple(torch.sort(x))

    @staticmethod
    def setup_context(ctx, inputs, output):
        order = output[1]
        ctx.mark_non_differentiable(order)
        ctx.save_for_backward(order)

    @staticmethod
    def backward(ctx, grad, _):
        (order,) = ctx.saved_tensors
        return torch.zeros_like(grad).scatter(-1, order, grad)


class SortedGenerated(Sorted):
    generate_vmap_rule = True


class RealNotDifferentiable(tfc.Function):
    """A floating-point output that is not differentiable."""

    @staticmethod
    def forward(x):
        return x.exp(), x.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[0])
        ctx.save_for_forward(output[0])

    @staticmethod
    def backward(ctx, grad, _):
        return grad * ctx.saved_tensors[0]

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * ctx.saved_tensors[0], None


class Exponential(tfc.Function):
    """Works in place."""

    @staticmethod
    def forward(x):
        return x.exp_()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_dirty(inputs[0])
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


class Needs(Product):
    """Computes what is needed only."""

    @staticmethod
    def backward(ctx, first, second, third):
        x, y = ctx.saved_tensors
        dx, dy = ctx.needs_input_grad
        return (
            first * y + second * x.cos() - third * x.sin() if dx else None,
            first * x + second if dy else None,
        )


class Attributes(tfc.Function):
    """Tensors and others as attributes of ctx."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.x = inputs[0]
        ctx.rest = {"size": inputs[0].shape[0], "outputs": [output, None]}

    @staticmethod
    def backward(ctx, grad):
        assert ctx.rest["size"] == 4 and grad.shape == (4,)
        return grad * ctx.x.cos() + 0 * ctx.rest["outputs"][0]


class AttributesGenerated(Attributes):
    generate_vmap_rule = True


class SavedCosine(tfc.Function):
    """Saves what it made of the input: a constant at second order in torch."""

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0].cos())

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


class SavedSlope(tfc.Function):
    """Saves what it made of the output, as an attribute."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sigmoid()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.slope = output * (1 - output)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.slope


class SavedOutput(tfc.Function):
    """An intermediate as a further output, in the way that torch wants it."""

    @staticmethod
    def forward(x):
        return x.sin(), x.cos()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx, grad, grad_cos):
        sin, cos = ctx.saved_tensors
        return grad * cos - grad_cos * sin


class View(tfc.Function):
    """The output is a view of the input."""

    @staticmethod
    def forward(x):
        return x[1:]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.size = inputs[0].shape[0]

    @staticmethod
    def backward(ctx, grad):
        return torch.cat([grad.new_zeros(1), grad])


class Identity(tfc.Function):
    """The output is the input itself."""

    @staticmethod
    def forward(x):
        return x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad.clone()

    @staticmethod
    def jvp(ctx, tangent):
        return tangent.clone()


class Halves(SineJvp):
    """A subclass of a subclass that overrides one rule."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin() / 2

    @classmethod
    def factor(cls):
        return 0.5

    @staticmethod
    def backward(ctx, grad):
        return SineJvp.backward(ctx, grad) * Halves.factor()

    @staticmethod
    def jvp(ctx, tangent):
        return SineJvp.jvp(ctx, tangent) * Halves.factor()


class Composed(tfc.Function):
    """Calls other Functions in each rule."""

    @staticmethod
    def forward(x):
        return SineJvp.apply(x) * SavedCosine.apply(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * Sine.apply(2 * x)


class Solve(tfc.Function):
    """A linear system, whose backward solves another one."""

    @staticmethod
    def forward(matrix, right):
        return torch.from_numpy(_solve(matrix, right)).to(right)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx, grad):
        matrix, solution = ctx.saved_tensors
        adjoint = Solve.apply(matrix.transpose(-2, -1), grad)
        return -adjoint.unsqueeze(-1) * solution.unsqueeze(-2), adjoint


def _solve(matrix, right):
    import numpy

    return numpy.linalg.solve(matrix.detach().cpu().numpy(), right.detach().cpu().numpy())


class Broadcast(tfc.Function):
    """Leaves it to autograd to sum a gradient to the shape of its input."""

    @staticmethod
    def forward(x, factor):
        return x * factor

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, factor = ctx.saved_tensors
        return grad * factor, grad * x


class BroadcastGenerated(Broadcast):
    generate_vmap_rule = True


class ComplexSquare(tfc.Function):
    @staticmethod
    def forward(z):
        return z * z

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        return grad * (2 * z).conj()


class Untouched(tfc.Function):
    """The gradient of one input is None for good."""

    @staticmethod
    def forward(x, y):
        return x.exp() + y.detach().round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].exp(), None


class NumpyBackward(tfc.Function):
    """A backward that leaves torch with what was saved, so that it has no derivative."""

    @staticmethod
    def forward(x):
        return _in_numpy("sin", x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * _in_numpy("cos", x)


class NumpyAttribute(NumpyBackward):
    @staticmethod
    def setup_context(ctx, inputs, output):
        (ctx.x,) = inputs

    @staticmethod
    def backward(ctx, grad):
        return grad * _in_numpy("cos", ctx.x)


class NumpyCotangent(NumpyBackward):
    """One that leaves torch with its cotangent."""

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return _in_numpy("positive", grad) * x.cos()


class Once(NumpyBackward):
    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x.cos()


def _in_numpy(name, x):
    import numpy

    return torch.from_numpy(getattr(numpy, name)(x.detach().cpu().numpy())).to(x)


# first derivatives only
FIRST = {
    "numpy backward": NumpyBackward,
    "numpy of an attribute": NumpyAttribute,
    "numpy of the cotangent": NumpyCotangent,
    "once_differentiable": Once,
}


class Kind(NamedTuple):
    func: Callable
    reference: Callable


WEIGHT = torch.tensor([0.3, -1.0, 0.5, 2.0], dtype=torch.float64)


def _system(x):
    return x.unsqueeze(0) * x.unsqueeze(1) / 2 + 3 * torch.eye(4, dtype=x.dtype, device=x.device)


def _complex(x):
    return torch.complex(x, x.sin())


def _sine(function):
    return Kind(lambda x: function.apply(x), torch.sin)


def _product(function):
    return Kind(
        lambda x: (lambda a, b, _: a + 2 * b)(*function.apply(x, x.cos())),
        lambda x: x * x.cos() + 2 * (x.sin() + x.cos()),
    )


def _fixed_product(function):
    """One input alone moves."""
    return Kind(
        lambda x: function.apply(x, WEIGHT.to(x))[0] * function.apply(WEIGHT.to(x), x)[1],
        lambda x: x * WEIGHT.to(x) * (WEIGHT.to(x).sin() + x),
    )


KINDS = {
    "backward only": _sine(Sine),
    "jvp": _sine(SineJvp),
    "generated vmap": _sine(SineGenerated),
    "jvp and generated vmap": _sine(SineJvpGenerated),
    "jvp and vmap": _sine(SineVmap),
    "vmap": _sine(SineVmapWithoutJvp),
    "numpy": Kind(lambda x: NumpySine.apply(x, 0.0), torch.sin),
    "several": _product(Product),
    "several with jvp": _product(ProductJvp),
    "some fixed": _fixed_product(Product),
    "some fixed with jvp": _fixed_product(ProductJvp),
    "grads not materialised": _product(ProductNoneTangents),
    "tangents not materialised": _fixed_product(ProductNoneTangents),
    "needs_input_grad": _fixed_product(Needs),
    "arguments": Kind(
        lambda x: Scaled.apply(x, 3, weight=WEIGHT.to(x)) + Scaled.apply(x, 1, WEIGHT.to(x), "scaled"),
        lambda x: (x**3 + x) * WEIGHT.to(x),
    ),
    "integer output": Kind(
        lambda x: (lambda values, order: values**2 * (1 + order))(*Sorted.apply(x)),
        lambda x: (lambda values, order: values**2 * (1 + order))(*torch.sort(x)),
    ),
    "integer output, generated": Kind(
        lambda x: (lambda values, order: values**2 * (1 + order))(*SortedGenerated.apply(x)),
        lambda x: (lambda values, order: values**2 * (1 + order))(*torch.sort(x)),
    ),
    "constant output": Kind(
        lambda x: (lambda a, b: a * (1 + b))(*RealNotDifferentiable.apply(x)),
        lambda x: x.exp() * (1 + x.detach().round()),
    ),
    "dirty": Kind(lambda x: Exponential.apply(x * 2) + x, lambda x: (2 * x).exp() + x),
    "attributes": _sine(Attributes),
    "attributes, generated": _sine(AttributesGenerated),
    "saved intermediate": _sine(SavedCosine),
    "saved intermediate of the output": Kind(lambda x: SavedSlope.apply(x), torch.sigmoid),
    "saved further output": Kind(lambda x: SavedOutput.apply(x)[0] * x, lambda x: x.sin() * x),
    "view": Kind(lambda x: View.apply(x**2), lambda x: x[1:] ** 2),
    "identity": Kind(lambda x: Identity.apply(x) ** 3, lambda x: x**3),
    "subclass of a subclass": Kind(lambda x: Halves.apply(x), lambda x: x.sin() / 2),
    "Functions within": Kind(lambda x: Composed.apply(x), lambda x: x.sin() ** 2),
    "linear solve": Kind(lambda x: Solve.apply(_system(x), x.sin()), lambda x: torch.inverse(_system(x)) @ x.sin()),
    "broadcast": Kind(lambda x: Broadcast.apply(x, x[:1]), lambda x: x * x[:1]),
    "broadcast, generated": Kind(lambda x: BroadcastGenerated.apply(x, x[:1]), lambda x: x * x[:1]),
    "complex": Kind(
        lambda x: torch.view_as_real(ComplexSquare.apply(_complex(x))).reshape(-1),
        lambda x: torch.stack([x**2 - x.sin() ** 2, 2 * x * x.sin()], -1).reshape(-1),
    ),
    "no gradient": Kind(lambda x: Untouched.apply(x, x * 3), lambda x: x.exp() + (x * 3).detach().round()),
}
