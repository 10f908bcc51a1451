"""What holds the rows still that may not move: in the gradient, or through any optimiser's step.

MIGU (arXiv 2406.17245, eq. 4-6) makes the gradients of masked rows zero after the backward pass.
That holds a row still under plain SGD only: momentum, the moments of Adam and weight decay go on
moving it. `hold_rows` is our way to hold it still under any optimiser, whoever calls its step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn, optim

from avalanche_mgem.model.stand_in import KeptRows, is_element_wise, step_kept_rows
from avalanche_mgem.model.units import GatedLayer, Slices
from avalanche_mgem.restriction.rows import masked_positions


def mask_gradients(layers: Iterable[GatedLayer], kept: Mapping[str, Tensor]) -> None:
    """Make the gradients of the rows that are not kept zero, in place.

    Kept rows stay as they are to the bit; None stays None. A gradient that is infinite or NaN is
    NaN in a masked row, so that whoever looks for overflows still sees it.

    Args:
        layers: whose rows' gradients are masked; biases are left alone.
        kept: of each layer by its name, bool [n]; a layer that has none is left alone.
    """
    for rows in intersected(kept_rows_of(layers, kept)):
        if (gradient := rows.parameter.grad) is not None:
            mask = rows.slices.mask(rows.kept, gradient.ndim)
            gradient.detach().mul_(mask.to(gradient.dtype))


def kept_rows_of(layers: Iterable[GatedLayer], kept: Mapping[str, Tensor]) -> Iterator[KeptRows]:
    """Yield what is kept of the parameters' rows; layers without a mask are left out.

    Args:
        layers: that have the parameters.
        kept: of each layer's units by its name, bool of the layer's shape.
    """
    for layer in layers:
        if layer.name in kept:
            for rows in layer.rows:
                mask = rows.spread(kept[layer.name])
                yield KeptRows(rows.name, rows.parameter, Slices(rows.own_dims), mask)


class RowKeeper:
    """Holds masked rows still through an optimiser's step, to the bit (ours).

        keeper.save(layers, kept, optimizer)
        optimizer.step()
        keeper.restore()

    What is copied are the masked rows of the layers' weights and of the optimiser's state that has
    such rows (moments, momentum buffers), and only between the two calls. State that the step
    has made is put to zero in masked rows, which is where torch's optimisers begin; Rprop's step
    sizes begin at the learning rate and stay as made, which they do where the gradient is zero.
    Counters of steps belong to whole parameters and run on. State that is not of floating point,
    such as that of 8-bit optimisers, is left as the step has it.
    """

    def __init__(self) -> None:
        self._held: list[_Held] = []

    def __getstate__(self) -> dict[str, object]:
        return {"_held": []}

    def save(
        self,
        layers: Iterable[GatedLayer],
        kept: Mapping[str, Tensor],
        optimizer: optim.Optimizer,
    ) -> None:
        """Copy the rows that are not kept; `kept` as in `mask_gradients`."""
        self._held = list(_held(intersected(kept_rows_of(layers, kept)), optimizer))

    def restore(self) -> None:
        """Put the rows back; without a `save` before, nothing."""
        held, self._held = self._held, []
        for rows in held:
            rows.restore()


class _Held:
    """The masked rows of one parameter and of its optimiser's state."""

    def __init__(self, rows: KeptRows, index: Tensor, optimizer: optim.Optimizer) -> None:
        self._rows, self._index, self._optimizer = rows, index, optimizer
        self._copies = {
            key: slices.select(tensor, index) for key, tensor, slices in self._tensors()
        }

    def _tensors(self) -> Iterator[tuple[str | None, Tensor, Slices]]:
        """What has such rows and where: the parameter, under None, its state by its key."""
        yield None, self._rows.parameter.detach(), self._rows.slices
        yield from _state_rows(self._rows, self._optimizer.state.get(self._rows.parameter, {}))

    def restore(self) -> None:
        for key, tensor, slices in self._tensors():
            if key in self._copies:
                slices.copy(tensor, self._index, self._copies[key])
            elif key != "step_size":
                slices.fill(tensor, self._index, 0.0)


def _held(masks: Iterable[KeptRows], optimizer: optim.Optimizer) -> Iterator[_Held]:
    rows = list(masks)
    positions = masked_positions({i: row.kept.flatten() for i, row in enumerate(rows)})
    for i, index in positions.items():
        if index.numel() > 0:
            yield _Held(rows[i], index, optimizer)


def _state_rows(
    rows: KeptRows, state: Mapping[str, object]
) -> Iterator[tuple[str, Tensor, Slices]]:
    """The optimiser's state, by its key, that has rows as the parameter has, and where they lie.

    A row may be one number: Adafactor's are, [n, 1] (torch) or [n] (transformers). Adafactor's
    columns are all rows' and no part.
    """
    shape, dims = rows.parameter.shape, rows.slices.dims
    for key, value in state.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if value.ndim == len(shape) and all(value.shape[dim] == shape[dim] for dim in dims):
            yield key, value, rows.slices
        # A vector may fit both ways, so its name says which dimension it is the mean over.
        without = len(shape) - (1 if key.endswith("_row") else 2 if key.endswith("_col") else 0)
        if without not in dims and value.shape == (*shape[:without], *shape[without + 1 :]):
            yield key, value, Slices(tuple(dim - (without < dim) for dim in dims))


def hold_rows(
    optimizer: optim.Optimizer,
    layers: Iterable[GatedLayer],
    kept: Mapping[str, Tensor],
    *,
    still: Iterable[nn.Parameter] = (),
) -> StepHold:
    """Hold rows still through every step of an optimiser, until `remove` (ours).

        hold = hold_rows(optimizer, layers, kept)
        optimizer.step()
        hold.remove()

    Masked rows of parameters and of their optimiser's state do not change by one bit, whoever
    calls `step`: a gradient scaler, a learning rate scheduler's wrapper, accelerate. Parameters
    without a gradient are left alone, and layers of which all is kept cost nothing. Several holds
    on one optimiser add up: a row moves where all of them keep it.

    torch's own element-wise optimisers (SGD, Adam, AdamW, ...) are shown the kept rows only, as
    small parameters of their own: on a CPU one after another, which takes hardly any memory and on
    the whole no longer than a plain step; on an accelerator all at once. An error in a step leaves
    some rows stepped and others not, as it does in a plain one, but masked rows untouched. The kept
    rows move as in a plain step, to the bit but for kernels that round the last few elements of a
    tensor differently (torch's fused ones on a CPU, and most in half precision).

    Of any other optimiser, and where `step` is given a closure, the masked rows are put back after
    the step, as by `RowKeeper`, which also says what becomes of state that is made in a step. An
    error in such a step leaves masked rows as the step has them.

    Args:
        optimizer: whose steps are held; of accelerate's wrapper, the one inside. A copy or a pickle
            of it is not held.
        layers: whose rows are held; biases are left alone.
        kept: of each layer by its name, bool [n]; a layer that has none is left alone.
        still: parameters of which nothing may move, as if they had no gradient.

    Raises:
        ValueError: a mask that has not as many rows as its layer.
    """
    while "param_groups" not in vars(optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    layers = list(layers)
    for layer in layers:
        mask = kept.get(layer.name)
        if mask is not None and layer.rows and mask.shape != layer.shape:
            raise ValueError(
                f"kept must be bool {list(layer.shape)} for {layer.name!r}, got {tuple(mask.shape)}"
            )
    masks = [rows.on_its_device() for rows in kept_rows_of(layers, kept)]
    return StepHold(optimizer, masks, still)


class StepHold:
    """What `hold_rows` holds, until `remove`. A copy or a pickle of it holds nothing."""

    def __init__(
        self,
        optimizer: optim.Optimizer,
        masks: Iterable[KeptRows],
        still: Iterable[nn.Parameter],
    ) -> None:
        self._masks, self._still = list(masks), list(still)
        self._end: Callable[[], None] | None = None
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def __getstate__(self) -> dict[str, object]:
        return {"_masks": [], "_still": [], "_end": None, "_hooks": []}

    def remove(self) -> None:
        """Take the hooks off the optimiser; a second time, nothing."""
        while self._hooks:
            self._hooks.pop().remove()
        self._masks, self._still, self._end = [], [], None

    def _before_step(
        self, optimizer: optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._end = None
        holds = _holds_on(optimizer)
        if holds[0] is not self:
            return None  # it has held the rows of all
        still = {id(parameter): parameter for hold in holds for parameter in hold._still}
        masks = intersected(rows for hold in holds for rows in hold._masks)
        masks = [rows for rows in masks if id(rows.parameter) not in still]
        has_closure = kwargs.get("closure", args[1] if len(args) > 1 else None) is not None
        if not has_closure and is_element_wise(optimizer, masks):
            return (step_kept_rows(optimizer, masks, still), *args[1:]), kwargs
        put_back = _PutBack(optimizer, masks, still.values())
        self._end = put_back.end
        return put_back.arguments(args, kwargs)

    def _after_step(
        self, optimizer: optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        end, self._end = self._end, None
        if end is not None:
            end()


def _holds_on(optimizer: optim.Optimizer) -> list[StepHold]:
    hooks = optimizer._optimizer_step_pre_hooks.values()
    owners = [getattr(hook, "__self__", None) for hook in hooks]
    return [owner for owner in owners if isinstance(owner, StepHold)]


def intersected(masks: Iterable[KeptRows]) -> list[KeptRows]:
    """Each parameter once, with the rows that are kept wherever it is used."""
    found: dict[tuple[int, Slices], KeptRows] = {}
    for rows in masks:
        key = id(rows.parameter), rows.slices
        found[key] = rows._replace(kept=rows.kept & found[key].kept) if key in found else rows
    return list(found.values())


class _PutBack:
    """What holds rows and parameters through a step that sees them all."""

    def __init__(
        self,
        optimizer: optim.Optimizer,
        masks: list[KeptRows],
        still: Iterable[nn.Parameter],
    ) -> None:
        self._held = list(_held(masks, optimizer))
        self._still, self._gradients = list(still), list[tuple[nn.Parameter, Tensor]]()

    def arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the step's arguments, a closure made to hide the gradients that it makes."""
        self._hide()
        closure = kwargs.get("closure")
        if closure is not None:
            return args, {**kwargs, "closure": lambda: self._hide(closure())}
        if len(args) > 1 and args[1] is not None:
            return (args[0], lambda: self._hide(args[1]()), *args[2:]), kwargs
        return args, kwargs

    def _hide(self, loss: Any = None) -> Any:
        for parameter in self._still:
            if parameter.grad is not None:
                self._gradients.append((parameter, parameter.grad))
                parameter.grad = None
        return loss

    def end(self) -> None:
        for held in self._held:
            held.restore()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
