"""Functions that torch.func and functorch refuse and that plain autograd can compute: ONE table.

A row has the words of torch that a refusal is known by, its meaning, and what the user can do to stay fast. Torch has
more words than there are rows: ``recognition.py`` knows the others by where they come from, and by what a loop does.
The user's own errors, randomness='error', memory and interrupts pass through untouched.
"""

from __future__ import annotations

from .capability import LOOPED, TRANSPOSED, Capability
from .own_refusals import OWN
from .wrong_answers import MISTAKEN_EAGER

CAPABILITIES: tuple[Capability, ...] = (
    *OWN,
    Capability(
        "legacy_function",
        r"In order to use an autograd\.Function with functorch transforms"
        r"|cannot use C\+\+ torch::autograd::Function with functorch transforms",
        "it uses an autograd.Function with forward(ctx, ...), a custom operator or a checkpoint, "
        "into which torch.func cannot see",
        "write the Function with setup_context()",
    ),
    Capability(
        "function_under_functorch",
        r"functorch functions \(vmap, grad, vjp, etc\.\) currently do not support the use of autograd\.Function",
        "it uses an autograd.Function, which functorch on torch < 2.0 does not support",
        "upgrade to torch >= 2.0",
    ),
    Capability(
        "function_without_vmap",
        r"You tried to vmap over .*, but it does not have vmap support",
        "it uses an autograd.Function without a vmap rule",
        "give the Function generate_vmap_rule = True, if its rules are torch operations, else a vmap() staticmethod",
        cost=LOOPED,
    ),
    Capability(
        "function_without_jvp",
        r"You must implement the jvp function for custom autograd\.Function",
        "it uses an autograd.Function without a jvp rule in forward mode",
        "give the Function a jvp() staticmethod",
        cost=TRANSPOSED,
    ),
    Capability(
        "no_forward_formula",
        r"Trying to use forward AD with .* that does not support it",
        "it uses an operation without a forward-mode formula",
        "use reverse mode (jacrev, vjp) for this function",
        cost=TRANSPOSED,
    ),
    Capability(
        "item",
        r"looks like you're (either \(1\) )?calling \.item\(\) on a Tensor|data-dependent control flow",
        "it reads the value of a mapped tensor: .item(), float() or a branch on it",
        "use torch.where() and tensor arithmetic instead",
        cost=LOOPED,
    ),
    Capability(
        "dynamic_shape",
        r"We do not support batching operators that can (output|support) dynamic shape"
        r"|Attempted to vmap over `mask` in torch\.masked_select",
        "it uses an operation whose output shape depends on values: nonzero, unique, a boolean mask",
        "use torch.where() in place of the mask",
        cost=LOOPED,
    ),
    Capability(
        "data_pointer",
        r"Cannot access data pointer of Tensor( \(e\.g\. FakeTensor, FunctionalTensor\))?,? that doesn't have storage"
        r"|Cannot access storage of (BatchedTensorImpl|TensorWrapper)",
        "it hands a tensor to numpy, DLPack or an extension",
        "put that part in an autograd.Function with setup_context() and a vmap rule",
        cost=LOOPED,
    ),
    Capability(
        "sparse",
        r"is unsupported for Sparse\w* tensors|[Ss]parse (CS[RC] |BS[RC] )?tensors do not have strides"
        r"|Sparse\w*TensorImpl do not have strides|addmm_sparse_dense: expected either 'mat1' to have sparse layout"
        r"|from the 'Sparse\w+' backend",
        "it uses sparse tensors",
        "use dense ones within transforms",
    ),
    Capability(
        "no_batching_rule",
        r"Batching rule not implemented for aten::|vmap over torch\.\w+ isn't supported yet"
        r"|Could not run 'aten::.*(Batched|FuncTorch)|vmap: we do not yet support"
        r"|fallback path does not support vmap over dims of size 0"
        r"|Calling Tensor\.as_strided is not supported unless the batch dims",
        "it uses an operation without a batching rule",
        "write the operation in terms of others",
        cost=LOOPED,
    ),
    Capability(
        "broadcast_by_vmap",
        # the shape of the batch before that of one sample: LSTM and GRU, b.add_(x) for a b that is not mapped
        r"output with shape \[(.+)\] doesn't match the broadcast shape \[(\d+, )+\1\]"
        r"|output with shape \[\] doesn't match the broadcast shape",
        "it writes mapped values in place into a tensor that is not mapped (as LSTM and GRU do)",
        "make the tensor from a mapped one, as with x.new_zeros()",
        cost=LOOPED,
    ),
    Capability(
        "saved_tensor_hooks",
        r"don't yet support saved tensor hooks",
        "it uses saved-tensor hooks or a checkpoint",
        "leave out the checkpoint within transforms",
    ),
    Capability(
        "data_attribute",
        r"accessing `data` under vmap transform|mutating directly with `\.data`|batched == nullptr *INTERNAL ASSERT",
        "it reads .data of a mapped tensor",
        "use .detach()",
        cost=LOOPED,
    ),
    Capability(
        "autograd_inside",
        r"You are attempting to call Tensor\.(requires_grad_|retain_grad)\(\)"
        r"|backward\(\) called inside a functorch",
        "it calls torch.autograd itself: requires_grad_(), retain_grad() or backward()",
        "use this library's grad or vjp inside",
    ),
    Capability(
        "autograd_inside_functorch_0_1",
        rf"element 0 of tensors does not require grad and does not have a grad_fn|{MISTAKEN_EAGER}",
        "it calls torch.autograd.grad or torch.autograd.functional itself",
        "use this library's grad or vjp inside",
        until=(1, 12),
    ),
    Capability(
        "captured_mutation",
        r"that would mutate a captured Tensor"
        r"|Batch norm got a batched tensor as input while the running_mean or running_var",
        "it changes a tensor from outside in place, as batch norm in training mode does with its statistics",
        "call eval() on the batch norm, or return other changed tensors as aux",
    ),
    Capability(
        "inplace_into_unbatched",
        # "inplace arithmetic", or the name of an operation, with its namespace or without
        r"vmap: [\w: ]+\(self, \*extra_args\) is not possible",
        "it writes mapped values in place into a tensor that is not mapped",
        "make the tensor from a mapped one, as with x.new_zeros()",
        cost=LOOPED,
    ),
    Capability(
        "functorch_unique",
        r"stack expects each tensor to be equal size",
        "functorch 0.1 and 0.2 batch an operation whose output shape depends on values: unique",
        "use torch.where() in place of unique()",
        until=(1, 13),
        cost=LOOPED,
    ),
    Capability(
        "inplace_in_formula",
        r"one of the variables needed for gradient computation has been modified by an inplace operation",
        "one of torch's formulas writes in place to a tensor that another one saved (grad of jvp of grad of a norm)",
        "use reverse mode (vjp) in place of jvp",
        cost=TRANSPOSED,
    ),
    Capability(
        "functorch_0_1_forward",
        r"Trying to set a forward gradient that has a different size than that of the original Tensor",
        "forward mode of functorch 0.1 fails on its strides",
        "use reverse mode (jacrev, vjp) for this function",
        until=(1, 12),
        cost=TRANSPOSED,
    ),
    Capability(
        "forward_formula",
        r"derivative for aten::\w+ is not implemented",
        "torch's own formula for one of its derivatives fails (forward mode of triangular_solve, glu)",
        "use reverse mode (jacrev, vjp) for this function",
        cost=TRANSPOSED,
    ),
    Capability(
        "overlapping_memory",
        r"more than one element of the written-to tensor refers to a single memory location",
        "forward mode fails on a tensor whose elements share memory, as those of expand() do",
        "clone() the expanded tensor",
    ),
    Capability(
        "functorch_sizes",
        r"Could not allocate memory to change Tensor SizesAndStrides",
        "functorch fails to batch a tensor without dimensions in a gradient",
        "upgrade to torch >= 2.0",
        until=(2, 0),
    ),
    Capability(
        "random_operation",
        r"Vmap does not currently support same randomness with a batched tensor input"
        r"|We do not (yet )?support calling (out variants of )?random operations (inside of vmap)?"
        r"|Cannot ask for different inplace randomness on an unbatched tensor",
        "it uses a random operation that torch cannot batch in this randomness mode",
        "draw outside and pass the numbers in",
        cost=LOOPED,
    ),
    Capability(
        "memory_format",
        r"NYI: .*memory_format|required rank [45] tensor to use channels_last",
        "it asks for a memory format such as channels_last, which torch does not have under vmap",
        "set the memory format outside of the transform",
        cost=LOOPED,
    ),
    Capability(
        "size_by_values",
        r"When vmap-ing torch\.nn\.functional\.one_hot|vmapping over the `repeats` tensor requires",
        "it uses an operation whose output shape depends on mapped values: one_hot, repeat_interleave",
        "give the size: num_classes=..., output_size=...",
        cost=LOOPED,
    ),
    Capability(
        "inference_mode",
        r"Cannot set version_counter for inference tensor",
        "it uses inference_mode(), in which the tensors of torch's transforms cannot be made",
        "use no_grad() and detach()",
    ),
    Capability(
        "internal_error",
        r"INTERNAL ASSERT FAILED|\bNYI\b|[Pp]lease (file|report) a (bug|github issue)"
        r"|[Ff]eel free to file a github issue|not (yet )?implemented(?! for ')",
        "torch fails on it with an internal error",
        "write that part in another way",
    ),
)
# These are known by where they were raised and not by a text: torch's assertions may have none, and tracers raise
# exceptions of all types.
INTERNAL = Capability(
    "internal_assertion",
    "",
    "an assertion within torch's own transforms fails on it",
    "report it to PyTorch",
)
HIGHER_ORDER = Capability(
    "higher_order_operator",
    "",
    "it uses an operator that takes functions (cond, while_loop, scan, map) and traces them, which fails on tensors of "
    "a transform",
    "write the control flow in Python, or with torch.where()",
)
# Known only by the fact that a loop succeeded.
UNKNOWN = Capability(
    "unknown",
    "",
    "torch raised an error on it that no sample raises by itself",
    "write that part in another way",
)
