"""Sphinx's settings. `make docs` builds the site from the pages, into site/, without network.

docs/extensions/ holds what Sphinx does not do by itself: pages from outside docs/, mathematics as
MathML, fields of dataclasses, and what a docstring's list of parameters is.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "extensions"))

import pages  # noqa: E402  # it lies in docs/extensions

pages.stage(HERE.parent / ".cache" / "docs")  # where sphinx-build reads them
sys.path.insert(0, str(HERE.parent / ".cache" / "docs" / "package"))

project = "spikingjelly_signgd"
copyright = "spikingjelly_signgd developers"  # noqa: A001  # Sphinx's name
version = release = pages.version()

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "docstrings",
    "mathml",
]

# -- pages: what GitHub reads, too -------------------------------------------------------------

myst_enable_extensions = ["dollarmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 4  # with GitHub's slugs
math_numfig = False
highlight_language = "text"  # of blocks that name none: shells, what is printed
smartquotes_action = "D"  # dashes alone: "signed" and [T, ...] are code

# -- the reference, from docstrings ------------------------------------------------------------

# norse is real: the signatures of our layers are made of its own
autodoc_mock_imports = [
    "h5py",
    "lava",
    "matplotlib",
    "neurobench",
    "nir",
    "nirtorch",
    "spikingjelly",
]
autodoc_default_options = {"member-order": "bysource"}
autodoc_preserve_defaults = True  # `neurons=NEURONS`, not the whole table
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

nitpicky = True
suppress_warnings = ["ref.python"]  # two classes of one name: the first is the nearer one
nitpick_ignore_regex = [
    # types of other libraries, which have no pages here
    ("py:class", r"(torch|numpy|collections|contextlib|os|pathlib|dataclasses|spikingjelly)\..*"),
    # names that only type checkers import
    ("py:class", r"Tensor|Module|nn\.Module|Path|Size|NetworkModule|Neuron|Data|Batch"),
    # what networks and neurons are made of inside the package, and has no place in the reference
    ("py:class", r"spikingjelly_signgd\.(core|neurons|converters|exporters)\..*"),
    ("py:class", r"spikingjelly_signgd\.plugins\.norse\.generic\.Node(State|Parameters)"),
]

# -- the site ----------------------------------------------------------------------------------

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "spikingjelly_signgd"
html_static_path = [str(HERE / "static")]
html_css_files = ["style.css"]
# results with excerpts are fetched page by page, which browsers refuse to pages from the disk
html_js_files = [
    (None, {"body": "DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = location.protocol != 'file:'"})
]
html_copy_source = False
html_domain_indices = False  # of modules; the index of names stays
html_show_sphinx = False
html_math_renderer = "mathml"
html_theme_options = {
    "navigation_with_keys": True,
}
copybutton_exclude = ".linenos, .gp, .go"
linkcheck_anchors = False
linkcheck_timeout = 20
linkcheck_retries = 2
