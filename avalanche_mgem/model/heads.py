"""Which layers of a model are its output heads: by class and name, or by the graph of its output.

Names and module order are a guess, good before anything has run. `HeadWatch` sees it in one forward
pass: a head is a layer from which a way leads to the output that no other layer is on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from avalanche_mgem.arguments import as_list, suggestion
from avalanche_mgem.model.hooks import no_hook
from avalanche_mgem.model.lora import is_of_parameter
from avalanche_mgem.model.targets import Layers, convolves, inside, is_recurrent, join, wrapping

Heads = str | Sequence[str] | None

_HEAD_CLASSES = {"IncrementalClassifier", "MultiHeadClassifier"}
_HEAD_NAMES = {
    *("classifier", "aux_classifier", "classification_head", "score", "lm_head", "qa_outputs"),
}
_MOST_NODES = 100_000  # of a graph that is looked through; more would be felt


def head_names(
    model: nn.Module, layers: Layers, heads: Heads = None, seen: Iterable[str] | None = None
) -> list[str]:
    """Return the names of the modules that are, or contain, output heads.

    Args:
        model: whose heads they are.
        layers: those that may be heads, in module order.
        heads: names or shell patterns; None: the usual ones, see `find_gated_layers`.
        seen: those that a forward pass has shown, see `HeadWatch`; None: none has been watched.

    Raises:
        ValueError: a pattern that matches no module.
    """
    if heads is None:
        found = [head for head in _usual_heads(model, layers) if _has_layer(head, layers)]
        found += [] if seen is None else [head for head in seen if _has_layer(head, layers)]
        if found:
            return list(dict.fromkeys(found))
        return [name for name, module in layers.items() if _may_be_head(module)][-1:]
    check_heads(heads)
    names = [name for name, _ in model.named_modules()]
    found = []
    for pattern in [heads] if isinstance(heads, str) else heads:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            known = suggestion(pattern, filter(None, names))
            raise ValueError(f"heads: {pattern!r} matches no module; {known}")
        found += matched
    return found


def check_heads(heads: Heads) -> None:
    """Raise ValueError for heads that are neither None nor a name or pattern nor a list of them."""
    if not (heads is None or isinstance(heads, str)):
        as_list("heads", heads, str, what="None, a name or pattern, or a list of them")


def own_heads(heads: Heads) -> Heads:
    """Return names that no caller can change any more.

    Raises:
        ValueError: no names.
    """
    if heads is None or isinstance(heads, str):
        return heads
    return tuple(as_list("heads", heads, str, what="None, a string or a list of names"))


def _has_layer(head: str, layers: Layers) -> bool:
    return any(inside(name, head) for name in layers)


def _usual_heads(model: nn.Module, layers: Layers) -> Iterator[str]:
    top = model.get_submodule(wrapping(model))
    names = {id(module): name for name, module in model.named_modules()}
    for name, module in model.named_modules():
        if _HEAD_CLASSES & {parent.__name__ for parent in type(module).__mro__}:
            yield name
        get_output: Callable[[], object] | None = getattr(module, "get_output_embeddings", None)
        if get_output is not None or module is top:
            for child, part in module.named_children():
                if child in _HEAD_NAMES:
                    yield from _last_of(join(name, child), part, layers)
        # Models without such a layer have the method too; it returns None, which is no module.
        if get_output is not None and (output := id(get_output())) in names:
            yield names[output]


def _may_be_head(module: nn.Module) -> bool:
    """Whether the last such layer is taken for the head where no other is known."""
    if is_recurrent(module) or isinstance(module, nn.MultiheadAttention) or is_of_parameter(module):
        return False
    if convolves(module) or isinstance(module, nn.Bilinear):
        return True
    # Nothing but its name may be asked of a parameter that has no shape yet.
    return not any(p.ndim > 2 for p in module.parameters(recurse=False) if not is_lazy(p))


def _last_of(name: str, module: nn.Module, layers: Layers) -> list[str]:
    """Of a chain of layers that has a head's name, the last layer alone is the head."""
    own = [layer for layer in layers if inside(layer, name)]
    return own[-1:] if isinstance(module, nn.Sequential) else [name]


class HeadWatch:
    """Finds a model's output heads in the graph of one forward pass.

        watch = HeadWatch()
        watch.open(layers)
        output = model(x)
        watch.close(output)
        watch.found  # names of layers, or None

    A layer is a head if its output reaches an output of the model without passing another layer,
    and feeds no other layer that does: in a network with residual connections, whose every block
    reaches the output, the last one. Several outputs, in a tuple, a list, a mapping or a dataclass,
    have several heads; losses serve as outputs, as those of detectors.

    `found` is None where the graph cannot tell: no gradient is recorded, a layer that trains was
    called without one (reentrant activation checkpointing), or it is very large. A copy or a pickle
    has no hooks.
    """

    def __init__(self) -> None:
        self.found: tuple[str, ...] | None = None
        self._handles: list[RemovableHandle] = []
        self._nodes: dict[Any, str] = {}  # of the graph, at which a layer's output is
        self._is_whole = True

    def __getstate__(self) -> dict[str, object]:
        return {"found": self.found, "_handles": [], "_nodes": {}, "_is_whole": True}

    @property
    def is_open(self) -> bool:
        """Whether it waits for the model to be called."""
        return bool(self._handles)

    def open(self, layers: Mapping[str, nn.Module]) -> None:
        """Watch these layers until `close`."""
        self.close()
        self._is_whole = True
        for name, layer in layers.items():
            self._handles.append(layer.register_forward_hook(_LayerHook(self, name)))

    def close(self, output: object = None) -> None:
        """Take the hooks off; with the model's output, find the heads of it.

        Where the output cannot tell, what an earlier one has shown stays.
        """
        while self._handles:
            self._handles.pop().remove()
        if self._is_whole and self._nodes:
            ends = [tensor.grad_fn for tensor in _tensors(output) if tensor.grad_fn is not None]
            self.found = self._heads(ends) or self.found
        self._nodes = {}

    def note_layer(self, name: str, module: nn.Module, output: object) -> None:
        """Remember where in the graph a layer's output is."""
        nodes = [tensor.grad_fn for tensor in _tensors(output) if tensor.grad_fn is not None]
        if not nodes and any(p.requires_grad for p in module.parameters()):
            self._is_whole = False
        self._nodes |= dict.fromkeys(nodes, name)

    def _heads(self, ends: list[Any]) -> tuple[str, ...] | None:
        near = self._marked(ends)
        if not near:
            return None
        behind = self._marked([node for end in near for node in _next(end)], through=True)
        if behind is None:
            return None
        ends_here = dict.fromkeys(self._nodes[node] for node in near if node not in behind)
        # A layer that is called twice and feeds another the first time is none, unless all do.
        feeds = {self._nodes[node] for node in behind}
        return tuple(name for name in ends_here if name not in feeds) or tuple(ends_here)

    def _marked(self, starts: list[Any], *, through: bool = False) -> set[Any] | None:
        """The layers' nodes that are reached from others; through: also beyond layers."""
        found: set[Any] = set()
        visited: set[Any] = set()
        todo = list(starts)
        while todo:
            node = todo.pop()
            if node in visited:
                continue
            visited.add(node)
            if len(visited) > _MOST_NODES:
                return None
            if node in self._nodes:
                found.add(node)
                if not through:
                    continue
            todo += _next(node)
        return found


class _LayerHook:
    """Tells a watch what a layer returns; a copy of it, as in a copy of the model, does nothing."""

    def __init__(self, watch: HeadWatch, name: str) -> None:
        self._watch, self._name = watch, name

    def __call__(self, module: nn.Module, arguments: object, output: object) -> None:
        self._watch.note_layer(self._name, module, output)

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return no_hook, ()


def _next(node: Any) -> list[Any]:
    return [other for other, _ in node.next_functions if other is not None]


def _tensors(output: object) -> Iterator[Tensor]:
    """Yield the tensors of an output, which may be in containers."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
    elif is_dataclass(output) and not isinstance(output, type):
        for each in fields(output):
            yield from _tensors(getattr(output, each.name))
