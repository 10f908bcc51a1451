"""Models made for a stream's samples and classes."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from avalanche_mgem.arguments import as_list, as_text, bounded_int, one_of, suggestion

if TYPE_CHECKING:
    from torch import nn

# A factory is made and described without torch, which is imported when it makes a model.
ModelFactory = Callable[[tuple[int, ...], int], "nn.Module"]
Heads = Literal["single", "growing", "multi"]
HEADS: tuple[str, ...] = get_args(Heads)
Norm = Literal["batch", "group", "none"]
NORMS: tuple[str, ...] = get_args(Norm)


class MLPFactory:
    """Makes multi-layer perceptrons: flattened input, hidden layers with ReLU, linear output.

    Called with the shape of a sample and the number of classes.

    Args:
        hidden: widths of the hidden layers; (100, 100) is GEM's for MNIST.
        heads: "single", "growing" (as classes come) or "multi" (one a task label).

    Raises:
        ValueError: a width that is no whole number >= 1, unknown heads.
    """

    def __init__(self, hidden: Sequence[int] = (100, 100), *, heads: Heads = "single") -> None:
        self.hidden = _widths("hidden", hidden)
        self.heads = one_of("heads", heads, HEADS)

    def __call__(self, sample_shape: tuple[int, ...], n_classes: int) -> nn.Module:
        """Return a new perceptron, initialised from torch's global random state."""
        from torch import nn

        from avalanche_mgem.experiment.networks import with_head

        widths = [math.prod(sample_shape), *self.hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        return with_head(layers, widths[-1], n_classes, self.heads)

    def __repr__(self) -> str:
        return f"MLPFactory(hidden={self.hidden}{_told(self.heads)})"


class SlimResNet18Factory:
    """Makes GEM's reduced ResNet-18 (arXiv 1706.08840) for images of any size, grey or coloured.

    Called with the shape of a sample (C, H, W) and the number of classes, which raises ValueError
    for other shapes.

    Args:
        width: feature maps of the first stage, doubled by each of the three others; GEM's is 20.
        heads: "single", "growing" (as classes come) or "multi" (one a task label).

    Raises:
        ValueError: a width that is no whole number >= 1, unknown heads.
    """

    def __init__(self, width: int = 20, *, heads: Heads = "single") -> None:
        self.width = bounded_int("width", width)
        self.heads = one_of("heads", heads, HEADS)

    def __call__(self, sample_shape: tuple[int, ...], n_classes: int) -> nn.Module:
        """Return a new network, initialised from torch's global random state."""
        from avalanche_mgem.experiment.networks import slim_resnet18_body, with_head

        body = slim_resnet18_body(_channels(self, sample_shape), self.width)
        return with_head(body, 8 * self.width, n_classes, self.heads)

    def __repr__(self) -> str:
        return f"SlimResNet18Factory(width={self.width}{_told(self.heads)})"


class CNNFactory:
    """Makes networks of 3x3 convolutions with stride 2, batch norm and ReLU, and a linear output.

    The default is the mGEM paper's network for Split CIFAR-100 (arXiv 2410.00868): the paper says
    five convolution layers, their widths, stride 2 and batch norm; the kernel, the padding of 1 and
    the linear output after the last width are ours. Called with the shape of a sample (C, H, W) and
    the number of classes, which raises ValueError for other shapes.

    Args:
        channels: widths of the layers; the last is the number of features of the output layer.
        heads: "single", "growing" (as classes come) or "multi" (one a task label).
        norm: after each convolution: "batch", "group" (of 8 groups of channels) or "none".

    Raises:
        ValueError: no layer, a width that is no whole number >= 1, unknown heads or norm.
    """

    norm: str = "batch"  # of factories that are older

    def __init__(
        self,
        channels: Sequence[int] = (128, 256, 512, 1024, 100),
        *,
        heads: Heads = "single",
        norm: Norm = "batch",
    ) -> None:
        self.channels = _widths("channels", channels)
        self.heads = one_of("heads", heads, HEADS)
        self.norm = one_of("norm", norm, NORMS)
        if not self.channels:
            raise ValueError("channels must have at least one width, got none")

    def __call__(self, sample_shape: tuple[int, ...], n_classes: int) -> nn.Module:
        """Return a new network, initialised from torch's global random state."""
        from avalanche_mgem.experiment.networks import cnn_body, with_head

        body = cnn_body(_channels(self, sample_shape), self.channels, self.norm)
        return with_head(body, self.channels[-1], n_classes, self.heads)

    def __repr__(self) -> str:
        norm = "" if self.norm == "batch" else f", norm={self.norm!r}"  # as of the heads
        return f"CNNFactory(channels={self.channels}{_told(self.heads)}{norm})"


def bound_to(factory: ModelFactory, scenario: Any) -> ModelFactory:
    """Return the factory as it is for a scenario, by its method `for_scenario` if it has one."""
    bind = getattr(factory, "for_scenario", None)
    bound: ModelFactory = factory if bind is None else bind(scenario)
    return bound


def criterion_of(factory: ModelFactory) -> nn.Module:
    """Return the loss for a factory's models: what its method `criterion` returns, if it has one.

    Else cross entropy.
    """
    from torch import nn

    own = getattr(factory, "criterion", None)
    criterion: nn.Module = nn.CrossEntropyLoss() if own is None else own()
    return criterion


MODELS: dict[str, Callable[..., ModelFactory]] = {
    "mlp": MLPFactory,
    "slim-resnet18": SlimResNet18Factory,
    "cnn5": CNNFactory,
}


def make_model_factory(
    name: str, *, heads: str = "single", hidden: Sequence[int] | None = None
) -> ModelFactory:
    """Return the factory called `name`.

    Args:
        name: one of MODELS, or "package.module:factory" for `load_model_factory`.
        heads: of the networks; a factory of the user's own decides that itself.
        hidden: widths of the hidden layers, of "mlp" only; None: its default.

    Raises:
        ValueError: an unknown name, heads or hidden for a model that does not take them, and what
            `load_model_factory` raises.
    """
    as_text("model", name)
    known_heads = cast(Heads, one_of("heads", heads, HEADS))
    if hidden is not None and name != "mlp":
        raise ValueError(f"hidden={hidden!r} is for the model 'mlp' only, got model={name!r}")
    if ":" in name:
        if heads != "single":
            raise ValueError(
                f"heads={heads!r} is for {', '.join(MODELS)}; {name!r} decides its heads itself"
            )
        return load_model_factory(name)
    if name not in MODELS:
        raise ValueError(
            f"model={name!r} is unknown; {suggestion(name, MODELS)}, or 'package.module:factory'"
        )
    if hidden is not None:
        return MLPFactory(hidden, heads=known_heads)
    return MODELS[name](heads=known_heads)


def load_model_factory(path: str) -> ModelFactory:
    """Import the model factory at `path`, "package.module:factory".

    The current directory is searched last, and stays on sys.path, so that worker processes find the
    module too.

    Raises:
        ValueError: `path` has not that form; there is no such module, or it cannot be imported;
            there is no such attribute in it, or it cannot be called.
    """
    module_name, _, attribute = as_text("model", path).partition(":")
    if not module_name or not attribute.isidentifier():
        raise ValueError(f"model must be given as 'package.module:factory', got {path!r}")
    module = _import(module_name, path)
    factory = getattr(module, attribute, None)
    if factory is None:
        names = [name for name, value in vars(module).items() if callable(value)]
        raise ValueError(
            f"model={path!r}: the module {module_name} has no {attribute!r}; "
            f"{suggestion(attribute, names)}"
        )
    if not callable(factory):
        raise ValueError(
            f"model={path!r} must be callable with a sample's shape and the number of classes, "
            f"got {type(factory).__name__}"
        )
    made: ModelFactory = factory
    return made


def _import(module_name: str, path: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
        importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # the module is the user's, and may do anything
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            reason = f"there is no module {missing!r} in {here} or among the installed ones"
        else:
            reason = f"importing {module_name} failed ({type(error).__name__}: {error})"
        raise ValueError(f"model={path!r}: {reason}") from error


def _widths(name: str, values: Sequence[int]) -> tuple[int, ...]:
    widths = as_list(name, values, object, what="a list of whole numbers >= 1")
    return tuple(bounded_int(f"{name}[{i}]", value) for i, value in enumerate(widths))


def _channels(factory: object, sample_shape: tuple[int, ...]) -> int:
    if len(sample_shape) != 3:
        raise ValueError(f"{factory!r} needs images (C, H, W), got sample_shape={sample_shape}")
    return sample_shape[0]


def _told(heads: str) -> str:
    # A single head goes unsaid: the repr is part of the identity of runs from before there were
    # others.
    return "" if heads == "single" else f", heads={heads!r}"
