"""Configuration of Sphinx."""

import torch_func_compat

project = "torch-func-compat"
author = "The torch-func-compat developers"
copyright = author
release = version = torch_func_compat.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = project

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures are upstream's; the docstrings say what the arguments are
