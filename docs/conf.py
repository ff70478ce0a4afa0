"""Configuration of Sphinx."""

import sys
from pathlib import Path

import torch_func_compat

sys.path.insert(0, str(Path(__file__).parent))

import generate

project = "torch-func-compat"
author = "The torch-func-compat developers"
copyright = author
release = version = torch_func_compat.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_generated", "benchmarks"]
html_theme = "furo"
html_title = project
html_copy_source = False

myst_enable_extensions = ["attrs_block", "colon_fence"]
myst_heading_anchors = 3

napoleon_use_ivar = True  # attributes that have a docstring of their own are not listed twice
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures are upstream's; the docstrings say what the arguments are

generate.write_all()
