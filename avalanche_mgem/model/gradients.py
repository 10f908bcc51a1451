"""The gradients of a model's restricted parameters as the rows of one matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from avalanche_mgem.model.partition import Modules
from avalanche_mgem.restriction.cone import Cone
from avalanche_mgem.restriction.dual import DualSolver
from avalanche_mgem.restriction.rounds import Ridge

Parameters = Sequence[nn.Parameter]


class GradientMatrix:
    """The current gradient [P] and the memory's [K, P], in one buffer where they are of one dtype.

    They are made anew when the parameters or the number of rows change, and are no part of a copy
    or a pickle: they are filled again at every iteration.

    Attributes:
        gradient: the current gradient, [P].
        rows: the memory's gradients, [K, P].
    """

    _cone: Cone | None = None
    _made_for: object = None  # the cone's arguments

    def __init__(self) -> None:
        self.gradient, self.rows = torch.empty(0), torch.empty(0, 0)
        self.rows_are_new()

    def __getstate__(self) -> dict[str, object]:
        return vars(GradientMatrix())

    def __setstate__(self, _: dict[str, object]) -> None:
        vars(self).update(vars(GradientMatrix()))  # whatever an older version has kept

    def cone(self, n_rows: int, modules: Modules, solver: DualSolver | None, ridge: Ridge) -> Cone:
        """Return the cone of the first memory rows, to project the current gradient on.

        It is made anew only for other arguments, or when gradient and rows are.
        """
        wanted = (n_rows, modules, solver, ridge)
        if self._cone is None or wanted != self._made_for:
            rows = self.rows[:n_rows]
            self._cone = Cone(self.gradient, rows, modules=modules, solver=solver, ridge=ridge)
            self._made_for = wanted
        return self._cone

    def fit(self, parameters: Parameters, n_rows: int, *, half: bool = False) -> None:
        """Make room for K = n_rows memory rows over these parameters.

        half: see `row_dtypes`.
        """
        shape = (n_rows, sum(p.numel() for p in parameters))
        dtype, kept = row_dtypes(parameters, half=half)
        device, rows = parameters[0].device, self.rows
        if rows.shape == shape and rows.dtype == kept and rows.device == device:
            return
        del rows
        # Let go of the old ones before there are new ones.
        self.gradient, self.rows, self._cone = torch.empty(0), torch.empty(0, 0), None
        if kept == dtype:
            buffer = torch.zeros(shape[0] + 1, shape[1], dtype=dtype, device=device)
            self.gradient, self.rows = buffer[0], buffer[1:]
        else:
            self.gradient = torch.zeros(shape[1], dtype=dtype, device=device)
            self.rows = torch.zeros(shape, dtype=kept, device=device)

    def set_gradient(self, values: Sequence[Tensor | None], like: Parameters) -> None:
        """Fill row 0 from one tensor a parameter of `like`; None is zero."""
        row = self.gradient
        parts = [v.detach().reshape(-1) for v in values if v is not None and _is_part_of(v, row)]
        if len(parts) == len(values):
            torch.cat(parts, out=row)
        else:
            into_row(row, values, like)

    def scale_rows(self, factors: Sequence[float], like: Parameters) -> None:
        """Scale each parameter's positions in the memory rows by its factor, in place of the last.

        The factors of new rows are one.
        """
        for index, columns in enumerate(positions(like)):
            change = factors[index] / self._factors.get(index, 1.0)
            if change != 1.0:
                self.rows[:, columns] *= change
            self._factors[index] = factors[index]

    def hold_still(
        self, columns: slice, shape: torch.Size, dims: tuple[int, ...], held: Tensor
    ) -> None:
        """Make some rows of a parameter zero, in the current gradient and in the memory's.

        Args:
            columns: where the parameter lies in the long vector.
            shape: of the parameter.
            dims: its dimensions along which its rows lie: (0,) of a linear layer's weight.
            held: which of them, bool of these dimensions' sizes.
        """
        parts = [each[:, columns].view(-1, *shape) for each in (self.gradient[None], self.rows)]
        if len(dims) == 1 and held.device.type == "cpu":  # elsewhere it would be waited for
            index = held.nonzero().flatten()
            for part in parts:
                part.index_fill_(dims[0] + 1, index, 0.0)
            return
        fitting = [size if dim in dims else 1 for dim, size in enumerate(shape)]
        for part in parts:
            part.masked_fill_(held.view(fitting), 0.0)

    def rows_are_new(self) -> None:
        """Say that the memory rows have been written."""
        self._factors: dict[int, float] = {}

    def scale_as_the_others(self, first: int, like: Parameters) -> None:
        """Give the memory rows from `first` on, newly written, the factors that the others have."""
        for index, columns in enumerate(positions(like)):
            self.rows[first:, columns] *= self._factors.get(index, 1.0)


def row_dtypes(parameters: Parameters, *, half: bool = False) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtypes of the current gradient and of the memory rows over these parameters.

    Both are float32, or float64 where a parameter is. half: rows that would be float32 are kept in
    bfloat16, which takes half the memory; they are multiplied in float32 or float64 all the same,
    as half precision is not enough for the dot products of long vectors.
    """
    wide = any(p.dtype == torch.float64 for p in parameters)
    dtype = torch.float64 if wide else torch.float32
    return dtype, torch.bfloat16 if half and not wide else dtype


@contextmanager
def rounded_once(row: Tensor) -> Iterator[Tensor]:
    """Yield zeros [P] to add up what becomes the row.

    They are the row itself, unless it is bfloat16: then float32, rounded on the way out.
    """
    if row.dtype != torch.bfloat16:
        yield row.zero_()
        return
    total = torch.zeros_like(row, dtype=torch.float32)
    yield total
    row.copy_(total)


def into_row(row: Tensor, values: Sequence[Tensor | None], like: Parameters) -> None:
    """Fill row [P] from one tensor a parameter of `like`; None is zero.

    A tensor that is that part of the row already is left alone.
    """
    for value, columns in zip(values, positions(like), strict=True):
        if value is None:
            row[columns].zero_()
        elif _address(value) != row.data_ptr() + columns.start * row.element_size():
            row[columns].copy_(_dense(value.detach()).reshape(-1))


def add_to_row(row: Tensor, values: Sequence[Tensor | None], like: Parameters) -> None:
    """Add one tensor a parameter of `like` to row [P]; None is zero."""
    for value, columns in zip(values, positions(like), strict=True):
        if value is not None:
            row[columns] += _dense(value.detach()).reshape(-1)


def write_gradients(
    parameters: Parameters, vector: Tensor, values: Sequence[Tensor | None]
) -> None:
    """Write the long vector [P] into the parameters' .grad, in place of `values`.

    Where the value is None, the gradient stays as it is; a sparse one becomes dense.
    """
    for parameter, columns, value in zip(parameters, positions(parameters), values, strict=True):
        if value is None or parameter.grad is None:
            continue
        if parameter.grad.layout != torch.strided:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.copy_(vector[columns].view_as(parameter.grad))


def _is_part_of(value: Tensor, row: Tensor) -> bool:
    """Whether a tensor can be a part of the row as it is."""
    alike = value.dtype == row.dtype and value.device == row.device
    return alike and value.layout == torch.strided


def _address(value: Tensor) -> int:
    """Where a tensor lies; no row's is -1."""
    return value.data_ptr() if value.layout == torch.strided else -1


def _dense(value: Tensor) -> Tensor:
    return value if value.layout == torch.strided else value.to_dense()


def positions(parameters: Parameters) -> Iterator[slice]:
    """Where each parameter lies in the long vector."""
    start = 0
    for parameter in parameters:
        yield slice(start, start + parameter.numel())
        start += parameter.numel()
