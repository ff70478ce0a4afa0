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

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_generated", "benchmarks"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = project
html_copy_source = False
html_domain_indices = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]

myst_enable_extensions = ["attrs_block", "colon_fence"]
myst_heading_anchors = 3

napoleon_use_ivar = True  # attributes that have a docstring of their own are not listed twice
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures are upstream's; the docstrings say what the arguments are
autosummary_generate_overwrite = True

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

generate.write_all()
