"""What a model's output heads are given in a forward pass, and which of their layers it calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from avalanche_mgem.model.hooks import no_hook


class HeadInputs:
    """What was seen of the heads.

    Attributes:
        features: the first input [N, D] of a head, or of a layer in one, with its graph; None: no
            head has been given such a tensor.
        called: the names of the modules of the heads that were called, in this order.
    """

    def __init__(self) -> None:
        self.features: Tensor | None = None
        self.called: list[str] = []

    def note(self, name: str, values: Iterable[object]) -> None:
        """Note the call of a module with its arguments."""
        self.called.append(name)
        first = next((value for value in values if isinstance(value, Tensor)), None)
        is_matrix = first is not None and first.ndim == 2 and first.is_floating_point()
        if self.features is None and is_matrix:
            self.features = first


@contextmanager
def head_inputs(model: nn.Module, heads: Iterable[str]) -> Iterator[HeadInputs]:
    """See what the modules called `heads`, and all in them, are given within the window.

        with head_inputs(model, ["classifier"]) as seen:
            model(x)
        seen.features  # the features z before the head

    Hooks are taken off on the way out; in a copy of the model they do nothing.
    """
    seen = HeadInputs()
    handles = []
    try:
        for name in _inside(model, heads):
            hook = _InputHook(seen, name)
            module = model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _inside(model: nn.Module, heads: Iterable[str]) -> list[str]:
    """Return the names of the heads and of what is in them, each once."""
    return list(
        dict.fromkeys(
            f"{head}.{name}" if name else head
            for head in heads
            for name, _ in model.get_submodule(head).named_modules()
        )
    )


class _InputHook:
    """Tells what a module is given; a copy of it, as in a copy of the model, does nothing."""

    def __init__(self, seen: HeadInputs, name: str) -> None:
        self._seen, self._name = seen, name

    def __call__(
        self, module: nn.Module, arguments: tuple[object, ...], named: Mapping[str, object]
    ) -> None:
        self._seen.note(self._name, (*arguments, *named.values()))

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return no_hook, ()
