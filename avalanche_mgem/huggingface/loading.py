"""Models and tokenizers of transformers by a name on the hub or a folder, with clear errors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from os import fspath
from pathlib import Path
from typing import Any, cast

from avalanche_mgem.arguments import as_path, as_text


def require(package: str) -> Any:
    """Return the package, imported.

    Raises:
        ImportError: it is not installed; the message says which pip install gets it.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ImportError(
            f"this needs {package}, which is not installed: pip install 'avalanche-mgem[hf]'"
        ) from error


def load_pretrained(
    model: str | Path, kind: str = "AutoModel", *, argument: str = "model", **options: Any
) -> Any:
    """Return a pre-trained model of transformers.

    model: a name on the hub, or a local folder as `save_pretrained` writes it. kind: the class of
    transformers that loads it, such as "AutoModelForSeq2SeqLM"; "AutoConfig" loads what the model
    is, and no weights. argument: what errors call `model`.
    options: for `from_pretrained`. Warns where the model has weights that were not found (a head
    that is new, or a folder of something else); those are random.

    Raises:
        ValueError: there is no such model, or it cannot be loaded as that kind.
        ImportError: transformers, or what this model needs besides, is not installed.
    """
    loader = getattr(require("transformers"), as_text("kind", kind), None)
    if not hasattr(loader, "from_pretrained"):
        raise ValueError(f"kind must be a class of transformers that loads models, got {kind!r}")
    if kind == "AutoConfig":
        return _from_pretrained(loader, model, argument, **options)
    found, info = _from_pretrained(loader, model, argument, output_loading_info=True, **options)
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name.split("."))
    if missing:
        warnings.warn(
            f"{argument}={str(model)!r}: it holds no weights for {', '.join(missing[:5])}"
            f"{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}, which are random now",
            stacklevel=2,
        )
    return found


def load_tokenizer(tokenizer: str | Path, *, argument: str = "tokenizer", **options: Any) -> Any:
    """Return the tokenizer of a name on the hub or a local folder; options: for `AutoTokenizer`.

    Raises:
        ValueError: there is no such tokenizer, or it cannot be loaded.
        ImportError: transformers, or what this tokenizer needs besides, is not installed.
    """
    loader = require("transformers").AutoTokenizer
    return _from_pretrained(loader, tokenizer, argument, **options)


def checked_name(argument: str, name: object) -> str:
    """Return what may be a name on the hub or a folder, as a str, or raise ValueError."""
    as_path(argument, name)
    # As it is written: "./model" is a folder only.
    return as_text(argument, fspath(cast(Any, name)), what="a name on the hub or a folder")


def require_folder(argument: str, name: str | Path) -> Path:
    """Return the folder that a name may stand for; raises ValueError for a path to none."""
    folder = as_path(as_text("argument", argument), name).expanduser()
    is_path = isinstance(name, Path) or str(name).startswith(("/", ".", "~"))
    if is_path and not folder.is_dir():
        raise ValueError(f"{argument}={str(name)!r} is no folder")
    return folder


def _from_pretrained(loader: Any, name: str | Path, argument: str, **options: Any) -> Any:
    folder = require_folder(argument, name)
    try:
        with _quiet():
            return loader.from_pretrained(str(folder if folder.is_dir() else name), **options)
    except ImportError:
        raise
    except Exception as error:  # of OS, hub, JSON, safetensors, configurations, ...
        wanted = (
            f"is a folder that {loader.__name__} cannot load"
            if folder.is_dir()
            else "is neither a local folder nor a name on the hub that can be loaded"
        )
        raise ValueError(f"{argument}={str(name)!r} {wanted}: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing bars and reports; what matters of them is said by us."""
    logging = require("transformers").utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
