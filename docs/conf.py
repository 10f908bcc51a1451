"""How Sphinx builds these documents: `python -m sphinx -W docs docs/_build`."""

from avalanche_mgem import __version__

project = "avalanche_mgem"
copyright = "the avalanche_mgem authors"  # Sphinx's name for it
release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = f"avalanche_mgem {release}"
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["config.cache"]  # nb_render_priority and the like are not picklable

nb_execution_mode = "force"
nb_execution_timeout = 900  # seconds a cell, on a busy machine too
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"


def _as_text(*event):
    """Let |y| and name* in a docstring be what they are, no markup of reStructuredText."""
    lines = event[-1]
    lines[:] = [line.replace("|", r"\|").replace("*", r"\*") for line in lines]


def setup(app):
    """Register what is done to docstrings before napoleon reads them."""
    app.connect("autodoc-process-docstring", _as_text, priority=100)
