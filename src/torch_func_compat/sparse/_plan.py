"""The products that a coloring needs, and the entries from the products."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from ._aside import aside
from ._coloring import Coloring, lines_and_marks
from ._patterns import Pattern


class Plan:
    """The vectors to multiply with, and the place of each entry in the products, for one size of the matrix.

    Products are those of the `seeds` with the lines that were colored; the result has one row for each seed, with one
    number for each mark: ``(count, marks)``. The last seed is random; it checks the others.
    """

    @aside
    def __init__(self, coloring: Coloring, pattern: Pattern) -> None:
        self.coloring, self.pattern = coloring, pattern
        self.lines, self.marks, self.size, self.width = lines_and_marks(pattern, coloring.mode)
        colors = coloring.colors
        self.colors = torch.cat([colors, colors.new_zeros(self.size - len(colors))])
        self.slots = self._slots()
        self._kept: dict[object, Tensor] = {}

    def _slots(self) -> Tensor:
        """For each entry, where in the products, flattened, it is."""
        own = self.colors[self.lines] * self.width + self.marks
        _, where, counts = torch.unique(own, return_inverse=True, return_counts=True)
        alone = counts[where] == 1
        if self.coloring.mode == "symmetric":
            mirrored = self.colors[self.marks] * self.width + self.lines
            _, where, counts = torch.unique(mirrored, return_inverse=True, return_counts=True)
            usable = counts[where] == 1
            # both entries of a pair come from one product, so that the matrix is symmetric to the last digit
            mirror = usable & (~alone | (self.lines > self.marks))
            own, alone = torch.where(mirror, mirrored, own), alone | usable
        if not bool(alone.all()):
            entry = int((~alone).nonzero()[0])
            row, column = int(self.pattern.rows[entry]), int(self.pattern.columns[entry])
            raise ValueError(f"coloring: its products do not give entry (row {row}, column {column}) alone")
        return own

    def seeds(self, like: Tensor, check: bool) -> Tensor:
        """The vectors to multiply by, ``(count, size)``, and one more row for the check."""
        key = ("seeds", like.dtype, like.device)
        if key not in self._kept:
            self._kept[key] = self._seeds(like.dtype, like.device)
        return self._kept[key] if check else self._kept[key][:-1]

    @aside
    def _seeds(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        seeds = torch.zeros(max(self.coloring.count, 1) + 1, self.size, dtype=dtype, device="cpu")
        taking_part = torch.unique(self.lines)
        seeds[self.colors[taking_part], taking_part] = 1
        # Torch's generators are left alone, since their state is the user's. Small numbers would hide entries.
        draw = random.Random(0)
        numbers = [draw.uniform(0.5, 1.5) * draw.choice((-1, 1)) for _ in range(self.size)]
        seeds[-1] = torch.tensor(numbers, dtype=torch.float64, device="cpu").to(dtype)
        return seeds.to(device)

    def index(self, name: str, device: torch.device) -> Tensor:
        """The attribute of that name, on a device."""
        if (name, device) not in self._kept:
            self._kept[name, device] = self._index(name, device)
        return self._kept[name, device]

    @aside
    def _index(self, name: str, device: torch.device) -> Tensor:
        index: Tensor = getattr(self, name)
        return index.to(device)

    def values(self, products: Tensor) -> Tensor:
        """The entries, in the pattern's order."""
        return products.reshape(-1).index_select(0, self.index("slots", products.device))

    def times_last_seed(self, values: Tensor) -> Tensor:
        """The random product if there is no entry outside the pattern."""
        vector = self.seeds(values, True)[-1].index_select(0, self.index("lines", values.device))
        return values.new_zeros(self.width).index_add(0, self.index("marks", values.device), values * vector)
