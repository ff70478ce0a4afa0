"""A row of the table of refusals, and what the autograd backend costs in the place of torch's transforms."""

from __future__ import annotations

from typing import NamedTuple

# The costs on the autograd backend
LOOPED = "one evaluation for each sample; derivatives within it stay native"
RECORDED = "derivatives on the autograd backend, with Jacobian rows still batched where they can be; vmap is a loop"
TRANSPOSED = "forward mode as the transpose of reverse mode: one backward pass, and one through both for each tangent"
BY_ROWS = "one backward pass for each row of the Jacobian"


class Capability(NamedTuple):
    """A refusal, known by the text of an exception."""

    name: str
    pattern: str
    meaning: str
    advice: str
    until: tuple[int, int] | None = None  # the first release on which the text means something else
    cost: str = RECORDED
    lasting: bool = True  # whether each call of the function is refused, and not only calls in these surroundings
