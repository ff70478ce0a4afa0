"""How much memory a computation needs, and how much there is."""

from __future__ import annotations

import os
from typing import Any, Callable, List, NamedTuple

import torch
from torch import Tensor

from .._torch import facts, pytree
from .._torch.random_state import RandomState
from .._torch.tensors import is_zerotensor

# A computation that cannot be watched is assumed to need this multiple of the memory of its results.
UNSEEN = 10

Run = Callable[[], List[Tensor]]

# The default budget is the free memory divided by this. The rest is for the result, the allocator and other processes.
FRACTION = 4
# Bytes that are assumed to be free where the system does not tell.
UNKNOWN = 2**30


def budget(device: torch.device) -> int:
    """Bytes to use by default: a quarter of what is free on `device`."""
    if device.type == "cuda":
        if hasattr(torch.cuda, "mem_get_info"):
            free = int(torch.cuda.mem_get_info(device)[0])
        else:
            free = int(torch.cuda.get_device_properties(device).total_memory)
        return (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) // FRACTION
    return (_free_on_host() if device.type == "cpu" else UNKNOWN) // FRACTION


def _free_on_host() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return UNKNOWN


class Usage(NamedTuple):
    """The memory of a computation, in bytes."""

    peak: int  # of the tensors that were alive at once
    kept: int  # of those that are still alive besides the results: what a graph holds


def _size(results: list[Tensor]) -> int:
    return sum([result.numel() * result.element_size() for result in results])


def measured(run: Run) -> tuple[list[Tensor], Usage]:
    """The results of `run`, and the memory of the tensors that it made."""
    if not facts.has("dispatch_mode"):
        return _by_profiler(run)
    state = RandomState() if facts.has("watched_forward_mode_takes_no_numbers") else None
    try:
        return _by_dispatch(run)
    except RuntimeError as error:
        if state is None or "aten::alias() Expected a value of type 'Tensor'" not in str(error):
            raise
    state.restore()
    results = run()
    return results, Usage(UNSEEN * _size(results), 0)


def _by_dispatch(run: Run) -> tuple[list[Tensor], Usage]:
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode

    # for each storage that was seen: a weak reference and its bytes, or 0 if it existed before
    alive: dict[int, tuple[Any, int]] = {}
    peak = [0]

    def see(tree: Any, new: bool) -> None:
        for tensor in pytree.flatten(tree)[0]:
            # Zeros of forward mode have no storage, and torch 1.13 takes milliseconds to say so.
            if not isinstance(tensor, Tensor) or is_zerotensor(tensor):
                continue
            try:
                storage: Any = tensor.untyped_storage() if hasattr(tensor, "untyped_storage") else tensor.storage()
                reference = StorageWeakRef(storage)
            except (RuntimeError, NotImplementedError):  # sparse tensors have none
                continue
            if reference.cdata not in alive:
                alive[reference.cdata] = reference, int(storage.nbytes()) if new else 0

    def total() -> int:
        for key in [key for key, (reference, _) in alive.items() if reference.expired()]:
            del alive[key]
        return sum([size for _, size in alive.values()])

    class Watch(TorchDispatchMode):
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return (
                False  # nothing here is traced; torch would import its compiler to find that out, which takes seconds
            )

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            see((args, kwargs), False)
            output = func(*args, **(kwargs or {}))
            see(output, True)
            peak[0] = max(peak[0], total())
            return output

    with Watch():  # type: ignore[no-untyped-call]
        results = run()
    return results, Usage(peak[0], max(total() - _size(results), 0))


def _by_profiler(run: Run) -> tuple[list[Tensor], Usage]:
    from torch.autograd import profiler

    try:
        with profiler.profile(profile_memory=True) as profile:
            results = run()
    except RuntimeError as error:
        if "rofiler" not in str(error):
            raise
        return run(), Usage(0, 0)  # another profiler is running
    live = peak = 0
    for event in sorted(profile.function_events, key=lambda event: event.time_range.start):
        change = event.self_cpu_memory_usage + event.self_cuda_memory_usage
        # torch 1.8 does not tell when memory was freed: the sum of all allocations is on the safe side
        live += change if event.time_range.end else 0
        peak = max(peak, live)
    return results, Usage(peak, max(live - _size(results), 0))
