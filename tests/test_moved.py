"""What was written or imported before modules were moved."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

import avalanche_mgem
from avalanche_mgem.moved import _MOVED, former_module, present_module, present_name

PACKAGE = Path(avalanche_mgem.__file__).parent


@pytest.mark.parametrize("former", _MOVED)
def test_a_former_name_imports_the_present_module(former, monkeypatch):
    # An import leaves the module in its package, where it may hide a function of the same name.
    package, _, name = former.rpartition(".")
    monkeypatch.setitem(vars(import_module(package)), name, None)
    sys.modules.pop(former, None)
    with pytest.warns(DeprecationWarning, match=f"{former} is {_MOVED[former]} now"):
        assert import_module(former) is import_module(_MOVED[former])
    assert import_module(former) is import_module(_MOVED[former])  # and warns once


def test_names_are_imported_from_a_former_module():
    sys.modules.pop("avalanche_mgem.streams.image_folders", None)
    with pytest.warns(DeprecationWarning, match="image_folders is"):
        from avalanche_mgem.streams.image_folders import load_image_folder
    assert load_image_folder.__module__ == "avalanche_mgem.streams.vision.image_folders"


def test_no_former_name_is_taken_again():
    for former in _MOVED:
        path = PACKAGE.joinpath(*former.split(".")[1:])
        assert not path.with_suffix(".py").exists()
        assert not path.is_dir()


def test_other_names_stay_as_they_are():
    for name in ("avalanche_mgem.plugins.mgem", "torch.nn", "avalanche_mgem.streams.arrays"):
        assert former_module(name) == present_module(name) == name
    assert present_name("torch.optim.sgd.SGD") == "torch.optim.sgd.SGD"


def test_a_module_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match="never"):
        import_module("avalanche_mgem.experiment.never")
