"""The communication between processes, by the collectives of torch.distributed only.

Between two collectives one process may fail alone, and the others would wait for it. So everything that can fail is
done within `Team.agree`, after which either all continue or all raise.
"""

from __future__ import annotations

import json
import traceback
from typing import Any, Callable, TypeVar

import torch
from torch import Tensor

from .._arguments.partition import bounds
from .._torch import facts

T = TypeVar("T")

# dtypes that not every engine sends -> dtypes that can hold them and that every engine sends
_CARRIERS = {torch.bool: torch.uint8, torch.bfloat16: torch.float32, torch.int16: torch.int32}


class RemoteError(RuntimeError):
    """Another process failed.

    Attributes
    ----------
    rank : int
        Its rank, among all processes.
    remote_traceback : str
        The traceback that was printed there.
    """

    def __init__(self, message: str, rank: int, remote_traceback: str) -> None:
        super().__init__(message)
        self.rank = rank
        self.remote_traceback = remote_traceback


def _distributed() -> Any:
    """torch.distributed if it is initialised, else None. Some builds of torch lack it."""
    module: Any = torch.distributed
    return module if module.is_available() and module.is_initialized() else None


class Team:
    """The processes of a group; one alone where torch.distributed was not initialised.

    Attributes
    ----------
    rank, size : int
        This one's place in the group, and how many there are.
    ranks : list of int
        The ranks of the group's members among all processes; known once they agreed on something.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.engine = _distributed()
        self.rank, self.size, self.global_rank, self.backend = 0, 1, 0, ""
        self.ranks: list[int] = []
        if self.engine is None:
            if group is not None:
                raise RuntimeError("a group was given, but torch.distributed is not initialised in this process")
            return
        self.rank, self.size = self.engine.get_rank(group), self.engine.get_world_size(group)
        if self.rank < 0:
            raise RuntimeError(
                f"rank {self.engine.get_rank()} is not in the group: only its members may call this function"
            )
        self.global_rank, self.backend = self.engine.get_rank(), str(self.engine.get_backend(group))

    def transport_device(self, tensor: Tensor) -> torch.device:
        """The device that the engine needs a tensor on."""
        return torch.device("cpu") if self.backend == "gloo" else tensor.device

    def _message_device(self) -> torch.device:
        """The device for messages: NCCL sends from GPUs only, and each process has its own GPU."""
        return torch.device("cuda", torch.cuda.current_device()) if self.backend == "nccl" else torch.device("cpu")

    def exchange(self, message: Any) -> list[Any]:
        """Exchange messages; returns those of all processes, by rank in
        the group. A message is anything that JSON can hold."""
        device = self._message_device()
        text = torch.tensor(list(json.dumps(message).encode()), dtype=torch.uint8, device=device)
        lengths = torch.zeros(self.size, dtype=torch.int64, device=device)
        self.engine.all_gather(list(lengths.split(1)), lengths.new_tensor([len(text)]), group=self.group)
        longest = int(lengths.max())
        padded = torch.cat([text, text.new_zeros(longest - len(text))])
        texts = text.new_zeros(self.size, longest)
        self.engine.all_gather(list(texts.unbind()), padded, group=self.group)
        return [json.loads(bytes(row[:length].tolist())) for row, length in zip(texts.cpu(), lengths.tolist())]

    def agree(self, name: str, compute: Callable[[], tuple[T, Any]]) -> tuple[T, list[Any]]:
        """The result and the note of ``compute()``, and the notes of all processes.

        Raises
        ------
        RemoteError
            `compute` raised in another process. In this one it may have succeeded.
        """
        failure: Exception | None = None
        found: tuple[T, Any] | None = None
        try:
            found = compute()
        # The user's function may raise anything. The other processes wait for this one, so they are told first.
        except Exception as error:  # noqa: BLE001
            failure = error
        told: list[Any] = [[0, name, None, None if found is None else found[1]]]
        if self.size > 1:
            status = None if failure is None else _describe(failure)
            try:
                told = self.exchange([self.global_rank, name, status, told[0][3]])
            except RuntimeError:
                if failure is None:
                    raise
                raise failure from None  # the others cannot be told; the error of this process comes first
        self.ranks = [message[0] for message in told]
        if failure is not None:
            raise failure
        for rank, _, status, _ in told:
            if status is not None:
                kind, text, trace = status
                raise RemoteError(f"rank {rank} raised {kind}: {text}", rank, trace)
        for rank, other, _, _ in told:
            if other != name:
                raise RuntimeError(
                    f"the processes are out of step: rank {self.global_rank} called {name}, rank {rank} called {other}"
                )
        assert found is not None
        return found[0], [note for _, _, _, note in told]


def _describe(error: Exception) -> list[str]:
    trace = traceback.format_exception(type(error), error, error.__traceback__)
    return [type(error).__name__, str(error), "".join(trace)[-20_000:]]


class Parcel:
    """One tensor of a share on its way to the others.

    All memory is allocated when it is made, so that nothing can fail later in one process alone. Shares are padded to
    the largest one.

    Parameters
    ----------
    team : Team
    part : Tensor
        Its dimension 0 is the share.
    total : int
        Rows of all shares.
    dst : int or None
        The rank, among all processes, that gets the whole; None for all of them.
    """

    def __init__(self, team: Team, part: Tensor, total: int, dst: int | None) -> None:
        self._team = team
        self._like = part
        self._total = total
        self._dst = None if team.backend == "nccl" and facts.has("nccl_cannot_gather") else dst
        longest = bounds(0, team.size, total)[1]
        block = part.new_zeros(
            (longest, *part.shape[1:]), dtype=_CARRIERS.get(part.dtype, part.dtype), device=team.transport_device(part)
        )
        block[: len(part)] = part.detach()
        self._block = torch.view_as_real(block) if block.is_complex() else block
        slots = team.size if self._dst in (None, team.global_rank) else 0
        self._all = self._block.new_empty((slots, *self._block.shape))

    def send(self) -> Tensor:
        """The whole tensor; a tensor without rows if another process gets it."""
        if self._block.numel():
            self._exchange()
        sizes = [
            stop - start for start, stop in (bounds(r, self._team.size, self._total) for r in range(len(self._all)))
        ]
        if len(set(sizes)) <= 1:
            whole = self._all.flatten(0, 1)
        else:
            whole = torch.cat([block[:size] for block, size in zip(self._all, sizes)])
        if self._like.is_complex():
            whole = torch.view_as_complex(whole)
        return whole.to(dtype=self._like.dtype, device=self._like.device)

    def _exchange(self) -> None:
        engine, group, slots = self._team.engine, self._team.group, list(self._all.unbind())
        if self._dst is None:
            engine.all_gather(slots, self._block, group=group)
        else:
            engine.gather(self._block, slots or None, dst=self._dst, group=group)


def bits(tensor: Tensor) -> Tensor:
    """The bits of each element, as int64."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj() if hasattr(tensor, "resolve_conj") else tensor)
    if tensor.is_floating_point():
        same_size = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
        tensor = tensor.contiguous().view(same_size[tensor.element_size()])
    return tensor.to(torch.int64).reshape(-1)


def checksum(tensor: Tensor) -> int:
    """A number that differs if any element does, but for one case in 2**64; the same on every device.

    A sum, modulo 2**64, of the elements' bits mixed with their places (the finaliser of splitmix64, G. L. Steele, D.
    Lea, C. H. Flood, doi:10.1145/2714064.2660195). One pass, five operations an element.
    """
    words = bits(tensor)
    words = words + torch.arange(1, len(words) + 1, device=words.device) * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        words = (words ^ (words >> shift)) * factor
    return int((words ^ (words >> 31)).sum())
