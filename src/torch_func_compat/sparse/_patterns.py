"""Patterns: which entries of a matrix can be nonzero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..autograd.checks import unwrap
from ._aside import aside

__all__ = ["Pattern", "as_pattern", "neighbor_pattern"]


class Pattern:
    """The entries of a matrix that can be nonzero, in a fixed order.

    Parameters
    ----------
    rows, columns : Tensor
        Indices of the entries, ``(nnz,)`` each, of integers. Their order is that of the values of
        ``layout='values'``.
    shape : tuple of int
        Rows and columns of the matrix.
    block_size : int
        The matrix consists of full square blocks of so many rows, as that of three coordinates for each atom does. A
        coloring then has to look at the blocks only.

    Raises
    ------
    TypeError
        Indices that are no integers.
    ValueError
        Indices out of range, an entry that is given twice, or blocks that are not full.

    See Also
    --------
    neighbor_pattern, detect_pattern

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.sparse import Pattern
    >>> pattern = Pattern(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), (2, 2))
    >>> pattern
    Pattern(2 x 2, 3 entries)
    >>> pattern.to_dense()
    tensor([[ True, False],
            [ True,  True]])
    """

    @aside
    def __init__(self, rows: Tensor, columns: Tensor, shape: tuple[int, int], *, block_size: int = 1) -> None:
        rows, columns = _indices(rows, columns)
        self.rows: Tensor = rows
        self.columns: Tensor = columns
        self.shape: tuple[int, int] = (int(shape[0]), int(shape[1]))
        self.block_size: int = block_size
        # Whether the matrix may have more rows and columns than the indices say.
        self.open_ended: bool = False
        for name, index, size in (("row", self.rows, self.shape[0]), ("column", self.columns, self.shape[1])):
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
                wrong = int(index.min()) if int(index.min()) < 0 else int(index.max())
                raise ValueError(f"pattern: {name} {wrong} is not one of the {size} {name}s")
        keys = torch.sort(self._keys())[0]
        twice = keys[1:][keys[1:] == keys[:-1]]
        if twice.numel():
            row, column = divmod(int(twice[0]), self.shape[1])
            raise ValueError(f"pattern: entry (row {row}, column {column}) is given more than once")
        if block_size != 1:
            self._check_blocks()

    def _keys(self) -> Tensor:
        return self.rows * max(self.shape[1], 1) + self.columns

    def _check_blocks(self) -> None:
        size = self.block_size
        if size < 1 or self.shape[0] % size or self.shape[1] % size:
            raise ValueError(f"pattern: a matrix of shape {self.shape} does not consist of blocks of {size} rows")
        if self.blocks().nnz * size**2 != self.nnz:
            raise ValueError(f"pattern: the blocks of {size} x {size} entries are not full")

    @property
    def nnz(self) -> int:
        """How many entries there are."""
        return self.rows.numel()

    def __repr__(self) -> str:
        blocks = f", blocks of {self.block_size}" if self.block_size != 1 else ""
        return f"Pattern({self.shape[0]} x {self.shape[1]}, {self.nnz} entries{blocks})"

    @aside
    def blocks(self) -> Pattern:
        """The pattern of the blocks."""
        if self.block_size == 1:
            return self
        height, width = (size // self.block_size for size in self.shape)
        keys = quotient(self.rows, self.block_size) * max(width, 1) + quotient(self.columns, self.block_size)
        return Pattern(*split(torch.unique(keys), width), (height, width))

    @aside
    def sized(self, rows: int, columns: int) -> Pattern:
        """The same pattern for a matrix with so many rows and columns."""
        if self.shape == (rows, columns):
            return self
        if not (self.open_ended and rows >= self.shape[0] and columns >= self.shape[1]):
            least = "at least " if self.open_ended else ""
            raise ValueError(f"pattern: it has a shape of {least}{self.shape}, the derivative one of {(rows, columns)}")
        return Pattern(self.rows, self.columns, (rows, columns))

    @aside
    def symmetrized(self) -> Pattern:
        """The pattern with the transpose of each of its entries: row-major, as a Hessian's has to be.

        Examples
        --------
        >>> import torch
        >>> from torch_func_compat.sparse import Pattern
        >>> Pattern(torch.tensor([0]), torch.tensor([1]), (2, 2)).symmetrized().to_dense()
        tensor([[False,  True],
                [ True, False]])
        """
        size = max(self.shape)
        keys = torch.unique(torch.cat([self.rows * size + self.columns, self.columns * size + self.rows]))
        found = Pattern(*split(keys, size), (size, size), block_size=self.block_size)
        found.open_ended = self.open_ended
        return found

    @aside
    def missing_transposes(self) -> list[tuple[int, int]]:
        """Entries whose transpose is missing in the pattern."""
        size = max(self.shape)
        there, back = self.rows * size + self.columns, self.columns * size + self.rows
        # counted once where only there, twice where only back, three times where both
        keys, counts = torch.unique(torch.cat([there, back, back]), return_counts=True)
        return [divmod(key, size) for key in keys[counts == 1].tolist()]

    @aside
    def to_dense(self) -> Tensor:
        """The pattern as a matrix of booleans."""
        dense = torch.zeros(self.shape, dtype=torch.bool, device="cpu")
        dense[self.rows, self.columns] = True
        return dense

    def to_scipy(self, values: Tensor) -> Any:
        """A ``scipy.sparse.coo_matrix`` with these values, in the pattern's order.

        Parameters
        ----------
        values : Tensor
            ``(nnz,)``, as from ``layout='values'``.

        Returns
        -------
        scipy.sparse.coo_matrix
            ``.tocsc()`` of it is what ``scipy.sparse.linalg.splu`` factorises.

        Raises
        ------
        ImportError
            There is no scipy.
        ValueError
            Another number of values.
        """
        from scipy.sparse import coo_matrix  # type: ignore[import-untyped,unused-ignore]

        if values.shape != (self.nnz,):
            raise ValueError(f"to_scipy: expected {self.nnz} values, got a tensor of shape {tuple(values.shape)}")
        indices = (self.rows.numpy(), self.columns.numpy())
        return coo_matrix((values.detach().cpu().numpy(), indices), shape=self.shape)


@aside
def neighbor_pattern(i: Tensor, j: Tensor, atoms: int, *, block_size: int = 3) -> Pattern:
    """Pattern of the Hessian of an energy of pairs: a block for each pair of neighbors, and those of the diagonal.

    Parameters
    ----------
    i, j : Tensor
        The pairs, ``(P,)`` each, of integers. Each pair may be there once or from both sides. An energy with angles
        depends on the pairs of their outer atoms, too.
    atoms : int
        How many there are.
    block_size : int
        Coordinates of an atom.

    Returns
    -------
    Pattern
        Row-major, of shape ``(atoms * block_size, atoms * block_size)``.

    Raises
    ------
    TypeError, ValueError
        As for `Pattern`.

    Notes
    -----
    Cost: a sort of the pairs.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.sparse import neighbor_pattern
    >>> neighbor_pattern(torch.tensor([0, 1]), torch.tensor([1, 2]), 4)
    Pattern(12 x 12, 72 entries, blocks of 3)
    """
    i, j = _indices(i, j)
    wrong = torch.cat([i, j])
    wrong = wrong[(wrong < 0) | (wrong >= atoms)]
    if wrong.numel():
        raise ValueError(f"neighbor_pattern: the pairs name atom {int(wrong[0])}, which is not one of {atoms} atoms")
    own = torch.arange(atoms, device="cpu")
    keys = torch.unique(torch.cat([i * atoms + j, j * atoms + i, own * (atoms + 1)]))
    heads, tails = split(keys, atoms)
    within, size = torch.arange(block_size, device="cpu"), atoms * block_size
    rows = heads[:, None, None] * block_size + within[:, None]
    columns = tails[:, None, None] * block_size + within
    return Pattern(
        *split(torch.sort((rows * size + columns).reshape(-1))[0], size), (size, size), block_size=block_size
    )


@aside
def as_pattern(pattern: Any) -> Pattern:
    """A pattern from any of the forms that users may give."""
    if isinstance(pattern, Pattern):
        return pattern
    if isinstance(pattern, (tuple, list)) and len(pattern) == 2 and all(isinstance(p, Tensor) for p in pattern):
        rows, columns = _indices(*pattern)
        shape = tuple(int(index.max()) + 1 if index.numel() else 0 for index in (rows, columns))
        found = Pattern(rows, columns, (shape[0], shape[1]))
        found.open_ended = True
        return found
    if isinstance(pattern, Tensor) and pattern.dim() == 2:
        pattern = unwrap(pattern)
        if pattern.layout == torch.strided:
            rows, columns = pattern.nonzero().t()
        else:
            rows, columns = _coo(pattern).coalesce().indices()
        return Pattern(rows, columns, (pattern.shape[0], pattern.shape[1]))
    what = f"a tensor of shape {tuple(pattern.shape)}" if isinstance(pattern, Tensor) else type(pattern).__name__
    raise TypeError(
        "pattern: expected a Pattern, a Coloring, a matrix (of booleans, or sparse) or a pair of index tensors "
        f"(rows, columns), got {what}"
    )


def _coo(tensor: Tensor) -> Tensor:
    if tensor.layout == torch.sparse_coo:
        return tensor.detach()
    # torch 1.10 detaches no CSR tensor
    counts = tensor.crow_indices()[1:] - tensor.crow_indices()[:-1]
    rows = torch.repeat_interleave(torch.arange(len(counts), device="cpu"), counts.cpu().long())
    indices = torch.stack([rows, tensor.col_indices().cpu().long()])
    return torch.sparse_coo_tensor(indices, tensor.values().detach().cpu(), tuple(tensor.shape), device="cpu")


def _indices(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    for index in (rows, columns):
        if (
            not isinstance(index, Tensor)
            or index.is_floating_point()
            or index.is_complex()
            or index.dtype == torch.bool
        ):
            raise TypeError(f"pattern: expected index tensors of integers, got {getattr(index, 'dtype', type(index))}")
        if index.dim() != 1 or rows.shape != columns.shape:
            raise ValueError(
                "pattern: expected as many rows as columns, in tensors of one dimension, got shapes "
                f"{tuple(rows.shape)} and {tuple(columns.shape)}"
            )
    return unwrap(rows).detach().cpu().long(), unwrap(columns).detach().cpu().long()


def quotient(index: Tensor, divisor: int) -> Tensor:
    """``index // divisor`` of numbers that are not negative; torch 1.8 to 1.12 warn of the operator."""
    return torch.div(index, max(divisor, 1), rounding_mode="floor")


def split(keys: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of ``row * width + column``."""
    return quotient(keys, width), keys % max(width, 1)
