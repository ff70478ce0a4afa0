"""The mistakes that torch makes without an error, where, what this library does about them, and the tests of that.

The rows are documentation: docs/wrong-answers.md is generated from them, and a test looks for each row's test. The
remedies are in ``by_operation.py``, ``by_graph.py``, ``by_profile.py``, ``compositions`` and ``trial.py``.
"""

from __future__ import annotations

from typing import NamedTuple


class WrongAnswer(NamedTuple):
    """One mistake of torch's.

    Attributes
    ----------
    what, where : str
        The mistake, with the issue upstream if there is one, and the releases that have it.
    remedy : str
        What this library does; nothing where it raises, or where `is_open`.
    test : str
        A file of tests, or a test in it.
    """

    what: str
    where: str
    remedy: str = ""
    test: str = ""
    is_open: bool = False


WRONG_ANSWERS: tuple[WrongAnswer, ...] = (
    WrongAnswer(
        "`vmap` and forward mode of a module in TorchScript have no graph to its parameters, mostly from the second "
        "call on",
        "functorch 0.1 to torch 2.15",
        "takes the autograd backend for functions that reach one, where grad mode is on",
        test="tests/test_wrong_answers.py::test_parameters_of_scripts",
    ),
    WrongAnswer(
        "`jacrev` of `torch.cdist` within a transform of torch.func",
        "functorch 0.1 to torch 2.15",
        "computes the distances from elementary operations, or the rows one by one",
        test="tests/test_wrong_answers.py::test_cdist",
    ),
    WrongAnswer(
        "`vmap(jacrev(f))` of `prelu`, where there are as many samples as elements of one",
        "2.0 to 2.15",
        "looks for it in the graph and takes the autograd backend",
        test="tests/test_wrong_answers.py::test_mapped_rows_of_prelu",
    ),
    WrongAnswer(
        "`jacfwd` and `hessian` with negative `argnums` are zero",
        "functorch 0.1 to torch 2.15",
        "counts from the front",
        test="tests/conformance/test_transforms.py",
    ),
    WrongAnswer(
        "Batched rows of `layer_norm` (1.8), `group_norm` (to 2.6 at least) with `create_graph`, and of "
        "`as_strided_scatter` (1.13 and newer), by `is_grads_batched` or by `vectorize=True` in `torch.autograd`",
        "1.8 and newer",
        "compares rows with an unbatched pass",
        test="tests/test_rows.py",
    ),
    WrongAnswer(
        "derivatives of batched rows of `layer_norm`, `batch_norm` and `instance_norm` by their input and weight, as "
        "in `torch.func.hessian` of a network with such a layer by its parameters",
        "1.13 to 2.15",
        "computes them from elementary operations where the rows may be differentiated again, or takes one by one",
        test="tests/test_wrong_answers.py::test_derivatives_of_rows_of_normalisations",
    ),
    WrongAnswer(
        "`vmap` with `out_dims` other than 0 of an output that is not mapped "
        "([178425](https://github.com/pytorch/pytorch/issues/178425))",
        "2.0 to 2.14",
        "stacks in front and moves the dimension afterwards",
        test="tests/conformance/test_vmap.py",
    ),
    WrongAnswer(
        "`vmap` with a dict in `in_dims` whose keys are in another order",
        "2.13, 2.15",
        "goes by key",
        test="tests/conformance/test_vmap.py",
    ),
    WrongAnswer(
        "forward mode within another derivative (`jacrev(jacfwd)`, `jvp(jvp)`) of `layer_norm` "
        "([196700](https://github.com/pytorch/pytorch/issues/196700)), `batch_norm` and `instance_norm` "
        "([196699](https://github.com/pytorch/pytorch/issues/196699)), `householder_product`, and "
        "before 2.15 of `det`, `logdet` and `linalg.solve` "
        "([192540](https://github.com/pytorch/pytorch/issues/192540))",
        "functorch 0.1 to torch 2.15",
        "notices the operation and takes the autograd backend",
        test="tests/test_wrong_answers.py::test_operations_that_some_torch_gets_wrong",
    ),
    WrongAnswer(
        "the same where plain autograd takes the outer derivative: `backward()` through `jvp` or `jacfwd`, at tensors "
        "that require grad or of a function that closes over such tensors",
        "functorch 0.1 to torch 2.15",
        "looks for the operation in the graph that plain autograd records and takes the autograd backend",
        test="tests/test_wrong_answers.py::test_one_derivative_by_a_transform_and_one_by_plain_autograd",
    ),
    WrongAnswer(
        "`jvp` and `jacfwd` of a `torch.library.custom_op` with `register_autograd` are zero",
        "2.4 to 2.15",
        "looks for registered operators and takes the autograd backend",
        test="tests/test_refusals.py::test_a_refusal_is_known_by_its_row",
    ),
    WrongAnswer(
        "nested derivatives of TorchScript after its optimizer ran; also plain derivatives after a batched backward "
        "was optimized",
        "functorch 0.1 to torch 2.15",
        "keeps TorchScript from optimizing within transforms, and computes scripts that were optimized before on the "
        "autograd backend",
        test="tests/test_wrong_answers.py::test_derivatives_of_torchscript_at_every_stage_of_its_optimizer",
    ),
    WrongAnswer(
        "second derivatives through saved-tensor hooks treat the tensors that these return as constants",
        "functorch 0.1 and 0.2",
        "notices the hooks and takes the autograd backend",
        test="tests/test_fallback.py::test_second_derivatives_of_what_is_refused",
    ),
    WrongAnswer(
        "`torch.autograd.functional` within a transform gives zeros ([functorch "
        "847](https://github.com/pytorch/functorch/issues/847))",
        "functorch 0.1",
        "notices the call and takes the autograd backend",
        test="tests/test_fallback.py::test_second_derivatives_of_what_is_refused",
    ),
    WrongAnswer(
        "`abs`, `angle`, `rfft`, `stft` and other operations on complex numbers, in forward mode or mapped",
        "functorch 0.1 and 0.2",
        "notices calls that make complex numbers, and within derivatives each `abs` and norm of complex numbers, and "
        "takes the autograd backend",
        test="tests/test_wrong_answers.py::test_operations_that_some_torch_gets_wrong",
    ),
    WrongAnswer(
        "forward mode of `logcumsumexp` by the double-backward trick is not a number",
        "every torch",
        "contracts the rows of the pullback",
        test="tests/test_wrong_answers.py::test_operations_that_some_torch_gets_wrong",
    ),
    WrongAnswer(
        "second derivatives of `weight_norm` by its `v` "
        "([198017](https://github.com/pytorch/pytorch/issues/198017) is the umbrella)",
        "1.12 to 2.15",
        "evaluates it in elementary operations where another derivative may be taken",
        test="tests/test_wrong_answers.py::test_second_derivatives_of_weight_norm",
    ),
    WrongAnswer(
        "mixed derivatives of `kl_div` by its input and its target, also where plain autograd takes one of them",
        "1.8 to 1.12",
        "likewise",
        test="tests/test_wrong_answers.py::test_operations_that_some_torch_gets_wrong",
    ),
    WrongAnswer(
        "third derivatives of `layer_norm` ([175754](https://github.com/pytorch/pytorch/issues/175754)), `batch_norm` "
        "and `instance_norm` ([186256](https://github.com/pytorch/pytorch/issues/186256))",
        "1.8 to 2.15",
        "likewise",
        test="tests/test_wrong_answers.py::test_third_derivatives_by_plain_autograd",
    ),
    WrongAnswer(
        "first derivatives of `cdist` of batches that are broadcast (1.8), and third derivatives of `pdist` (2.15)",
        "1.8, 2.15",
        "likewise",
        test="tests/test_composed_operations.py",
    ),
    WrongAnswer(
        "forward mode of an operation in place on a tensor and itself or a view of it, as `x.mul_(x[:])`",
        "2.0 to 2.15",
        "notices the operation and takes the autograd backend",
        test="tests/test_trial.py::test_tangents_of_what_is_overwritten",
    ),
    WrongAnswer(
        "`vmap` of `index_fill` by a mapped number, of a tensor that is not mapped, gives all samples the last one's",
        "2.1 to 2.15",
        "compares a batch with its first and last sample when the function is first called",
        test="tests/test_trial.py::test_each_sample_of_a_batch_is_what_it_is_alone",
    ),
    WrongAnswer(
        "`vmap` of `x[i, :, j] = v`, where a slice or None is between two tensors, writes to other places if there are "
        "as many samples as places",
        "2.0 to 2.15",
        "likewise",
        test="tests/test_trial.py::test_each_sample_of_a_batch_is_what_it_is_alone",
    ),
    WrongAnswer(
        "gradients by plain autograd through `vmap` of `embedding` with a `padding_idx` and mapped rows: the rows of "
        "padding of all samples but the first get one",
        "2.0 to 2.15",
        "notices the operation and takes the autograd backend, where plain autograd records the batch",
        test="tests/test_trial.py::test_rows_of_padding_of_each_sample_get_no_gradient",
    ),
    WrongAnswer(
        "the same before modes see operations: samples other than the first and the last one are not tested",
        "functorch 0.1 to torch 1.13",
        is_open=True,
    ),
    WrongAnswer(
        "second derivatives of `sinc` at and next to zero, and third ones of the Bessel functions `i1` and `i1e`",
        "1.8 to 2.15",
        "computes them by integrals",
        test="tests/test_composed_operations.py::test_special_functions_at_zero",
    ),
    WrongAnswer(
        "third derivatives of `det` at and next to singular matrices are rounding errors",
        "1.13 to 2.15",
        "computes up to eight rows by minors",
        test="tests/test_matrices.py::test_third_derivatives_of_determinants",
    ),
    WrongAnswer(
        "`det` at singular matrices, in forward mode (to 2.6; nested to 2.15) and by its gradient (1.8); its second "
        "derivatives in a batch where singular values coincide (1.11 to 2.6)",
        "1.8 to 2.15",
        "computes up to three rows by cofactors, and takes the autograd backend for more",
        test="tests/test_matrices.py::test_derivatives_of_determinants",
    ),
    WrongAnswer(
        "forward mode of `cholesky`, `eigh` and `eigvalsh` takes one triangle of a tangent, or both apart, where "
        "reverse mode takes the symmetric part",
        "1.11 to 2.15",
        "takes the symmetric part of the tangent",
        test="tests/test_matrices.py::test_tangents_of_functions_of_symmetric_matrices",
    ),
    WrongAnswer(
        "forward mode of `embedding` differentiates by the row of `padding_idx`, which reverse mode takes for constant",
        "1.11 to 2.15",
        "treats it as a constant",
        test="tests/test_matrices.py::test_the_row_of_padding_is_constant_in_every_mode",
    ),
    WrongAnswer(
        "forward mode differentiates operations within `no_grad()` ([78961](https://github.com/pytorch/pytorch/issues/78961))",
        "functorch 0.1 to torch 2.15",
        "notices the switch of grad mode and takes the transpose of reverse mode",
        test="tests/conformance/test_state.py",
    ),
    WrongAnswer(
        "zeros for an output that changes with an input, where numbers left torch or an operation has no derivative",
        "every torch",
        "evaluates it at another point, and raises or warns if it moves, unless the function calls `detach()` or "
        "`no_grad()`",
        test="tests/test_backends.py",
    ),
    WrongAnswer(
        "forward mode of `cholesky_inverse` (1.12 and newer), of products by `scatter_reduce` (1.13 and newer), and of "
        "the gradient of `triangular_solve` (1.11 to 1.13)",
        "functorch 0.2 to torch 2.15",
        "notices the operation and takes the autograd backend",
        test="tests/test_wrong_answers.py::test_operations_that_some_torch_gets_wrong",
    ),
    WrongAnswer(
        "second derivatives of eigenvectors, and of `cumprod` where it meets a zero, are not a number "
        "in reverse over forward mode",
        "functorch 0.1 to torch 2.15",
        "notices the operation and takes the autograd backend",
        test="tests/test_wrong_answers.py::test_operations_that_some_torch_gets_wrong",
    ),
    WrongAnswer(
        "forward mode in two threads at once",
        "2.0 to 2.15",
        "one thread at a time",
        test="tests/conformance/test_state.py",
    ),
    WrongAnswer(
        "forward mode through a backward that is not differentiable, by the double-backward trick",
        "every torch",
        "checks the transpose against the pullback",
        test="tests/test_wrong_answers.py::test_forward_mode_through_a_backward_that_is_not_differentiable",
    ),
    WrongAnswer(
        "Second derivatives through a custom `autograd.Function` whose backward is not differentiable "
        "(`once_differentiable`, numpy inside), on the autograd backend",
        "every torch",
        test="tests/test_wrong_answers.py::test_second_derivatives_through_it_raise",
    ),
    WrongAnswer(
        "second derivatives of `acosh` of complex numbers, as of plain autograd",
        "1.12 and older",
        is_open=True,
    ),
    WrongAnswer(
        "a backward that is differentiable by its cotangent but takes a value of the input by numpy or "
        "`detach()`: its second derivative lacks that part, as in plain autograd",
        "every torch",
        is_open=True,
    ),
    WrongAnswer(
        "`vmap(vjp_fn)` of `prelu` within another `vmap`, where there are as many samples as elements of one",
        "2.0 to 2.15",
        is_open=True,
    ),
    WrongAnswer(
        "autocast within or around `vmap`: linear layers with a bias and convolutions stay float32, dot "
        "products become bfloat16 ([105442](https://github.com/pytorch/pytorch/issues/105442))",
        "functorch 0.1 to torch 2.15",
        "notices autocast and loops over the samples",
        test="tests/test_refusals.py::test_autocast_casts_as_for_a_sample",
    ),
    WrongAnswer(
        "`vmap` and `grad` within it give the function a plain tensor for an instance of a subclass",
        "functorch 0.1 to torch 2.15",
        "notices the class and takes the autograd backend",
        test="tests/test_refusals.py::test_subclasses_reach_the_function_as_they_came",
    ),
    WrongAnswer(
        "backward hooks of modules do not run in a backward pass through `vmap`",
        "functorch 0.1 to torch 2.15",
        "notices the hooks and loops over the samples, where grad mode is on",
        test="tests/test_refusals.py::test_backward_hooks_of_modules_run",
    ),
    WrongAnswer(
        "a checkpoint within `functional_call` runs again with the module's own parameters",
        "1.8 to 2.15",
        "puts the given ones back for the time of the second run",
        test="tests/test_module.py::test_what_a_checkpoint_runs_again_finds_what_was_given",
    ),
    WrongAnswer(
        "`functional_call` within `parametrize.cached()` uses what was cached of other parameters",
        "1.9 to 2.15",
        "takes nothing from that cache",
        test="tests/test_module.py::test_cached_parametrizations",
    ),
    WrongAnswer(
        "`stack_module_state` within a differentiated function detaches what `functional_call` was "
        "given ([182842](https://github.com/pytorch/pytorch/issues/182842))",
        "1.8 to 2.15",
        "stacks it attached",
        test="tests/test_module.py::test_an_ensemble_within_what_is_differentiated",
    ),
    WrongAnswer(
        "the same mistakes under `torch.compile`, where nothing can be tested; and a transform of an "
        "`autograd.Function`, which is the derivative of its forward there "
        "([193279](https://github.com/pytorch/pytorch/issues/193279))",
        "2.5 to 2.15",
        "breaks the graph at Functions and operations known by name, or raises if `fullgraph=True`",
        test="tests/test_compiled_guards.py::test_the_graph_breaks",
    ),
)
