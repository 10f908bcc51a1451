"""The methods as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from avalanche_mgem.arguments import as_list
from avalanche_mgem.methods.method import Method
from avalanche_mgem.methods.registry import DEFAULT_METHODS, METHODS, TEXT_METHODS


def methods_table(methods: Iterable[Method] | None = None) -> Table:
    """Return a table of the methods: name, description, and a line for each setting.

    methods: None: all of METHODS.

    A setting that follows from the comparison's memory budget is shown as "memory" (patterns an
    experience) or "memory x experiences".
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, caption_justify="left")
    table.caption = Text(
        "memory: the patterns kept of each experience, the same for every method. "
        "Those that are plugins are combined with +, as replay+migu. "
        "lora, inclora and olora need: pip install 'avalanche-mgem[hf]'. "
        f"Without names, these are compared: {', '.join(DEFAULT_METHODS)}; "
        f"on text: {', '.join(TEXT_METHODS)}."
    )
    table.add_column("Method", no_wrap=True)
    table.add_column("What it does")
    table.add_column("Settings", no_wrap=True, overflow="fold")
    shown = METHODS.values() if methods is None else methods
    for method in as_list("methods", shown, Method, what="a list of methods"):
        settings = "\n".join(f"{name}={value}" for name, value in method.settings.items())
        table.add_row(Text(method.name), Text(method.description), Text(settings or "-"))
    return table
