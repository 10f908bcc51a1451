"""What works without the extras, and what else says: a script that prints both as JSON."""

import contextlib
import importlib
import json
import pkgutil
import tempfile
from pathlib import Path

# Python 3.12 has no distutils of its own, which Avalanche's GPUtil imports: setuptools brings it by
# a file in site-packages, and -S reads none of these.
with contextlib.suppress(ImportError):
    from _distutils_hack import add_shim

    add_shim()

from typer.testing import CliRunner

import avalanche_mgem
from avalanche_mgem import huggingface
from avalanche_mgem.cli import app
from avalanche_mgem.streams.text import read_text_tasks

TINY = ("--experiences=2", "--train-per-experience=20", "--test-per-experience=20")
MODULES = {"avalanche_mgem": avalanche_mgem}


def told(call):
    """What an ImportError of the call says; None: there is none."""
    try:
        call()
    except ImportError as error:
        return str(error)
    return None


def import_(name):
    MODULES[name] = importlib.import_module(name)


def compare(methods, *options):
    """The exit code, the output, and the number of runs that were stored."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["compare", f"--methods={methods}", f"--out={folder}/out", "--seeds=1"]
        done = CliRunner().invoke(app, [*arguments, "--jobs=1", *options])
        return [done.exit_code, done.output, len([*Path(folder).glob("out/runs/*")])]


names = [found.name for found in pkgutil.walk_packages(avalanche_mgem.__path__, "avalanche_mgem.")]
modules = {name: told(lambda name=name: import_(name)) for name in names}
public = {
    f"{module}.{name}": told(lambda part=part, name=name: getattr(part, name))
    for module, part in MODULES.items()
    for name in getattr(part, "__all__", ())
}
calls = {
    "text_classifier": lambda: huggingface.text_classifier("some/model"),
    "text_to_text": lambda: huggingface.text_to_text("some/model", None, ["good", "bad"]),
    "causal_answers": lambda: huggingface.causal_answers("some/model", None, ["good", "bad"]),
    "masked_language_model": lambda: huggingface.masked_language_model("some/model"),
    "load_tokenizer": lambda: huggingface.load_tokenizer("some/model"),
    "LoRAPlugin": huggingface.LoRAPlugin,
    "IncLoRAPlugin": huggingface.IncLoRAPlugin,
    "OLoRAPlugin": huggingface.OLoRAPlugin,
    "read_text_tasks": lambda: read_text_tasks("agnews"),
}
print(
    json.dumps(
        {
            "modules": modules,
            "public": public,
            "calls": {name: told(call) for name, call in calls.items()},
            "plain": compare("naive,mgem-p,migu,hybrid", *TINY),
            "adapters": compare("lora", *TINY),
            "text": compare("migu", "--stream=text", "--tasks=agnews", "--model=some/model"),
        }
    )
)
