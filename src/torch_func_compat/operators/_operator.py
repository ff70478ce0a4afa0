"""Linear operators: matrices that are given by their products with vectors."""

from __future__ import annotations

from typing import Any, Union

import torch
from torch import Tensor

from .._torch.tensors import identity
from ..autograd import estimators
from ._products import Chain, Product
from ._scipy import lobpcg, to_scipy
from ._trees import Space

__all__ = ["LinearOperator"]

Map = Union[Product, Chain]

# Elements of the unit vectors that are made at once, for the diagonal.
AT_ONCE = 2**22


class LinearOperator:
    """A matrix that is given by its products with vectors.

    `jacobian_operator`, `hessian_operator` and `ggn_operator` make it.

    ``operator @ vector`` takes a vector of shape ``(columns,)`` or a matrix of shape ``(columns, k)``, whose columns
    are multiplied in one batched call, `chunk_size` at a time. It also takes pytrees: a tuple with one pytree for each
    argument of the function, as `jvp` (or, for the transpose, `vjp`) does, and returns the same as they do.
    ``torch.matmul``, ``torch.mv`` and ``torch.mm`` with the operator on the left do the same.

    Attributes
    ----------
    shape : torch.Size
        Rows and columns.
    dtype : torch.dtype
    device : torch.device
    T : LinearOperator
        The transpose.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.operators import jacobian_operator
    >>> operator = jacobian_operator(torch.sin, torch.zeros(2))
    >>> operator.shape, operator.T @ torch.tensor([1.0, 2.0])
    (torch.Size([2, 2]), tensor([1., 2.]))
    """

    def __init__(
        self,
        name: str,
        forward: Map,
        backward: Map,
        domain: Space,
        image: Space,
        *,
        of_output: bool = False,
    ) -> None:
        self._name, self._map, self._transposed_map = name, forward, backward
        self._domain, self._image, self._of_output = domain, image, of_output
        self.shape: torch.Size = torch.Size((image.size, domain.size))
        self.dtype: torch.dtype = domain.dtype
        self.device: torch.device = domain.device

    def __repr__(self) -> str:
        return f"{self._name}({self.shape[0]} x {self.shape[1]}, {self.dtype}, {self.device})"

    @property
    def T(self) -> LinearOperator:
        """The transpose, of the same recorded evaluation.

        Returns
        -------
        LinearOperator
            For pytrees: from a tuple with the output as its only element to a tuple of arguments.
        """
        if self._map is self._transposed_map:
            return self
        # made anew, since a reference to its own transpose would leave the graph to the garbage collector
        name = self._name[:-2] if self._name.endswith(".T") else f"{self._name}.T"
        maps = (self._transposed_map, self._map)
        return LinearOperator(name, *maps, self._image, self._domain, of_output=not self._of_output)

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, tuple):
            found = self._image.tree(self._map.one(self._domain.vector(other)))
            return found[0] if self._of_output else found
        if hasattr(other, "__array__") and not isinstance(other, Tensor):
            raise TypeError(
                f"{self._name}: expected a tensor, got {type(other)}: convert it with torch.as_tensor(), or take the "
                f"operator of to_scipy()"
            )
        if not isinstance(other, Tensor):
            return NotImplemented
        if other.dim() not in (1, 2) or other.shape[0] != self.shape[1]:
            raise ValueError(
                f"{self._name}: expected a vector of shape ({self.shape[1]},), a matrix of shape ({self.shape[1]}, k) "
                f"or a tuple of what stands for the arguments, got a tensor of shape {tuple(other.shape)}"
            )
        if other.dtype != self.dtype or other.device != self.device:
            raise ValueError(
                f"{self._name}: expected {self.dtype} on {self.device}, got {other.dtype} on {other.device}"
            )
        if other.dim() == 1:
            return self._map.one(other)
        if other.shape[1] == 0:
            return other.new_zeros(self.shape[0], 0)
        return self._map.rows(other.t()).t()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], cls):
            if func in (torch.matmul, torch.mm, torch.mv) and len(args) == 2 and not kwargs:
                return args[0] @ args[1]
            if func is torch.lobpcg:
                return lobpcg(*args, **(kwargs or {}))
        return NotImplemented

    def to_dense(self) -> Tensor:
        """The whole matrix, by as many products as it has rows or columns, whichever are fewer.

        Returns
        -------
        Tensor
            Of the shape of the operator.
        """
        rows, columns = self.shape
        if rows < columns:
            return self._transposed_map.rows(identity(rows, self._like()))
        return self._map.rows(identity(columns, self._like())).t()

    def diagonal(
        self, estimator: str = "exact", *, samples: int = 100, generator: torch.Generator | None = None
    ) -> Any:
        """The diagonal.

        Parameters
        ----------
        estimator : {'exact', 'hutchinson'}
            'exact' takes as many products as there are columns, and keeps the diagonal only. 'hutchinson' takes one
            for each sample; see `torch_func_compat.autograd.estimators.hutchinson_diagonal`.
        samples : int
            Random vectors of an estimate.
        generator : torch.Generator, optional
            Draws them; by default torch's own.

        Returns
        -------
        Tensor
            ``(min(shape),)``; with an estimator, a tuple of it and its standard error.

        Raises
        ------
        ValueError
            There is no such estimator, too few samples, or an estimator for a matrix that is not square.
        """
        _check_estimator("diagonal", estimator, ("exact", "hutchinson"))
        if estimator == "hutchinson":
            self._require_square("diagonal")
            return estimators.hutchinson_diagonal(self._map.rows, self.shape[1], self._like(), samples, generator)
        size, found = min(self.shape), []
        step = max(AT_ONCE // max(self.shape[1], 1), 1)
        for start in range(0, size, step):
            where = torch.arange(start, min(start + step, size), device=self.device)
            units = torch.zeros(len(where), self.shape[1], dtype=self.dtype, device=self.device)
            units[where - start, where] = 1
            found.append(self._map.rows(units).gather(1, where[:, None]).squeeze(1))
        return torch.cat(found) if found else self._like()

    def trace(self, estimator: str = "exact", *, samples: int = 100, generator: torch.Generator | None = None) -> Any:
        """The sum of the diagonal.

        Parameters
        ----------
        estimator : {'exact', 'hutchinson', 'hutch++'}
            'exact' takes as many products as there are columns, the others one for each sample; see
            `torch_func_compat.autograd.estimators`. 'hutch++' is the better one for matrices of low rank or with
            few large eigenvalues.
        samples, generator
            See `diagonal`.

        Returns
        -------
        Tensor
            Of no dimensions; with an estimator, a tuple of it and its standard error.

        Raises
        ------
        ValueError
            As for `diagonal`; and if the matrix is not square.
        """
        _check_estimator("trace", estimator, ("exact", "hutchinson", "hutch++"))
        self._require_square("trace")
        if estimator == "exact":
            return self.diagonal().sum()
        estimate = estimators.hutchinson_trace if estimator == "hutchinson" else estimators.hutch_plus_plus
        return estimate(self._map.rows, self.shape[1], self._like(), samples, generator)

    def to_scipy(self) -> Any:
        """A ``scipy.sparse.linalg.LinearOperator``, which ``eigsh``, ``cg``, ``svds`` and others take.

        Returns
        -------
        scipy.sparse.linalg.LinearOperator
            It takes and returns numpy arrays, which have no derivatives.

        Raises
        ------
        ImportError
            There is no scipy.
        """
        return to_scipy(self)

    def _like(self) -> Tensor:
        return torch.zeros(0, dtype=self.dtype, device=self.device)

    def _require_square(self, api: str) -> None:
        if self.shape[0] != self.shape[1]:
            raise ValueError(f"{api}: expected a square matrix, got one of shape {tuple(self.shape)}")


def _check_estimator(api: str, estimator: str, known: tuple[str, ...]) -> None:
    if estimator not in known:
        raise ValueError(f"{api}: unknown estimator {estimator!r}, expected one of {', '.join(map(repr, known))}")
