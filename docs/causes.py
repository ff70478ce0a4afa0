"""What led to each message of the library, and what to do. See ``messages.py``.

A row belongs to the messages in which its words occur; "…" stands for what is known only when it is raised. To add one:
copy words of the message that no other has, say what the caller did, and what to do instead.
"""

from __future__ import annotations

from typing import NamedTuple


class Cause(NamedTuple):
    """Why a message comes, and its cure."""

    words: str
    cause: str
    cure: str


CAUSES: dict[str, list[Cause]] = {
    "Fields and Laplacians": [
        Cause(
            "expected points of shape (*batch",
            "points were given without one number for each coordinate along their last dimension",
            "stack the coordinates along the last dimension, in the order of `coordinates=`",
        ),
        Cause(
            "expected points of real floating-point numbers",
            "the points are integers or complex",
            "convert them with `.to(torch.float64)`; real and imaginary parts are two coordinates",
        ),
        Cause(
            "expected the field to return a tensor of shape",
            "a field summed over the points, or returned something else than one tensor",
            "return a value for each point: a tensor that begins with the shape of the batch",
        ),
        Cause(
            "expected a field of floating-point numbers",
            "a field returned integers or booleans",
            "convert what it returns",
        ),
        Cause(
            "components along its last dimension",
            "derivatives were asked for by component, and the field has another number of components",
            "name each component of the last dimension, in order",
        ),
        Cause(
            "the field modified its points in place",
            "an in-place operation within the field",
            "work on a `clone()` of the points",
        ),
        Cause(
            "expected a derivative to be a string",
            "an entry of the derivatives is no name",
            "write `'xx'`, or `('x1', 'x2')`",
        ),
        Cause(
            "which is none of the coordinates",
            "a derivative or `along=` names a coordinate that there is not",
            "name it in `coordinates=`",
        ),
        Cause(
            "expected coordinates to be different names",
            "`coordinates=` is empty or has a name twice",
            "give each coordinate a name of its own",
        ),
        Cause(
            "expected the derivatives as a sequence",
            "a single string, or nothing, was given",
            "write `('xx',)`",
        ),
        Cause("expected weight to be a tensor", "a number or an array as `weight`", "`torch.as_tensor(weight)`"),
        Cause(
            "expected weight to be of shape",
            "`weight=` has another size than the elements that are differentiated by",
            "give one number for each element, or a matrix of them",
        ),
        Cause(
            "needs coordinates=, the names of all coordinates",
            "`along=` was given alone",
            "give `coordinates=`, too",
        ),
        Cause(
            "expected chunk_size to be a positive number of points",
            "`chunk_size=` is no positive int",
            "give a number of points, or None",
        ),
        Cause(
            "expected a field along two or three coordinates",
            "the curl of a field in another number of dimensions",
            "give the two or three coordinates in `along=`",
        ),
        Cause(
            "expected derivatives of at least one component",
            "an empty dict was given",
            "name the components",
        ),
        Cause(
            "the points are not independent",
            "the value at one point depends on other points",
            "call `eval()` on modules with batch normalisation; write a field of each point",
        ),
        Cause(
            "expected out_dims to be an int or of the structure",
            "`out_dims=` does not fit what the function returns",
            "give one int, or one for each output",
        ),
        Cause(
            "names dimension",
            "`out_dims=` names a dimension that an output has not",
            "count its dimensions",
        ),
        Cause(
            "expected batch_index to be a vector of integers",
            "`batch_index=` is no vector of integers",
            "give the number of the sample for each row",
        ),
        Cause(
            "expected batch_index to be numbers of samples from 0 on",
            "`batch_index=` has a negative number",
            "number the samples from 0 on",
        ),
        Cause(
            "rows of batch_index",
            "a tensor that is differentiated has another number of rows than `batch_index=`",
            "give the index that belongs to it",
        ),
        Cause(
            "weight= is for samples of one size",
            "`weight=` and `batch_index=` together",
            "take `batch_hessian` with `batch_index=`, and contract its blocks",
        ),
    ],
    "Choosing a backend": [
        Cause(
            "torch.jit.trace of a derivative would end the process",
            "a function with a derivative in it was given to `torch.jit.trace` on torch 1.8 to 1.10",
            "trace the function itself and differentiate what is traced, or upgrade torch",
        ),
        Cause("unknown backend", "no backend has that name", "take one of those that the message lists"),
        Cause(
            "the backend 'torch.func' needs",
            "`torch.func` was asked for on an older torch",
            "upgrade torch, or ask for another",
        ),
        Cause(
            "the backend 'functorch'",
            "functorch was asked for on a torch that has none",
            "use `torch.func` on torch >= 2.0 and `autograd` before 1.11",
        ),
        Cause(
            "functorch cannot be imported",
            "functorch is missing, or does not fit the installed torch",
            "install the release that the message names",
        ),
        Cause("… (_backends/__init__.py)", "any of the three above", "see there"),
        Cause("unknown checks", "no such choice of when to test", "'first-call', 'always' or 'off'"),
        Cause("unknown fallback", "no such mode of falling back", "'warn', 'silent' or 'error'"),
        Cause(
            "expected a function transformed by this library",
            "`explain` got a function that is not the result of a transform",
            "give it what `vmap(f)`, `grad(f)`, ... returned",
        ),
    ],
    "Arguments": [
        Cause(
            "argnum", "`argnums` do not fit the positional arguments", "ints from -n to n - 1, each once, or one int"
        ),
        Cause("Only allowed values for randomness", "no such mode of randomness", "'error', 'different' or 'same'"),
        Cause("unknown mode", "`mode=` is misspelt", "take one of those that the message lists"),
        Cause("greater than 0. (got", "`chunk_size` is zero, negative or no int", "a positive int, None or 'auto'"),
        Cause(
            "memory= is the budget",
            "`memory=` was given without `chunk_size='auto'`",
            "give both, or `chunk_size` alone",
        ),
        Cause("expected memory= to be bytes", "`memory=` is no size", "an int of bytes, or text as in '2GB'"),
        Cause(
            "Thing passed to transform API",
            "an argument to be differentiated is no tensor",
            "make it a tensor, or leave it out of `argnums`",
        ),
        Cause(
            "to be floating point or complex",
            "what is differentiated, or its tangent, has an integer dtype",
            "convert it: `x.double()`",
        ),
        Cause(
            "only Tensors of floating point and complex dtype",
            "what is differentiated has an integer dtype",
            "convert it: `x.double()`",
        ),
        Cause(
            "to be real but received complex",
            "Jacobians of complex functions are ambiguous",
            "take those of the real and the imaginary part: `torch.view_as_real`",
        ),
        Cause(
            "Expected primals to be a tuple",
            "`jvp`, `hvp` or `vhp` got a bare tensor",
            "write `jvp(f, (x,), (t,))`",
        ),
        Cause(
            "primals and tangents to have the same python structure",
            "tangents are nested in another way than the primals",
            "as many tangents as primals, in the same containers",
        ),
        Cause("to contain at least one Tensor", "primals or tangents hold no tensor", "give one at least"),
        Cause("to only contain Tensors", "a number or None among primals or tangents", "make it a tensor"),
        Cause("a real tangent for a real primal", "a complex tangent for a real primal", "take `torch.real` of it"),
        Cause(
            "a cotangent is None", "None among the cotangents of `vjp_fn`", "zeros for an output that does not count"
        ),
        Cause(
            "makes a random generator",
            "`vmap` with `randomness='different'` became a loop, and each sample makes the same generator",
            "make it outside and close over it",
        ),
        Cause(
            "vjp_fn takes one argument",
            "a cotangent for each output of the function, one after the other",
            "one tuple of them: `vjp_fn((a, b))`",
        ),
        Cause(
            "takes a function, got",
            "`grad(f(x))`, or another value in place of a function",
            "transform the function, and call the result: `grad(f)(x)`",
        ),
        Cause("cotangents must be Tensors", "a number among the cotangents of `vjp_fn`", "make it a tensor"),
        Cause("tangent to have the same shape", "a tangent of another shape than its primal", "expand or reshape it"),
        Cause("Expected the tangents", "`jvp_fn` of `linearize` got another structure", "pass one tangent per primal"),
        Cause(
            "in flattened pytree doesn't match",
            "`jvp_fn` of `linearize` got a tangent of another shape, dtype or device",
            "convert it to that of the primal",
        ),
        Cause(
            "Expected pytree structure of cotangents",
            "`vjp_fn` got another structure than the function returned",
            "pass a cotangent for each output, in the same containers",
        ),
        Cause(
            "The output of f is independent",
            "`strict=True`, and the output does not depend on the input",
            "leave out `strict`, for zeros",
        ),
    ],
    "Outputs": [
        Cause(
            "should be a tuple: (output, aux)",
            "`has_aux=True`, and the function returned no pair",
            "return `(output, aux)`",
        ),
        Cause(
            "unsupported type … in aux",
            "aux holds something other than tensors",
            "return it in another way, or make it a tensor",
        ),
        Cause(
            "non-empty output",
            "the function returned None or an empty container",
            "return what is to be differentiated",
        ),
        Cause(
            "to return only tensors",
            "an output is a number, or None",
            "return tensors; other values as aux of the caller's own",
        ),
        Cause(
            "to return a Tensor, got", "`grad` of a function that returns no tensor", "return a tensor of no dimensions"
        ),
        Cause("to return a scalar Tensor", "`grad` of a function with several outputs", "sum them, or use `jacrev`"),
        Cause(
            "only for real scalar outputs",
            "`grad` of a function with a complex value",
            "return its real part, or use `vjp`",
        ),
        Cause(
            "All outputs of f must be floating-point", "an output of integer dtype", "convert it, or return it as aux"
        ),
    ],
    "vmap": [
        Cause(
            "expected `in_dims` to be int",
            "`in_dims` is no int and no tuple",
            "an int, or a tuple with an entry per argument",
        ),
        Cause(
            "got no inputs",
            "the mapped function was called without positional arguments",
            "pass what is mapped by position",
        ),
        Cause(
            "in_dims is not compatible",
            "`in_dims` is nested in another way than the arguments",
            "one entry per argument, or an int",
        ),
        Cause("at least one Tensor to vmap over", "every entry of `in_dims` is None", "map one argument at least"),
        Cause(
            "the same size in the mapped dimension",
            "batches of different sizes",
            "make them equal, or None in `in_dims`",
        ),
        Cause("but in_dim must be either", "an entry of `in_dims` is no int", "an int or None"),
        Cause(
            "over non-Tensor arguments", "an argument that is no tensor has a batch dimension", "None as its `in_dims`"
        ),
        Cause("so expected in_dim to satisfy", "an argument has no such dimension", "check its shape"),
        Cause(
            "out_dims is not compatible",
            "`out_dims` is nested in another way than the output",
            "one entry per output, or an int",
        ),
        Cause("`out_dims` must be an int", "`out_dims` is no int", "an int, None or containers of them"),
        Cause(
            "must only return Tensors",
            "the mapped function returned a number",
            "return a tensor, or None in `out_dims`",
        ),
        Cause(
            "Nested tensors can only be vmapped",
            "`in_dims` or `out_dims` of a nested tensor is not 0",
            "map over its first dimension",
        ),
        Cause("Dimension out of range", "`out_dims` names a dimension that the result has not", "check its shape"),
        Cause(
            "can not return a BatchedTensor",
            "`out_dims` is None for an output that differs between samples",
            "give it a dimension",
        ),
        Cause(
            "in randomness error mode",
            "the function draws random numbers",
            "`randomness='different'` or `'same'`, or draw outside",
        ),
        Cause(
            "modifies in place a sample whose memory it reads by as_strided()",
            "where `vmap` is a loop, `as_strided` needs a copy of each sample, and the batch would not be modified",
            "modify a `clone()` and return it",
        ),
        Cause(
            "modifies in place a tensor that all samples share",
            "it would hold other values for each sample (or is large, or requires grad)",
            "work on a `clone()`, or give the tensor a batch dimension",
        ),
        Cause(
            "computes something else when it is evaluated again",
            "in a later call, a function that draws or writes took a branch with attention or a normalisation",
            "call it once more",
        ),
        Cause(
            "writes in place to a large tensor from outside",
            "the function has to be evaluated again, with attention or a normalisation written out, and a tensor of "
            "more than 65536 elements is not kept for that",
            "work on a `clone()`, or return what is to be changed",
        ),
        Cause(
            "took another amount of random numbers",
            'with `randomness="same"`, how many numbers a sample draws depends on its values',
            'draw outside, or use `randomness="different"`',
        ),
        Cause(
            "structure of the output must be the same", "samples returned different containers", "return one structure"
        ),
        Cause(
            "the same shape and dtype for every sample", "samples returned different shapes", "pad, or loop yourself"
        ),
    ],
    "Functions of whole batches": [
        Cause("check=True looks at values", "`check=True` while torch.compile traces", "check one call outside"),
        Cause("expected as many samples", "batches of different sizes", "make them equal, or None in `in_dims`"),
        Cause("asks for batch dimension", "an argument has no such dimension", "check its shape, or None in `in_dims`"),
        Cause(
            "expected a function of the whole batch",
            "the function is one of a single sample, or reduces over the batch",
            "return B samples along dimension 0; or `vmap` the derivative of one sample",
        ),
        Cause(
            "expected in_dims to be an int or a tuple with",
            "`in_dims` is nested in another way than the arguments",
            "one entry per argument, or an int",
        ),
        Cause(
            "is differentiated and shared by all samples",
            "an argument in `argnums` has None in `in_dims`",
            "map a function of one sample: `vmap(jacobian(f))`",
        ),
        Cause(
            "all chunks keep their graphs",
            "a Jacobian in chunks can be differentiated by parameters, so that each chunk keeps its graph",
            "`create_graph=False`, `torch.no_grad()`, or parameters that do not require grad",
        ),
    ],
    "In-place operations and higher derivatives": [
        Cause(
            "that would mutate a captured Tensor",
            "the differentiated function writes into a tensor from outside",
            "return what is to be changed as aux",
        ),
        Cause(
            "a leaf Variable that requires grad",
            "the function writes into what it is differentiated by",
            "work on a `clone()`",
        ),
        Cause(
            "cannot be differentiated again",
            "a higher derivative would be wrong: for a custom backward that is not differentiable, for third "
            "derivatives of layer_norm and other normalisations, and for second ones of weight_norm and, before torch "
            "1.13, of kl_div",
            "what the message ends with: a backward of torch operations, or the normalisation written out",
        ),
    ],
    "Custom Functions": [
        Cause(
            "modifies its input in place, and would have to run again",
            "an adapted Function writes to its input, and another level evaluates it once more",
            "write it as a `Function`, with `mark_dirty`",
        ),
        Cause(
            "expected a subclass of torch.autograd.Function, got",
            "`Function.from_legacy` of something else",
            "give it the class, not an instance and not `apply`",
        ),
        Cause("is a Function of this library already", "`Function.from_legacy` of a new-style one", "use it as it is"),
        Cause("needs a forward(*args)", "a `Function` without `forward`", "write one"),
        Cause(
            "has no setup_context",
            "a `Function` in the style `forward(ctx, ...)`",
            "move what uses ctx to `setup_context`",
        ),
        Cause(
            "return a tensor or a tuple of tensors",
            "autograd sees no tensors in a dict or a nested tuple, which would have no gradient",
            "return a flat tuple, or use `custom_vjp`, which takes pytrees",
        ),
        Cause("has keyword-only parameters", "autograd passes arguments by position", "make them positional"),
        Cause("implements both backward() and vjp()", "two names of one rule", "keep one"),
        Cause("both generate_vmap_rule=True and a vmap", "two rules for one thing", "keep one"),
        Cause("Expected the vmap staticmethod", "the `vmap` rule returned no pair", "return `(output, out_dims)`"),
        Cause(
            "returned an incompatible (output, out_dims)",
            "`out_dims` of the rule fit not its output",
            "nest both alike",
        ),
        Cause(
            "fallback path does not support vmap over dims of size 0",
            "a batch without samples",
            "give the Function a `vmap` rule",
        ),
        Cause(
            "must return the same shapes, dtypes and non-tensors",
            "`forward` was run for each sample, and the results differ",
            "return one shape, or write a `vmap` rule",
        ),
        Cause(
            "modifies in place an input that has no tangent",
            "`mark_dirty` of an input that is not differentiated, in forward mode",
            "use reverse mode, or do not write in place",
        ),
        Cause("cannot be functionalized", "a `Function` within `torch.func.functionalize`", "keep it outside"),
        Cause(
            "is evaluated in a generated vmap rule",
            "forward mode around a generated `vmap` rule cannot see into it",
            "write a `vmap` rule, or take the outer derivative in reverse mode",
        ),
        Cause("no derivative is defined for", "`custom_vjp` or `custom_jvp` without its rule", "call what it names"),
        Cause(
            "and is not among its arguments: its own rule",
            "a function with a custom rule closes over what is differentiated",
            "make it an argument, or `detach()` it",
        ),
        Cause(
            "by a tensor that was said to be fixed",
            "a derivative is asked for by one of the `nondiff_argnums`",
            "do what the message says",
        ),
        Cause(
            "modifies its argument in place",
            "a function with a custom rule writes to what it is given",
            "work on a `clone()`",
        ),
        Cause(
            "is not linear in the tangents",
            "reverse mode is the transpose of the rule of a `custom_jvp`, which has none",
            "write the rule in torch operations that are linear in the tangents",
        ),
        Cause("has keyword-only arguments, which a custom", "a custom rule takes positions", "make them positional"),
        Cause("to return a pytree of tensors", "a function with a custom rule returned a number", "return tensors"),
        Cause("return (output, residuals)", "`fwd` returned something else than a pair", "return both"),
        Cause("return (output, tangent_out)", "the rule returned something else than a pair", "return both"),
        Cause(
            "to return an output of its structure",
            "`fwd` returned another structure than the function",
            "return the same",
        ),
        Cause("return a tuple with a gradient for each", "`bwd` returned too few or too many", "one for each, or None"),
        Cause("a gradient of its structure", "`bwd` returned another structure than the argument's", "nest both alike"),
        Cause("tangents of the structure", "the rule returned tangents unlike its output", "nest both alike"),
        Cause("expected a gradient of the shape of x", "a gradient of another shape was attached", "reshape it"),
    ],
    "Falling back": [
        Cause(
            "is computed by the autograd backend",
            "torch refused the function; the result is right, and slower than need be",
            "what the message says after 'To stay native', or `set_fallback('silent')`. "
            "[All refusals](falling-back.md)",
        ),
        Cause(
            "torch gives a function under vmap or grad a plain tensor",
            "only with `set_fallback('error')`: an input is a subclass of Tensor",
            "allow falling back, or make the subclass inside of the function",
        ),
        Cause(
            "torch casts other operations under vmap",
            "only with `set_fallback('error')`: autocast around or within what is mapped",
            "allow falling back, or cast by hand",
        ),
        Cause(
            "wrong in this transform, and a compiled graph cannot tell",
            "only with `torch.compile(fullgraph=True)`: the function has an operation that torch may get wrong",
            "leave out `fullgraph=True`, so that the graph breaks there",
        ),
        Cause(
            "torch takes what … saved for constant",
            "only with `set_fallback('error')`: torch would give a wrong nested derivative",
            "allow falling back",
        ),
        Cause(
            "torch differentiates operations within no_grad()",
            "only with `set_fallback('error')`: the function uses `no_grad()`, which torch's forward mode ignores",
            "allow falling back, or `detach()` what is to be constant",
        ),
        Cause(
            "torch has no derivative of …: the derivative would be zero",
            "all of an output goes through an operation that torch does not differentiate",
            "a `Function` with a backward of its own, or `detach()` if zero is meant",
        ),
        Cause(
            "… (_backends/autograd/constant_outputs.py)",
            "an output changes with an input, but numbers left torch on the way: `.item()`, or numpy before torch 2.0",
            "as for the next one, or `detach()` if zero is meant",
        ),
        Cause(
            "Cannot access data pointer of a tensor that is differentiated",
            "an output is made of numbers that left torch, by `numpy()` for example; torch.func raises, too. "
            "Before torch 2.0 this is a warning",
            "stay in torch operations, or write a `Function` around what cannot",
        ),
        Cause(
            "torch batches the backward of … wrongly",
            "only with `set_fallback('error')`: torch would batch the backward of an operation wrongly",
            "allow falling back, or `chunk_size=1`",
        ),
        Cause(
            "indexes by several mapped tensors wrongly",
            "only with `set_fallback('error')`: functorch 0.1 would index wrongly",
            "allow falling back, or upgrade torch",
        ),
        Cause(
            "loses terms of nested derivatives of optimized TorchScript",
            "only with `set_fallback('error')`: torch would leave terms out",
            "allow falling back, or use the function that was scripted or traced",
        ),
        Cause(
            "loses the graph to parameters of TorchScript",
            "only with `set_fallback('error')`: the result would lack the graph to parameters of a scripted or traced "
            "module",
            "allow falling back, use the module that was scripted or traced, or `torch.no_grad()`",
        ),
        Cause(
            "don't yet support saved tensor hooks",
            "only with `set_fallback('error')`: saved-tensor hooks or a checkpoint, or on torch 1.11 and 1.12 a "
            "profiler in C (cProfile), which leaves no way to notice them",
            "allow falling back, or leave the hooks out",
        ),
        Cause(
            "torch's forward mode is wrong: reverse mode and finite differences",
            "with `set_fallback('error')`, or within a transform of torch.func itself: a test of the first call found "
            "forward mode wrong, and the function's backward has no transpose to take instead",
            "use reverse mode (jacrev, vjp), or this library's transforms around it",
        ),
        Cause(
            "torch batches this wrongly: a sample",
            "only with `set_fallback('error')`: torch batches these operations wrongly, and the call cannot be tested",
            "allow falling back, or write the function in other operations",
        ),
        Cause(
            "… (_guards/trial.py)",
            "only with `set_fallback('error')`: a test of the first call found torch's batch or its forward mode wrong",
            "allow falling back, or write the function in other operations",
        ),
        Cause(
            "wrongly in forward mode",
            "only with `set_fallback('error')`: `cholesky_inverse`, or products by `scatter_reduce`, in forward mode",
            "allow falling back, or use reverse mode (jacrev, vjp)",
        ),
        Cause(
            "… (_guards/by_profile.py)",
            "only with `set_fallback('error')`, on torch 1.11 and 1.12: saved-tensor hooks, complex numbers or "
            "`torch.autograd.functional` in the function; to 1.13, `cholesky_inverse` or `scatter_reduce` in forward "
            "mode",
            "allow falling back, use `torch_func_compat.functional`, or upgrade torch",
        ),
        Cause(
            "writes to a tensor that it is not differentiated by",
            "on torch 1.11 and 1.12, where functorch can lose what is written",
            "write to a `clone()` and return it, upgrade torch, or choose the backend 'autograd'",
        ),
        Cause(
            "torch had refused with",
            "neither torch nor the loop can compute it; the text has both reasons",
            "follow the first one",
        ),
        Cause(
            "torch drops the tangents of …",
            "only with `set_fallback('error')`: torch would drop the tangents of a custom operator",
            "allow falling back, or use reverse mode",
        ),
        Cause(
            "uses a tensor of a transform around it",
            "only with `set_fallback('error')`: a custom rule closes over a mapped or differentiated tensor",
            "pass it as an argument",
        ),
        Cause(
            "the rows of a backward that takes numbers",
            "only with `set_fallback('error')`: a pullback through numpy is mapped over",
            "allow falling back",
        ),
        Cause(
            "and so has no transpose",
            "only with `set_fallback('error')`: forward mode through a backward that is not differentiable",
            "allow falling back, or give the Function a `jvp`",
        ),
    ],
    "Several processes": [
        Cause(
            "cannot be traced by torch.compile",
            "a distributed transform within compiled code",
            "compile what it differentiates",
        ),
        Cause(
            "could belong to the … samples",
            "it is not clear whether a tensor has a batch dimension",
            "pass it by position, with `in_dims` as a tuple",
        ),
        Cause("is not in the group", "a process called that is no member of the group", "call it on members alone"),
        Cause("torch.distributed is not initialised", "a group without `init_process_group`", "initialise it first"),
        Cause("RemoteError: rank", "the function raised in another process", "look there: the message has its words"),
        Cause("out of step", "processes called different functions", "call the same ones in the same order"),
        Cause(
            "do not compute parts of one result",
            "functions or arguments differ between processes",
            "`check_inputs=True` finds which",
        ),
        Cause("is not among the ranks", "`dst=` is no member of the group", "a rank of the group"),
        Cause("called within another transform", "tensors of a running transform cannot be sent", "put it outermost"),
        Cause("expected dst= to be the rank", "`dst=` is no int", "a rank, or None for all"),
        Cause("gather=False leaves each share", "`dst=` with `gather=False`", "leave out one of them"),
        Cause("were given different inputs", "arguments differ between processes", "broadcast them first"),
        Cause("the group's backend is nccl", "arguments on the CPU in a group of GPUs", "move them, or use gloo"),
    ],
    "torch.autograd.functional": [
        Cause(
            "of the user-provided function",
            "`strict=True`, and a derivative is zero since nothing depends on the input",
            "leave out `strict`, for zeros",
        ),
        Cause(
            "… (autograd/_functional.py)",
            "`strict=True`, or a function with other than one output where one is asked for: the message says which",
            "leave out `strict`, or return one number",
        ),
        Cause("should return a single Tensor", "a Hessian of a function with several outputs", "return one tensor"),
        Cause(
            "should contain a single element", "a Hessian of a function of many values", "sum them, or `jacobian` twice"
        ),
        Cause("given v should contain", "several vectors for one input", "pass one tensor"),
        Cause("v is a tuple of invalid length", "not as many vectors as inputs, or outputs", "one for each"),
        Cause("v has invalid size", "a vector of another shape than its input, or output", "reshape it"),
        Cause("Expected strategy to be", "no such strategy", "'forward-mode' or 'reverse-mode'"),
        Cause(
            "are not supported together",
            "two options that torch does not combine, either",
            "as the message says, or `jacfwd`",
        ),
        Cause("is only implemented for", "forward mode without `vectorize=True`", "pass it, or take `jacfwd`"),
        Cause("must be either a Tensor or a tuple", "an input or a vector is no tensor", "make it one"),
    ],
    "Modules": [
        Cause(
            "stateless API can't be used",
            "`functional_call` of a scripted or a DataParallel module",
            "take the module within",
        ),
        Cause("torch.nn.Module first, got", "`functional_call` of a function", "call a function with its arguments"),
        Cause("expected a list of modules, got", "one module, or an iterator of them", "`[module, ...]`"),
        Cause("parameter_and_buffer_dicts", "parameters are no dictionaries", "`dict(module.named_parameters())`"),
        Cause("appeared in multiple dictionaries", "two dictionaries have the same name", "one value for each"),
        Cause("got multiple values for keys", "two values for tied parameters", "give one, or `tie_weights=False`"),
        Cause(
            "Error(s) in reparametrizing", "`strict=True`, and names do not fit", "compare with `named_parameters()`"
        ),
        Cause("tensor name can't be empty", "an empty name", "the name of a parameter or buffer"),
        Cause(
            "is not an instance of torch",
            "a name or a value is no tensor or module",
            "give tensors, by names that exist",
        ),
        Cause("Expected at least one model", "`stack_module_state` of nothing", "give a module"),
        Cause(
            "stack_module_state: Expected all models", "modules that differ", "one class, one mode, the same parameters"
        ),
        Cause("from each model to have the same", "parameters differ in `requires_grad`", "set it alike"),
        Cause(
            "another thread is calling this module",
            "threads exchange the tensors of one module",
            "a copy for each thread",
        ),
        Cause("functionalize needs torch", "`functionalize` on a torch that has none", "as the message says"),
        Cause("functionalize: expected remove", "no such value of `remove`", "'mutations' or 'mutations_and_views'"),
    ],
    "torch_func_compat.tad_mctc": [
        Cause("unknown strategy", "no such strategy", "take one of those that the message lists"),
        Cause("`strict=True` and `strategy='forward-mode'`", "both at once, as in torch", "leave out one"),
        Cause("is differentiated: expected a tensor", "an input that is differentiated is no tensor", "make it one"),
        Cause("strict=True and is_batched=True", "zeros between samples are no independence", "check a single sample"),
        Cause(
            "expected one batch size in dimension 0",
            "inputs of different batch sizes",
            "make them equal, or pass `in_dims`",
        ),
        Cause("could be mapped or shared", "the sizes do not tell which inputs are batched", "pass `in_dims`"),
    ],
    "torch_func_compat.sparse": [
        Cause("pattern: expected a Pattern", "no pattern", "one of those that the message lists"),
        Cause("pattern: expected index tensors", "indices that are no integers", "int64 tensors"),
        Cause("pattern: expected as many rows as columns", "indices of different shapes", "two vectors of one length"),
        Cause("is not one of the …", "an index beyond the shape", "check the indices and the shape"),
        Cause("is given more than once", "an entry occurs twice in the indices", "each one once"),
        Cause("does not consist of blocks", "`block_size` does not divide the shape", "leave it out, or fix the shape"),
        Cause("entries are not full", "blocks with holes", "leave out `block_size`"),
        Cause("the pairs name atom", "a pair names an atom that there is not", "count from zero, below `atoms`"),
        Cause("pattern: it has a shape of", "the pattern is of another function", "rows are outputs, columns inputs"),
        Cause(
            "a symmetric matrix is square", "a pattern that is not square for a Hessian", "the pattern of the Hessian"
        ),
        Cause("the pattern is not symmetric", "a Hessian's pattern lacks transposes", "`pattern.symmetrized()`"),
        Cause("its products do not give entry", "a `Coloring` made by hand is none", "make it by `coloring`"),
        Cause("the coloring was made with mode", "a coloring for another derivative", "make it with the mode named"),
        Cause("unknown layout", "no such layout", "'coo', 'csr', 'dense' or 'values'"),
        Cause("has no CSR tensors", "`layout='csr'` on torch 1.8", "'coo', or 'values' and scipy"),
        Cause("CSR tensors have no derivatives", "a derivative would be lost", "another layout, or detach"),
        Cause("expected check= to be", "no such value of `check`", "True, False or 'always'"),
        Cause("has entries outside the pattern", "the pattern lacks entries", "add those that the message names"),
        Cause(
            "a random product does not agree", "entries outside the pattern, or an unsteady function", "see the message"
        ),
        Cause("expected argument … to be a tensor", "what is differentiated is no tensor", "one tensor"),
        Cause("expected the function to return one tensor", "several outputs", "stack them"),
        Cause("expected probes=", "`probes` is not positive", "at least 1"),
        Cause("detect_pattern: expected x", "`x` is no tensor", "a tensor"),
        Cause("x is mapped over by a vmap", "`detect_pattern` within `vmap`", "outside of it, of one sample"),
        Cause("a product is not finite", "NaN or infinity near `x`", "another `x`, or `spread=0`"),
        Cause("give the gradient, as grad(func)", "`symmetric=True` for a Jacobian", "probe `grad(func)`"),
    ],
    "torch_func_compat.operators": [
        Cause("expected a pytree of tensors", "something else among primals or outputs", "tensors"),
        Cause("there is no tensor", "no primals, or an empty output", "at least one: `hessian_operator(f, x)`"),
        Cause(
            "or take the operator of to_scipy()",
            "an array of numpy was multiplied",
            "`operator @ torch.as_tensor(array)`, or `operator.to_scipy() @ array`",
        ),
        Cause("tensors of one dtype on one device", "mixed dtypes or devices", "convert them"),
        Cause("expected real tensors of floating-point", "integers or complex numbers", "their real parts"),
        Cause("expected the structure", "a pytree of another structure", "that of the primals, keys in their order"),
        Cause("expected tensors of shapes", "a pytree with other shapes", "those of the primals"),
        Cause("expected a vector of shape", "an operand of another shape", "a vector, a matrix of columns, or a tuple"),
        Cause("expected … on …, got", "an operand of another dtype or device", "`.to(operator.dtype)`"),
        Cause("expected a square matrix", "a trace or estimate of a Jacobian that is not square", "of a square one"),
        Cause("unknown estimator", "no such estimator", "one of those that the message lists"),
        Cause("expected samples= to be", "too few samples for an error", "as many as the message says"),
        Cause("of torch.lobpcg is for tensors", "options of torch's own lobpcg", "leave them out"),
        Cause("to_scipy: expected … values", "values of another pattern", "those of `layout='values'`"),
    ],
    "Implicit differentiation": [
        Cause(
            "expected on_failure to be one of",
            "no such way to fail",
            "'raise', 'warn' or 'nan'",
        ),
        Cause(
            "ConvergenceWarning: ",
            "a solution or a linear system was not found, and `on_failure='warn'` goes on with what there is",
            "what the message says; the errors of these words are `ConvergenceError` (not converged, or not "
            "finite), `NotASolutionError` (your solver returned what is none), `SingularError` and `IndefiniteError`",
        ),
        Cause(
            "there must be one equation for each unknown",
            "the residual, step or product has another shape than the unknown",
            "return one number for each unknown; complete the equations or take unknowns out",
        ),
        Cause(
            "to return the structure of", "what is returned is another pytree than the unknown", "return the same one"
        ),
        Cause(
            "to return the shape of", "a solver returned another shape than the first guess has", "return the same one"
        ),
        Cause(
            "to return the dtype of",
            "the first guess and the parameters are of different precision",
            "convert one of them with `to()`",
        ),
        Cause("to return tensors, got", "a function returned a number", "make a tensor of it"),
        Cause(
            "to be a pytree of real or complex tensors",
            "the first guess or the right-hand side has something in it that cannot be solved for",
            "pass integers, callables and the like as parameters, or convert them",
        ),
        Cause("to be a pytree with tensors in it", "there is nothing to solve for", "pass a tensor"),
        Cause("on one device, got", "the unknown lies on several devices", "move it to one"),
        Cause(
            "to return a real tensor of no dimensions",
            "the objective of `argmin` is no single number",
            "sum it up; of complex numbers take the real part or the absolute value",
        ),
        Cause("to return (z, aux), since has_aux", "the solver returned the solution alone", "leave `has_aux` out"),
        Cause(
            "to be a pytree of tensors and numbers",
            "aux of the solver has text or other objects in it",
            "return numbers and tensors",
        ),
        Cause(
            "to be symmetric (Hermitian, if complex)",
            "`symmetric=True` for a matrix that is not",
            "leave it out; the transposed systems are solved then",
        ),
        Cause(
            "expected no preconditioner with",
            "a preconditioner for a solver that takes none",
            "use `cg` or `gmres`, or precondition within the solver of your own",
        ),
        Cause("which iterates a step: fixed_point", "`anderson` for equations", "`newton`, or `fixed_point`"),
        Cause(
            "expected a solver or a callable for",
            "`solve` is something else, such as the first guess",
            "`newton()` or a callable; the guess goes to the result: `root(f)(guess)`",
        ),
        Cause(
            "expected matvec to be a function",
            "a matrix in place of a function",
            "`linear_solve(lambda x, A: A @ x, b, A)`",
        ),
        Cause("expected tol of", "a tolerance of zero or less", "a positive one"),
        Cause("expected max_iterations of", "no iteration at all", "at least one"),
        Cause("expected history of anderson", "a negative length", "0 is the plain iteration"),
        Cause("expected restart to be positive", "no vector at all", "at least one"),
        Cause("a solver cannot be differentiated", "a fault of this library", "report it"),
        Cause("… (implicit/", "a fault of this library: a base class was used", "report it"),
    ],
    "torch_func_compat.testing": [
        Cause(
            "… (testing/_check.py)",
            "a `DerivativeError`: an operator differs from its reference on a backend; the message has the table",
            "mend the function's `backward`, or report it if plain `torch.autograd` is right",
        ),
        Cause("there is no operator", "no operator has that name", "one of those that the message lists"),
        Cause(
            "expected inputs to be a sequence of arguments", "a tensor stands alone for the arguments", "write `(x,)`"
        ),
        Cause("against has no closed form of", "`against=` is a dictionary without that operator", "add it"),
        Cause(
            "one closed form goes with one operator",
            "`against=` is a function, and there are several operators",
            "a dictionary with a closed form for each",
        ),
        Cause("there is nothing to differentiate", "no input is made of floating-point tensors", "convert one"),
        Cause(
            "is to be differentiated: expected a pytree of floating-point tensors",
            "`argnums=` names an input that cannot be differentiated",
            "convert it, or leave it out of `argnums`",
        ),
        Cause(
            "expected floating-point tensors. Split complex numbers",
            "the function returned integers, complex numbers or no tensors",
            "return `torch.view_as_real` of complex numbers",
        ),
        Cause(
            "finite differences evaluate the function in float64",
            "the function raises for inputs in float64",
            "make its constants follow the dtype of the inputs, or pass `against='loop'`",
        ),
        Cause(
            "finite differences need a function that computes in float64",
            "the function returns a lower precision for inputs in float64",
            "convert its constants and parameters, or pass `against='loop'`",
        ),
        Cause("no row of", "the report has no such operator or backend", "look at `print(report)`"),
        Cause(
            "expected 'finite-differences', 'loop' or a callable",
            "there is no such reference",
            "one of those that the message lists",
        ),
        Cause("an input is complex: split it", "an input is complex", "give real and imaginary parts as two inputs"),
        Cause(
            "takes a function that returns one number",
            "the operator needs a scalar function",
            "sum the output, or choose other operators",
        ),
        Cause(
            "expected inputs with one batch size in dimension 0",
            "an operator of whole batches got inputs of different sizes",
            "give all of them the same size in dimension 0",
        ),
        Cause(
            "keeps a tensor that depends on its argument",
            "the function takes a tensor of one evaluation in another one, where it has no derivative",
            "compute the tensor in each evaluation, or keep its detach()",
        ),
    ],
    "Inside": [
        Cause(
            "has no attribute", "the module has no such name", "check the spelling, and the release that it came with"
        ),
        Cause(
            "leaves for the structure",
            "a defect of this library",
            "report it with the output of `python -m torch_func_compat`",
        ),
        Cause(
            "AssertionError: the result",
            "`python -m torch_func_compat` found a wrong result",
            "report it with its output",
        ),
    ],
}
