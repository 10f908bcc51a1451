"""The command avalanche-mgem: a module a command, and groups of options that commands share."""

from avalanche_mgem.cli.app import app, main

__all__ = ["app", "main"]
