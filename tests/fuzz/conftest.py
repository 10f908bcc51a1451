"""Where hostile calls are made: a folder of their own, and no hub."""

import shutil
import sys
from types import SimpleNamespace

import fuzz_targets
import pytest


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with the files that good arguments name, and their names."""
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fuzz_targets.write_files()
    return folder, {path.name for path in folder.iterdir()}


def _load_dataset(path, config, *, split):
    """What the hub has: the task "rte"."""
    if (path, config) != ("aps/super_glue", "rte"):
        raise ConnectionError(path)
    return [{"premise": "a", "hypothesis": "b", "label": label} for label in (0, 1)]


@pytest.fixture(autouse=True)
def tidy(prepared, monkeypatch):
    """Work in that folder, and look up no name on the hub; return what clears what calls wrote."""
    folder, names = prepared
    monkeypatch.chdir(folder)
    hub = SimpleNamespace(load_dataset=_load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    # Older transformers ask once, when they are imported.
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True, raising=False)

    def clear():
        for path in folder.iterdir():
            if path.name not in names:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    yield clear
    clear()
