"""Where autograd loses sight: methods that take numbers out of torch, and derivatives that it lacks."""

# These read the memory of a tensor, which the tensors of torch.func's transforms do not have.
MEMORY = {"numpy", "__array__", "tolist", "data_ptr", "storage", "untyped_storage", "__dlpack__"}
# These also work in torch.func's derivatives.
NUMBERS = {"item", "__float__", "__complex__", "__int__", "__bool__"}


class UndifferentiatedError(RuntimeError):
    """An output changes with an input, and torch has no derivative, or raises by itself in transforms of its own."""


class SealedError(RuntimeError):
    """A derivative is differentiated again, which would come out wrong."""
