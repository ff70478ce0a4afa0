"""Which backward passes give the derivatives that were asked for, each pass once.

A derivative is a sorted tuple of coordinates: u_xy and u_yx are the same. One backward pass of a derivative gives all
its derivatives by one coordinate more, so the passes are the derivatives that have to be differentiated again.
"""

from __future__ import annotations

from typing import Any, Dict, Sequence, Tuple, Union

Entry = Union[str, Tuple[str, ...]]
# The coordinates that a derivative is taken by, sorted; () is the field itself.
Index = Tuple[int, ...]
# For each derivative of one order that is differentiated again: what comes of it, and from which coordinate.
Passes = Dict[Index, Dict[Index, int]]


class Plan:
    """The derivatives of one component of a field.

    Parameters
    ----------
    api : str
        The name of the public function, for messages.
    entries : sequence of str or tuple of str
        The derivatives, each as the coordinates that it is taken by.
    coordinates : sequence of str
        The names of the coordinates, in their order along the last dimension.

    Attributes
    ----------
    names : dict
        For each entry, its index.
    orders : list of Passes
        The backward passes, by the order of what they differentiate.
    """

    def __init__(self, api: str, entries: Sequence[Entry], coordinates: Sequence[str]) -> None:
        if isinstance(entries, str) or not entries:
            raise ValueError(
                f"{api}: expected the derivatives as a sequence like ('t', 'xx'), got {entries!r}; a single one is "
                f"('xx',)"
            )
        self.names: dict[Entry, Index] = {entry: _index(api, entry, coordinates) for entry in entries}
        needed = set(self.names.values())
        highest = max(len(index) for index in needed)
        self.orders: list[Passes] = []
        for order in range(highest, 0, -1):
            passes = _passes({index for index in needed if len(index) == order}, needed)
            needed.update(passes)
            self.orders.insert(0, passes)


def _index(api: str, entry: Any, coordinates: Sequence[str]) -> Index:
    if not (isinstance(entry, str) or (isinstance(entry, tuple) and all(isinstance(name, str) for name in entry))):
        raise ValueError(f"{api}: expected a derivative to be a string like 'xx' or a tuple of names, got {entry!r}")
    unknown = [name for name in entry if name not in coordinates]
    if unknown:
        raise ValueError(
            f"{api}: the derivative {entry!r} is by {unknown[0]!r}, which is none of the coordinates "
            f"{tuple(coordinates)!r}. Write names of several letters as in ('x1', 'x2')"
        )
    return tuple(sorted([list(coordinates).index(name) for name in entry]))


def _passes(wanted: set[Index], needed: set[Index]) -> Passes:
    """A few derivatives of one order less that give all wanted ones. Those that are needed anyway come first."""
    passes: Passes = {}
    left = set(wanted)
    while left:
        parents: Passes = {}
        for child in sorted(left):
            for position, coordinate in enumerate(child):
                parents.setdefault(child[:position] + child[position + 1 :], {})[child] = coordinate
        best = max(sorted(parents), key=lambda parent: (len(parents[parent]), parent in needed))
        passes[best] = parents[best]
        left.difference_update(parents[best])
    return passes


def check_coordinates(api: str, coordinates: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple; ValueError unless they are different strings."""
    names = tuple(coordinates)
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
        raise ValueError(
            f"{api}: expected coordinates to be different names, as in 'txy' or ('t', 'x1', 'x2'), got {coordinates!r}"
        )
    return names
