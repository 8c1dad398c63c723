"""Sphinx configuration: `make docs`, or `python -m sphinx -W docs docs/_build`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "extensions")]

from coedge.core.version import VERSION  # noqa: E402

project = "CoEdge"
release = version = VERSION
copyright = "the CoEdge authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
extensions += ["reference_pages", "saved_results"]
exclude_patterns = ["_build", "extensions"]
myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 3

# `name` in docstrings is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "exclude-members": "model_config, model_copy"}
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = "CoEdge"
html_copy_source = False
html_show_sourcelink = False
